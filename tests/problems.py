"""Small policies and batches of every kind, for the tests of Fisher products, problems and rules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import trpo
from trpo.envs.spaces import Box

LEADING = (3, 4)  # [time, env]


class Setting(NamedTuple):
    """A policy as a pure function, its parameters, and observations with leading axes ``LEADING``."""

    policy: Callable[[Any, Any], Any]
    params: Any
    observation: Any


def _features(key: jax.Array, size: int = 3) -> jax.Array:
    return jax.random.normal(key, (*LEADING, size), jnp.float32)


def plain(module: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """Split a policy or value function without memory into ``f(params, observation)`` and parameters."""
    function, params = trpo.as_policy(module)
    return lambda params, observation: function(params, (), (observation, None))[0], params


def _module(head: Any, sizes: tuple[int, ...], activation: Any) -> Setting:
    keys = jax.random.split(jax.random.key(0), 2)
    encoder = trpo.make_encoder(Box((sizes[0],)))
    policy, params = plain(trpo.Policy(encoder, trpo.mlp(keys[0], sizes, activation), head))
    params = jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return Setting(policy, params, _features(keys[1]))


def _gaussian() -> Setting:
    return _module(trpo.GaussianHead(jnp.array([-0.5, 0.1], jnp.float32)), (3, 4, 2), "tanh")


def _state_dependent() -> Setting:
    return _module(trpo.StateDependentGaussianHead(jnp.array([-0.5, 0.1], jnp.float32)), (3, 5, 4), "relu")


def _multi() -> Setting:
    return _module(trpo.MultiCategoricalHead((2, 3)), (3, 4, 5), "relu")


def _masked() -> Setting:
    """Dict observations; the mask forbids actions with −inf. The parameters are a plain dict of the user's."""

    def policy(params: dict, observation: dict) -> trpo.Categorical:
        logits = jnp.tanh(observation["x"]) @ params["w"]
        logits = logits + params["b"].reshape((1,) * (logits.ndim - 1) + (-1,))
        return trpo.Categorical(jnp.where(observation["allowed"], logits, -jnp.inf))

    keys = jax.random.split(jax.random.key(1), 3)
    allowed = np.random.default_rng(0).random((*LEADING, 4)) < 0.6
    allowed[..., 1] = True
    params = {"w": jax.random.normal(keys[0], (3, 4), jnp.float32), "b": 0.1 * jnp.arange(4, dtype=jnp.float32)}
    return Setting(policy, params, {"x": _features(keys[1]), "allowed": jnp.asarray(allowed)})


def _recurrent() -> Setting:
    """A GRU unrolled over [time, env] by ``lax.scan``, its memory cleared where an episode begins."""
    hidden = 2

    def policy(params: dict, observation: dict) -> trpo.DiagGaussian:
        def step(h: jax.Array, inputs: tuple) -> tuple:
            x, reset = inputs
            h = jnp.where(reset[:, None], 0.0, h)
            both = jnp.concatenate([x, h], -1)
            z, r = jnp.split(jax.nn.sigmoid(both @ params["gates"]), 2, -1)
            candidate = jnp.tanh(jnp.concatenate([x, r * h], -1) @ params["candidate"])
            h = (1 - z) * h + z * candidate
            return h, h

        start = jnp.zeros((LEADING[1], hidden), params["head"].dtype)
        _, states = jax.lax.scan(step, start, (observation["x"], observation["reset"]))
        mean = states @ params["head"]
        return trpo.DiagGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    keys = jax.random.split(jax.random.key(2), 4)
    params = {
        "gates": jax.random.normal(keys[0], (2 + hidden, 2 * hidden), jnp.float32),
        "candidate": jax.random.normal(keys[1], (2 + hidden, hidden), jnp.float32),
        "head": jax.random.normal(keys[2], (hidden, 2), jnp.float32),
        "log_std": jnp.array([-0.3, 0.2], jnp.float32),
    }
    reset = np.zeros(LEADING, bool)
    reset[0] = reset[1, 2] = True
    reset[2, 1] = True  # an episode begins after the step of weight 0 (an auto-reset step)
    return Setting(policy, params, {"x": _features(keys[3], 2), "reset": jnp.asarray(reset)})


def _equinox() -> Setting:
    """``equinox.nn.MLP``, written for one input, under ``vmap``."""
    network = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(3), dtype=jnp.float32)
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def policy(params: Any, observation: jax.Array) -> trpo.Bernoulli:
        return trpo.Bernoulli(jnp.vectorize(eqx.combine(params, static), signature="(i)->(o)")(observation))

    return Setting(policy, params, _features(jax.random.key(4)))


_BUILDERS: dict[str, Callable[[], Setting]] = {
    "gaussian-tanh": _gaussian,
    "state-dependent-relu": _state_dependent,
    "multi-relu": _multi,
    "masked-dict": _masked,
    "recurrent-gru": _recurrent,
    "equinox-bernoulli": _equinox,
}
SETTINGS = tuple(_BUILDERS)


@functools.cache
def setting(name: str, dtype: Any = np.float32) -> Setting:
    """Return a setting whose float32 values are the same numbers in every ``dtype``."""
    made = _BUILDERS[name]()

    def cast(x: jax.Array) -> jax.Array:
        return jnp.asarray(np.asarray(x), dtype if x.dtype == jnp.float32 else x.dtype)

    return Setting(made.policy, *jax.tree.map(cast, (made.params, made.observation)))


def uneven_weight(dtype: Any = jnp.float32) -> jax.Array:
    """Weights that sum to 1 and are 0 in two places."""
    w = np.random.default_rng(5).uniform(0.2, 1.0, LEADING)
    w[1, 1] = w[2, 3] = 0.0
    return jnp.asarray(w / w.sum(), dtype)


@functools.cache
def _sampler(name: str, dtype: Any) -> Callable[..., jax.Array]:
    policy = setting(name, dtype).policy
    return jax.jit(lambda params, observation, key: policy(params, observation).sample(key))


@functools.cache
def batch_of(name: str, dtype: Any = np.float32, seed: int = 0) -> trpo.Batch:
    """Actions sampled from the policy, standardised random advantages, uneven weights."""
    _, params, observation = setting(name, dtype)
    action = _sampler(name, dtype)(params, observation, jax.random.key(seed))
    weight = np.asarray(uneven_weight(dtype))
    advantage = np.random.default_rng(seed).normal(size=LEADING)
    advantage = advantage - np.sum(weight * advantage)
    advantage = advantage / np.sqrt(np.sum(weight * advantage**2))
    return trpo.Batch(observation, action, jnp.asarray(advantage, dtype), jnp.asarray(weight))


def poisoned(batch: trpo.Batch) -> trpo.Batch:
    """The same batch with NaN (or an absurd integer) wherever the weight is 0."""

    def poison(leaf: jax.Array) -> jax.Array:
        absent = (batch.weight == 0).reshape(batch.weight.shape + (1,) * (leaf.ndim - batch.weight.ndim))
        if leaf.dtype == bool:
            return jnp.where(absent, ~leaf, leaf)
        bad = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 10**6
        return jnp.where(absent, jnp.asarray(bad, leaf.dtype), leaf)

    return dataclasses.replace(jax.tree.map(poison, batch), weight=batch.weight)
