"""What an iteration tells: the record of metrics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from trpo.rules.protocol import Result
from trpo.training.learner import IterationInfo
from trpo.trees import number

Metrics = dict[str, float | int | str | None]


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


def nonfinite_message(iteration: int, bad_fit: bool) -> str:
    """Say what was not finite."""
    if bad_fit:
        return (
            f"iteration {iteration}: the value fit of the iteration before gave a NaN or infinite loss and was refused"
        )
    return f"iteration {iteration}: {Result.NONFINITE_BATCH.reason}"
