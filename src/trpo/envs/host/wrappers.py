"""Gymnasium wrappers that a run names as ``module:Class``, put around each environment when it is made."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from trpo.envs.host.gymnasium import MakeEnv
from trpo.envs.host.returned import described
from trpo.envs.protocol import UnknownEnvironmentError, UnusableEnvironmentError
from trpo.spelling import nearest


def is_name(name: str) -> bool:
    """Return whether a text has the form ``module:Class``."""
    return re.fullmatch(r"[\w.]+:[\w.]+", name) is not None


def wrapped(make: MakeEnv, wrappers: Sequence[str]) -> MakeEnv:
    """Return ``make`` with these wrappers around what it makes, the first next to the environment."""
    return functools.partial(_make, make, tuple(wrappers)) if wrappers else make


def _make(make: Any, wrappers: tuple[str, ...], **kwargs: Any) -> gym.Env:
    env = make(**kwargs)
    for name in wrappers:
        kind = _imported(name)
        try:
            env = kind(env)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the user's code raises
            raise UnusableEnvironmentError(
                f"env.wrappers {name} cannot be put around it: {described(error)}"
            ) from error
        if not isinstance(env, gym.Env):
            raise UnusableEnvironmentError(
                f"env.wrappers {name}: it returned {type(env).__name__}, not a gymnasium.Env"
            )
    return env


def _imported(name: str) -> Any:
    module_name, _, kind = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises, SystemExit included
        raise UnknownEnvironmentError(f"env.wrappers {name} cannot be imported: {described(error)}") from error
    for part in kind.split("."):
        if not hasattr(found, part):
            raise UnknownEnvironmentError(
                f"env.wrappers {name}: {module_name} has no {kind!r}; {nearest(part, dir(found))}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UnknownEnvironmentError(f"env.wrappers {name} is {type(found).__name__}, not a class of wrappers")
    return found
