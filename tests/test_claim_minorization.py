"""The claim "minorization": holds, and fails for plausible mistakes."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from trpo.rules.mm import MM
from trpo.tabular import bounds, exact
from trpo.theory.claims.minorization import checks, claim, measure
from trpo.theory.claims.minorization import climb as runs
from trpo.theory.claims.minorization.measure import HARD, contact, detour
from trpo.theory.shared.ensemble import ensemble
from trpo.trees import namespace


def shrink(monkeypatch, shapes, cap):
    """Few MDPs, few iterations: what is compiled without optimisation runs slowly."""
    monkeypatch.setattr(measure, "SHAPES", shapes)
    monkeypatch.setattr(measure, "CAP", cap)
    monkeypatch.setattr(measure, "NAMED", len(shapes) - 1)
    monkeypatch.setattr(measure, "RIVAL_UPDATES", 40)
    monkeypatch.setattr(runs, "CHUNK", 20)
    monkeypatch.setattr(runs, "WIDTH", 8)


@pytest.fixture
def failing(monkeypatch, x64):
    """Which checks fail now: a function, to be called after patching. ``run`` compiles afresh every time."""
    shrink(monkeypatch, ((5, 2, 3),), 40)
    # The rivals have no part in the checks, and take as long to compile as MM.
    monkeypatch.setattr(runs, "rival_runs", lambda rule, length: lambda d, mdp, logits: 2 * (np.zeros((8, length)),))
    return lambda: {check.name for check in claim.run(7).checks if not check.passed}


@pytest.fixture
def out_of_contact(x64):
    """The same for the checks that need no MM."""
    groups = ensemble(8, 0, ((5, 2, 3),), 1.5)
    rng = np.random.default_rng
    return lambda: {c.name for c in checks.contact_checks(contact(groups, rng(0)), 8) if not c.passed}


def test_holds(x64, tmp_path, monkeypatch):
    shrink(monkeypatch, ((5, 2, 3),), 200)
    outcome = claim.run(16, tmp_path)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert len(outcome.pictures) == 3
    assert all((tmp_path / picture.file).stat().st_size > 0 for picture in outcome.pictures)


def test_a_penalty_of_first_order_is_noticed(out_of_contact, monkeypatch):
    def total_variation(mdp, old, new):
        tv = exact.total_variation(old, new)
        return bounds.penalty_coefficient(mdp, old) * namespace(tv).max(tv, axis=-1)

    monkeypatch.setattr(bounds, "theorem_1_kl", total_variation)
    assert out_of_contact() == {"contact is of second order"}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("epsilon", lambda mdp, old: namespace(old).mean(abs(exact.advantage(mdp, old)), axis=(-2, -1))),
        ("penalty_coefficient", lambda mdp, old, right=bounds.penalty_coefficient: right(mdp, old) / 100),
    ],
    ids=["a mean in place of the largest advantage", "C/100"],
)
def test_too_small_a_constant_is_noticed(out_of_contact, monkeypatch, name, wrong):
    monkeypatch.setattr(bounds, name, wrong)
    assert "lies below" in out_of_contact()


def test_the_other_direction_of_the_kl_is_noticed(failing, monkeypatch):
    right = exact.kl
    for module in (exact, bounds):
        monkeypatch.setattr(module, "kl", lambda p, q: right(q, p))
    assert "the library's own account" in failing()


def test_a_missing_penalty_is_noticed(failing, monkeypatch):
    monkeypatch.setattr(runs, "MM", lambda coefficient: MM(coefficient=1e-6 * coefficient))
    assert {"maximum", "law of the step"} <= failing()


@pytest.mark.parametrize("factor", [-1.0, 0.9], ids=["wrong sign", "short of the maximum"])
def test_another_step_is_noticed(failing, monkeypatch, factor):
    right = MM._log_ratio
    monkeypatch.setattr(MM, "_log_ratio", lambda self, p, b: factor * right(self, p, b))
    assert "maximum" in failing()


def test_the_hard_mdps_are_as_hard_as_they_claim(x64):
    """(L − η)/(C max KL) has the closed form that ``detour`` states."""
    group, direction = detour(HARD)
    leave = np.minimum(1 - HARD, 0.4)
    expected = ((1 - HARD) / (1 - HARD + HARD * leave)) ** 2 * 2 * leave / (1 + 2 * leave)
    new = exact.softmax(group.logits + 1e-4 * direction)
    missing = exact.surrogate(group.mdp, group.policy, new) - exact.expected_return(group.mdp, new)
    np.testing.assert_allclose(missing / bounds.theorem_1_kl(group.mdp, group.policy, new), expected, rtol=5e-2)


def test_lanes_are_filled_with_whoever_is_waiting(x64, monkeypatch):
    """Every MDP is run to its end and none twice, however few lanes there are."""
    monkeypatch.setattr(runs, "CHUNK", 5)
    monkeypatch.setattr(runs, "WIDTH", 3)
    group = ensemble(7, 0, ((2, 2, 2),), 1.0)[0]
    seen = []

    def chunk(mdp, scale, logits):
        """Stand-in for MM: each iteration adds 1 to a logit."""
        seen.append(mdp.discount)
        path = logits[:, None] + np.arange(1, 6)[None, :, None, None] * np.eye(2)[0]
        before = np.concatenate([logits[:, None], path[:, :-1]], axis=1)
        many = mdp.__class__(*(np.repeat(x[:, None], 5, axis=1) for x in vars(mdp).values()))
        eta = exact.expected_return(many, exact.softmax(before))
        return runs.Iteration(eta, np.zeros_like(eta), np.zeros_like(eta), np.ones_like(eta), path)

    climb = runs.climb(chunk, group, np.full(7, 1e6), 20)
    assert climb.gain.size == 7 * 20
    assert np.all(np.isinf(climb.iterations))
    before, after, whose = climb.steps
    assert sorted(whose) == sorted(2 * list(range(7)))
    np.testing.assert_allclose(after[..., 0] - before[..., 0], 1.0, rtol=1e-9)
    assert jnp.isfinite(climb.curve).all()
