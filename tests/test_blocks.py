"""A batch in blocks of states: the same numbers to rounding, in the memory of a block."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import batch_of, poisoned, setting
from test_memory import policy as recurrent

import trpo
from trpo.blocks import Split
from trpo.envs.spaces import Box
from trpo.problem import LocalProblem


@pytest.mark.parametrize("strata", [1, 2])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((3, 4), 5), ((7, 6), 8), ((2, 10), 4), ((24,), 7), ((5, 6), 1)])
def test_what_is_split_is_joined_again(shape: tuple[int, ...], block: int, whole: bool, strata: int) -> None:
    """Every state is in one block; whole environments stay whole; each block takes equally of every stratum."""
    if whole and len(shape) == 1:
        return
    split = Split.of(shape, block, strata, whole)
    assert split is not None
    x = jnp.arange(3 * math.prod(shape)).reshape(*shape, 3)
    parts = split.split(x)
    np.testing.assert_array_equal(split.join(parts), x)
    assert set(np.ravel(parts).tolist()) == set(np.ravel(x).tolist())
    size = math.prod(parts.shape[1:-1])
    assert size <= max(block, strata * (shape[0] if whole else 1))
    if whole:
        assert parts.shape[1] == shape[0]
        np.testing.assert_array_equal(parts[0][:, 0], x[:, 0])
    if len(shape) == 2:  # environments 0, 1, … of strata that come one after the other
        env = split.split(jnp.broadcast_to(jnp.arange(shape[1]), shape))
        stratum = (np.asarray(env) * strata // shape[1]).reshape(len(parts), -1)
        assert {tuple(np.bincount(row, minlength=strata)) for row in stratum} == {(size // strata,) * strata}


@pytest.mark.parametrize("block", [0, 12, 100])
def test_a_batch_that_is_no_larger_than_a_block_is_one(block: int) -> None:
    assert Split.of((3, 4), block) is None


def everything(problem: LocalProblem, params: Any, other: Any) -> Any:
    """All that a rule may ask, at θ_old and elsewhere."""
    vector = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    found = []
    for theta in (params, other):
        model = problem.linearise(theta)
        found.append((model.evaluation, model.gradient, model.kl_gradient(), model.fisher_vp(vector)))
        found.append((model.kl_along(vector), problem.evaluate(theta)))
    # Few products and much damping: conjugate gradient multiplies rounding errors as its residual falls.
    new, _, info = trpo.TRPO(max_kl=0.02, damping=0.5, cg_iterations=5).update(problem, params, ())
    return found, new, info


def assert_same_in_blocks(policy: Any, params: Any, batch: trpo.Batch, block: int, subsample: int = 1) -> None:
    other = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)

    def of(block: int) -> Any:
        def compute(params: Any, other: Any, batch: trpo.Batch) -> Any:
            return everything(trpo.sampled_problem(policy, params, batch, subsample, block), params, other)

        return jax.device_get(jax.jit(compute)(params, other, batch))

    for one, two in zip(jax.tree.leaves(of(0)), jax.tree.leaves(of(block)), strict=True):
        scale = max(1.0, np.abs(one).max())
        np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize(("name", "block", "subsample"), [("gaussian-tanh", 4, 1), ("masked-dict", 3, 2)])
def test_a_problem_in_blocks_is_the_problem(name: str, block: int, subsample: int, x64: None) -> None:
    """To 1e-12 in double precision, a whole TRPO update included; what is behind a weight of 0 does not matter."""
    policy, params, _ = setting(name, np.float64)
    eleven = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:11], poisoned(batch_of(name, np.float64)))
    batch = dataclasses.replace(eleven, weight=eleven.weight / eleven.weight.sum())
    assert_same_in_blocks(policy, params, batch, block, subsample)


def test_with_memory_blocks_are_whole_environments(x64: None) -> None:
    """Seven times of five environments, from a memory that is under way, with episodes beginning anywhere."""
    policy, params = trpo.as_policy(recurrent())
    random = np.random.default_rng(0)
    observation, action = (jnp.asarray(random.normal(size=(7, 5, n))) for n in (3, 2))
    weight = random.random((7, 5)) * (random.random((7, 5)) < 0.8)
    batch = trpo.Batch(
        observation=observation,
        action=action,
        advantage=jnp.asarray(random.normal(size=(7, 5))),
        weight=jnp.asarray(weight / weight.sum()),
        carry={"h": jnp.asarray(random.normal(size=(5, 4))), "age": jnp.arange(5, dtype=jnp.int32)},
        reset=jnp.asarray(random.random((7, 5)) < 0.2),
    )
    assert_same_in_blocks(policy, params, batch, block=14)


def test_without_blocks_nothing_changes_bit_for_bit() -> None:
    policy, params, _ = setting("gaussian-tanh")
    batch = batch_of("gaussian-tanh")

    def gradient(*how: int) -> Any:
        return jax.jit(lambda p, b: trpo.sampled_problem(policy, p, b, *how).linearise(p).gradient)(params, batch)

    plain, named = gradient(), gradient(1, 12)
    np.testing.assert_array_equal(ravel_pytree(plain)[0], ravel_pytree(named)[0])


def image_problem(states: int) -> tuple[Any, Any, trpo.Batch]:
    space = Box((10, 10, 4), "uint8", 0, 255)
    encoder = trpo.make_encoder(space, key=jax.random.key(0))
    module = trpo.Policy(encoder, trpo.mlp(jax.random.key(1), (encoder.size, 3)), trpo.CategoricalHead(3))
    batch = trpo.Batch(
        observation=jnp.zeros((states, *space.shape), jnp.uint8),
        action=jnp.zeros(states, jnp.int32),
        advantage=jnp.zeros(states),
        weight=jnp.full(states, 1 / states),
    )
    return *trpo.as_policy(module), batch


def test_the_memory_of_an_update_is_that_of_a_block() -> None:
    """What a compiled update works in, by the compiler's own account, for a batch of 1024 images."""
    policy, params, batch = image_problem(1024)

    def bytes_for(block: int) -> int:
        def update(params: Any, batch: trpo.Batch) -> Any:
            return trpo.TRPO().update(trpo.sampled_problem(policy, params, batch, block=block), params, ())

        usage: Any = jax.jit(update).lower(params, batch).compile().memory_analysis()
        return usage.temp_size_in_bytes

    whole, large, small = (bytes_for(block) for block in (0, 256, 32))
    per_state = 4 * 8 * 8 * 16  # one layer's activations
    assert whole > 1024 * 3 * per_state
    assert large - small > (256 - 32) * per_state
    assert small + 1024 * per_state < large + 768 * per_state < whole


def test_the_setting_reaches_the_update_and_the_values() -> None:
    """Runs with blocks and without are the same to rounding."""
    base = trpo.Config(
        steps=160, fragment=10, env=trpo.EnvConfig(count=4), value=trpo.ValueConfig(hidden=(8,), epochs=2)
    )
    results = []
    for block in (0, 7):
        config = dataclasses.replace(base, problem=trpo.ProblemConfig(block=block))
        agent = trpo.make_agent("probe:continuous", config)
        *_, (state, metrics) = trpo.iterations("probe:continuous", agent, config)
        results.append((metrics, ravel_pytree(state.learner.policy)[0], ravel_pytree(state.learner.value.params)[0]))
    (one, theta, phi), (two, theta_2, phi_2) = results
    assert one["result"] == two["result"] == "accepted"
    np.testing.assert_allclose(theta_2, theta, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(phi_2, phi, rtol=1e-3, atol=1e-5)
    assert not np.array_equal(theta, theta_2)  # another order of summation
