"""The claim "performance-difference identity": holds, and fails for plausible mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trpo.tabular import exact
from trpo.theory.claims.performance_difference import claim, measure
from trpo.theory.shared import paths
from trpo.theory.shared.ensemble import ensemble

SIZE = 32


def failing() -> set[str]:
    return {check.name for check in claim.run(SIZE).checks if not check.passed}


def test_holds(tmp_path):
    outcome = claim.run(SIZE, tmp_path)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(math.isfinite(check.worst) for check in outcome.checks)
    assert all((tmp_path / picture.file).stat().st_size > 0 for picture in outcome.pictures)
    assert len(outcome.pictures) == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_holds_for_other_seeds(seed):
    outcome = claim.run(SIZE, seed=seed)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]


def test_wrong_visitation_is_noticed(monkeypatch):
    """ρ_π instead of ρ_π̃ is L_π, not η."""
    monkeypatch.setattr(
        exact,
        "performance_difference",
        lambda mdp, old, new: exact.surrogate(mdp, old, new) - exact.expected_return(mdp, old),
    )
    assert {"identity, random MDPs", "identity, named MDPs", "residual is rounding"} <= failing()


def test_visitation_without_start_is_noticed(monkeypatch):
    def from_anywhere(mdp, policy):
        matrix = np.swapaxes(exact._resolvent(mdp, policy), -1, -2)
        return exact._solve(matrix, np.full_like(mdp.start, 1 / mdp.states))

    monkeypatch.setattr(exact, "visitation", from_anywhere)
    assert {"identity, random MDPs", "identity, named MDPs"} <= failing()


def test_values_in_place_of_action_values_are_noticed(monkeypatch):
    """A = r + γV(s) − V(s): the value of where one is, not of where one gets to."""
    monkeypatch.setattr(
        exact, "action_value_of", lambda mdp, value: mdp.reward + (mdp.discount[..., None] * value)[..., None]
    )
    assert {"identity, random MDPs", "identity, named MDPs", "simulated: unbiased, exact σ"} <= failing()


def test_advantages_of_the_new_policy_are_noticed(monkeypatch):
    """Σ_a π̃ A_π̃ = 0 everywhere: the candidate's own advantages tell nothing."""
    monkeypatch.setattr(
        exact,
        "performance_difference",
        lambda mdp, old, new: (
            exact.visitation(mdp, new) * exact.expected_advantage(exact.advantage(mdp, new), new)
        ).sum(axis=-1),
    )
    assert "identity, random MDPs" in failing()


def test_normalised_visitation_in_simulation_is_noticed(monkeypatch):
    """(1 − γ)ρ instead of ρ."""
    original = measure.geometric_sums

    def normalised(rng, mdp, policy, f, count):
        return (1 - mdp.discount)[:, None] * original(rng, mdp, policy, f, count)

    monkeypatch.setattr(measure, "geometric_sums", normalised)
    assert "simulated: unbiased, exact σ" in failing()


def _standardised(samples, moments):
    return (samples - moments.mean[:, None]) / moments.deviation[:, None]


def test_exact_moments_are_those_of_the_simulation():
    """Mean, deviation, skewness and kurtosis against 20000 simulated paths, geometric and of fixed length."""
    group = ensemble(12, 3, ((3, 2, 2),), sharpest=2.0)[0]
    rng = np.random.default_rng(0)
    f = rng.standard_normal(group.mdp.reward.shape)
    count = 20_000
    weight = group.mdp.discount[:, None] ** np.arange(7)
    state, action = paths.simulate(rng, group.mdp, group.policy, count, 7)
    which = np.arange(group.size)[:, None, None]
    fixed = (weight[:, None] * f[which, state, action]).sum(axis=-1)
    geometric = paths.geometric_sums(rng, group.mdp, group.policy, f, count)
    for samples, moments in (
        (geometric, paths.geometric_moments(group.mdp, group.policy, f)),
        (fixed, paths.path_moments(group.mdp, group.policy, f, weight)),
    ):
        z = _standardised(samples, moments)
        np.testing.assert_allclose(z.mean(axis=-1), 0, atol=5 / math.sqrt(count))
        error = np.sqrt((moments.kurtosis + 2) / count)
        assert np.all(np.abs((z**2).mean(axis=-1) - 1) < 5 * error)
        np.testing.assert_allclose((z**3).mean(axis=-1), moments.skewness, atol=0.6)
        np.testing.assert_allclose((z**4).mean(axis=-1) - 3, moments.kurtosis, atol=0.2, rtol=0.4)


def test_moments_of_draws():
    p, x = np.array([[0.25, 0.75]]), np.array([[1.0, 0.0]])
    moments = paths.draw_moments(p, x)
    np.testing.assert_allclose(moments.mean, 0.25)
    np.testing.assert_allclose(moments.deviation**2, 3 / 16)
    np.testing.assert_allclose(moments.kurtosis, (1 - 6 * 3 / 16) / (3 / 16))
    assert paths.draw_moments(p, np.ones((1, 2))).kurtosis == np.inf
