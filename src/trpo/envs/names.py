"""What ENV is: decided by its name or its type, here and nowhere else."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from trpo.envs.device.brax import make_brax
from trpo.envs.device.gymnax import make_gymnax
from trpo.envs.device.playground import make_playground
from trpo.envs.device.probes import make_probe
from trpo.envs.device.protocol import JaxEnv
from trpo.envs.host.gymnasium import GymnasiumEnvs, MakeEnv, make_one, make_registered
from trpo.envs.host.probes import Probe
from trpo.envs.protocol import HostEnv, UnknownEnvironmentError

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


def _maker(env: str | MakeEnv, **kwargs: Any) -> tuple[str, MakeEnv]:
    if not isinstance(env, str):
        if not callable(env):
            raise ValueError(f"env={env!r}: must be an environment id or a function without arguments that makes one")
        return getattr(env, "__name__", type(env).__name__), env
    if env.startswith("probe:"):
        return env, partial(Probe, env.removeprefix("probe:"))
    return env, partial(make_registered, env, **kwargs)


def make_envs(env: Any, count: int, workers: int = 0, rescale_actions: bool = True, flatten: bool = False) -> HostEnv:
    """Make ``count`` environments that are stepped together from the host.

    Args:
        env: a Gymnasium id (``Hopper-v5``, or ``module:Id-v0`` to import a module of yours first), ``probe:NAME``,
            ``envpool:ID``, a function without arguments that returns a ``gymnasium.Env``, or anything that
            :func:`as_jax_env` takes.
        count: how many.
        workers: 0 steps them in this process; K spreads them over this one and K others.
        rescale_actions: map [−1, 1] onto finite Box bounds.
        flatten: make every observation one vector of float32.

    Raises:
        UnknownEnvironmentError: no such id; the message names the nearest.
        UnsupportedSpaceError: the message names the part of the space.
    """
    if count < 1:
        raise ValueError(f"env.count={count}: must be ≥ 1; 16 is usual")
    known = as_jax_env(env)
    if known is not None:
        if workers:
            raise ValueError(f"env.workers={workers}: environments in JAX need no processes; use 0")
        from trpo.envs.device.hosted import HostedJaxEnvs

        return HostedJaxEnvs(known, count, rescale_actions, flatten)
    if workers < 0:
        raise ValueError(f"env.workers={workers}: must be ≥ 0; 0 steps all environments in this process")
    if isinstance(env, str) and env.startswith("envpool:"):
        from trpo.envs.host.envpool import EnvPoolEnvs

        if workers:
            raise ValueError(f"env.workers={workers}: EnvPool has threads of its own; use 0")
        return EnvPoolEnvs(env.removeprefix("envpool:"), count, rescale_actions, flatten)
    name, make = _maker(env)
    if workers:
        from trpo.envs.host.workers import WorkerEnvs

        return WorkerEnvs(name, make, count, workers, rescale_actions, flatten)
    return GymnasiumEnvs(name, make, count, rescale_actions, flatten)


def make_single(env: str | MakeEnv, **kwargs: Any) -> Any:
    """Make one plain ``gymnasium.Env`` of the same task (EnvPool's by its Gymnasium name), for rendering."""
    if isinstance(env, str):
        env = env.removeprefix("envpool:")
    return make_one(_maker(env, **kwargs)[1])
