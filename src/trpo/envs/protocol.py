"""What the rollout needs of environments that run on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from trpo.envs.spaces import Tree
from trpo.envs.spec import EnvSpec


class Transition(NamedTuple):
    """One step of N environments; observations are trees of the spec's observation space, with leaves ``[N, …]``."""

    observation: Tree
    """What to act on next; the first of the new episode where one ended."""
    reward: np.ndarray
    """[N] float32, raw."""
    terminated: np.ndarray
    """[N] bool: the episode reached an absorbing state; its future is worth 0."""
    truncated: np.ndarray
    """[N] bool: the episode was cut (a time limit); its future is worth V(final_observation)."""
    final_observation: Tree
    """The true successor, before any reset; equal to ``observation`` where no episode ended."""
    valid: np.ndarray
    """[N] bool: False where the simulator only reset and ignored the action; such a step has weight 0."""


@runtime_checkable
class HostEnv(Protocol):
    """N environments, stepped together."""

    spec: EnvSpec
    count: int

    def reset(self, seeds: list[int]) -> Tree:
        """Start new episodes, environment i from ``seeds[i]``; return their observations, leaves ``[N, …]``."""

    def step(self, action: Tree) -> Transition:
        """Apply the policy's raw actions, which are clipped and converted here and nowhere else."""

    def snapshot(self) -> Any | None:
        """Return the simulators' whole state, or None where it cannot be taken: data for JSON, but for its arrays."""

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back."""

    def close(self) -> None:
        """Release processes, memory and windows."""


@runtime_checkable
class RestartableEnv(HostEnv, Protocol):
    """Environments with a time limit, of which some can be restarted while the others go on."""

    time_limit: int | None
    """Steps after which an episode is truncated, None where there is no limit or it is not known."""

    def restart(self, which: np.ndarray) -> Tree:
        """Start new episodes in the environments with the indices ``which``; return their observations."""


@runtime_checkable
class SplitEnv(HostEnv, Protocol):
    """Environments spread over processes, each of which can be given something to do with its own."""

    @property
    def shares(self) -> list[slice]:
        """The environments of every process."""

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have every process call ``function(its environments, *arguments[i])``; those without environments do not."""


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what it must not: the message names it and says what."""


class UnusableEnvironmentError(ValueError):
    """An environment that cannot be made, or that is not what it says: the message names it and the cause."""


class MissingExtraError(ValueError):
    """An optional package is not installed; the message has the command that installs it."""


class UnknownEnvironmentError(ValueError):
    """No environment of that name."""


@contextlib.contextmanager
def made_with(env: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Say which arguments it was, where an environment cannot be made with those that a user gave."""
    try:
        yield
    except TypeError as error:
        said = str(error).partition("\n")[0].partition(" was raised from")[0]
        if not kwargs or "'render_mode'" in said:
            raise
        given = " ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise UnusableEnvironmentError(f"environment {env!r} cannot be made with env.kwargs {given}: {said}") from error
