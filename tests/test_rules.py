"""One contract for every rule, and what TRPO in particular promises.

PITFALLS rows 6, 8, 10, 11, 12, 13, 19, 21, 22, 25.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits
from jax.flatten_util import ravel_pytree
from problems import LEADING, batch_of, setting

import trpo
from trpo.conjugate_gradient import CGInfo
from trpo.line_search import Evaluation, SearchInfo
from trpo.problem import LocalModel
from trpo.rules.protocol import Result, UpdateInfo
from trpo.rules.step import Direction, natural_direction, outcome, step_along, step_length

RULES = [trpo.TRPO(), trpo.NaturalGradient(), trpo.Penalty(), trpo.Repeated(trpo.TRPO(), 2), trpo.PPO()]
NORMALISED = RULES[:2]  # the step's length comes from the trust region; a penalty has a scale of its own
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
normalised_rule = pytest.mark.parametrize("rule", NORMALISED, ids=lambda rule: type(rule).__name__)
GAUSSIAN = "gaussian-tanh"


@functools.cache
def compiled(policy: Callable) -> Callable:
    """One update, from ``params``, on the problem around ``sampling``. Compiled once for each rule and policy."""

    @jax.jit
    def step(rule: Any, sampling: Any, params: Any, batch: trpo.Batch, state: Any) -> tuple:
        return rule.update(trpo.sampled_problem(policy, sampling, batch), params, state)

    return step


def update(rule: Any, name: str = GAUSSIAN, batch: trpo.Batch | None = None, params: Any = None) -> tuple:
    policy, sampling, _ = setting(name)
    params = sampling if params is None else params
    return compiled(policy)(rule, sampling, params, batch_of(name) if batch is None else batch, rule.init(params))


def bounded(rule: Any, max_kl: Any) -> Any:
    """The same rule with another δ."""
    return eqx.tree_at(lambda r: r.max_kl, rule, max_kl)


def with_advantage(batch: trpo.Batch, advantage: Any) -> trpo.Batch:
    return trpo.Batch(batch.observation, batch.action, jnp.asarray(advantage, jnp.float32), batch.weight)


def gaussian_in_numpy(params: Any, name: str = GAUSSIAN) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log σ in float64."""
    policy, _, observation = setting(name)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    distribution = policy(wide, np.asarray(observation, np.float64))
    return distribution.mean, distribution.log_std


def state_kl(old: Any, new: Any) -> np.ndarray:
    """KL(π_old ‖ π_new) in each state: the textbook formula, float64, summed over action dimensions."""
    (m, s), (n, t) = gaussian_in_numpy(old), gaussian_in_numpy(new)
    return np.sum(t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5, axis=-1)


def surrogate(params: Any, sampling: Any, batch: trpo.Batch) -> float:
    def log_prob(theta: Any) -> np.ndarray:
        mean, log_std = gaussian_in_numpy(theta)
        z = (np.asarray(batch.action, np.float64) - mean) / np.exp(log_std)
        return np.sum(-0.5 * z**2 - log_std, axis=-1)

    w = np.asarray(batch.weight, np.float64)
    return float(np.sum(w * np.exp(log_prob(params) - log_prob(sampling)) * np.asarray(batch.advantage)))


# ---------------------------------------------------------------- the contract


@every_rule
def test_jit_is_no_jit(rule: Any, x64: None) -> None:
    linear = Linear()
    theta, batch, state = jnp.asarray(linear.theta), linear.batch(), rule.init(jnp.asarray(linear.theta))
    with jax.disable_jit():
        plain = rule.update(trpo.sampled_problem(linear_policy, theta, batch), theta, state)
    together = compiled(linear_policy)(rule, theta, theta, batch, state)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@every_rule
def test_vmap_over_max_kl_is_a_loop(rule: Any, x64: None) -> None:
    linear = Linear()
    theta, batch = jnp.asarray(linear.theta), linear.batch()
    bounds = jnp.array([1e-3, 0.03, 1.0])

    def one(max_kl: jax.Array) -> tuple:
        each = bounded(rule, max_kl)
        return each.update(trpo.sampled_problem(linear_policy, theta, batch), theta, each.init(theta))

    together = jax.jit(jax.vmap(one))(bounds)
    for i, bound in enumerate(bounds):
        each = bounded(rule, float(bound))
        alone = compiled(linear_policy)(each, theta, theta, batch, each.init(theta))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-9)


@every_rule
def test_repr_round_trip(rule: Any) -> None:
    count = {trpo.Repeated: "times", trpo.PPO: "epochs"}.get(type(rule), "cg_iterations")
    changed = dataclasses.replace(bounded(rule, 0.037), **{count: 7})
    again = eval(repr(changed), {kind.__name__: kind for kind in map(type, RULES)})
    assert again == changed
    assert again != rule


@every_rule
def test_update_takes_no_key_and_the_same_batch_gives_the_same_bits(rule: Any) -> None:
    """PITFALLS row 25."""
    assert list(inspect.signature(rule.update).parameters) == ["problem", "params", "state"]
    first = update(rule)
    jax.random.normal(jax.random.key(1))
    assert_same_bits(first, update(rule))


@every_rule
def test_state_keeps_its_structure(rule: Any) -> None:
    _, params, _ = setting(GAUSSIAN)
    state = rule.init(params)
    new, after, info = update(rule)
    for a, b in ((state, after), (params, new)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(a)] == [(x.shape, x.dtype) for x in jax.tree.leaves(b)]
    assert isinstance(info, trpo.UpdateInfo)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(info))


ALTERNATIVES = {  # base ↦ one other value for each field; the base is chosen so that the search has something to do
    trpo.TRPO(max_kl=3.0): {
        "max_kl": 0.01, "damping": 1.0, "cg_iterations": 3, "cg_tolerance": 0.5, "max_step_norm": 0.01,
        "backtrack_ratio": 0.5, "max_backtracks": 0, "use_measured_kl": True,
    },
    trpo.NaturalGradient(): {
        "max_kl": 0.02, "damping": 1.0, "cg_iterations": 3, "cg_tolerance": 0.5, "max_step_norm": 0.01,
    },
    trpo.Penalty(initial_coefficient=0.3): {
        "max_kl": 10.0, "initial_coefficient": 5.0, "inner_steps": 1, "damping": 1.0, "cg_iterations": 3,
        "cg_tolerance": 0.5, "max_step_norm": 0.01, "backtrack_ratio": 0.5, "max_backtracks": 0,
    },
    trpo.Repeated(trpo.TRPO(), 2): {"rule": trpo.TRPO(max_kl=0.02), "times": 3},
    trpo.PPO(): {
        "clip": 1e-3, "learning_rate": 1e-3, "max_gradient_norm": 1e-6, "entropy_bonus": 0.1, "epochs": 3,
        "minibatch": 7,
    },
}  # fmt: skip


@pytest.mark.parametrize("rule", ALTERNATIVES, ids=lambda rule: type(rule).__name__)
def test_every_field_changes_some_output(rule: Any) -> None:
    """PITFALLS row 22."""
    alternatives = ALTERNATIVES[rule]
    base = update(rule)
    # PPO keeps no bound, and its step size has not fallen yet at the first batch (test_ppo.py).
    without = {"max_kl", "decay_updates"} if isinstance(rule, trpo.PPO) else set()
    for name in {field.name for field in dataclasses.fields(rule)} - without:
        other = update(dataclasses.replace(rule, **{name: alternatives[name]}))
        same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(other), strict=True)]
        assert not all(same), f"{name} has no effect"


@pytest.mark.parametrize("rule", [trpo.TRPO(), trpo.NaturalGradient(), trpo.Penalty(inner_steps=1)])
def test_a_saturated_policy_does_not_run_away(rule: Any) -> None:
    """Where π is nearly deterministic F nearly vanishes, and the KL alone would allow steps of any length."""
    logits = jnp.array([20.0, 0.0])

    def policy(theta: jax.Array, observation: jax.Array) -> trpo.Categorical:
        return trpo.Categorical(jnp.broadcast_to(theta, (*observation.shape[:-1], 2)))

    batch = trpo.Batch(jnp.zeros((2, 1)), jnp.array([0, 1]), jnp.array([1.0, -1.0]), jnp.full(2, 0.5))
    free = dataclasses.replace(rule, max_step_norm=1e9)
    norms = []
    for r in (free, rule):
        problem = trpo.sampled_problem(policy, logits, batch)
        new, _, _ = r.update(problem, logits, r.init(logits))
        norms.append(float(jnp.linalg.norm(new - logits)))
    assert norms[1] <= 10.0 * (1 + 1e-5)
    assert norms[0] > 100.0
    # Where it is not met it does nothing: a policy that is not saturated takes the same step with and without it.
    assert_same_bits(update(rule)[0], update(free)[0])


@every_rule
def test_one_compilation_serves_every_value_of_the_traced_fields(rule: Any) -> None:
    """Counted through a policy that notes when it is traced."""
    policy, params, _ = setting(GAUSSIAN)
    traces = []

    def counting(p: Any, observation: Any) -> Any:
        traces.append(1)
        return policy(p, observation)

    step = compiled(counting)
    batch = batch_of(GAUSSIAN)
    step(rule, params, params, batch, rule.init(params))
    number = len(traces)
    for factor in (0.5, 2.0):
        changed = jax.tree.map(lambda x: x * factor, rule)  # noqa: B023
        step(changed, params, params, batch_of(GAUSSIAN, seed=1), rule.init(params))
    assert len(traces) == number


@every_rule
def test_info_is_what_the_batch_says(rule: Any) -> None:
    """PITFALLS row 21: every logged number recomputed in float64 NumPy from parameters before and after."""
    _, params, _ = setting(GAUSSIAN)
    batch = batch_of(GAUSSIAN)
    new, _, info = update(rule)
    assert info.result == Result.ACCEPTED
    w = np.asarray(batch.weight, np.float64)
    kl = state_kl(params, new)
    np.testing.assert_allclose(info.mean_kl, np.sum(w * kl), rtol=1e-3)
    np.testing.assert_allclose(info.max_state_kl, kl[w > 0].max(), rtol=1e-3)
    gain = surrogate(new, params, batch) - surrogate(params, params, batch)
    np.testing.assert_allclose(info.surrogate_gain, gain, rtol=1e-3, atol=1e-6)
    entropy = np.sum(w[..., None] * (gaussian_in_numpy(new)[1] + 0.5 * np.log(2 * np.pi * np.e)))
    np.testing.assert_allclose(info.entropy, entropy, rtol=1e-4)
    gradient, step = dense_gradient(), ravel_pytree(new)[0] - ravel_pytree(params)[0]
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(gradient), rtol=1e-3)
    if not isinstance(rule, trpo.Repeated):  # which sums what every update expected where it began: see below
        np.testing.assert_allclose(info.predicted_gain, gradient @ step, rtol=2e-3)
    assert info.accepted_updates == getattr(rule, "times", 1)
    np.testing.assert_allclose(info.step_norm, np.linalg.norm(step), rtol=1e-3)


@functools.cache
def dense_gradient() -> np.ndarray:
    """∇L at the sampling policy by its definition, Σ w Â ∇log π."""
    policy, params, observation = setting(GAUSSIAN)
    batch = batch_of(GAUSSIAN)
    flat, unravel = ravel_pytree(params)
    scores = jax.jit(jax.jacobian(lambda v: policy(unravel(v), observation).log_prob(batch.action)))(flat)
    return np.tensordot(np.asarray(batch.weight * batch.advantage), np.asarray(scores), 2)


@pytest.mark.parametrize("name", ["state-dependent-relu", "multi-relu", "masked-dict", "recurrent-gru"])
def test_trpo_improves_every_kind_of_policy_and_moves_every_leaf(name: str) -> None:
    """PITFALLS rows 14 and 19."""
    new, _, info = update(trpo.TRPO(), name)
    assert info.result == Result.ACCEPTED
    assert info.surrogate_gain > 0
    assert 0 < info.mean_kl <= 0.01
    for before, after in zip(jax.tree.leaves(setting(name).params), jax.tree.leaves(new), strict=True):
        assert not np.array_equal(before, after)


@every_rule
def test_every_leaf_moves(rule: Any) -> None:
    """PITFALLS row 19: the log-deviation too."""
    for before, after in zip(jax.tree.leaves(setting(GAUSSIAN).params), jax.tree.leaves(update(rule)[0]), strict=True):
        assert not np.array_equal(before, after)


# ---------------------------------------------------------------- failures are results


@every_rule
def test_no_signal_is_no_step(rule: Any) -> None:
    """PITFALLS row 12: equal advantages, through ``standardise``, as in training."""
    batch = batch_of(GAUSSIAN)
    advantage = jax.jit(trpo.standardise)(jnp.full(LEADING, 0.1), batch.weight)
    new, state, info = update(rule, batch=with_advantage(batch, advantage))
    assert_same_bits(new, setting(GAUSSIAN).params)
    assert_same_bits(state, rule.init(new))
    assert info.result == Result.NO_SIGNAL
    assert info.step_norm == info.mean_kl == info.predicted_gain == info.accepted_updates == 0
    assert info.backtracks == info.step_fraction == 0  # not even a trial


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_advantages_keep_the_parameters(rule: Any, bad: float) -> None:
    """PITFALLS row 13."""
    batch = batch_of(GAUSSIAN)
    new, state, info = update(rule, batch=with_advantage(batch, batch.advantage.at[0, 1].set(bad)))
    assert_same_bits(new, setting(GAUSSIAN).params)
    assert_same_bits(state, rule.init(new))
    assert info.result == Result.NONFINITE_GRADIENT
    assert info.step_norm == 0


@every_rule
def test_non_finite_observations_keep_the_parameters(rule: Any) -> None:
    """PITFALLS row 13."""
    batch = batch_of(GAUSSIAN)
    dirty = trpo.Batch(batch.observation.at[0, 0, 0].set(jnp.nan), batch.action, batch.advantage, batch.weight)
    new, _, info = update(rule, batch=dirty)
    assert_same_bits(new, setting(GAUSSIAN).params)
    assert info.result == Result.NONFINITE_GRADIENT


class WrongFisher(eqx.Module):
    """A Gaussian of unit variance whose author got ``fisher_product`` wrong."""

    mean: jax.Array
    factor: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum((action - self.mean) ** 2, -1)

    def entropy(self) -> jax.Array:
        return jnp.zeros(self.mean.shape[:-1])

    def kl_to(self, other: WrongFisher) -> jax.Array:
        return 0.5 * jnp.sum((self.mean - other.mean) ** 2, -1)

    def fisher_product(self, tangent: WrongFisher) -> WrongFisher:
        return WrongFisher(jax.lax.stop_gradient(self.factor) * tangent.mean, jnp.zeros_like(self.factor))

    def noise(self, key: Any, leading: tuple = ()) -> Any: ...
    def transform(self, noise: Any) -> Any: ...
    def sample(self, key: Any) -> Any: ...
    def mode(self) -> Any: ...


def wrong_policy(params: dict, observation: dict) -> WrongFisher:
    return WrongFisher(observation["x"] @ params["w"], observation["factor"])


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda rule: type(rule).__name__)  # those that solve
@pytest.mark.parametrize("factor", [-1.0, 0.0, np.nan])
def test_curvature_that_is_not_positive_is_reported(rule: Any, factor: float) -> None:
    """PITFALLS row 13."""
    batch = batch_of(GAUSSIAN)
    observation = {"x": batch.observation, "factor": jnp.full((*LEADING, 1), factor, jnp.float32)}
    broken = trpo.Batch(observation, batch.action, batch.advantage, batch.weight)
    params = {"w": jnp.ones((3, 2), jnp.float32)}
    new, _, info = compiled(wrong_policy)(rule, params, params, broken, rule.init(params))
    assert_same_bits(new, params)
    assert info.result == Result.NONPOSITIVE_CURVATURE
    assert info.backtracks == info.step_fraction == info.accepted_updates == 0  # not even a trial


@pytest.mark.parametrize(
    ("slope", "curvature", "result"),
    [
        (-1.0, 2.0, Result.ACCEPTED),
        (0.0, 0.0, Result.NONPOSITIVE_CURVATURE),
        (0.0, np.inf, Result.NONPOSITIVE_CURVATURE),
        (0.0, np.nan, Result.NONPOSITIVE_CURVATURE),
        (-np.inf, 2.0, Result.NONPOSITIVE_CURVATURE),
        (np.inf, 2.0, Result.NONPOSITIVE_CURVATURE),
        (np.nan, 2.0, Result.NONPOSITIVE_CURVATURE),
    ],
)
def test_a_direction_is_used_only_where_the_kl_along_it_is_known(slope: float, curvature: float, result: int) -> None:
    class Told(LocalModel):
        """F = 1, and along every direction the KL that is told."""

        def fisher_vp(self, vector: jax.Array) -> jax.Array:
            return vector

        def kl_along(self, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.asarray(slope), jnp.asarray(curvature)

    found = natural_direction(object.__new__(Told), jnp.array([2.0, -1.0]), 0.0, 10, 0.0)
    assert found.result == result
    np.testing.assert_allclose(found.vector, [1, -0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("direction", "accepted", "finite", "result"),
    [
        (Result.ACCEPTED, True, True, Result.ACCEPTED),
        (Result.ACCEPTED, False, True, Result.NO_IMPROVEMENT),
        (Result.ACCEPTED, False, False, Result.NONFINITE_TRIAL),
        (Result.NO_SIGNAL, False, True, Result.NO_SIGNAL),
        (Result.NONFINITE_GRADIENT, False, False, Result.NONFINITE_GRADIENT),
    ],
)
def test_an_outcome_is_the_direction_s_or_else_the_search_s(
    direction: Result, accepted: bool, finite: bool, result: Result
) -> None:
    number = jnp.zeros(())
    search = SearchInfo(
        accepted=jnp.asarray(accepted),
        backtracks=jnp.asarray(0),
        fraction=number,
        evaluation=Evaluation(number, number, number, number),
        first_mean_kl=number,
        finite=jnp.asarray(finite),
    )
    assert outcome(some_direction(result=direction), search) == result


@normalised_rule
def test_a_saturated_policy_is_left_alone(rule: Any) -> None:
    """Every action has probability 0 or 1 in float32, so nothing depends on the parameters any more."""
    name = "multi-relu"
    params = jax.tree.map(lambda leaf: leaf * 1e4, setting(name).params)
    policy, _, observation = setting(name)
    batch = batch_of(name)
    likely = trpo.Batch(observation, policy(params, observation).mode(), batch.advantage, batch.weight)
    new, _, info = compiled(policy)(rule, params, params, likely, rule.init(params))
    assert info.result in (Result.NO_SIGNAL, Result.NONPOSITIVE_CURVATURE)
    assert_same_bits(new, params)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(info))


def test_every_result_has_a_reason_with_causes() -> None:
    for result in Result:
        assert len(result.reason) > 40
        assert result is Result.ACCEPTED or "ause" in result.reason
    assert len({result.reason for result in Result}) == len(Result)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trpo.TRPO(max_kl=0.0), r"max_kl=0\.0: must be in \(0, ∞\); 0\.01 is the paper's value"),
        (lambda: trpo.TRPO(max_kl=float("nan")), r"max_kl=nan: must be in \(0, ∞\)"),
        (lambda: trpo.TRPO(damping=-0.1), r"damping=-0\.1: must be in \[0, ∞\); 0\.1 is usual"),
        (lambda: trpo.TRPO(cg_iterations=0), r"cg_iterations=0: must be in \[1, ∞\); 10 is the paper's value"),
        (lambda: trpo.TRPO(cg_tolerance=2.0), r"cg_tolerance=2\.0: must be in \[0, 1\]; 1e-10"),
        (lambda: trpo.TRPO(backtrack_ratio=1.0), r"backtrack_ratio=1\.0: must be in \(0, 1\); 0\.8 is usual"),
        (lambda: trpo.TRPO(max_backtracks=-1), r"max_backtracks=-1: must be in \[0, ∞\); 10 is usual"),
        (lambda: trpo.NaturalGradient(max_kl=-1.0), r"max_kl=-1\.0: must be in \(0, ∞\); 0\.01 is usual"),
        (lambda: trpo.NaturalGradient(cg_iterations=0), r"cg_iterations=0: must be in \[1, ∞\); 10 is usual"),
        (lambda: trpo.Penalty(initial_coefficient=0.0), r"initial_coefficient=0\.0: must be in \(0, ∞\); 10 is"),
        (lambda: trpo.Penalty(inner_steps=0), r"inner_steps=0: must be in \[1, ∞\); 3 nearly solves"),
        (lambda: trpo.Penalty(damping=-1.0), r"damping=-1\.0: must be in \[0, ∞\); 0\.1 is usual$"),
        (lambda: trpo.Repeated(trpo.TRPO(), 0), r"times=0: must be in \[1, ∞\); 1 is the rule itself"),
    ],
)
def test_mistakes_name_argument_value_range_and_cure(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- invariances


@normalised_rule
@pytest.mark.parametrize("exponent", [-83, -27, 27, 83])
def test_the_step_does_not_depend_on_the_scale_of_the_advantages(rule: Any, exponent: int) -> None:
    """PITFALLS row 11: neither damping nor any tolerance has units of advantage. From 1e-25 to 1e25, in float32.

    Powers of two, so that scaling rounds nothing and the steps must agree to the last bits.
    """
    batch = batch_of(GAUSSIAN)
    reference, _, _ = update(rule)
    new, _, info = update(rule, batch=with_advantage(batch, batch.advantage * np.float32(2.0**exponent)))
    assert info.result == Result.ACCEPTED
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@normalised_rule
def test_the_step_does_not_depend_on_a_shift_of_the_advantages(rule: Any, x64: None) -> None:
    linear = Linear()
    theta, batch = jnp.asarray(linear.theta), linear.batch()
    steps = []
    for shift in (0.0, 30.0):
        advantage = jax.jit(trpo.standardise)(batch.advantage + shift, batch.weight)
        shifted = trpo.Batch(batch.observation, batch.action, advantage, batch.weight)
        new, _, info = compiled(linear_policy)(rule, theta, theta, shifted, ())
        assert info.result == Result.ACCEPTED
        steps.append(new - theta)
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-7)


# ---------------------------------------------------------------- a linear Gaussian policy, where all is known


class Linear:
    """N(x W, diag(e^{log σ})²): gradient and Fisher matrix in closed form, in NumPy float64."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x, noise = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
        self.theta = np.concatenate([rng.normal(size=6), [-0.3, 0.2]])
        w, sigma = self.theta[:6].reshape(3, 2), np.exp(self.theta[6:])
        self.action = self.x @ w + sigma * noise
        self.weight = np.full(20, 1 / 20)
        self.advantage = rng.normal(size=20)
        scores = np.concatenate(
            [(self.x[:, :, None] * (noise / sigma)[:, None, :]).reshape(20, 6), noise**2 - 1], axis=1
        )
        self.gradient = (self.weight * self.advantage) @ scores
        second_moment = (self.x * self.weight[:, None]).T @ self.x
        self.fisher = np.zeros((8, 8))
        self.fisher[:6, :6] = np.kron(second_moment, np.diag(1 / sigma**2))
        self.fisher[6:, 6:] = 2 * np.eye(2)

    def batch(self) -> trpo.Batch:
        return trpo.Batch(*(jnp.asarray(v) for v in (self.x, self.action, self.advantage, self.weight)))

    def kkt_step(self, max_kl: float) -> np.ndarray:
        """√(2δ / gᵀF⁻¹g) F⁻¹g: the maximiser of gᵀs subject to ½ sᵀF s ≤ δ."""
        natural = np.linalg.solve(self.fisher, self.gradient)
        return np.sqrt(2 * max_kl / (self.gradient @ natural)) * natural


def linear_policy(theta: jax.Array, x: jax.Array) -> trpo.DiagGaussian:
    mean = x @ theta[:6].reshape(3, 2)
    return trpo.DiagGaussian(mean, jnp.broadcast_to(theta[6:].reshape(1, 2), mean.shape))


def linear_policy_bent(phi: jax.Array, x: jax.Array) -> trpo.DiagGaussian:
    """The same policies in coordinates θ = sinh φ."""
    return linear_policy(jnp.sinh(phi), x)


EXACT_SOLVE = {"damping": 0.0, "cg_iterations": 8, "cg_tolerance": 0.0}


@pytest.mark.parametrize("make", [trpo.TRPO, trpo.NaturalGradient])
def test_the_undamped_full_solve_is_the_dense_kkt_solution(make: Callable[..., Any], x64: None) -> None:
    linear = Linear()
    theta = jnp.asarray(linear.theta)
    new, _, info = compiled(linear_policy)(make(max_kl=1e-4, **EXACT_SOLVE), theta, theta, linear.batch(), ())
    assert info.result == Result.ACCEPTED
    assert info.step_fraction in (1.0, 0.8)
    expected = linear.kkt_step(1e-4)
    np.testing.assert_allclose(new - theta, info.step_fraction * expected, rtol=1e-6)
    np.testing.assert_allclose(info.predicted_gain, info.step_fraction * linear.gradient @ expected, rtol=1e-6)


def test_reparametrisation_moves_a_natural_step_only_at_second_order(x64: None) -> None:
    """A quarter of δ halves the step; the difference between coordinates, being of second order, is quartered."""
    linear = Linear()
    theta = jnp.asarray(linear.theta)
    phi = jnp.arcsinh(theta)
    differences, steps = [], []
    for max_kl in (4e-6, 1e-6):
        rule = trpo.NaturalGradient(max_kl=max_kl, **EXACT_SOLVE)
        one, _, _ = compiled(linear_policy)(rule, theta, theta, linear.batch(), ())
        two, _, _ = compiled(linear_policy_bent)(rule, phi, phi, linear.batch(), ())
        differences.append(np.linalg.norm(one - jnp.sinh(two)))
        steps.append(np.linalg.norm(one - theta))
    np.testing.assert_allclose(steps[0] / steps[1], 2, rtol=1e-3)
    np.testing.assert_allclose(differences[0] / differences[1], 4, rtol=0.05)
    assert differences[0] < 0.01 * steps[0]


@pytest.mark.parametrize("damping", [1e-4, 1e-2, 0.1, 1.0])
def test_the_full_step_has_the_kl_it_was_given_whatever_the_damping(damping: float, x64: None) -> None:
    """PITFALLS row 10: within 5 % of δ. The natural gradient takes the step that TRPO's search starts from."""
    linear = Linear()
    theta = jnp.asarray(linear.theta)
    rule = trpo.NaturalGradient(max_kl=1e-3, damping=damping)
    new, _, info = compiled(linear_policy)(rule, theta, theta, linear.batch(), ())
    old, there = (jax.device_get(linear_policy(t, jnp.asarray(linear.x))) for t in (theta, new))
    kl = np.sum(
        there.log_std - old.log_std
        + (np.exp(2 * old.log_std) + (old.mean - there.mean) ** 2) / (2 * np.exp(2 * there.log_std)) - 0.5, -1
    )  # fmt: skip
    np.testing.assert_allclose(linear.weight @ kl, 1e-3, rtol=0.05)
    np.testing.assert_allclose(info.mean_kl, linear.weight @ kl, rtol=1e-9)
    trust_region, _, _ = compiled(linear_policy)(
        trpo.TRPO(max_kl=1e-3, damping=damping), theta, theta, linear.batch(), ()
    )
    fraction = np.asarray((trust_region - theta) / (new - theta))
    np.testing.assert_allclose(fraction, fraction[0], rtol=1e-6)  # the same direction, shortened or not
    assert np.any(np.isclose(fraction[0], [1.0, 0.8]))


@pytest.mark.parametrize("slope", [-2.0, -1e-9, 0.0, 1e-9, 2.0])
@pytest.mark.parametrize("used", [0.0, 0.3])
def test_the_step_length_is_the_root_of_its_parabola(slope: float, used: float, x64: None) -> None:
    """D̄ + β ∇D̄ᵀs + ½ β² sᵀF s = δ, the positive root; nothing where D̄ is δ already, unless the KL falls along s."""
    curvature, max_kl = 0.7, 0.5
    direction = some_direction(slope=slope, curvature=curvature)
    for kl in (used, max_kl, 2 * max_kl):
        expected = max(np.roots([curvature / 2, slope, min(kl - max_kl, 0)]).real)
        found = float(step_length(direction, jnp.asarray(kl), max_kl))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_step_length_does_not_cancel() -> None:
    """In single precision, where the slope is nearly all that counts: β = δ / slope, or −2 slope / curvature."""
    for slope, expected in ((1.0, 1e-4), (-1.0, 2000.0)):
        direction = some_direction(slope=slope, curvature=1e-3)
        assert float(step_length(direction, jnp.zeros(()), 1e-4)) == pytest.approx(expected, rel=1e-5)


def some_direction(slope: float = 0.0, curvature: float = 1.0, result: Result = Result.ACCEPTED) -> Direction:
    zero = jnp.zeros(())
    return Direction(
        vector=jnp.array([3.0, 4.0]),
        gradient_norm=zero,
        slope=jnp.asarray(slope),
        curvature=jnp.asarray(curvature),
        cg=CGInfo(jnp.asarray(0), zero),
        result=jnp.asarray(int(result)),
    )


def test_a_step_is_as_long_as_it_may_be_and_none_without_a_direction() -> None:
    usable, not_usable = some_direction(), some_direction(result=Result.NO_SIGNAL)
    for length, expected in ((0.5, 0.5), (3.0, 2.0)):  # ‖s‖ is 5, the limit 10
        np.testing.assert_allclose(step_along(usable, jnp.asarray(length), 10.0), [3 * expected, 4 * expected])
    np.testing.assert_array_equal(step_along(not_usable, jnp.asarray(jnp.inf), 10.0), 0.0)
    assert (int(usable.tries(4)), int(not_usable.tries(4))) == (4, -1)


def test_a_direction_at_a_later_update_knows_the_kl_that_was_used(x64: None) -> None:
    """Slope and curvature of D̄ along s where θ is not the sampling policy, by dense algebra; s is the damped solve."""
    linear = Linear()
    batch, old = linear.batch(), jnp.asarray(linear.theta)
    theta = old + 0.05 * jnp.cos(jnp.arange(8.0))
    problem = trpo.sampled_problem(linear_policy, old, batch)
    linearised = problem.linearise(theta)
    damping = 0.3
    found = natural_direction(linearised, linearised.gradient, damping, 20, 0.0)

    def kl(t: jax.Array) -> jax.Array:
        p, q = linear_policy(old, batch.observation), linear_policy(t, batch.observation)
        each = q.log_std - p.log_std + (jnp.exp(2 * p.log_std) + (p.mean - q.mean) ** 2) / (2 * jnp.exp(2 * q.log_std))
        return batch.weight @ jnp.sum(each - 0.5, -1)

    sigma = np.exp(np.asarray(theta)[6:])
    fisher = np.zeros((8, 8))
    fisher[:6, :6] = np.kron((linear.x * linear.weight[:, None]).T @ linear.x, np.diag(1 / sigma**2))
    fisher[6:, 6:] = 2 * np.eye(2)
    gradient = np.asarray(linearised.gradient)
    solution = np.linalg.solve(fisher + damping * np.eye(8), gradient / np.abs(gradient).max())
    np.testing.assert_allclose(found.vector, solution, rtol=1e-8)
    np.testing.assert_allclose(found.slope, jax.grad(kl)(theta) @ solution, rtol=1e-8)
    np.testing.assert_allclose(found.curvature, solution @ fisher @ solution, rtol=1e-8)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(gradient), rtol=1e-10)
    assert abs(float(found.slope)) > 0.01 * float(found.curvature)
    # And the rule uses it: the first trial is the length above, δ counted from the sampling policy.
    rule = trpo.TRPO(max_kl=0.05, damping=damping, cg_iterations=20, cg_tolerance=0.0)
    new, _, info = compiled(linear_policy)(rule, old, theta, batch, ())
    assert info.result == Result.ACCEPTED
    used = float(kl(theta))
    length = max(np.roots([found.curvature / 2, found.slope, used - 0.05]))
    np.testing.assert_allclose(new - theta, info.step_fraction * length * solution, rtol=1e-6)


# ---------------------------------------------------------------- TRPO's promises


@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 0.3])
def test_accepted_means_improved_and_within_the_bound(max_kl: float) -> None:
    """PITFALLS row 6, recomputed in float64 NumPy."""
    params = setting(GAUSSIAN).params
    accepted = 0
    for seed in range(8):
        batch = batch_of(GAUSSIAN, seed=seed)
        new, _, info = update(trpo.TRPO(max_kl=max_kl), batch=batch)
        if info.result == Result.ACCEPTED:
            accepted += 1
            mean_kl = np.sum(np.asarray(batch.weight, np.float64) * state_kl(params, new))
            assert mean_kl <= max_kl * (1 + 1e-4)
            np.testing.assert_allclose(info.mean_kl, mean_kl, rtol=1e-3)
            assert surrogate(new, params, batch) > surrogate(params, params, batch)
        else:
            assert_same_bits(new, params)
            assert info.step_norm == info.step_fraction == 0
    assert accepted >= 6


def test_several_updates_of_one_batch_share_one_bound() -> None:
    """PITFALLS row 8: the KL from the *sampling* policy stays within δ, and each accepted update improves."""
    batch = batch_of(GAUSSIAN)
    sampling = params = setting(GAUSSIAN).params
    rule = trpo.TRPO(max_kl=0.01)
    best = surrogate(sampling, sampling, batch)
    accepted = 0
    for _ in range(6):
        before = params
        params, _, info = update(rule, params=params)
        mean_kl = np.sum(np.asarray(batch.weight, np.float64) * state_kl(sampling, params))
        assert mean_kl <= 0.01 * (1 + 1e-4)
        np.testing.assert_allclose(info.mean_kl, mean_kl, rtol=1e-3)
        if info.result == Result.ACCEPTED:
            accepted += 1
            now = surrogate(params, sampling, batch)
            assert now > best - 1e-6
            np.testing.assert_allclose(info.surrogate_gain, now - best, rtol=1e-2, atol=1e-6)
            best = now
        else:
            assert_same_bits(params, before)
    assert accepted >= 2


def test_a_rejected_update_changes_nothing() -> None:
    """PITFALLS row 6: a policy already outside the trust region has no acceptable trial."""
    params = jax.tree.map(lambda leaf: leaf + 0.5, setting(GAUSSIAN).params)
    new, _, info = update(trpo.TRPO(max_kl=1e-6), params=params)
    assert info.result == Result.NO_IMPROVEMENT
    assert_same_bits(new, params)
    assert info.backtracks == 11
    assert info.surrogate_gain == info.step_norm == info.step_fraction == 0


# ---------------------------------------------------------------- Penalty


def test_penalty_adapts_its_coefficient_until_the_kl_is_on_target() -> None:
    """Repeated problems from the same policy, from either side: β doubles and halves as stated, D̄ ends near δ.

    D̄ goes as β⁻², so doubling β may jump over the dead zone [δ/1.5, 1.5 δ]: a factor of 3 is what can be had.
    """
    policy, params, _ = setting(GAUSSIAN)
    batch = batch_of(GAUSSIAN)
    for start in (0.05, 1000.0):
        rule = trpo.Penalty(max_kl=0.01, initial_coefficient=start)
        state = rule.init(params)
        coefficients = [start]
        for _ in range(16):
            new, state, info = compiled(policy)(rule, params, params, batch, state)
            coefficients.append(float(state.coefficient))
            mean_kl = np.sum(np.asarray(batch.weight, np.float64) * state_kl(params, new))
            expected = 2.0 if mean_kl > 0.015 else 0.5 if mean_kl < 0.01 / 1.5 else 1.0
            if info.result == Result.NO_IMPROVEMENT:  # steps too long by far
                expected = 2.0
            assert coefficients[-1] == pytest.approx(coefficients[-2] * expected, rel=1e-5)
        assert 0.01 / 3 <= info.mean_kl <= 0.01 * 3


def test_penalty_maximises_its_penalised_objective(x64: None) -> None:
    """With enough inner steps the gradient of L − β D̄ vanishes: ∇L = β ∇D̄, by dense differentiation."""
    linear = Linear()
    theta = jnp.asarray(linear.theta)
    beta = 5.0
    rule = trpo.Penalty(initial_coefficient=beta, inner_steps=20, damping=0.0, cg_iterations=8, cg_tolerance=0.0)
    batch = linear.batch()
    new, _, info = compiled(linear_policy)(rule, theta, theta, batch, rule.init(theta))

    def objective(t: jax.Array) -> jax.Array:
        old, there = linear_policy(theta, batch.observation), linear_policy(t, batch.observation)
        ratio = jnp.exp(there.log_prob(batch.action) - old.log_prob(batch.action))
        return jnp.sum(batch.weight * (ratio * batch.advantage - beta * old.kl_to(there)))

    value, gradient = jax.jit(jax.value_and_grad(objective))(new)
    assert info.result == Result.ACCEPTED
    assert value > objective(theta)
    np.testing.assert_allclose(gradient, 0, atol=1e-5 * np.linalg.norm(linear.gradient))


# ---------------------------------------------------------------- Repeated


@every_rule
def test_once_is_the_rule_itself(rule: Any) -> None:
    """The same program, to the last operation."""
    policy, params, _ = setting(GAUSSIAN)
    batch = batch_of(GAUSSIAN)

    def program(rule: Any) -> str:
        problem = trpo.sampled_problem(policy, params, batch)
        return str(jax.make_jaxpr(lambda state: rule.update(problem, params, state))(rule.init(params)))

    assert program(trpo.Repeated(rule, 1)) == program(rule)


TRUNCATED = [dataclasses.replace(rule, cg_iterations=3) for rule in RULES[:3]]  # a residual that is not rounding


@pytest.mark.parametrize("rule", [*TRUNCATED, trpo.Repeated(TRUNCATED[0], 2)], ids=lambda rule: type(rule).__name__)
def test_repeated_is_a_loop_with_a_growing_bound(rule: Any, x64: None) -> None:
    """k/K of δ from the sampling policy for k = 1, …, K, the state handed on; also where the rule repeats another."""
    linear = Linear()
    theta, batch, times = jnp.asarray(linear.theta), linear.batch(), 3
    repeated = trpo.Repeated(rule, times)
    assert repeated.enforces_max_kl is rule.enforces_max_kl
    assert repeated.max_kl == rule.max_kl
    new, after, info = compiled(linear_policy)(repeated, theta, theta, batch, repeated.init(theta))
    params, state, infos = theta, rule.init(theta), []
    for k in range(times):
        each = bounded(rule, rule.max_kl * (k + 1) / times)
        params, state, one = compiled(linear_policy)(each, theta, params, batch, state)
        infos.append(jax.device_get(one))
        if rule.enforces_max_kl:
            assert one.mean_kl <= rule.max_kl * (k + 1) / times
    for a, b in zip(jax.tree.leaves((new, after)), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)

    assert info.result == Result.ACCEPTED
    for name in ("surrogate_gain", "predicted_gain", "cg_iterations", "backtracks", "accepted_updates"):
        np.testing.assert_allclose(getattr(info, name), sum(getattr(one, name) for one in infos), rtol=1e-6)
    for name in ("mean_kl", "max_state_kl", "entropy"):
        np.testing.assert_allclose(getattr(info, name), getattr(infos[-1], name), rtol=1e-6)
    np.testing.assert_allclose(info.gradient_norm, infos[0].gradient_norm, rtol=1e-9)
    np.testing.assert_allclose(info.cg_residual, max(one.cg_residual for one in infos), rtol=1e-6)
    assert info.cg_residual > 1e-6
    np.testing.assert_allclose(info.step_norm, np.linalg.norm(new - theta), rtol=1e-9)
    np.testing.assert_allclose(info.step_fraction, np.mean([one.step_fraction for one in infos]), rtol=1e-6)


@pytest.mark.parametrize("result", [Result.ACCEPTED, Result.NO_IMPROVEMENT])
def test_what_is_reported_of_any_rule(result: Result) -> None:
    """Whatever a rule of one's own does not say itself."""
    start, end = (Evaluation(*map(jnp.asarray, x)) for x in ((1.0, 0.25, 0.5, 2.0), (4.0, 0.75, 1.5, 3.0)))
    gradient, step = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([5.0, 12.0])}
    info = UpdateInfo.of(jnp.asarray(result), gradient, step, start, end)
    assert (info.result, info.surrogate_gain, info.predicted_gain) == (result, 3, 63)
    assert (info.mean_kl, info.max_state_kl, info.entropy) == (0.75, 1.5, 3)
    assert (info.gradient_norm, info.step_norm) == (5, 13)
    assert info.step_fraction == info.accepted_updates == (result == Result.ACCEPTED)
    assert info.cg_iterations == info.cg_residual == info.backtracks == 0


def test_updates_of_one_batch_are_reported_together() -> None:
    """The second of three was accepted alone; every number of a field is another, and falls."""
    names = [field.name for field in dataclasses.fields(UpdateInfo)]
    whole = {"result", "cg_iterations", "backtracks", "accepted_updates"}
    columns = {name: np.array([8, 4, 1], int if name in whole else np.float32) for name in names}

    def together(results: list[Result], step: Any) -> UpdateInfo:
        infos = jax.vmap(lambda column: UpdateInfo(**column))(columns | {"result": np.array(results)})
        return jax.jit(UpdateInfo.combined)(infos, step)

    found = together([Result.NO_IMPROVEMENT, Result.ACCEPTED, Result.NONFINITE_TRIAL], {"w": jnp.array([3.0, 4.0])})
    expected = dict.fromkeys(names, 13.0) | {"mean_kl": 1.0, "max_state_kl": 1.0, "entropy": 1.0}
    expected |= {"result": 0.0, "gradient_norm": 8.0, "cg_residual": 8.0, "step_norm": 5.0, "step_fraction": 13 / 3}
    assert {name: float(getattr(found, name)) for name in names} == pytest.approx(expected)
    none = together([Result.NO_IMPROVEMENT, Result.NONPOSITIVE_CURVATURE, Result.NO_SIGNAL], {"w": jnp.zeros(2)})
    assert none.result == Result.NO_IMPROVEMENT


def test_a_batch_that_is_not_finite_leaves_no_trace() -> None:
    info = update(trpo.TRPO())[2]
    refused = info.refused()
    assert refused.result == Result.NONFINITE_BATCH
    for name in {field.name for field in dataclasses.fields(info)} - {"result"}:
        assert getattr(refused, name) == 0
    assert [x.dtype for x in jax.tree.leaves(refused)] == [x.dtype for x in jax.tree.leaves(info)]
