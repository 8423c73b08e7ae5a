"""What the loops over host and over JAX environments share: a run's state, its metrics, an iteration's start (L7)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from trpo.learner import IterationInfo, Learner, freeze_actor
from trpo.results import Result
from trpo.rollout import Actor, noise_of
from trpo.types import Params

Metrics = dict[str, float | int | str | None]


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


def prepare(
    params: Params, observations: Any, key: Any, iteration: Any, *, policy: Any, clip: float | None, shape: Any
) -> tuple[Actor, Any, Any]:
    """Steps 1 and 2 of an iteration, up to the first step: actor, noise of its fragment, key of its value fit.

    All randomness is a function of the run's key and the iteration's number, so it does not depend on what came
    before. ``shape`` is (fragment, environments, features of an observation).
    """
    actor = freeze_actor(params, observations, clip)
    noise_key, fit_key = jax.random.split(jax.random.fold_in(key, iteration))
    length, count, observation_size = shape
    return actor, noise_of(policy, actor, count, observation_size, length, noise_key), fit_key


def update_metrics(info: IterationInfo, rule: Any, value_loss: Any | None) -> Metrics:
    """Return the metrics of an update; ``value_loss`` is that of the fit before it, None if there was none."""
    update = info.update
    # The bound as the compiled update holds it, in its floating-point type.
    bound = float(np.asarray(rule.max_kl, np.asarray(update.mean_kl).dtype)) if rule.enforces_max_kl else None
    metrics: Metrics = {
        "result": Result(int(update.result)).name.lower(),
        "max_kl": bound,
        "accepted_updates": int(info.accepted_updates),
        "explained_variance": number(info.explained_variance),
        "std": number(info.std),
        "value_loss": None if value_loss is None else number(value_loss),
    }
    for field in dataclasses.fields(update):
        if field.name != "result":
            metrics[field.name] = number(getattr(update, field.name))
    return metrics


def number(x: Any) -> float | int | None:
    """Return a plain number, or None where it is not finite: strict JSON has no NaN."""
    value = np.asarray(x).item()
    return value if math.isfinite(value) else None


def nonfinite_message(iteration: int, bad_fit: bool) -> str:
    """Say what was not finite."""
    if bad_fit:
        return (
            f"iteration {iteration}: the value fit of the iteration before gave a NaN or infinite loss and was refused"
        )
    return f"iteration {iteration}: {Result.NONFINITE_BATCH.reason}"
