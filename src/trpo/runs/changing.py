"""Settings that may change when a run goes on, and why others do not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo.settings.config import Config, merge, of_setting
from trpo.spelling import on_one_line
from trpo.training.agent import Agent

CHANGEABLE = frozenset({
    "env.workers", "env.devices", "env.info", "steps", "fragment",
    "rule.max_kl", "rule.damping", "rule.cg_iterations", "rule.cg_tolerance", "rule.max_step_norm",
    "rule.backtrack_ratio", "rule.max_backtracks", "rule.use_measured_kl", "rule.inner_steps",
    "rule.clip", "rule.learning_rate", "rule.decay_steps", "rule.max_gradient_norm", "rule.entropy_bonus",
    "rule.epochs", "rule.minibatch",
    "policy.averaging", "value.learning_rate", "value.epochs", "value.minibatch", "value.steps", "value.max_change",
    "problem.block", "discount", "final_discount", "discount_steps", "gae_lambda", "updates_per_batch",
    "fisher_subsample", "standardise_advantages", "on_nonfinite",
    "rollout", "vine.every", "vine.actions", "vine.length", "vine.proposal", "vine.branch_lambda", "vine.kl",
    "vine.targets",
    "evaluate.every", "evaluate.episodes", "evaluate.deterministic", "evaluate.seed", "evaluate.max_steps",
    "evaluate.stop_return", "evaluate.stop_success", "evaluate.patience",
    "video.every", "video.episodes", "video.max_steps",
    "log.csv", "log.wandb", "checkpoint_every", "keep_checkpoints",
})  # fmt: skip
"""What neither the shapes of what was learned nor its meaning depend on."""
_FROM = "trpo train ENV --from {run} --{flag} {value}, which begins a run with what this one has learned"
_ANEW = "train a run from the beginning"
_BEGINNING = ("policy.initial_std", "policy.last_layer_scale", "policy.hidden_layer_scale", "value.hidden_layer_scale")
_WHY = {
    "env.": ("a run keeps its environments", _FROM),
    "seed": ("all that is random in a run comes from it", _FROM),
    "rule.": ("what the rule carries from one iteration to the next begins with it", _FROM),
    "value.method": ("what the fit carries from one batch to the next is of its kind", _FROM),
    "reward": ("what the value function has learned is of it", _FROM),
    "": ("a run keeps its networks, and what they are shown", _ANEW),
}
"""Why a setting does not change, and what to do instead, by how its name begins."""


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"rule.max_kl": 0.02}`` into ``{"rule": {"max_kl": 0.02}}``."""
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        *groups, leaf = name.replace("-", "_").split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return tree


def setting(config: Config, name: str) -> Any:
    """Return the value of the setting of a dotted name."""
    return functools.reduce(getattr, name.split("."), config)


def changed(agent: Agent, changes: Mapping[str, Any], run: Path) -> tuple[Agent, list[dict[str, Any]]]:
    """Return an agent that goes on with other settings, and a record ``{setting, old, new}`` of each that differs.

    Args:
        agent: that of ``run``.
        changes: new values by dotted name, such as ``{"rule.max_kl": 0.02}``.
        run: how the run is called in messages.

    Raises:
        ValueError: a setting that does not change; the message says why, and what to do instead.
    """
    records = []
    for given, value in changes.items():
        name = given.replace("-", "_")
        new = of_setting(name, value)
        old = setting(agent.config, name)
        if new == old:
            continue
        if name not in CHANGEABLE:
            why, cure = next(reason for begin, reason in _WHY.items() if name.startswith(begin))
            raise _refusal(name, new, run, "it shapes the beginning alone" if name in _BEGINNING else why, cure)
        if name.startswith("rule.") and agent.rule is not None:
            raise _refusal(name, new, run, "it has a rule of its own", "pass the rule that it goes on with as rule=…")
        if name == "policy.averaging" and not (new and old):
            raise _refusal(name, new, run, "an average is kept from the beginning, or never", _ANEW)
        records.append({"setting": name, "old": old, "new": new})
    config = merge(agent.config, nested({record["setting"]: record["new"] for record in records}))
    return dataclasses.replace(agent, config=config), records


def _refusal(name: str, value: Any, run: Path, why: str, cure: str) -> ValueError:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    instead = cure.format(run=run, flag=name.replace("_", "-"), value=on_one_line(text, 60))
    return ValueError(f"{name}={on_one_line(repr(value))}: does not change in {run}: {why}; instead: {instead}")
