"""Environments written in JAX, which run inside the compiled iteration (L5)."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from trpo import envs
from trpo.envs import HostEnv, MissingExtraError, UnknownEnvironmentError
from trpo.jax_envs.brax_env import BraxEnv, from_brax, make_brax, make_playground
from trpo.jax_envs.gymnax_env import GymnaxEnv, from_gymnax, make_gymnax
from trpo.jax_envs.probes import JaxProbe, make_probe
from trpo.jax_envs.protocol import JaxEnv, Step

__all__ = [
    "BraxEnv",
    "GymnaxEnv",
    "JaxEnv",
    "JaxProbe",
    "MissingExtraError",
    "Step",
    "as_jax_env",
    "from_brax",
    "from_gymnax",
    "is_jax_name",
    "make_envs",
]

_MAKERS: dict[str, Callable[[str], JaxEnv]] = {
    "gymnax": make_gymnax,
    "brax": make_brax,
    "playground": make_playground,
    "jax-probe": make_probe,
}


def is_jax_name(env: Any) -> bool:
    """Return whether ``env`` is a name of an environment in JAX, without importing anything."""
    return isinstance(env, str) and env.partition(":")[0] in {*_MAKERS, "jax"}


def as_jax_env(env: Any) -> JaxEnv | None:
    """Return the JAX environment that ``env`` is or names, or None if it is one for the host.

    Named are ``gymnax:ID``, ``brax:NAME[@BACKEND]``, ``playground:NAME``, ``jax-probe:NAME`` and
    ``jax:MODULE:FUNCTION``, where the function, called without arguments, returns a :class:`JaxEnv` of yours.

    Raises:
        UnknownEnvironmentError: no environment of that name; the message has the nearest.
        MissingExtraError: a package is not installed; the message has the command.
    """
    if not isinstance(env, str):
        return env if isinstance(env, JaxEnv) and not isinstance(env, type) else None
    kind, _, name = env.partition(":")
    if kind == "jax":
        return _imported(name)
    return _MAKERS[kind](name) if kind in _MAKERS else None


def _imported(name: str) -> JaxEnv:
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise UnknownEnvironmentError(f"environment 'jax:{name}': must be jax:MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: not a module's name, such as .x
        raise UnknownEnvironmentError(f"environment 'jax:{name}' cannot be imported: {error}") from error
    if not hasattr(module, function):
        near = difflib.get_close_matches(function, dir(module), n=3)
        raise UnknownEnvironmentError(f"{module_name} has no {function!r}; nearest: {', '.join(near) or 'none'}")
    made = getattr(module, function)
    if not callable(made):
        raise UnknownEnvironmentError(f"jax:{name} is {type(made).__name__}, not a function that returns a trpo.JaxEnv")
    env = made()
    if not isinstance(env, JaxEnv):
        raise UnknownEnvironmentError(
            f"jax:{name} returned {type(env).__name__}, which lacks one of spec, cheap_reset, reset, step (trpo.JaxEnv)"
        )
    return env


def make_envs(env: Any, count: int, workers: int = 0, rescale_actions: bool = True) -> HostEnv:
    """Make ``count`` environments that are stepped together from the host.

    Args:
        env: a Gymnasium id (``Hopper-v5``, or ``module:Id-v0`` to import a module of yours first), ``probe:NAME``,
            ``envpool:ID``, a function without arguments that returns a ``gymnasium.Env``, or anything that
            :func:`as_jax_env` takes.
        count: how many.
        workers: 0 steps them in this process; K spreads them over K processes.
        rescale_actions: map [−1, 1] onto finite Box bounds.

    Raises:
        UnknownEnvironmentError: no such id; the message names the nearest.
        UnsupportedSpaceError: the message names the part of the space.
    """
    known = as_jax_env(env)
    if known is None:
        return envs.make_envs(env, count, workers, rescale_actions)
    if workers:
        raise ValueError(f"env.workers={workers}: environments in JAX need no processes; use 0")
    if count < 1:
        raise ValueError(f"env.count={count}: must be ≥ 1; 64 is usual")
    from trpo.jax_envs.host import HostedJaxEnvs

    return HostedJaxEnvs(known, count, rescale_actions)
