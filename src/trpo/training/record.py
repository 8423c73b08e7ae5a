"""What an iteration tells: the record of metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from trpo.envs.masks import MASK
from trpo.rollout.episodes import RecentEpisodes
from trpo.rollout.trajectory import Successors, Trajectory
from trpo.rules.protocol import Result, Rule
from trpo.training.learner import IterationInfo
from trpo.training.state import TrainingState
from trpo.trees import number

INFO = "info."
"""Before the keys of ``info`` in the names of metrics."""
Metrics = dict[str, float | int | str | None]


def record_of(
    state: TrainingState,
    info: IterationInfo,
    rule: Rule,
    episodes: RecentEpisodes,
    value_loss: Any | None,
    timing: Mapping[str, float | None],
) -> Metrics:
    """Return the metrics of the iteration that led to ``state``.

    ``value_loss`` is that of the value fit before it, None if there was none; ``timing`` has ``steps_per_second`` and
    ``collect_seconds``.
    """
    update = info.update
    mean_return, mean_length = episodes.means()
    # The bound as the compiled update holds it, in its floating-point type.
    bound = float(np.asarray(rule.max_kl, np.asarray(update.mean_kl).dtype)) if rule.enforces_max_kl else None
    metrics: Metrics = {
        "iteration": state.iteration,
        "steps": state.steps,
        "seconds": state.seconds,
        **timing,
        "episodes": episodes.episodes,
        "episode_return": mean_return,
        "episode_length": mean_length,
        "result": Result(int(update.result)).name.lower(),
        "max_kl": bound,
        "explained_variance": number(info.explained_variance),
        "std": None if info.std is None else number(info.std),
        "value_loss": None if value_loss is None else number(value_loss),
    }
    metrics |= {f"{INFO}{key}": mean for key, mean in episodes.info_means().items()}
    for field in dataclasses.fields(update):
        if field.name != "result":
            metrics[field.name] = number(getattr(update, field.name))
    if metrics["result"] == Result.NONFINITE_BATCH.name.lower():
        metrics["entropy"] = None  # unknown
    return metrics


def nonfinite_message(
    iteration: int,
    bad_fit: bool,
    env: str,
    trajectory: Trajectory | None = None,
    no_action: Any = None,
    first: int = 0,
) -> str:
    """Say what was not finite; ``trajectory``, in NumPy, of environments from ``first`` on, shows which number."""
    if no_action is not None and bool(no_action):
        return f"iteration {iteration}: environment {env} showed a state in which its {MASK} allows no action"
    if bad_fit:
        return f"iteration {iteration}: its value fit gave a NaN or infinite loss and was refused"
    found = "" if trajectory is None else _culprit(trajectory, first)
    return f"iteration {iteration}: {Result.NONFINITE_BATCH.reason}; environment {env}{found}"


def _culprit(trajectory: Trajectory, first: int) -> str:
    for name in ("reward", "observation", "next_observation"):
        part = getattr(trajectory, name)
        for leaf in () if isinstance(part, Successors) else jax.tree.leaves(part):
            for step, which, *rest in np.argwhere(~np.isfinite(leaf)):
                if trajectory.valid[step, which]:
                    found = leaf[(step, which, *rest)]
                    return f": {name} {found} of copy {first + which}, at step {step} of the fragment"
    return ""
