"""Environments on the host: adapters to one small protocol (L5)."""

from __future__ import annotations

from typing import Any

from trpo.envs.gymnasium_env import GymnasiumEnvs, MakeEnv, UnknownEnvironmentError, env_maker, make_one, quiet_mujoco
from trpo.envs.probes import NAMES, MakeProbe
from trpo.envs.protocol import EnvironmentFailure, HostEnv, MissingExtraError, RestartableEnv, SplitEnv, Transition
from trpo.envs.spaces import ActionSpec, EnvSpec, UnsupportedSpaceError, to_env_action

__all__ = [
    "ActionSpec",
    "EnvSpec",
    "EnvironmentFailure",
    "HostEnv",
    "MissingExtraError",
    "RestartableEnv",
    "SplitEnv",
    "Transition",
    "UnknownEnvironmentError",
    "UnsupportedSpaceError",
    "make_envs",
    "make_single",
    "quiet_mujoco",
    "to_env_action",
]


def _maker(env: str | MakeEnv, **kwargs: Any) -> tuple[str, MakeEnv]:
    if not isinstance(env, str):
        if not callable(env):
            raise ValueError(f"env={env!r}: must be an environment id or a function without arguments that makes one")
        return getattr(env, "__name__", type(env).__name__), env
    if env.startswith("probe:"):
        name = env.removeprefix("probe:")
        if name not in NAMES:
            MakeProbe(name)()  # raises, naming the nearest
        return env, MakeProbe(name)
    return env, env_maker(env, **kwargs)


def make_envs(env: str | MakeEnv, count: int, workers: int = 0, rescale_actions: bool = True) -> HostEnv:
    """Make ``count`` environments that are stepped together.

    Args:
        env: a Gymnasium id (``Hopper-v5``, or ``module:Id-v0`` to import a module of yours first), ``probe:NAME``,
            ``envpool:ID``, or a function without arguments that returns a ``gymnasium.Env``.
        count: how many.
        workers: 0 steps them in this process; K spreads them over this one and K others.
        rescale_actions: map [−1, 1] onto finite Box bounds.

    Raises:
        UnknownEnvironmentError: no such id; the message names the nearest.
        UnsupportedSpaceError: the message names the part of the space.
    """
    if count < 1:
        raise ValueError(f"env.count={count}: must be ≥ 1; 16 is usual")
    if workers < 0:
        raise ValueError(f"env.workers={workers}: must be ≥ 0; 0 steps all environments in this process")
    if isinstance(env, str) and env.startswith("envpool:"):
        from trpo.envs.envpool_env import EnvPoolEnvs

        if workers:
            raise ValueError(f"env.workers={workers}: EnvPool has threads of its own; use 0")
        return EnvPoolEnvs(env.removeprefix("envpool:"), count, rescale_actions)
    name, make = _maker(env)
    if workers:
        from trpo.envs.workers import WorkerEnvs

        return WorkerEnvs(name, make, count, workers, rescale_actions)
    return GymnasiumEnvs(name, make, count, rescale_actions)


def make_single(env: str | MakeEnv, **kwargs: Any) -> Any:
    """Make one plain ``gymnasium.Env`` of the same task (EnvPool's by its Gymnasium name), for rendering."""
    if isinstance(env, str):
        env = env.removeprefix("envpool:")
    return make_one(_maker(env, **kwargs)[1])
