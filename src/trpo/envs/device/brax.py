"""brax environments (extra ``brax``) and MuJoCo Playground's (extra ``playground``), which have the same form."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from trpo.envs import Box, EnvSpec
from trpo.envs.device.extras import check_known, require
from trpo.envs.device.protocol import Step
from trpo.envs.protocol import UnknownEnvironmentError
from trpo.spelling import nearest

EPISODE_LENGTH = 1000
"""brax's own default time limit."""


class _Clocked(NamedTuple):
    state: Any
    elapsed: Int[Array, ""]
    """Steps of this episode."""


@dataclasses.dataclass(frozen=True, eq=False)
class BraxEnv:
    """One environment of brax's form: ``reset(rng) -> state``, ``step(state, action) -> state``.

    ``state.done`` is a termination: it comes from the environment without brax's episode wrapper, whose ``done`` mixes
    the two. The time limit is counted here instead, and reaching it is a truncation, unless the same step terminates.
    """

    env: Any
    spec: EnvSpec
    episode_length: int
    cheap_reset: bool = False

    def reset(self, key: Any) -> tuple[Any, Any]:
        # These environments were written for raw keys, and some keep theirs in the state.
        state = self.env.reset(jax.random.key_data(key))
        return _Clocked(state, jnp.zeros((), jnp.int32)), _observation(state.obs)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        after, elapsed = self.env.step(state.state, action), state.elapsed + 1
        # The state says `done` until the next reset, and the next step must not see it.
        terminated = after.done > 0
        after = after.replace(done=jnp.zeros_like(after.done))
        seen = Step(
            _observation(after.obs),
            jnp.asarray(after.reward, float),
            terminated,
            elapsed >= self.episode_length,
            {**getattr(after, "info", {}), **getattr(after, "metrics", {})},
        )
        return _Clocked(after, elapsed), seen


def _observation(observation: Any) -> Array:
    """Return the policy's part: ``state`` of a dict that has one (the rest is for a critic), else all."""
    if isinstance(observation, dict) and "state" in observation:
        observation = observation["state"]
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(observation)])


def from_brax(env: Any, name: str, episode_length: int = EPISODE_LENGTH) -> BraxEnv:
    """Adapt an environment object of brax's or MuJoCo Playground's form, not wrapped; actions are in [−1, 1]."""
    seen = jax.eval_shape(lambda key: _observation(env.reset(jax.random.key_data(key)).obs), jax.random.key(0))
    action = Box((int(env.action_size),), low=-1.0, high=1.0)
    return BraxEnv(env, EnvSpec(name, Box(seen.shape), action), episode_length)


def make_brax(name: str, **kwargs: Any) -> BraxEnv:
    """Make a brax environment: ``ant``, or ``ant@generalized`` for another physics backend than ``spring``."""
    task, _, backend = name.partition("@")
    envs = require("brax.envs", f"brax:{name}", "brax")
    known, backends = sorted(envs._envs), ("spring", "generalized", "positional", "mjx")
    check_known("brax", task, known)
    if backend and backend not in backends:
        raise UnknownEnvironmentError(f"unknown backend {backend!r} of 'brax:{name}'; known: {', '.join(backends)}")
    env = envs.get_environment(task, **({} if task == "fast" else {"backend": backend or "spring"}), **kwargs)
    return from_brax(env, f"brax:{name}")


def make_playground(name: str, **kwargs: Any) -> BraxEnv:
    """Make a MuJoCo Playground task with its own time limit; ``kwargs`` are fields of its configuration."""
    registry = require("mujoco_playground", f"playground:{name}", "playground").registry
    check_known("playground", name, list(registry.ALL_ENVS))
    config = registry.get_default_config(name)
    # Some tasks' default is physics in Warp, whose kernels are made for GPUs; elsewhere MJX's own, in JAX.
    overrides = {"impl": "jax"} if "impl" in config and jax.default_backend() != "gpu" else {}
    for key in kwargs:
        if key.partition(".")[0] not in config:
            raise TypeError(f"its configuration has no {key!r}; {nearest(key, list(config))}")
    overrides |= kwargs
    try:
        env = registry.load(name, config_overrides=overrides)
    except OSError as error:
        raise UnknownEnvironmentError(
            f"environment 'playground:{name}' needs robot models that its package fetches when first used: {error}"
        ) from error
    return from_brax(env, f"playground:{name}", int(overrides.get("episode_length", config.episode_length)))
