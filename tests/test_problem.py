"""The local problem of a sampled batch, at the policy that sampled it. PITFALLS rows 2 and 15."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import LEADING, SETTINGS, Setting, batch_of, poisoned

import trpo
from trpo.problem import LocalProblem

every_setting = pytest.mark.parametrize("name", SETTINGS)


def build(setting: Setting, params: Any, batch: trpo.Batch) -> LocalProblem:
    return trpo.sampled_problem(setting.policy, params, batch)


@every_setting
def test_at_the_sampling_policy(name: str, x64: None) -> None:
    """Ratio 1, KL 0 with zero gradient (row 2); the surrogate's gradient is Σ w Â ∇log π(a|s), by a dense Jacobian."""
    setting = SETTINGS[name](jnp.float64)
    batch = batch_of(setting)
    flat, unravel = ravel_pytree(setting.params)

    @jax.jit
    def compute(params: Any, batch: trpo.Batch) -> tuple:
        problem = build(setting, params, batch)
        model = problem.linearise(params)

        def log_prob(v: jax.Array) -> jax.Array:
            return setting.policy(unravel(v), setting.observation).log_prob(batch.action)

        ones = trpo.Batch(batch.observation, batch.action, jnp.ones(LEADING), batch.weight)
        return (
            problem.evaluate(params),
            model.evaluation,
            ravel_pytree(model.gradient)[0],
            ravel_pytree(jax.grad(problem.mean_kl)(params))[0],
            jax.jacobian(log_prob)(flat),
            build(setting, params, ones).surrogate(params),
            jnp.sum(batch.weight * setting.policy(params, setting.observation).entropy()),
        )

    evaluation, again, gradient, kl_gradient, scores, ratio, entropy = compute(setting.params, batch)
    assert ratio == pytest.approx(1.0, abs=1e-15)  # Σ w · ratio with every ratio 1
    assert evaluation.mean_kl == evaluation.max_state_kl == 0
    np.testing.assert_allclose(kl_gradient, 0, atol=1e-15)
    np.testing.assert_allclose(evaluation.surrogate, jnp.sum(batch.weight * batch.advantage), atol=1e-15)
    np.testing.assert_allclose(evaluation.entropy, entropy, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(evaluation), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    w = np.asarray(batch.weight * batch.advantage)
    np.testing.assert_allclose(gradient, np.tensordot(w, scores, 2), rtol=1e-9, atol=1e-12)


@every_setting
def test_surrogate_and_kl_elsewhere_are_their_definitions(name: str, x64: None) -> None:
    setting = SETTINGS[name](jnp.float64)
    batch = batch_of(setting)
    other = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), setting.params)

    @jax.jit
    def compute(params: Any, other: Any) -> tuple:
        problem = build(setting, params, batch)
        old, new = (setting.policy(p, setting.observation) for p in (params, other))
        return problem.evaluate(other), old.log_prob(batch.action), new.log_prob(batch.action), old.kl_to(new)

    evaluation, old_log_prob, new_log_prob, kl = map(jax.device_get, compute(setting.params, other))
    w, a = np.asarray(batch.weight), np.asarray(batch.advantage)
    np.testing.assert_allclose(evaluation.surrogate, np.sum(w * np.exp(new_log_prob - old_log_prob) * a), rtol=1e-12)
    np.testing.assert_allclose(evaluation.mean_kl, np.sum(w * kl), rtol=1e-12)
    assert evaluation.mean_kl > 1e-6
    np.testing.assert_allclose(evaluation.max_state_kl, kl[w > 0].max(), rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian-tanh", "masked-dict", "recurrent-gru"])
@pytest.mark.parametrize("subsample", [1, 2])
def test_content_behind_weight_zero_does_not_matter_bit_for_bit(name: str, subsample: int) -> None:
    """PITFALLS row 15: NaN observations, actions and advantages where the weight is 0."""
    if (name, subsample) == ("recurrent-gru", 2):
        pytest.skip("a recurrent policy needs whole sequences: Fisher products cannot use single states")
    setting = SETTINGS[name](jnp.float32)
    batch = batch_of(setting)
    other = jax.tree.map(lambda leaf: leaf * 1.1, setting.params)

    @jax.jit
    def compute(batch: trpo.Batch) -> Any:
        problem = trpo.sampled_problem(setting.policy, setting.params, batch, subsample)
        model = problem.linearise(setting.params)
        product = model.fisher_vp(setting.params)
        return problem.evaluate(other), model.evaluation, model.gradient, product, model.kl_along(setting.params)

    for a, b in zip(jax.tree.leaves(compute(batch)), jax.tree.leaves(compute(poisoned(batch))), strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_array_equal(a, b)


def test_observations_keep_their_types() -> None:
    """The policy sees booleans as booleans and bytes as bytes."""
    seen = {}

    def policy(params: jax.Array, observation: dict) -> trpo.Categorical:
        seen.update(jax.tree.map(lambda leaf: leaf.dtype, observation))
        return trpo.Categorical(jnp.broadcast_to(params, (2, 3)))

    observation = {"flag": jnp.zeros(2, bool), "image": jnp.zeros((2, 4), jnp.uint8), "x": jnp.zeros(2)}
    batch = trpo.Batch(observation, jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.full(2, 0.5))
    trpo.sampled_problem(policy, jnp.zeros(3), batch)
    assert seen == {"flag": jnp.dtype(bool), "image": jnp.uint8, "x": jnp.float32}


@pytest.mark.parametrize("subsample", [1, 3])
def test_a_problem_is_an_argument_of_jitted_functions(subsample: int) -> None:
    setting = SETTINGS["gaussian-tanh"](jnp.float32)
    traces = []

    @jax.jit
    def surrogate_gradient(problem: LocalProblem, params: Any) -> Any:
        traces.append(1)
        return problem.linearise(params).gradient

    make = jax.jit(lambda params, batch: trpo.sampled_problem(setting.policy, params, batch, subsample))
    for seed in range(2):
        batch = batch_of(setting, seed)
        problem = make(setting.params, batch)
        gradient = surrogate_gradient(problem, setting.params)
        inside = jax.jit(lambda p, b: make(p, b).linearise(p).gradient)(setting.params, batch)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(inside), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("subsample", [0, -2])
def test_bad_subsample(subsample: int) -> None:
    setting = SETTINGS["gaussian-tanh"](jnp.float32)
    with pytest.raises(ValueError, match=rf"fisher_subsample={subsample}: must be ≥ 1 \(1 uses every state"):
        trpo.sampled_problem(setting.policy, setting.params, batch_of(setting), subsample)
