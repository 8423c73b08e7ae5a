"""float32 by default and float64 under x64, with nothing mixed in between."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import batch_of, plain, setting

import trpo
from trpo.envs.spaces import Box
from trpo.value_fits.fit import ValueBatch, ValueState, fit_value, predict


def floating(tree: Any) -> set:
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [trpo.TRPO(), trpo.NaturalGradient(), trpo.Penalty()], ids=lambda r: type(r).__name__)
def test_updates(rule: Any, dtype: Any) -> None:
    with jax.enable_x64(dtype is np.float64):
        policy, params, _ = setting("gaussian-tanh", dtype)
        batch = batch_of("gaussian-tanh", dtype)

        def update(batch: trpo.Batch) -> Any:
            problem = trpo.sampled_problem(policy, params, batch, 2)
            return rule.update(problem, params, rule.init(params)), problem.evaluate(params)

        assert floating(jax.eval_shape(update, batch)) == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "method", [trpo.AdamFit(minibatch=0), trpo.AdamFit(minibatch=2), trpo.GaussNewtonFit()], ids=repr
)
def test_value_fits(method: Any, dtype: Any) -> None:
    with jax.enable_x64(dtype is np.float64):
        trunk = trpo.mlp(jax.random.key(0), (3, 4, 1), dtype=dtype)
        apply, params = plain(trpo.ValueFunction(trpo.make_encoder(Box((3,))), trunk))
        state = ValueState(params, method.init(params), trpo.RunningStatistics.zeros((), dtype))
        batch = ValueBatch(jnp.ones((6, 3), dtype), jnp.arange(6, dtype=dtype), jnp.full(6, 1 / 6, dtype))

        def fit(state: ValueState, batch: ValueBatch) -> Any:
            new, info = fit_value(method, apply, state, batch, jax.random.key(0))
            return new, info, predict(apply, new, batch.observation)

        assert floating(jax.eval_shape(fit, state, batch)) == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_advantages_statistics_and_networks(dtype: Any) -> None:
    with jax.enable_x64(dtype is np.float64):
        x, no = jnp.ones((4, 2), dtype), jnp.zeros((4, 2), bool)
        network = trpo.mlp(jax.random.key(0), (2, 3, 1), dtype=dtype)
        empty = trpo.RunningStatistics.zeros((2,), dtype)

        def everything(x: jax.Array) -> Any:
            statistics = empty.merge(x, jnp.ones(4, dtype))
            return (
                trpo.gae(x, x, x, no, no, 0.99, 0.95),
                trpo.standardise(x, x / 8),
                statistics,
                statistics.normalise(x, 10.0),
                network(x),
                trpo.conjugate_gradient(lambda v: 2 * v, x, 3),
            )

        assert floating((network, jax.eval_shape(everything, x))) == {np.dtype(dtype)}
