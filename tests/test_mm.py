"""Minorization-maximization: the maximiser against SciPy's, the rule's contract, and the theorem."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import trpo
from trpo.results import Result
from trpo.tabular import MDP, bounds, chain, exact, garnet


def mdp_and_logits(seed: int, states: int = 3, actions: int = 3, sharpness: float = 1.0) -> tuple[MDP, np.ndarray]:
    rng = np.random.default_rng(seed)
    mdp = garnet(rng, states, actions, 2, 0.8)
    return mdp, sharpness * rng.standard_normal((states, actions))


def bound(mdp: MDP, coefficient: float, logits: np.ndarray, other: np.ndarray) -> float:
    """(1 − γ)(L − η) − C max_s KL, by the oracle."""
    old, new = exact.softmax(logits), exact.softmax(other)
    gain = (exact.state_weight(mdp, old) * exact.expected_advantage(exact.advantage(mdp, old), new)).sum()
    return float(gain - coefficient * exact.kl(old, new).max())


def scipys_maximum(mdp: MDP, coefficient: float, logits: np.ndarray) -> float:
    """Maximise the bound over all policies and D, the largest KL, with a general-purpose solver."""
    old = exact.softmax(logits)
    worth = exact.state_weight(mdp, old)[:, None] * exact.advantage(mdp, old)

    def split(x: np.ndarray) -> tuple[np.ndarray, float]:
        return exact.softmax(logits + x[:-1].reshape(logits.shape)), x[-1]

    def loss(x: np.ndarray) -> float:
        new, largest = split(x)
        return float(coefficient * largest - (worth * new).sum())

    def room(x: np.ndarray) -> np.ndarray:
        new, largest = split(x)
        return largest - exact.kl(old, new)

    found = scipy.optimize.minimize(
        loss,
        np.zeros(logits.size + 1),
        method="SLSQP",
        constraints={"type": "ineq", "fun": room},
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return float(-found.fun)


@jax.jit
def _update(rule: Any, mdp: MDP, logits: Any) -> tuple[Any, trpo.UpdateInfo]:
    new, _, info = rule.update(trpo.exact_problem(mdp, logits), logits, ())
    return new, info


def update(rule: Any, mdp: MDP, logits: Any) -> tuple[Any, trpo.UpdateInfo]:
    return _update(rule, jax.tree.map(jnp.asarray, mdp), jnp.asarray(logits))


@pytest.mark.parametrize("coefficient", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 3.0])
def test_the_maximiser_is_scipys(coefficient: float, sharpness: float, x64: None) -> None:
    for seed in range(3):
        mdp, logits = mdp_and_logits(seed, sharpness=sharpness)
        new, info = update(trpo.MM(coefficient), mdp, logits)
        ours, theirs = bound(mdp, coefficient, logits, np.asarray(new)), scipys_maximum(mdp, coefficient, logits)
        assert info.result == Result.ACCEPTED
        assert ours > 0
        # SLSQP stops a little short of the maximum; nothing may be above ours.
        assert theirs <= ours * (1 + 1e-7) + 1e-12
        assert theirs >= 0.98 * ours - 1e-7


def test_no_policy_nearby_or_far_has_a_larger_bound(x64: None) -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        mdp, logits = mdp_and_logits(seed, 4, 3, 2.0)
        new = np.asarray(update(trpo.MM(0.3), mdp, logits)[0])
        best = bound(mdp, 0.3, logits, new)
        for size in (1e-4, 1e-2, 1.0):
            others = [bound(mdp, 0.3, logits, new + size * rng.standard_normal(new.shape)) for _ in range(50)]
            assert max(others) <= best + 1e-14


def test_every_state_that_moves_has_the_same_kl(x64: None) -> None:
    mdp, logits = mdp_and_logits(1, 4, 3)
    new, info = update(trpo.MM(2.0), mdp, logits)
    kl = exact.kl(exact.softmax(logits), exact.softmax(np.asarray(new)))
    np.testing.assert_allclose(kl, info.max_state_kl, rtol=1e-6)


def test_it_never_decreases_the_return(x64: None) -> None:
    """Equation 10, iteration by iteration, with the paper's own constant."""

    @jax.jit
    def step(mdp: MDP, logits: Any) -> Any:
        policy = exact.softmax(logits)
        rule = trpo.MM((1 - mdp.discount) * bounds.penalty_coefficient(mdp, policy))
        new, _, info = rule.update(trpo.exact_problem(mdp, logits), logits, ())
        return new, exact.expected_return(mdp, policy), bounds.lower_bound(mdp, policy, exact.softmax(new)), info.result

    for mdp, logits in (mdp_and_logits(0), mdp_and_logits(1, sharpness=3.0), (chain(), np.zeros((5, 2)))):
        traced, logits = jax.tree.map(jnp.asarray, mdp), jnp.asarray(logits)
        before = -np.inf
        promised = -np.inf
        for _ in range(200):
            logits, reached, next_promise, result = step(traced, logits)
            assert reached >= before - 1e-12 * abs(reached)
            assert reached >= promised - 1e-12 * abs(reached)
            assert result == Result.ACCEPTED
            before, promised = float(reached), float(next_promise)
        assert before > exact.expected_return(mdp, exact.softmax(np.zeros(mdp.reward.shape))) - 10


def test_a_dearer_nat_buys_a_shorter_step(x64: None) -> None:
    mdp, logits = mdp_and_logits(2)
    steps = [float(update(trpo.MM(10.0**k), mdp, logits)[1].max_state_kl) for k in range(-3, 5)]
    assert all(near < far for far, near in itertools.pairwise(steps))
    # For short steps √D = Σ_s σ_s/√2 / C: D falls with the square of C.
    np.testing.assert_allclose(steps[-1] / steps[-2], 1e-2, rtol=1e-2)


def test_info_is_what_the_oracle_says(x64: None) -> None:
    mdp, logits = mdp_and_logits(3)
    new, info = update(trpo.MM(0.5), mdp, logits)
    old, policy = exact.softmax(logits), exact.softmax(np.asarray(new))
    kl, weight = exact.kl(old, policy), exact.state_weight(mdp, old)
    np.testing.assert_allclose(info.max_state_kl, kl.max(), rtol=1e-9)
    np.testing.assert_allclose(info.mean_kl, (weight * kl).sum(), rtol=1e-9)
    gain = (weight * exact.expected_advantage(exact.advantage(mdp, old), policy)).sum()
    np.testing.assert_allclose(info.surrogate_gain, gain, rtol=1e-9)
    assert info.step_norm > 0


def test_an_extinct_action_that_is_good_comes_back(x64: None) -> None:
    mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], [1.0], 0.5)
    logits = jnp.asarray([[0.0, -60.0]])
    new, info = update(trpo.MM(0.1), mdp, logits)
    assert info.result == Result.ACCEPTED
    # x − C log 1/(1 − x) is largest at x = 1 − C.
    np.testing.assert_allclose(exact.softmax(np.asarray(new))[0, 1], 0.9, rtol=1e-6)


def test_no_signal_and_no_improvement_keep_the_parameters_bit_for_bit(x64: None) -> None:
    flat = MDP([[[1.0], [1.0]]], [[1.0, 1.0]], [1.0], 0.5)
    logits = jnp.asarray([[0.3, -0.2]])
    new, info = update(trpo.MM(1.0), flat, logits)
    assert info.result in (Result.NO_SIGNAL, Result.NO_IMPROVEMENT)
    np.testing.assert_array_equal(new, logits)
    bad = MDP([[[1.0], [1.0]]], [[1e308, -1e308]], [1.0], 0.99)
    new, info = update(trpo.MM(1.0), bad, logits)
    assert info.result != Result.ACCEPTED
    np.testing.assert_array_equal(new, logits)


def test_float32_works() -> None:
    mdp, logits = mdp_and_logits(4)
    new, info = update(trpo.MM(0.1), mdp, jnp.asarray(logits, jnp.float32))
    assert new.dtype == jnp.float32
    assert info.result == Result.ACCEPTED
    assert bound(mdp, 0.1, logits, np.asarray(new, float)) > 0


def test_one_compilation_serves_every_coefficient(x64: None) -> None:
    mdp, logits = mdp_and_logits(5)
    traces = 0

    @jax.jit
    def step(rule: trpo.MM, logits: Any) -> Any:
        nonlocal traces
        traces += 1
        return rule.update(trpo.exact_problem(mdp, logits), logits, ())[2].max_state_kl

    first, second = step(trpo.MM(1.0), jnp.asarray(logits)), step(trpo.MM(2.0), jnp.asarray(logits))
    assert traces == 1
    assert second < first


@pytest.mark.parametrize(("field", "value"), [("coefficient", -1.0), ("coefficient", float("nan")), ("tolerance", 0.0)])
def test_mistakes_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}="):
        trpo.MM(**{field: value})
