"""gymnax environments (extra ``gymnax``)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.envs import Bits, Box, Choice, Dict, EnvSpec, Space, Tree, Tuple, UnsupportedSpaceError
from trpo.envs.device.extras import check_known, require
from trpo.envs.device.protocol import Step
from trpo.envs.host.gymnasium import bound_of
from trpo.envs.protocol import UnknownEnvironmentError


@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnv:
    """One gymnax environment with its default parameters.

    From gymnax 1.0 on an environment tells termination and truncation apart. An environment in the older form tells
    ``done`` alone, which its time limit sets as well: there, ``done`` at the time limit (``state.time`` has reached
    ``params.max_steps_in_episode``) counts as truncation, so an absorbing state that is reached in the very last step
    is bootstrapped from; every other ``done`` is a termination. An older environment that has no such clock never
    truncates.
    """

    env: Any
    params: Any
    spec: EnvSpec
    cheap_reset: bool = True

    def reset(self, key: Any) -> tuple[Any, Any]:
        observation, state = self.env.reset_env(key, self.params)
        return state, _tree(observation)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        observation, after, reward, ended, _ = self.env.step_env(key, state, action, self.params)
        ended = jnp.asarray(ended, bool).reshape(())
        if hasattr(self.env, "is_truncated"):
            terminated, truncated = ended, jnp.asarray(self.env.is_truncated(after, self.params), bool)
        elif hasattr(after, "time") and hasattr(self.params, "max_steps_in_episode"):
            truncated = ended & (after.time >= self.params.max_steps_in_episode)
            terminated = ended & ~truncated
        else:
            terminated, truncated = ended, jnp.zeros((), bool)
        return after, Step(_tree(observation), jnp.asarray(reward, float).reshape(()), terminated, truncated)


def _tree(observation: Any) -> Tree:
    """Return dicts and tuples of arrays, as spaces have them; floats are of JAX's default precision."""
    match observation:
        case dict():
            return {name: _tree(part) for name, part in observation.items()}
        case tuple() | list():
            return tuple(map(_tree, observation))
    if not jax.tree_util.all_leaves([observation]):  # a node of another kind: a tuple of its leaves
        return tuple(map(_tree, jax.tree.leaves(observation)))
    x = jnp.asarray(observation)
    return x if np.can_cast(x.dtype, np.int32) else x.astype(float)


def _space(seen: Tree) -> Space:
    match seen:
        case dict():
            return Dict(tuple((name, _space(seen[name])) for name in sorted(seen)))
        case tuple():
            return Tuple(tuple(map(_space, seen)))
    if seen.dtype == bool:
        return Bits(seen.shape, "bool")
    return Box(seen.shape, "float32" if jnp.issubdtype(seen.dtype, jnp.floating) else str(seen.dtype))


def make_gymnax(name: str, **kwargs: Any) -> GymnaxEnv:
    """Make a gymnax environment by its id, such as ``CartPole-v1`` or ``Breakout-MinAtar``.

    ``kwargs`` are its own arguments, or fields of its parameters.
    """
    gymnax = require("gymnax", f"gymnax:{name}", "gymnax")
    check_known("gymnax", name, gymnax.registered_envs, "see gymnax.registered_envs")
    try:
        params = gymnax.make(name)[1] if kwargs else None
        of_params = {key: value for key, value in kwargs.items() if hasattr(params, key)}
        env, params = gymnax.make(name, **{key: value for key, value in kwargs.items() if key not in of_params})
    except OSError as error:
        raise UnknownEnvironmentError(
            f"environment 'gymnax:{name}' needs data that its package fetches when first used: {error}"
        ) from error
    return from_gymnax(env, params.replace(**of_params) if of_params else params, f"gymnax:{name}")


def from_gymnax(env: Any, params: Any, name: str) -> GymnaxEnv:
    """Adapt an environment object of gymnax's form, with parameters of your own."""
    seen = jax.eval_shape(lambda key: _tree(env.reset_env(key, params)[0]), jax.random.key(0))
    space, told = _space(seen), getattr(env, "observation_space", lambda params: None)(params)
    if isinstance(space, Box) and len(space.shape) == 3:  # an image is one by its bounds
        space = dataclasses.replace(space, **_bounds(told, space.shape))
    return GymnaxEnv(env, params, EnvSpec(name, space, _actions(env.action_space(params), name)))


def _bounds(space: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    ends = {end: np.asarray(getattr(space, end), float) for end in ("low", "high") if hasattr(space, end)}
    return {end: bound_of(np.broadcast_to(bound, shape)) for end, bound in ends.items()}


def _actions(space: Any, name: str) -> Space:
    kind, shape = type(space).__name__, tuple(getattr(space, "shape", ()))
    if kind == "Discrete":
        return Choice(int(space.n), dtype=str(np.dtype(space.dtype)))
    if kind == "Box":
        return Box(shape, str(np.dtype(space.dtype)), **_bounds(space, shape))
    if kind == "Dict":
        return Dict(tuple((key, _actions(part, name)) for key, part in space.spaces.items()))
    if kind == "Tuple":
        return Tuple(tuple(_actions(part, name) for part in space.spaces))
    raise UnsupportedSpaceError(
        f"action space {space} of {name} is not supported; supported are Box, Discrete, and Dict or Tuple of these"
    )
