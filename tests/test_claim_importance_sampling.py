"""The claim "importance sampling": holds, and fails for plausible mistakes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

import trpo.fisher
import trpo.objectives
import trpo.problem
from trpo.distributions import Categorical
from trpo.tabular import exact
from trpo.theory.claims.importance_sampling import claim, measure, paths
from trpo.theory.shared.ensemble import ensemble
from trpo.theory.shared.paths import state_frequencies

SIZE = 16


@pytest.fixture
def failing(monkeypatch, x64):
    """Which checks fail now: a function, to be called after patching. ``run`` compiles afresh every time."""

    def one_shape(size, seed, sharpest):
        return ensemble(size, seed, ((4, 2, 3),), sharpest)

    monkeypatch.setattr(measure, "ensemble", one_shape)
    monkeypatch.setattr(paths, "named_angles", dict)
    return lambda: {check.name for check in claim.run(SIZE).checks if not check.passed}


def test_holds(x64, tmp_path):
    outcome = claim.run(SIZE, tmp_path)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert len(outcome.pictures) == 3
    assert all((tmp_path / picture.file).stat().st_size > 0 for picture in outcome.pictures)


def _surrogate(monkeypatch, formula):
    """Replace the library's surrogate by Σ w · formula(log π_θ(a), log π_old(a), Â)."""

    def wrong(distribution, action, old_log_prob, advantage, weight):
        return jnp.sum(weight * formula(distribution.log_prob(action), old_log_prob, advantage))

    monkeypatch.setattr(trpo.problem, "importance_sampled_surrogate", wrong)


def test_weights_dropped_are_noticed(failing, monkeypatch):
    monkeypatch.setattr(trpo.objectives, "weighted_sum", lambda weight, x: jnp.mean(x))
    assert {"all pairs listed", "surrogate: unbiased, exact σ", "ratio: unbiased, exact σ"} <= failing()


def test_weights_not_normalised_are_noticed(failing, monkeypatch):
    monkeypatch.setattr(trpo.objectives, "weighted_sum", lambda weight, x: jnp.sum(jnp.where(weight > 0, x, 0)))
    assert {"all pairs listed", "surrogate: unbiased, exact σ", "ratio: unbiased, exact σ"} <= failing()


def test_ratio_inverted_is_noticed(failing, monkeypatch):
    """π_old/π_θ; the sign of the gradient changes with it."""
    _surrogate(monkeypatch, lambda new, old, advantage: jnp.exp(old - new) * advantage)
    assert {"all pairs listed", "surrogate: unbiased, exact σ", "gradient: unbiased, exact σ"} <= failing()


def test_ratio_missing_is_noticed(failing, monkeypatch):
    """π_θ Â without dividing by π_old."""
    _surrogate(monkeypatch, lambda new, old, advantage: jnp.exp(new) * advantage)
    assert {"all pairs listed", "surrogate: unbiased, exact σ", "ratio: unbiased, exact σ"} <= failing()


def test_log_probability_of_the_wrong_action_is_noticed(failing, monkeypatch):
    original = Categorical.log_prob
    # All MDPs here have two actions.
    monkeypatch.setattr(Categorical, "log_prob", lambda self, action: original(self, 1 - action))
    assert {"all pairs listed", "gradient: unbiased, exact σ", "γᵗ kept, gradient: unbiased, exact σ"} <= failing()


def test_fisher_without_weights_is_noticed(failing, monkeypatch):
    monkeypatch.setattr(trpo.fisher, "_weighted", lambda cotangent, weight: cotangent)
    noticed = failing()
    assert {"all pairs listed", "fisher: unbiased, exact σ", "γᵗ kept, fisher: unbiased, exact σ"} <= noticed
    assert {"variance near π", "natural gradient in a table"} <= noticed


def test_discount_weights_forgotten_are_noticed(failing, monkeypatch):
    """1/T where γᵗ was meant."""
    monkeypatch.setattr(paths, "discounted_weights", paths.equal_weights)
    assert {"γᵗ kept, gradient: unbiased, exact σ", "γᵗ kept, fisher: unbiased, exact σ"} <= failing()


def test_discount_weights_kept_where_dropped_are_noticed(failing, monkeypatch):
    monkeypatch.setattr(paths, "equal_weights", paths.discounted_weights)
    # So few MDPs show it in F only: a path's gradient is noisier.
    assert failing() == {"γᵗ dropped, fisher: unbiased, exact σ"}


def test_stationary_weights_in_place_of_the_visitation_are_noticed(failing, monkeypatch):
    """An oracle that drops γᵗ itself: its field is no gradient."""
    monkeypatch.setattr(exact, "state_weight", paths.stationary)
    assert {"γᵗ kept: a gradient", "γᵗ kept: bias of the cut"} <= failing()


def test_exact_weights_of_states_are_their_definitions():
    """Stationary weights, excess visits and cut visitation against long sums."""
    group = ensemble(8, 2, ((4, 3, 3),), sharpest=1.0)[0]
    states = state_frequencies(group.mdp, group.policy, 1001)
    limit = paths.stationary(group.mdp, group.policy)
    np.testing.assert_allclose(states[:, -1], limit, atol=1e-12)
    excess = (states[:, :-1] - limit[:, None]).sum(axis=1)
    np.testing.assert_allclose(paths.deviation(group.mdp, group.policy), excess, atol=1e-9)
    power = group.mdp.discount[:, None] ** np.arange(32)
    mean = (power[..., None] * states[:, :32]).sum(axis=1) / power.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(paths.cut_visitation(group.mdp, group.policy, 32), mean, rtol=1e-10)


def test_angle_is_accurate_when_small():
    x, y = np.array([[[3.0, 0.0]]] * 2), np.array([[[1.0, 1e-9]], [[0.0, 2.0]]])
    np.testing.assert_allclose(paths.angle(x, y), [np.degrees(1e-9), 90.0], rtol=1e-6)
