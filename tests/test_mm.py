"""Minorization-maximization: the rule's contract, and its maximiser against general optimisers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from trpo.distributions import Categorical
from trpo.problem import LocalProblem
from trpo.rules.mm import MM
from trpo.rules.protocol import Result
from trpo.tabular import MDP, bounds, chain, exact, exact_problem, garnet
from trpo.tabular.bridge import expected_surrogate


def problem_of(logits: Any, advantage: Any, weight: Any) -> LocalProblem:
    """A local problem from its parts; the advantages are centred here."""
    logits, advantage, weight = (jnp.asarray(x) for x in (logits, advantage, weight))
    policy = jax.nn.softmax(logits, axis=-1)
    advantage = advantage - jnp.sum(policy * advantage, axis=-1, keepdims=True)
    objective = jax.tree_util.Partial(expected_surrogate, advantage=advantage, weight=weight)
    return LocalProblem(jax.tree_util.Partial(Categorical), objective, Categorical(logits), weight)


def random_parts(seed: int, states: int, actions: int, sharpness: float = 1.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shape = (states, actions)
    return sharpness * rng.standard_normal(shape), rng.standard_normal(shape), rng.dirichlet(np.ones(states))


@jax.jit
def update(coefficient: Any, problem: LocalProblem, logits: Any) -> tuple:
    return MM(coefficient=coefficient).update(problem, logits, ())


def bound(problem: LocalProblem, coefficient: float, logits: Any) -> float:
    end = problem.evaluate(jnp.asarray(logits))
    return float(end.surrogate - coefficient * end.max_state_kl)


def by_scipy(logits: np.ndarray, advantage: np.ndarray, weight: np.ndarray, coefficient: float) -> list[np.ndarray]:
    """max L − C·D over π̃ and D, subject to KL_s ≤ D, by sequential quadratic programming from several starts."""
    p = exact.softmax(logits)
    b = weight[:, None] * (advantage - (p * advantage).sum(-1, keepdims=True))
    (states, actions), size = p.shape, p.size

    def room(x: np.ndarray) -> np.ndarray:
        return x[-1] - (p * np.log(p / x[:size].reshape(p.shape))).sum(-1)

    def room_slope(x: np.ndarray) -> np.ndarray:
        slope = np.eye(states)[:, :, None] * (p / x[:size].reshape(p.shape))
        return np.concatenate([slope.reshape(states, size), np.ones((states, 1))], axis=1)

    total = np.concatenate([np.kron(np.eye(states), np.ones(actions)), np.zeros((states, 1))], axis=1)
    found = [
        scipy.optimize.minimize(
            lambda x: coefficient * x[-1] - (b * x[:size].reshape(p.shape)).sum(),
            np.append(p.ravel(), start),
            jac=lambda x: np.append(-b.ravel(), coefficient),
            method="SLSQP",
            bounds=[(1e-10, 1)] * size + [(0, None)],
            constraints=[
                {"type": "ineq", "fun": room, "jac": room_slope},
                {"type": "eq", "fun": lambda x: total @ x - 1, "jac": lambda x: total},
            ],
            options={"maxiter": 1000, "ftol": 1e-14},
        )
        for start in (1e-3, 0.1, 1.0)
    ]
    return [np.log(np.maximum(each.x[:size], 1e-12)).reshape(p.shape) for each in found]


# --- the maximiser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [0.03, 0.3, 3.0])
@pytest.mark.parametrize(("states", "actions"), [(3, 2), (4, 3)])
def test_the_maximiser_is_that_of_scipy(states: int, actions: int, coefficient: float, x64: None) -> None:
    for seed in range(4):
        logits, advantage, weight = random_parts(seed, states, actions)
        problem = problem_of(logits, advantage, weight)
        new, _, info = update(coefficient, problem, jnp.asarray(logits))
        # What counts is M at the policies that were found, not what the optimiser says of them.
        best = max(bound(problem, coefficient, other) for other in by_scipy(logits, advantage, weight, coefficient))
        assert info.result == Result.ACCEPTED
        assert bound(problem, coefficient, new) == pytest.approx(best, rel=1e-6)
        assert bound(problem, coefficient, new) >= best * (1 - 1e-10)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0, 8.0])
def test_no_policy_nearby_or_far_has_a_larger_bound(sharpness: float, x64: None) -> None:
    rng = np.random.default_rng(0)
    for seed, coefficient in enumerate([1e-3, 0.1, 1.0, 1e3]):
        logits, advantage, weight = random_parts(seed, 4, 3, sharpness)
        problem = problem_of(logits, advantage, weight)
        new, _, _ = update(coefficient, problem, jnp.asarray(logits))
        step = np.asarray(new) - logits
        trials = [np.asarray(new) + 10.0**-k * rng.standard_normal(step.shape) for k in range(6) for _ in range(5)]
        trials += [logits + t * step for t in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)]
        best = bound(problem, coefficient, new)
        others = jax.vmap(problem.evaluate)(jnp.asarray(np.stack(trials)))
        assert np.all(others.surrogate - coefficient * others.max_state_kl <= best + 1e-9 * abs(best))


def test_its_conditions_hold(x64: None) -> None:
    """Every state has the same KL D, and the prices 1/u_s, read off b = λ − (1/u) π/π̃, sum to C."""
    coefficient, (logits, advantage, weight) = 2.0, random_parts(1, 4, 3)
    new, _, info = update(coefficient, problem_of(logits, advantage, weight), jnp.asarray(logits))
    p, q = exact.softmax(logits), exact.softmax(np.asarray(new))
    np.testing.assert_allclose(exact.kl(p, q), float(info.max_state_kl), rtol=1e-9)
    b, x = weight[:, None] * advantage, p / q
    price = (b[:, 1:] - b[:, :1]) / (x[:, :1] - x[:, 1:])
    np.testing.assert_allclose(price, price[:, :1] * np.ones((1, 2)), rtol=1e-6)
    assert price[:, 0].sum() == pytest.approx(coefficient, rel=1e-6)


def test_steps_shorten_as_the_price_rises(x64: None) -> None:
    logits, advantage, weight = random_parts(2, 4, 3)
    problem = problem_of(logits, advantage, weight)
    price = jnp.asarray([1e-2, 0.1, 1.0, 10.0, 1e3, 1e6])
    info = jax.jit(jax.vmap(lambda c: update(c, problem, jnp.asarray(logits))[2]))(price)
    assert np.all(np.diff(info.max_state_kl) < 0)
    b = weight[:, None] * np.asarray(problem.objective.keywords["advantage"])
    deviation = np.sqrt((exact.softmax(logits) * b**2).sum(-1)).sum()
    np.testing.assert_allclose(info.max_state_kl[-1], deviation**2 / (2 * 1e6**2), rtol=1e-4)


def test_without_a_price_it_is_greedy(x64: None) -> None:
    logits, advantage, weight = random_parts(3, 4, 3)
    problem = problem_of(logits, advantage, weight)
    new, _, info = update(0.0, problem, jnp.asarray(logits))
    assert info.result == Result.ACCEPTED
    np.testing.assert_allclose(exact.softmax(np.asarray(new)).max(-1), 1.0, atol=1e-9)
    np.testing.assert_array_equal(np.argmax(new, -1), np.argmax(problem.objective.keywords["advantage"], -1))


# --- what it is for --------------------------------------------------------------------------------------------------


def test_it_never_decreases_the_return(x64: None) -> None:
    """Nor gains less than promised (eq. 10), until nothing is left that rounding does not hide."""
    rng = np.random.default_rng(0)
    mdp = garnet(rng, 4, 3, 3, rng.uniform(0.2, 0.9, 16))
    logits = jnp.asarray(rng.standard_normal(mdp.reward.shape))
    mdp = jax.tree.map(jnp.asarray, mdp)

    def iterate(logits: Any, mdp: MDP) -> tuple:
        policy = exact.softmax(logits)
        coefficient = (1 - mdp.discount) * bounds.penalty_coefficient(mdp, policy)
        new, _, _ = MM(coefficient=coefficient).update(exact_problem(mdp, logits), logits, ())
        promise = bounds.lower_bound(mdp, policy, exact.softmax(new))
        return new, (exact.expected_return(mdp, policy), promise)

    def climb(logits: Any, mdp: MDP) -> tuple:
        return jax.lax.scan(lambda theta, _: iterate(theta, mdp), logits, None, length=200)[1]

    eta, promise = jax.jit(jax.vmap(climb))(logits, mdp)
    rounding = 1e-12 * (1 + np.abs(np.asarray(eta)))
    assert np.all(np.diff(eta, axis=1) >= -rounding[:, 1:])
    assert np.all(eta[:, 1:] >= promise[:, :-1] - rounding[:, 1:])
    assert np.all(eta[:, -1] > eta[:, 0])


def test_the_bound_touches_at_the_sampling_policy(x64: None) -> None:
    mdp = chain(4)
    policy = exact.softmax(np.random.default_rng(0).standard_normal(mdp.reward.shape))
    np.testing.assert_allclose(bounds.lower_bound(mdp, policy, policy), exact.expected_return(mdp, policy), rtol=1e-14)


# --- the rule's contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [1.0, 10.0, 40.0])
def test_accepted_means_that_the_bound_improved(sharpness: float, x64: None) -> None:
    """Otherwise the parameters are returned bit for bit."""
    accepted = 0
    for seed in range(6):
        logits, advantage, weight = random_parts(seed, 4, 3, sharpness)
        problem = problem_of(logits, advantage, weight)
        for coefficient in (1e-3, 1.0, 1e4):
            new, _, info = update(coefficient, problem, jnp.asarray(logits))
            if info.result == Result.ACCEPTED:
                accepted += 1
                assert info.max_state_kl > 0
                assert info.surrogate_gain > coefficient * info.max_state_kl - 1e-15
                assert np.all(np.isfinite(new))
            else:
                np.testing.assert_array_equal(new, logits)
                assert info.step_norm == info.max_state_kl == 0
    assert accepted >= 6


def test_zero_advantages_are_no_signal(x64: None) -> None:
    logits, _, weight = random_parts(0, 3, 2)
    zeros = LocalProblem(
        jax.tree_util.Partial(Categorical),
        jax.tree_util.Partial(expected_surrogate, advantage=jnp.zeros((3, 2)), weight=jnp.asarray(weight)),
        Categorical(jnp.asarray(logits)),
        jnp.asarray(weight),
    )
    new, _, info = update(1.0, zeros, jnp.asarray(logits))
    assert info.result == Result.NO_SIGNAL
    np.testing.assert_array_equal(new, logits)


@pytest.mark.parametrize(
    ("advantage", "coefficient", "result"),
    [(np.nan, 1.0, Result.NONFINITE_GRADIENT), (1.0, np.nan, Result.NONFINITE_TRIAL)],
)
def test_what_is_not_finite_is_refused(advantage: float, coefficient: float, result: Result, x64: None) -> None:
    logits, other, weight = random_parts(0, 3, 2)
    other[1, 0] *= advantage
    new, _, info = update(coefficient, problem_of(logits, other, weight), jnp.asarray(logits))
    assert info.result == result
    np.testing.assert_array_equal(new, logits)


def test_extinct_and_impossible_actions(x64: None) -> None:
    """An action of probability 0 stays so; one of probability e⁻⁵⁰ can come back if it is worth it."""
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, -50.0, 0.0], [0.0, -800.0, 0.0], [0.0, 0.0, 0.0]])
    advantage = np.array([[1.0, 0.0, -1.0], [-1.0, 5.0, -1.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    problem = problem_of(logits, advantage, np.full(4, 1 / 4))
    new, _, info = update(1e-3, problem, jnp.asarray(logits))
    assert info.result == Result.ACCEPTED
    assert new[0, 1] == -np.inf
    assert new[2, 1] == -800.0
    assert new[1, 1] > new[1, 0]
    assert np.all(np.isfinite(jax.nn.softmax(new, axis=-1)))


def test_worse_actions_stop_at_a_probability_that_can_be_represented(x64: None) -> None:
    logits, advantage, weight = random_parts(4, 4, 3)
    new = jnp.asarray(logits)
    for _ in range(3):
        new, _, _ = update(1e-9, problem_of(new, advantage, weight), new)
    assert np.ptp(new, axis=-1).max() <= 60 + 1e-9


def test_float32(x64: None) -> None:
    """Single precision finds the same maximum, to its own accuracy, for long steps and for short ones."""
    for seed, coefficient in enumerate([0.1, 1.0, 30.0]):
        logits, advantage, weight = (np.asarray(x, np.float32) for x in random_parts(seed, 4, 3))
        narrow, wide = problem_of(logits, advantage, weight), problem_of(*map(np.float64, (logits, advantage, weight)))
        new, _, info = update(jnp.float32(coefficient), narrow, jnp.asarray(logits))
        exactly, _, _ = update(coefficient, wide, jnp.asarray(logits, np.float64))
        assert new.dtype == np.float32
        assert info.result == Result.ACCEPTED
        best = bound(wide, coefficient, exactly)
        assert bound(wide, coefficient, np.asarray(new, np.float64)) == pytest.approx(best, rel=1e-4)


def test_vmap_is_a_loop(x64: None) -> None:
    """Also where the best action is far ahead: an optimising compiler may compute b twice, and round differently."""
    parts = [random_parts(seed, 4, 3, sharpness=4.0) for seed in range(24)]
    logits, advantage, weight = (jnp.asarray(np.stack(x)) for x in zip(*parts, strict=True))

    def one(logits: Any, advantage: Any, weight: Any) -> Any:
        return MM(coefficient=0.05).update(problem_of(logits, advantage, weight), logits, ())[2].surrogate_gain

    # The suite compiles without optimisation, which would hide this.
    optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    together = jax.jit(jax.vmap(one), compiler_options=optimised)(logits, advantage, weight)
    apart = [float(update(0.05, problem_of(*each), jnp.asarray(each[0]))[2].surrogate_gain) for each in parts]
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_another_coefficient_is_not_another_program(x64: None) -> None:
    logits, advantage, weight = random_parts(6, 4, 3)
    problem, traces = problem_of(logits, advantage, weight), 0

    @jax.jit
    def counted(rule: MM) -> Any:
        nonlocal traces
        traces += 1
        return rule.update(problem, jnp.asarray(logits), ())[2].max_state_kl

    found = [float(counted(MM(coefficient=jnp.asarray(c)))) for c in (0.1, 1.0, 10.0)]
    assert traces == 1
    assert found[0] > found[1] > found[2] > 0


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="coefficient=-1"):
        MM(coefficient=-1.0)
    with pytest.raises(ValueError, match="tolerance=0"):
        MM(tolerance=0.0)
    assert MM().init(jnp.zeros((2, 2))) == ()
