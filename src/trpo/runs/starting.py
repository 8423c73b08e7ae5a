"""Beginning a run with what another agent has learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from trpo.envs.meeting import require_same_spaces
from trpo.runs.changing import nested, setting
from trpo.runs.files import read_config
from trpo.settings.config import Config, merge, settings_of
from trpo.training.agent import Agent
from trpo.training.state import TrainingState
from trpo.trees import named_arrays, require_same

_OF_FITS = ("method", "learning_rate", "epochs", "minibatch", "steps", "max_change")
NETWORKS = (
    *(name for name in settings_of(Config) if name.startswith("policy.") and name != "policy.averaging"),
    *(name for name in settings_of(Config) if name.startswith("value.") and name[6:] not in _OF_FITS),
    "normalise_observations", "observation_clip", "normalise_all",
)  # fmt: skip
"""Settings of networks and of what they are shown, which stay those that they were trained with."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with."""

    agent: Agent
    name: str
    """How messages call it."""
    provenance: dict[str, Any]
    """What ``config.json`` says of it."""


def with_networks_of(config: Config, other: Config) -> Config:
    """Return ``config`` with the networks of ``other``."""
    return merge(config, nested({name: setting(other, name) for name in NETWORKS}))


def started(agent: Agent, source: Agent, name: str) -> Agent:
    """Return ``agent`` with the policy, the value function and the statistics of ``source``.

    Its average begins as what ``source`` acts with; the rule and the value fit begin anew.

    Raises:
        ValueError: their spaces or networks differ; the message has both, and calls ``source`` by its ``name``.
    """
    try:
        require_same_spaces(source.spec, agent.spec)
    except ValueError as error:
        raise ValueError(f"it cannot start from {name}: {error}") from error
    for part in ("policy", "value"):
        if (part in agent.own) != (part in source.own):
            whose = ["one of the library's", "one of its own"][part in source.own]
            raise ValueError(f"it cannot start from {name}: that has {whose} as {part}, and this run has not")
    for one in NETWORKS:
        ours, theirs = setting(agent.config, one), setting(source.config, one)
        if ours != theirs and one.partition(".")[0] not in agent.own:
            raise ValueError(f"{one}={ours!r}: {name} has {theirs!r}, and its networks are taken as they are")
    mine, taken = agent.learner, source.learner
    value = dataclasses.replace(mine.value, params=taken.value.params, returns=taken.value.returns)
    average = None if mine.average is None else taken.deployed
    new = dataclasses.replace(mine, policy=taken.policy, value=value, observations=taken.observations, average=average)
    try:
        require_same(mine, named_arrays(new))
    except ValueError as error:
        raise ValueError(f"it cannot start from {name}, whose networks are others: {error}") from error
    return dataclasses.replace(agent, learner=new)


def provenance(agent: Agent, run: Path | None = None, state: TrainingState | None = None) -> dict[str, Any]:
    """Return what ``config.json`` says of where a run began: an agent, or one that was read from a run."""
    found: dict[str, Any] = {"environment": agent.spec.id}
    if run is not None and state is not None:
        data = read_config(run)
        found |= {"run": str(run.absolute()), "id": data.get("run", ""), "iteration": state.iteration}
        found["steps"] = state.steps
    return found
