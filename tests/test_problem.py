"""The local problem of a sampled batch, at the policy that sampled it. PITFALLS rows 2 and 15."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import LEADING, batch_of, poisoned, setting

import trpo
from trpo.problem import LocalProblem


@pytest.mark.parametrize("name", ["state-dependent-relu", "multi-relu", "masked-dict", "recurrent-gru"])
def test_a_problem_is_its_definition_at_the_sampling_policy_and_elsewhere(name: str, x64: None) -> None:
    """At θ_old: ratio 1, KL 0 with zero gradient (row 2), and ∇L = Σ w Â ∇log π(a|s), by a dense Jacobian."""
    policy, params, observation = setting(name, np.float64)
    batch = batch_of(name, np.float64)
    flat, unravel = ravel_pytree(params)
    other = jax.tree.map(lambda leaf: leaf + 0.1 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), params)

    @jax.jit
    def compute(params: Any, other: Any, batch: trpo.Batch) -> tuple:
        problem = trpo.sampled_problem(policy, params, batch)
        ones = trpo.Batch(batch.observation, batch.action, jnp.ones(LEADING), batch.weight)
        model = problem.linearise(params)
        old, new = (policy(p, observation) for p in (params, other))
        return (
            problem.evaluate(params),
            model.evaluation,
            ravel_pytree(model.gradient)[0],
            ravel_pytree(jax.grad(problem.mean_kl)(params))[0],
            jax.jacobian(lambda v: policy(unravel(v), observation).log_prob(batch.action))(flat),
            trpo.sampled_problem(policy, params, ones).surrogate(params),
            problem.evaluate(other),
            (old.log_prob(batch.action), new.log_prob(batch.action), old.kl_to(new), old.entropy()),
        )

    everything = jax.device_get(compute(params, other, batch))
    evaluation, again, gradient, kl_gradient, scores, ratio, elsewhere, (old_log_prob, new_log_prob, kl, entropy) = (
        everything
    )
    w, a = np.asarray(batch.weight), np.asarray(batch.advantage)
    # At the policy that sampled.
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-14)  # Σ w · ratio, every ratio being 1
    assert evaluation.mean_kl == evaluation.max_state_kl == 0
    np.testing.assert_allclose(kl_gradient, 0, atol=1e-14)
    np.testing.assert_allclose(evaluation.surrogate, np.sum(w * a), atol=1e-14)
    np.testing.assert_allclose(evaluation.entropy, np.sum(w * entropy), rtol=1e-12)
    for one, two in zip(jax.tree.leaves(evaluation), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, np.tensordot(w * a, scores, 2), rtol=1e-9, atol=1e-12)
    # Elsewhere.
    expected = np.sum(w * np.exp(new_log_prob - old_log_prob) * a)
    np.testing.assert_allclose(elsewhere.surrogate, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(elsewhere.mean_kl, np.sum(w * kl), rtol=1e-12)
    assert elsewhere.mean_kl > 1e-6
    np.testing.assert_allclose(elsewhere.max_state_kl, kl[w > 0].max(), rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian-tanh", "masked-dict", "recurrent-gru"])
@pytest.mark.parametrize("subsample", [1, 2])
def test_content_behind_weight_zero_does_not_matter_bit_for_bit(name: str, subsample: int) -> None:
    """PITFALLS row 15: NaN observations, actions and advantages where the weight is 0, the first state among them."""
    if (name, subsample) == ("recurrent-gru", 2):
        pytest.skip("a recurrent policy needs whole sequences: Fisher products cannot use single states")
    policy, params, _ = setting(name)
    batch = batch_of(name)
    batch = dataclasses.replace(batch, weight=batch.weight.at[0, 0].set(0.0))
    if name == "masked-dict":
        batch = dataclasses.replace(batch, log_prob=jnp.full(LEADING, -1.0))
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)

    @jax.jit
    def compute(batch: trpo.Batch) -> Any:
        problem = trpo.sampled_problem(policy, params, batch, subsample)
        model = problem.linearise(params)
        product = model.fisher_vp(params)
        return problem.evaluate(other), model.evaluation, model.gradient, product, model.kl_along(params)

    for a, b in zip(jax.tree.leaves(compute(batch)), jax.tree.leaves(compute(poisoned(batch))), strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("subsample", [1, 2])
def test_a_batch_in_which_no_state_counts_has_no_signal_and_no_nan(subsample: int) -> None:
    """With masks, for which observations of zeros would be invalid."""
    policy, params, _ = setting("masked-dict")
    batch = dataclasses.replace(batch_of("masked-dict"), weight=jnp.zeros(LEADING))
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)

    @jax.jit
    def compute(batch: trpo.Batch) -> Any:
        problem = trpo.sampled_problem(policy, params, batch, subsample)
        model = problem.linearise(params)
        there = problem.evaluate(other)
        return there, model.evaluation, model.gradient, model.fisher_vp(params), model.kl_along(params)

    for leaf in jax.tree.leaves(compute(batch)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_sample_in_which_no_state_counts_has_products_of_zero() -> None:
    """Half of the states are never in the sample; if one of those is all there is, there is still a gradient."""
    policy, params, _ = setting("gaussian-tanh")
    batch = batch_of("gaussian-tanh")

    @jax.jit
    def compute(weight: jax.Array) -> Any:
        model = trpo.sampled_problem(policy, params, dataclasses.replace(batch, weight=weight), 2).linearise(params)
        return [ravel_pytree(tree)[0] for tree in (model.fisher_vp(params), model.gradient, model.product_weight)]

    found = map(compute, np.eye(12, dtype=np.float32).reshape(12, 3, 4))
    products, gradients, weights = map(np.array, zip(*found, strict=True))
    assert np.isfinite(products).all()
    assert sorted(weights.sum(axis=1).tolist()) == [0.0] * 8 + [1.0] * 4
    assert gradients.any(axis=1).all()
    assert products.any(axis=1).sum() == 4  # a time of three in each environment


# ---------------------------------------------------------------- batches of another policy


@pytest.mark.parametrize("name", ["state-dependent-relu", "masked-dict"])
def test_ratios_are_to_the_policy_that_sampled(name: str, x64: None) -> None:
    """With b ≠ π_old: L(θ) = Σ w (π_θ/b) Â and ∇L(θ_old) = Σ w (π_old/b) Â ∇log π_old, while D̄ is from π_old."""
    policy, params, observation = setting(name, np.float64)
    flat, unravel = ravel_pytree(params)
    behaviour = unravel(flat + 0.2 * np.cos(np.arange(flat.size)))
    action = policy(behaviour, observation).sample(jax.random.key(3))
    log_prob = policy(behaviour, observation).log_prob(action)
    batch = dataclasses.replace(batch_of(name, np.float64), action=action, log_prob=log_prob)

    @jax.jit
    def compute(batch: trpo.Batch) -> tuple:
        problem = trpo.sampled_problem(policy, params, batch)
        scores = jax.jacobian(lambda v: policy(unravel(v), observation).log_prob(batch.action))(flat)
        log_probs = [policy(p, observation).log_prob(batch.action) for p in (params, behaviour)]
        model = problem.linearise(params)
        return problem.evaluate(behaviour), model.evaluation, ravel_pytree(model.gradient)[0], scores, log_probs

    there, here, gradient, scores, (old, sampled) = jax.device_get(compute(batch))
    weighted, ratio = np.asarray(batch.weight * batch.advantage), np.exp(old - sampled)
    assert np.abs(ratio - 1).max() > 0.1
    np.testing.assert_allclose(gradient, np.tensordot(weighted * ratio, scores, 2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(here.surrogate, np.sum(weighted * ratio), rtol=1e-11)
    np.testing.assert_allclose(there.surrogate, np.sum(weighted), atol=1e-12)  # at b itself the ratios are 1
    assert here.mean_kl == 0 < there.mean_kl


def test_the_gradient_of_another_policys_batch_is_unbiased(x64: None) -> None:
    """Its mean over actions of b is ∇ Σ_a π_θ(a) A(a): exactly by weighing every action, and by Monte Carlo."""
    theta, other, advantage = jnp.array([0.3, -0.5, 0.1]), np.array([-0.6, 0.4, 0.2]), np.array([1.0, -2.0, 0.5])
    pi, b = (np.exp(logits) / np.exp(logits).sum() for logits in (np.asarray(theta), other))
    exact = pi * (advantage - pi @ advantage)  # ∂/∂θ_a of Σ π A for a soft-max

    def policy(theta: jax.Array, observation: jax.Array) -> trpo.Categorical:
        return trpo.Categorical(jnp.broadcast_to(theta, (*observation.shape[:-1], 3)))

    def gradient(action: np.ndarray, weight: np.ndarray) -> np.ndarray:
        content = map(jnp.asarray, (np.zeros((len(action), 1)), action, advantage[action], weight))
        batch = trpo.Batch(*content, log_prob=jnp.asarray(np.log(b)[action]))
        problem = trpo.sampled_problem(policy, theta, batch)
        return np.asarray(problem.linearise(theta).gradient)

    np.testing.assert_allclose(gradient(np.arange(3), b), exact, rtol=1e-12)
    size = 200_000
    action = np.random.default_rng(0).choice(3, size, p=b)
    score = np.eye(3) - pi
    error = np.sqrt(b @ ((pi / b * advantage)[:, None] * score) ** 2 / size)
    found = gradient(action, np.full(size, 1 / size))
    assert np.all(np.abs(found - exact) < 4 * error)
    naive = score[action].T @ advantage[action] / size  # what ratios of 1 would give
    assert np.all(np.abs(naive - exact) > 10 * error)


@pytest.mark.parametrize("name", ["gaussian-tanh", "masked-dict"])
def test_log_probabilities_of_the_policy_itself_change_nothing(name: str) -> None:
    policy, params, observation = setting(name)
    batch = batch_of(name)
    given = dataclasses.replace(batch, log_prob=policy(params, observation).log_prob(batch.action))
    models = [trpo.sampled_problem(policy, params, each).linearise(params) for each in (batch, given)]
    one, two = (jax.tree.leaves((model.evaluation, model.gradient)) for model in models)
    for a, b in zip(one, two, strict=True):
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
    policy, params, _ = setting("gaussian-tanh")
    traces = []

    @jax.jit
    def surrogate_gradient(problem: LocalProblem, params: Any) -> Any:
        traces.append(1)
        return problem.linearise(params).gradient

    make = jax.jit(lambda params, batch: trpo.sampled_problem(policy, params, batch, subsample))
    for seed in range(2):
        batch = batch_of("gaussian-tanh", seed=seed)
        problem = make(params, batch)
        gradient = surrogate_gradient(problem, params)
        inside = jax.jit(lambda p, b: make(p, b).linearise(p).gradient)(params, batch)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(inside), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("subsample", [0, -2])
def test_bad_subsample(subsample: int) -> None:
    policy, params, _ = setting("gaussian-tanh")
    with pytest.raises(ValueError, match=rf"fisher_subsample={subsample}: must be ≥ 1 \(1 uses every state"):
        trpo.sampled_problem(policy, params, batch_of("gaussian-tanh"), subsample)
