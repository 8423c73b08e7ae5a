"""The oracle itself: against definitions, sampling-free brute force and Gymnasium's own tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import trpo
from trpo.rules.mm import MM
from trpo.tabular import MDP, bounds, chain, cliff, exact, exact_problem, garnet, grid

NAMED = {"chain": chain(), "cliff": cliff(), "grid": grid(), "one state": MDP([[[1.0]]], [[2.0]], [1.0], 0.5)}
named = pytest.mark.parametrize("mdp", NAMED.values(), ids=NAMED)


def random_mdps(
    count: int = 20, states: int = 5, actions: int = 3, seed: int = 0
) -> tuple[MDP, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mdp = garnet(rng, states, actions, 3, rng.uniform(0.5, 0.99, count))
    logits, other = (2 * rng.standard_normal(mdp.reward.shape) for _ in range(2))
    return mdp, logits, other


def one(mdp: MDP, index: int = 0) -> MDP:
    return jax.tree.map(lambda leaf: leaf[index], mdp)


def random_policy(mdp: MDP, seed: int = 0) -> np.ndarray:
    return exact.softmax(np.random.default_rng(seed).standard_normal(mdp.reward.shape))


# --- exact quantities ------------------------------------------------------------------------------------------------


@named
def test_value_and_visitation_are_their_series(mdp: MDP) -> None:
    policy = random_policy(mdp)
    p = np.einsum("sa,sat->st", policy, mdp.transition)
    r = np.einsum("sa,sa->s", policy, mdp.reward)
    value, visitation, at_t = np.zeros(mdp.states), np.zeros(mdp.states), mdp.start
    ahead, weight = r, 1.0
    for _ in range(2000):
        value, visitation = value + weight * ahead, visitation + weight * at_t
        ahead, at_t, weight = p @ ahead, at_t @ p, weight * mdp.discount
    np.testing.assert_allclose(exact.value(mdp, policy), value, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(exact.visitation(mdp, policy), visitation, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(exact.state_weight(mdp, policy).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(exact.expected_return(mdp, policy), mdp.start @ value, rtol=1e-10)


@named
def test_action_value_solves_bellmans_equation(mdp: MDP) -> None:
    policy = random_policy(mdp)
    q = exact.action_value(mdp, policy)
    v = (policy * q).sum(-1)
    np.testing.assert_allclose(q, mdp.reward + mdp.discount * mdp.transition @ v, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(v, exact.value(mdp, policy), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((policy * exact.advantage(mdp, policy)).sum(-1), 0, atol=1e-10)


def test_batches_are_loops() -> None:
    mdp, logits, other = random_mdps(4)
    old, new = exact.softmax(logits), exact.softmax(other)
    for function in (exact.performance_difference, exact.surrogate, *bounds.BOUNDS.values(), bounds.lower_bound):
        together = function(mdp, old, new)
        apart = [function(one(mdp, i), old[i], new[i]) for i in range(4)]
        np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_jax_is_numpy(x64: None) -> None:
    mdp, logits, other = random_mdps(1)
    mdp, logits, other = one(mdp), logits[0], other[0]

    def all_of(mdp: MDP, logits: Any, other: Any) -> list[Any]:
        old, new = exact.softmax(logits), exact.softmax(other)
        return [
            exact.performance_difference(mdp, old, new),
            exact.policy_gradient(mdp, logits),
            exact.fisher(exact.state_weight(mdp, old), old),
            exact.kl(old, new),
            *(bound(mdp, old, new) for bound in bounds.BOUNDS.values()),
        ]

    numpy = all_of(mdp, logits, other)
    traced = jax.jit(all_of)(jax.tree.map(jnp.asarray, mdp), jnp.asarray(logits), jnp.asarray(other))
    for a, b in zip(numpy, traced, strict=True):
        assert not isinstance(a, jax.Array)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_performance_difference_is_the_difference_of_returns() -> None:
    mdp, logits, other = random_mdps(50)
    old, new = exact.softmax(logits), exact.softmax(other)
    difference = exact.expected_return(mdp, new) - exact.expected_return(mdp, old)
    scale = np.abs(exact.expected_return(mdp, new)) + np.abs(exact.expected_return(mdp, old))
    assert np.all(np.abs(exact.performance_difference(mdp, old, new) - difference) <= 1e-12 * scale)
    # With π's visitation in π̃'s place it is the surrogate, which is something else.
    assert not np.allclose(exact.surrogate(mdp, old, new), exact.expected_return(mdp, new), rtol=1e-3)


def test_policy_gradient_is_the_complex_step_derivative_of_the_return() -> None:
    mdp, logits, direction = random_mdps(10)
    step = exact.expected_return(mdp, exact.softmax(logits + 1e-30j * direction)).imag / 1e-30
    np.testing.assert_allclose(np.sum(exact.policy_gradient(mdp, logits) * direction, axis=(-2, -1)), step, rtol=1e-9)


def test_divergences_are_their_definitions() -> None:
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    np.testing.assert_allclose(exact.kl(p, q), [scipy.stats.entropy(p[0], q[0])])
    assert exact.kl(q, p) == np.inf
    np.testing.assert_allclose(exact.total_variation(p, q), [0.25])
    # TV is the largest difference of the probabilities of any event.
    events = [[bool(i >> a & 1) for a in range(3)] for i in range(8)]
    assert np.isclose(max(abs(p[0][e].sum() - q[0][e].sum()) for e in map(np.array, events)), 0.25)


def test_fisher_matrix_is_the_covariance_of_scores() -> None:
    mdp, logits, _ = random_mdps(1, states=3)
    policy = exact.softmax(logits)[0]
    weight = exact.state_weight(one(mdp), policy)
    expected = np.zeros((9, 9))
    for s in range(3):
        for a in range(3):
            score = np.zeros((3, 3))
            score[s] = np.eye(3)[a] - policy[s]
            expected += weight[s] * policy[s, a] * np.outer(score, score)
    np.testing.assert_allclose(exact.fisher(weight, policy), expected, atol=1e-15)


# --- optimal policies ------------------------------------------------------------------------------------------------


@named
def test_policy_iteration_finds_what_value_iteration_finds(mdp: MDP) -> None:
    value = np.zeros(mdp.states)
    for _ in range(2000):
        value = (mdp.reward + mdp.discount * mdp.transition @ value).max(-1)
    optimum = exact.policy_iteration(mdp)
    np.testing.assert_allclose(optimum.value, value, atol=1e-9)
    np.testing.assert_allclose(optimum.expected_return, mdp.start @ value, atol=1e-9)


def test_policy_iteration_on_many_mdps_and_from_the_optimum() -> None:
    mdp, logits, _ = random_mdps(50)
    optimum = exact.policy_iteration(mdp, exact.softmax(logits))
    assert np.all(exact.advantage(mdp, optimum.policy) <= 1e-9)
    assert np.all(optimum.iterations >= 1)
    assert np.all(exact.policy_iteration(mdp, optimum.policy).iterations == 0)
    with pytest.raises(RuntimeError, match="within 1 iterations"):
        exact.policy_iteration(mdp, exact.softmax(logits), max_iterations=1)


# --- named and random MDPs -------------------------------------------------------------------------------------------


def test_the_cliff_is_gymnasiums() -> None:
    table = gymnasium.make("CliffWalking-v1").unwrapped.P
    ours = cliff(discount=0.9)
    goal, between = 47, range(37, 47)
    for s in set(range(48)) - {goal, *between}:
        for a in range(4):
            ((_, landing, reward, terminated),) = table[s][a]
            assert ours.transition[s, a, landing] == 1
            assert ours.reward[s, a] == reward
            assert terminated == (landing == goal)
    assert np.isclose(exact.policy_iteration(ours).expected_return, -(1 - 0.9**13) / 0.1)


def test_the_chain_tempts() -> None:
    mdp = chain(discount=0.95)
    assert np.all(exact.policy_iteration(mdp).policy[:, 0] == 1)
    assert np.all(exact.policy_iteration(chain(discount=0.3)).policy[0] == [0, 1])
    np.testing.assert_allclose(mdp.reward, [[0.4, 1.6]] * 4 + [[8.4, 3.6]])


def test_the_grid_is_a_shortest_path() -> None:
    mdp = grid(4, discount=0.9, slip=0.0)
    assert np.isclose(exact.policy_iteration(mdp).expected_return, 0.9**5)
    np.testing.assert_allclose(grid(4, slip=1.0).transition[5, 0], grid(4, slip=1.0).transition[5, 3])


def test_garnets_branch_as_asked() -> None:
    mdp = garnet(np.random.default_rng(0), 7, 2, 3, np.full(30, 0.9))
    assert np.all((mdp.transition > 0).sum(-1) == 3)
    assert mdp.states == 7
    assert mdp.actions == 2
    again = garnet(np.random.default_rng(0), 7, 2, 3, np.full(30, 0.9))
    np.testing.assert_array_equal(mdp.transition, again.transition)


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "transition": [[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.3, 0.7]]],
    "reward": [[1.0, 0.0], [0.0, 2.0]],
    "start": [1.0, 0.0],
    "discount": 0.9,
}
NEGATIVE = [[[1.5, -0.5], [1.0, 0.0]], [[0.0, 1.0], [0.3, 0.7]]]
OFF = [[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.3, 0.6]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": OFF}, r"transition\[1, 1\] sums to 0.9: P\(·\|s, a\) must sum to 1"),
        ({"transition": NEGATIVE}, r"transition\[0, 0, 1\]=-0.5: negative"),
        ({"transition": np.full((2, 2, 2), np.nan)}, r"transition\[0, 0, 0\]=nan: not finite"),
        ({"transition": np.ones((2, 2))}, r"transition has shape \(2, 2\): must be \[\*mdps, S, A, S\] = \(2, 2, 2\)"),
        ({"start": [0.5, 0.6]}, r"start sums to 1.1"),
        ({"start": [1.0]}, r"start has shape \(1,\): must be \[\*mdps, S\] = \(2,\)"),
        ({"reward": [[1.0, np.inf], [0.0, 2.0]]}, r"reward\[0, 1\] is not finite"),
        ({"reward": [1.0, 2.0]}, r"reward has shape \(2,\): must be \[\*mdps, S, A\]"),
        ({"discount": 1.0}, r"discount=1: must be in \[0, 1\); .* close to 1"),
        ({"discount": -0.1}, r"discount=-0.1"),
        ({"discount": float("nan")}, r"discount=nan"),
        ({"discount": [0.9]}, r"discount has shape \(1,\): must be \[\*mdps\] = \(\)"),
    ],
)
def test_a_bad_mdp_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    MDP(**GOOD)
    with pytest.raises(ValueError, match=message):
        MDP(**(GOOD | change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: garnet(np.random.default_rng(0), 3, 2, 4, 0.9), "branching=4: must be in 1..3"),
        (lambda: garnet(np.random.default_rng(0), 0, 2, 1, 0.9), "states=0"),
        (lambda: garnet(np.random.default_rng(0), 3, 2, 2, 1.5), r"discount=1.5: must be in \[0, 1\)"),
        (lambda: chain(1), "length=1: must be at least 2"),
        (lambda: chain(slip=1.5), "slip=1.5: must be a probability"),
        (lambda: cliff(1, 2), "rows=1: must be at least 2"),
        (lambda: grid(1), "size=1: must be at least 2"),
        (lambda: exact.check_policy(chain(), np.full((5, 3), 1 / 3)), r"policy has shape \(5, 3\): must be .*\(5, 2\)"),
        (lambda: exact.check_policy(chain(), np.full((5, 2), 0.4)), r"policy\[0\] sums to 0.8"),
        (lambda: exact.check_policy(chain(), np.array([[2.0, -1.0]] * 5)), r"policy\[0, 1\]=-1: negative"),
        (lambda: exact_problem(chain(), jnp.zeros((5, 3))), r"logits have shape \(5, 3\): must be \[S, A\] = \(5, 2\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_bounds_hold_and_their_order_is_known() -> None:
    mdp, logits, other = random_mdps(200)
    old = exact.softmax(logits)
    for distance in (0.03, 0.3, 1.0):
        new = exact.softmax(logits + distance * (other - logits))
        shortfall = exact.surrogate(mdp, old, new) - exact.expected_return(mdp, new)
        value = {name: bound(mdp, old, new) for name, bound in bounds.BOUNDS.items()}
        for name in value:
            assert np.all(shortfall <= value[name]), name
        assert np.all(value["theorem_1"] <= value["pinsker"])  # Pinsker: TV² ≤ KL/2
        assert np.all(value["pinsker"] <= value["theorem_1_kl"])
        assert np.all(value["average_tv"] <= value["average_kl"] * (1 + 1e-12))
        assert np.all(value["average_tv"] <= value["theorem_1"] * (1 + 1e-12))  # ε_π̃ ≤ 2ε max TV, E[TV] ≤ max TV
        np.testing.assert_array_equal(
            bounds.lower_bound(mdp, old, new), exact.surrogate(mdp, old, new) - value["theorem_1_kl"]
        )


def test_constants_are_the_papers_on_an_mdp_that_can_be_done_by_hand() -> None:
    # One state, two actions worth 1 and 0, γ = ½: V = p/(1 − γ), A = (1 − p, −p).
    mdp = MDP([[[1.0], [1.0]]], [[1.0, 0.0]], [1.0], 0.5)
    old, new = np.array([[0.25, 0.75]]), np.array([[0.75, 0.25]])
    assert np.isclose(exact.expected_return(mdp, old), 0.5)
    np.testing.assert_allclose(exact.advantage(mdp, old), [[0.75, -0.25]])
    assert np.isclose(bounds.penalty_coefficient(mdp, old), 4 * 0.75 * 0.5 / 0.25)
    assert np.isclose(bounds.theorem_1(mdp, old, new), 6 * 0.25)
    assert np.isclose(bounds.theorem_1_kl(mdp, old, new), 6 * 0.5 * np.log(3))
    assert np.isclose(bounds.pinsker(mdp, old, new), 3 * 0.5 * np.log(3))
    assert np.isclose(bounds.average_tv(mdp, old, new), 2 * 0.5 * 0.5 / 0.25 * 0.5)


def test_mixture_bound_holds_for_mixtures_only() -> None:
    mdp, logits, other = random_mdps(300)
    old, direction = exact.softmax(logits), exact.softmax(other)

    def control(new: np.ndarray, epsilon: np.ndarray, alpha: Any) -> np.ndarray:
        shortfall = exact.surrogate(mdp, old, new) - exact.expected_return(mdp, new)
        return shortfall - 2 * epsilon * mdp.discount / (1 - mdp.discount) ** 2 * alpha**2

    for alpha in (0.01, 0.1, 0.5, 1.0):
        # Kakade and Langford's ε belongs to π', the policy that is mixed in, not to the mixture.
        epsilon = bounds.epsilon_new(mdp, old, direction)
        assert np.all(control((1 - alpha) * old + alpha * direction, epsilon, alpha) <= 1e-10)
    # Two policies that agree almost everywhere: ε_π̃ is then of first order, and the form is of third.
    near = exact.softmax(logits + 0.01 * other)
    shortfall = exact.surrogate(mdp, old, near) - exact.expected_return(mdp, near)
    assert np.any(shortfall > 2 * bounds.icml_version(mdp, old, near))


# --- the bridge ------------------------------------------------------------------------------------------------------


def test_exact_problem_is_the_surrogate_in_units_of_one_minus_discount(x64: None) -> None:
    mdp, logits, other = random_mdps(3)
    for i in range(3):
        m, old, new = one(mdp, i), exact.softmax(logits[i]), exact.softmax(other[i])
        end = exact_problem(m, jnp.asarray(logits[i])).evaluate(jnp.asarray(other[i]))
        gain = exact.surrogate(m, old, new) - exact.expected_return(m, old)
        np.testing.assert_allclose(end.surrogate, (1 - m.discount) * gain, rtol=1e-9, atol=1e-12)
        kl = exact.kl(old, new)
        np.testing.assert_allclose(end.mean_kl, np.sum(exact.state_weight(m, old) * kl), rtol=1e-10)
        np.testing.assert_allclose(end.max_state_kl, kl.max(), rtol=1e-10)


def test_gradient_of_the_exact_problem_is_the_policy_gradient(x64: None) -> None:
    mdp, logits, _ = random_mdps(3)
    for i in range(3):
        m = one(mdp, i)
        gradient = exact_problem(m, jnp.asarray(logits[i])).linearise(jnp.asarray(logits[i])).gradient
        np.testing.assert_allclose(gradient, (1 - m.discount) * exact.policy_gradient(m, logits[i]), atol=1e-12)


def test_a_policy_of_ones_own_shares_parameters_between_states(x64: None) -> None:
    features = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2, 4)))
    mdp, params = chain(), jnp.asarray([0.1, -0.2, 0.3, 0.0])
    problem = exact_problem(mdp, params, lambda theta: trpo.Categorical(features @ theta))

    def expected_return(theta: Any) -> Any:
        return exact.expected_return(jax.tree.map(jnp.asarray, mdp), exact.softmax(features @ theta))

    gradient = problem.linearise(params).gradient
    np.testing.assert_allclose(gradient, (1 - mdp.discount) * jax.grad(expected_return)(params), atol=1e-10)


@pytest.mark.parametrize("name", ["chain", "cliff", "grid"])
@pytest.mark.parametrize(
    "rule",
    [
        trpo.TRPO(max_kl=0.1, damping=1e-6, cg_iterations=40, max_step_norm=1e3),
        trpo.NaturalGradient(max_kl=0.1, damping=1e-6, cg_iterations=40, max_step_norm=1e3),
        trpo.Penalty(max_kl=0.1, damping=1e-6, cg_iterations=40, max_step_norm=1e3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_the_unmodified_rules_climb_to_the_optimum(name: str, rule: Any, x64: None) -> None:
    mdp = {"chain": chain(), "cliff": cliff(3, 4), "grid": grid(3)}[name]
    optimum = exact.policy_iteration(mdp).expected_return

    @jax.jit
    def update(theta: Any, state: Any) -> Any:
        return rule.update(exact_problem(mdp, theta), theta, state)

    theta = jnp.zeros(mdp.reward.shape)
    state = rule.init(theta)
    returns = [exact.expected_return(mdp, exact.softmax(np.asarray(theta)))]
    for _ in range(150):
        theta, state, _ = update(theta, state)
        returns.append(exact.expected_return(mdp, exact.softmax(np.asarray(theta))))
    assert returns[-1] > optimum - 0.01 * abs(optimum - returns[0])
    if isinstance(rule, trpo.TRPO):
        assert np.all(np.diff(returns) > -1e-9 * np.abs(returns[0]))


def test_mm_is_exported() -> None:
    assert trpo.MM is MM
    assert trpo.exact_problem is exact_problem
    assert trpo.tabular.MDP is MDP
