"""Small policies and batches of every kind, for the tests of Fisher products, problems and rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import trpo

LEADING = (3, 4)  # [time, env]


class Setting(NamedTuple):
    """A policy as a pure function, its parameters, and observations with leading axes ``LEADING``."""

    policy: Callable[[Any, Any], Any]
    params: Any
    observation: Any


def _features(key: jax.Array, dtype: Any, size: int = 3) -> jax.Array:
    return jax.random.normal(key, (*LEADING, size), dtype)


def _module(make: Callable[[jax.Array, Any], Any]) -> Callable[[Any], Setting]:
    def setting(dtype: Any) -> Setting:
        keys = jax.random.split(jax.random.key(0), 2)
        policy, params = trpo.as_function(make(keys[0], dtype))
        params = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size, dtype=dtype)).reshape(leaf.shape), params)
        return Setting(policy, params, _features(keys[1], dtype))

    return setting


def _masked(dtype: Any) -> Setting:
    """Dict observations; the mask forbids actions with −inf. The parameters are a plain dict of the user's."""

    def policy(params: dict, observation: dict) -> trpo.Categorical:
        logits = jnp.tanh(observation["x"]) @ params["w"] + params["b"].reshape(1, 1, -1)
        return trpo.Categorical(jnp.where(observation["allowed"], logits, -jnp.inf))

    keys = jax.random.split(jax.random.key(1), 3)
    allowed = np.random.default_rng(0).random((*LEADING, 4)) < 0.6
    allowed[..., 1] = True
    params = {"w": jax.random.normal(keys[0], (3, 4), dtype), "b": 0.1 * jnp.arange(4, dtype=dtype)}
    return Setting(policy, params, {"x": _features(keys[1], dtype), "allowed": jnp.asarray(allowed)})


def _recurrent(dtype: Any) -> Setting:
    """A GRU unrolled over [time, env] by ``lax.scan``, its memory cleared where an episode begins."""
    hidden = 3

    def policy(params: dict, observation: dict) -> trpo.DiagGaussian:
        def step(h: jax.Array, inputs: tuple) -> tuple:
            x, reset = inputs
            h = jnp.where(reset[:, None], 0.0, h)
            both = jnp.concatenate([x, h], -1)
            z, r = jnp.split(jax.nn.sigmoid(both @ params["gates"]), 2, -1)
            candidate = jnp.tanh(jnp.concatenate([x, r * h], -1) @ params["candidate"])
            h = (1 - z) * h + z * candidate
            return h, h

        start = jnp.zeros((LEADING[1], hidden), dtype)
        _, states = jax.lax.scan(step, start, (observation["x"], observation["reset"]))
        mean = states @ params["head"]
        return trpo.DiagGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    keys = jax.random.split(jax.random.key(2), 4)
    params = {
        "gates": jax.random.normal(keys[0], (2 + hidden, 2 * hidden), dtype),
        "candidate": jax.random.normal(keys[1], (2 + hidden, hidden), dtype),
        "head": jax.random.normal(keys[2], (hidden, 2), dtype),
        "log_std": jnp.array([-0.3, 0.2], dtype),
    }
    reset = jnp.zeros(LEADING, bool).at[0].set(True).at[1, 2].set(True)
    return Setting(policy, params, {"x": _features(keys[3], dtype, 2), "reset": reset})


def _equinox(dtype: Any) -> Setting:
    """``equinox.nn.MLP``, written for one input, under ``vmap``."""
    network = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(3), dtype=dtype)
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def policy(params: Any, observation: jax.Array) -> trpo.Bernoulli:
        return trpo.Bernoulli(jax.vmap(jax.vmap(eqx.combine(params, static)))(observation))

    return Setting(policy, params, _features(jax.random.key(4), dtype))


SETTINGS: dict[str, Callable[[Any], Setting]] = {
    "gaussian-tanh": _module(
        lambda key, dtype: trpo.GaussianPolicy(trpo.mlp(key, (3, 4, 2), dtype=dtype), jnp.array([-0.5, 0.1], dtype))
    ),
    "state-dependent-relu": _module(
        lambda key, dtype: trpo.StateDependentGaussianPolicy(
            trpo.mlp(key, (3, 5, 4), "relu", dtype=dtype), jnp.array([-0.5, 0.1], dtype)
        )
    ),
    "categorical-relu": _module(lambda key, dtype: trpo.CategoricalPolicy(trpo.mlp(key, (3, 5, 3), "relu", dtype=dtype))),
    "multi-tanh": _module(
        lambda key, dtype: trpo.MultiCategoricalPolicy(trpo.mlp(key, (3, 3, 5), dtype=dtype), (2, 3))
    ),
    "bernoulli-tanh": _module(lambda key, dtype: trpo.BernoulliPolicy(trpo.mlp(key, (3, 4, 2), dtype=dtype))),
    "masked-dict": _masked,
    "recurrent-gru": _recurrent,
    "equinox-mlp": _equinox,
}


def uneven_weight(dtype: Any = jnp.float32) -> jax.Array:
    """Weights that sum to 1 and are 0 in two places."""
    w = np.random.default_rng(5).uniform(0.2, 1.0, LEADING)
    w[1, 1] = w[2, 3] = 0.0
    return jnp.asarray(w / w.sum(), dtype)


def batch_of(setting: Setting, seed: int = 0) -> trpo.Batch:
    """Actions sampled from the policy, standardised random advantages, uneven weights."""
    dtype = jax.tree.leaves(setting.params)[0].dtype
    keys = jax.random.split(jax.random.key(seed), 2)
    action = jax.jit(lambda p: setting.policy(p, setting.observation).sample(keys[0]))(setting.params)
    weight = uneven_weight(dtype)
    advantage = jax.jit(trpo.standardise)(jax.random.normal(keys[1], LEADING, dtype), weight)
    return trpo.Batch(setting.observation, action, advantage, weight)


def poisoned(batch: trpo.Batch) -> trpo.Batch:
    """The same batch with NaN (or an absurd integer) wherever the weight is 0."""

    def poison(leaf: jax.Array) -> jax.Array:
        absent = (batch.weight == 0).reshape(batch.weight.shape + (1,) * (leaf.ndim - batch.weight.ndim))
        if leaf.dtype == bool:
            return jnp.where(absent, ~leaf, leaf)
        bad = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 10**6
        return jnp.where(absent, jnp.asarray(bad, leaf.dtype), leaf)

    observation, action, advantage = jax.tree.map(poison, (batch.observation, batch.action, batch.advantage))
    return trpo.Batch(observation, action, advantage, batch.weight)
