"""The claim "surrogate": holds, and fails for plausible mistakes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

import trpo.problem
from trpo.tabular import bridge, exact
from trpo.theory.claims.surrogate import claim, measure
from trpo.theory.claims.surrogate.derivatives import complex_step_gradient, second_order
from trpo.theory.shared.ensemble import ensemble

SHAPE = ((4, 3, 3),)
"""One shape of MDPs, since each is compiled separately. ``run`` compiles afresh every time, so patches take effect."""


@pytest.fixture
def failing(monkeypatch, x64):
    """Which checks fail now: a function, to be called after patching."""
    monkeypatch.setattr(measure, "ensemble", lambda size, seed: ensemble(size, seed, SHAPE))
    return lambda: {check.name for check in claim.run(16).checks if not check.passed}


def test_holds(x64, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ensemble", lambda size, seed: ensemble(size, seed, ((2, 2, 2), (8, 4, 3))))
    outcome = claim.run(32, tmp_path)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert len(outcome.pictures) == 2
    assert all((tmp_path / picture.file).stat().st_size > 0 for picture in outcome.pictures)


def test_uniform_weights_are_noticed(failing, monkeypatch):
    """All states alike, as if every state had been visited equally often."""
    monkeypatch.setattr(bridge, "state_weight", lambda mdp, policy: jnp.full(mdp.states, 1 / mdp.states))
    assert {
        "value elsewhere",
        "gradient: theorem",
        "gradient: derivative of η",
        "error is of second order",
    } <= failing()


def test_unnormalised_visitation_is_noticed(failing, monkeypatch):
    monkeypatch.setattr(bridge, "state_weight", exact.visitation)
    assert {"value elsewhere", "gradient: theorem", "gradient: derivative of η"} <= failing()


def test_action_values_for_advantages_are_noticed(failing, monkeypatch):
    """Q has the gradient of A, as every baseline has; the value at π gives it away."""
    monkeypatch.setattr(bridge, "advantage", exact.action_value)
    noticed = failing()
    assert {"value at π", "value elsewhere"} <= noticed
    assert "gradient: derivative of η" not in noticed


def test_rewards_for_advantages_are_noticed(failing, monkeypatch):
    monkeypatch.setattr(bridge, "advantage", lambda mdp, policy: mdp.reward)
    assert {"value at π", "gradient: theorem", "gradient: derivative of η"} <= failing()


def test_importance_ratio_dropped_is_noticed(failing, monkeypatch):
    """Σ w Â without the ratio is a constant."""
    monkeypatch.setattr(
        trpo.problem,
        "importance_sampled_surrogate",
        lambda distribution, action, old_log_prob, advantage, weight: jnp.sum(
            weight * advantage * (1 + 0 * distribution.log_prob(action))
        ),
    )
    assert failing() == {"importance-sampled form", "gradient: importance-sampled form"}


def test_log_probability_for_ratio_is_noticed(failing, monkeypatch):
    """Σ w Â log π has the right gradient at π and nowhere else: only values away from π tell."""
    monkeypatch.setattr(
        trpo.problem,
        "importance_sampled_surrogate",
        lambda distribution, action, old_log_prob, advantage, weight: jnp.sum(
            weight * advantage * (distribution.log_prob(action) - old_log_prob)
        ),
    )
    assert failing() == {"importance-sampled form"}


def test_wrong_coefficient_is_noticed(failing, monkeypatch):
    """The shift of the visitation after one step only, as if what follows from it didn't count."""

    def one_step(mdp, logits, direction):
        policy = exact.softmax(logits)
        d_policy = policy * (direction - (policy * direction).sum(axis=-1, keepdims=True))
        moved = (exact.visitation(mdp, policy)[:, None] @ exact.state_transition(mdp, d_policy))[:, 0]
        return mdp.discount[:, None] * moved, second_order(mdp, logits, direction)[1]

    monkeypatch.setattr(measure, "second_order", one_step)
    assert failing() == {"coefficient of t²", "approach to the coefficient"}


def test_complex_step_is_the_derivative():
    """Against central differences of η."""
    group = ensemble(6, 1, ((3, 2, 2),), sharpest=2.0)[0]
    gradient, h = complex_step_gradient(group.mdp, group.logits), 1e-5
    direction = np.random.default_rng(0).standard_normal(group.logits.shape)
    up, down = (exact.expected_return(group.mdp, exact.softmax(group.logits + s * h * direction)) for s in (1, -1))
    np.testing.assert_allclose((gradient * direction).sum(axis=(-2, -1)), (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
