"""What the loops over host and over JAX environments share: a run's state, its metrics, an iteration's start."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from trpo.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on: what was learned, counters, and the environments' state where it can be saved."""

    learner: Learner
    iteration: int = 0
    steps: int = 0
    seconds: float = 0.0
    episodes: dict[str, Any] | None = None
    """Recent returns and episodes under way."""
    environments: Any | None = None
    """Snapshot of the simulators, or None where they don't offer one: a resumed run then starts new episodes."""
    observation: np.ndarray | None = None
    """What the policy sees next; goes with ``environments``."""
    rollout: Any | None = None
    """Environments in JAX: the whole :class:`~trpo.rollout.device.DeviceRollout`, or its arrays by name, as loaded."""


class NonFiniteBatchError(RuntimeError):
    """A batch had a NaN or infinity and the run is configured to stop; parameters are those before it."""

    def __init__(self, states: list[TrainingState], message: str):
        super().__init__(message)
        self.states = states

    @property
    def state(self) -> TrainingState:
        """The run's state, where it was one run."""
        return self.states[0]
