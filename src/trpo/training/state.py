"""A run's state between two iterations."""

from __future__ import annotations

import dataclasses
from typing import Any

from trpo.training.learner import Learner
from trpo.value_fits import ValueInfo


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on: what was learned, counters, and the environments' state where it can be saved."""

    learner: Learner
    iteration: int = 0
    steps: int = 0
    seconds: float = 0.0
    episodes: dict[str, Any] | None = None
    """Recent returns and episodes under way."""
    source: Any | None = None
    """The source's own state: a :class:`~trpo.rollout.Snapshot`, or environments in JAX, whole or by name as loaded.
    None where simulators cannot be saved: a resumed run then starts new episodes."""
    value_fit: ValueInfo | None = None
    """How the last value fit went, if there was one: the metrics of the next iteration say so."""


class NonFiniteBatchError(RuntimeError):
    """A batch had a NaN or infinity and the run is configured to stop; parameters are those before it."""

    def __init__(self, states: list[TrainingState], message: str):
        super().__init__(message)
        self.states = states

    @property
    def state(self) -> TrainingState:
        """The run's state, where it was one run."""
        return self.states[0]
