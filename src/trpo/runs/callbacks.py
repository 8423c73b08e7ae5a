"""What a run calls after its iterations: to look, to evaluate, to stop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trpo.runs.sinks import Sink
from trpo.training.agent import Agent
from trpo.training.record import Metrics
from trpo.training.state import TrainingState


@dataclasses.dataclass(frozen=True)
class Moment:
    """A run after an iteration, as a callback is given it."""

    metrics: Metrics
    """Of the iteration."""
    template: Agent
    """The agent but for what it has learned: with that it is ``agent``."""
    fetch: Callable[[], TrainingState]
    """Returns ``state``."""
    directory: Path | None = None
    """Of the run; None if nothing is written."""
    sinks: Sequence[Sink] = ()
    """Where metrics go; :meth:`tell` adds to them."""

    @functools.cached_property
    def state(self) -> TrainingState:
        """All that the run goes on from. Reading it may wait for a value fit, or fetch it from a device."""
        return self.fetch()

    @property
    def agent(self) -> Agent:
        """The agent as it is now."""
        return self.template.at(self.state)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return int(self.metrics["steps"] or 0)

    @property
    def iteration(self) -> int:
        """Iterations so far."""
        return int(self.metrics["iteration"] or 0)

    def tell(self, group: str, values: dict[str, Any]) -> None:
        """Send further numbers to where metrics go."""
        for sink in self.sinks:
            sink.add(group, self.steps, values)


@runtime_checkable
class Callback(Protocol):
    """Called with the :class:`Moment` after an iteration; any function of one will do.

    It may have an attribute ``every``: environment steps between two calls (each is made by the first iteration that
    reaches another multiple of it). Without it, it is called after every iteration: environments in JAX then come back
    to the host after each, where otherwise they come about once a second. A callback with ``begin(moment_before)`` is
    told of the run before its first iteration, or before that with which a resumed run goes on.
    """

    def __call__(self, moment: Moment) -> str | None:
        """Return why the run shall stop, or None."""
        ...


def interval_of(callback: Callback) -> int:
    """Return the steps between two calls; 0: it is called after every iteration."""
    every = getattr(callback, "every", 0)
    if not isinstance(every, int) or isinstance(every, bool) or every < 0:
        raise ValueError(f"callback {callback!r}: every={every!r} must be a number of steps ≥ 0")
    return every


def is_due(callback: Callback, before: int, after: int) -> bool:
    """Return whether it is to be called by the iteration that took the run from ``before`` to ``after`` steps."""
    every = interval_of(callback)
    return not every or before // every < after // every


def iterations_until(callbacks: Sequence[Callback], steps: int, batch: int, most: int) -> int:
    """Return after how many iterations of ``batch`` steps the first callback is to be called, at most ``most``."""
    for callback in callbacks:
        every = interval_of(callback)
        most = min(most, -(-(every - steps % every) // batch) if every else 1)
    return max(1, most)


def call(callbacks: Sequence[Callback], moment: Moment, before: int) -> str | None:
    """Call those that are due; return the first reason to stop, after all have been called."""
    reasons = [callback(moment) for callback in callbacks if is_due(callback, before, moment.steps)]
    for reason in reasons:
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"a callback returned {type(reason).__name__}: must be a reason to stop, as text, or None")
    return next((reason for reason in reasons if reason), None)


def begin(callbacks: Sequence[Callback], moment: Moment) -> None:
    """Tell callbacks that want to know where a run begins or goes on."""
    for callback in callbacks:
        if not callable(callback):
            raise ValueError(f"callbacks: {callback!r} cannot be called; pass functions of a Moment")
        interval_of(callback)
        if hasattr(callback, "begin"):
            callback.begin(moment)
