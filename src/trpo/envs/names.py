"""What ENV is: decided by its name or its type, here and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym

from trpo.capacity import file_limit, require_room
from trpo.envs.device.brax import make_brax, make_playground
from trpo.envs.device.gymnax import make_gymnax
from trpo.envs.device.hosted import HostedJaxEnvs
from trpo.envs.device.probes import make_probe
from trpo.envs.device.protocol import Flattened, JaxEnv, Without
from trpo.envs.host.envpool import EnvPoolEnvs
from trpo.envs.host.frames import PLAIN, Frames
from trpo.envs.host.gymnasium import GymnasiumEnvs, MakeEnv, make_one, make_registered
from trpo.envs.host.probes import Probe
from trpo.envs.host.returned import described
from trpo.envs.packages import gymnasium_id
from trpo.envs.protocol import HostEnv, MissingExtraError, UnknownEnvironmentError, UnusableEnvironmentError, made_with
from trpo.envs.spec import EnvSpec
from trpo.spelling import nearest, on_one_line

_MAKERS: dict[str, Callable[..., JaxEnv]] = {
    "gymnax": make_gymnax,
    "brax": make_brax,
    "playground": make_playground,
    "jax-probe": make_probe,
}


def is_jax_name(env: EnvLike) -> bool:
    """Return whether ``env`` is a name of an environment in JAX, without importing anything."""
    return isinstance(env, str) and env.partition(":")[0] in {*_MAKERS, "jax"}


def is_in_jax(env: EnvLike) -> bool:
    """Return whether ``env`` is or names an environment in JAX; none is made."""
    return is_jax_name(env) or (not isinstance(env, str) and as_jax_env(env) is not None)


def as_jax_env(env: EnvLike, kwargs: Mapping[str, Any] | None = None) -> JaxEnv | None:
    """Return the JAX environment that ``env`` is or names, or None if it is one for the host.

    Named are ``gymnax:ID``, ``brax:NAME[@BACKEND]``, ``playground:NAME``, ``jax-probe:NAME`` and
    ``jax:MODULE:FUNCTION``, where the function returns a :class:`JaxEnv` of yours. What is named is made with
    ``kwargs``; gymnax's may be fields of its parameters.

    Raises:
        UnknownEnvironmentError: no environment of that name; the message has the nearest.
        MissingExtraError: a package is not installed; the message has the command.
    """
    if not isinstance(env, str):
        return env if isinstance(env, JaxEnv) and not isinstance(env, type) else None
    kind, _, name = env.partition(":")
    if kind == "jax":
        return _imported(name, kwargs or {})
    return _made(kind, name, json.dumps(kwargs or {}, sort_keys=True)) if kind in _MAKERS else None


def imported_module(env: str) -> str | None:
    """Return the module of somebody's own that making the environment of this name imports, None if it imports none."""
    kind, colon, name = env.partition(":")
    if not colon or kind == "probe" or kind in _MAKERS:
        return None
    if kind == "envpool":  # drawn by Gymnasium
        return imported_module(name)
    return name.partition(":")[0] if kind == "jax" else kind


@functools.cache  # the same object for the same name, so that what was compiled for it serves again
def _made(kind: str, name: str, kwargs: str) -> JaxEnv:
    with made_with(f"{kind}:{name}", given := json.loads(kwargs)):
        return _MAKERS[kind](name, **given)


def _imported(name: str, kwargs: Mapping[str, Any]) -> JaxEnv:
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise UnknownEnvironmentError(f"environment 'jax:{name}': must be jax:MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises, SystemExit included
        raise UnknownEnvironmentError(f"environment 'jax:{name}' cannot be imported: {described(error)}") from error
    if not hasattr(module, function):
        raise UnknownEnvironmentError(f"{module_name} has no {function!r}; {nearest(function, dir(module))}")
    made = getattr(module, function)
    if not callable(made):
        raise UnknownEnvironmentError(f"jax:{name} is {type(made).__name__}, not a function that returns a trpo.JaxEnv")
    try:
        with made_with(f"jax:{name}", kwargs):
            env = made(**kwargs)
    except (KeyboardInterrupt, UnknownEnvironmentError, UnusableEnvironmentError, MissingExtraError):
        raise
    except BaseException as error:
        raise UnusableEnvironmentError(f"environment 'jax:{name}' cannot be made: {described(error)}") from error
    if not isinstance(env, JaxEnv):
        raise UnknownEnvironmentError(
            f"jax:{name} returned {type(env).__name__}, which lacks one of spec, cheap_reset, reset, step (trpo.JaxEnv)"
        )
    return env


EnvLike: TypeAlias = str | MakeEnv | JaxEnv | HostEnv
"""A name, a function without arguments that makes a ``gymnasium.Env``, an environment in JAX, or environments made."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run's environments come from: what ENV is, decided once (:func:`resolve`)."""

    env: EnvLike
    rescale_actions: bool = True
    flatten: bool = False
    drop: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    frames: Frames = PLAIN

    @property
    def ours(self) -> bool:
        """Whether environments are made here; those that were handed in are the caller's to close."""
        return not isinstance(self.env, HostEnv)

    @functools.cached_property
    def device(self) -> JaxEnv | None:
        """The environment in JAX, None if it is one for the host."""
        env = as_jax_env(self.env, self.kwargs)
        if env is not None:
            _require_plain(self.frames)
        env = Without.of(env, self.drop) if env is not None and self.drop else env
        return Flattened(env) if env is not None and self.flatten else env

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """Its spaces, with the options of the run."""
        if isinstance(self.env, HostEnv):
            return self.env.spec
        if self.device is not None:
            return self.device.spec.with_options(self.rescale_actions, False)
        envs = self.open(1)
        envs.close()
        return envs.spec

    def check_room(self, count: int, workers: int = 0) -> None:
        """Raise ValueError for more environments or processes than fit into memory."""
        if self.ours:
            check_room(count, workers)

    def open(self, count: int, workers: int = 0) -> HostEnv:
        """Return environments that are stepped together from the host: new ones, or those that were handed in."""
        if isinstance(self.env, HostEnv):
            return self.env
        options = self.rescale_actions, self.flatten, self.kwargs, self.drop, self.frames
        return make_envs(self.env, count, workers, *options)


def resolve(env: EnvLike, options: Any) -> Origin:
    """Return what ENV is, with the ``options`` of a :class:`~trpo.EnvConfig`; nothing is made or imported yet.

    Raises:
        ValueError: it is nothing that environments can be made from.
    """
    if isinstance(env, type) or not isinstance(env, HostEnv | JaxEnv):
        _maker(env, {})
    kwargs = options.kwargs if isinstance(env, str) else {}
    return Origin(env, options.rescale_actions, options.flatten, options.drop, kwargs, Frames.of(options))


def require_name(env: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError if ``kwargs`` would be ignored: what is not a name makes its environments itself, or is one."""
    if kwargs and not isinstance(env, str):
        given = " ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise ValueError(f"env.kwargs {given}: for environments that are named; write them into what you pass as env")


def _require_plain(frames: Frames) -> None:
    if str(frames):
        raise ValueError(f"{frames}: for environments on the host; those in JAX show what they have")


def _maker(env: Any, kwargs: Mapping[str, Any]) -> tuple[str, MakeEnv]:
    if not isinstance(env, str):
        if not callable(env) or (isinstance(env, type) and not issubclass(env, gym.Env)):
            raise ValueError(refusal(env, _shown(env)))
        return getattr(env, "__name__", type(env).__name__), env
    if env.startswith("probe:"):
        return env, partial(_probe, env.removeprefix("probe:"), **kwargs)
    return env, partial(_named, env, **kwargs)


def _named(env_id: str, **kwargs: Any) -> gym.Env:
    """Make what Gymnasium knows by this id, or a class or function of a module: ``my_robot:Arm``."""
    try:
        return make_registered(env_id, **kwargs)
    except UnknownEnvironmentError:
        module, _, name = env_id.rpartition(":")
        found = getattr(sys.modules.get(module), name, None) if module else None
        if isinstance(found, gym.Env | gym.vector.VectorEnv):
            raise UnusableEnvironmentError(refusal(found, repr(env_id))) from None
        if not callable(found) or (isinstance(found, type) and not issubclass(found, gym.Env)):
            raise
    with made_with(env_id, kwargs):
        made: gym.Env = found(**kwargs)
    return made


def _probe(name: str, render_mode: str | None = None, **kwargs: Any) -> Probe:
    with made_with(f"probe:{name}", kwargs):
        return Probe(name, **kwargs)


_LIKE = "an environment id or a function without arguments that makes one, environments in JAX or those of make_envs"


def refusal(env: Any, what: str) -> str:
    """Say that something, called ``what``, is nothing that environments can be made from, and what to pass instead."""
    return f"env={what}: must be {_LIKE}; {_cure(env)}"


def _shown(env: Any) -> str:
    return on_one_line(f"<class {env.__qualname__}>" if isinstance(env, type) else repr(env))


def _cure(env: Any) -> str:
    """Return what to pass instead of something that is near to an environment."""
    match env:
        case gym.Env() | gym.vector.VectorEnv():
            name = getattr(env.spec, "id", None)
            by_id = f"{name!r}, or " if name else ""
            return f"this one is made already, and several are needed: pass {by_id}lambda: … that makes a new one"
        case gym.envs.registration.EnvSpec() | EnvSpec():
            return f"a description is none: pass its id, {env.id!r}"
        case list() | tuple() | set():
            return "a run has one kind of environment, as many copies as env.count says: pass one of them"
        case type():
            return "a class of these is none: pass an instance"
        case HostEnv():
            return "these are made already"
    return "a Source of your own is for training alone" if hasattr(env, "collect") else "such as 'CartPole-v1'"


ENVIRONMENT, WORKER = 2000, 2**24
"""Bytes of memory that an environment in Python and a process take at the least: trivial ones are so large."""
WORKER_FILES = 2
"""Files that are open for each process: its pipe, and what says that it has ended."""


def check_room(count: int, workers: int = 0) -> None:
    """Raise ValueError for more environments, or processes for them, than fit into this machine's memory."""
    require_room(f"env.count={count}: so many environments take", count * ENVIRONMENT, "use fewer; 16 is usual")
    cure = "use fewer, at most one for each core"
    require_room(f"env.workers={workers}: so many processes take", workers * WORKER, cure)
    files = file_limit()
    if files is not None and workers * WORKER_FILES > files:
        raise ValueError(
            f"env.workers={workers}: so many processes need {workers * WORKER_FILES:,} open files, and this one may "
            f"have {files:,}: {cure}"
        )


def make_envs(
    env: EnvLike,
    count: int,
    workers: int = 0,
    rescale_actions: bool = True,
    flatten: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
    frames: Frames = PLAIN,
) -> HostEnv:
    """Make ``count`` environments that are stepped together from the host.

    Args:
        env: a Gymnasium id (``Hopper-v5``, or ``module:Id-v0`` to import a module of yours first), ``probe:NAME``,
            ``envpool:ID``, a function without arguments that returns a ``gymnasium.Env``, or anything that
            :func:`as_jax_env` takes.
        count: how many.
        workers: 0 steps them in this process; K spreads them over this one and K others.
        rescale_actions: map [−1, 1] onto finite Box bounds.
        flatten: make every observation one vector of float32.
        kwargs: what an environment that is named is made with, such as ``{"ctrl_cost_weight": 0.2}``.
        drop: parts of a Dict observation that are left out, such as ``["mission"]``.
        frames: what is done with the frames of a game.

    Raises:
        UnknownEnvironmentError: no such id; the message names the nearest.
        UnsupportedSpaceError: the message names the part of the space.
    """
    if count < 1:
        raise ValueError(f"env.count={count}: must be ≥ 1; 16 is usual")
    kwargs = kwargs or {}
    require_name(env, kwargs)
    known = as_jax_env(env, kwargs)
    check_room(count, workers)
    if known is not None:
        if workers:
            raise ValueError(f"env.workers={workers}: environments in JAX need no processes; use 0")
        _require_plain(frames)
        return HostedJaxEnvs(Without.of(known, drop) if drop else known, count, rescale_actions, flatten)
    if workers < 0:
        raise ValueError(f"env.workers={workers}: must be ≥ 0; 0 steps all environments in this process")
    if isinstance(env, str) and env.startswith("envpool:"):
        if workers:
            raise ValueError(f"env.workers={workers}: EnvPool has threads of its own; use 0")
        return EnvPoolEnvs(env.removeprefix("envpool:"), count, rescale_actions, flatten, kwargs, drop, frames)
    name, make = _maker(env, kwargs)
    make = frames.wrapped(env if isinstance(env, str) else None, make)
    if workers:
        from trpo.envs.host.workers import WorkerEnvs

        return WorkerEnvs(name, make, count, workers, rescale_actions, flatten, drop)
    return GymnasiumEnvs(name, make, count, rescale_actions, flatten, drop)


def make_single(env: EnvLike, frames: Frames = PLAIN, **kwargs: Any) -> gym.Env:
    """Make one plain ``gymnasium.Env`` of the same task (EnvPool's by its Gymnasium name), for rendering."""
    if isinstance(env, str):
        env = gymnasium_id(env)
    name, make = _maker(env, kwargs)
    return make_one(name, frames.wrapped(env if isinstance(env, str) else None, make))
