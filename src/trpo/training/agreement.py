"""Whether the processes of a run are about to train the same: asked once, before the first iteration."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trpo.settings.config import Config, settings_of
from trpo.training import hosts
from trpo.training.agent import Agent
from trpo.training.state import TrainingState
from trpo.trees import named_arrays

PACKAGES = ("trpo", "jax", "jaxlib", "numpy", "gymnasium", "mujoco", "envpool", "gymnax", "brax")
"""Whose versions must be the same, where they are installed."""


def require_agreement(agents: Sequence[Agent], states: Sequence[TrainingState]) -> None:
    """Raise ValueError unless all processes have the same settings, versions and beginnings; it names a difference."""
    if not hosts.met():
        return
    first, *others = hosts.exchange(_description(agents, states))
    for i, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                different = f"process {i} has {name}={other.get(name)}, process 0 has {value}"
                raise hosts.agree(ValueError(f"hosts: {different}; all must have the same settings and versions"))


def _description(agents: Sequence[Agent], states: Sequence[TrainingState]) -> dict[str, str]:
    """Return in words what must be the same, by name."""
    said = {f"version of {package}": _version(package) for package in PACKAGES}
    for i, (agent, state) in enumerate(zip(agents, states, strict=True)):
        run = f"run {i + 1}: " if len(agents) > 1 else ""
        said["number of runs"] = str(len(agents))
        for name in settings_of(Config):
            said[run + name] = str(functools.reduce(getattr, name.split("."), agent.config))
        said |= {f"{run}{name} space": str(getattr(agent.spec, name)) for name in ("observation", "action")}
        said[f"{run}iteration to begin with"] = str(state.iteration)
        said[f"{run}parameters to begin with"] = _digest(state.learner)
    return said


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for name, leaf in named_arrays(tree).items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode() + leaf.tobytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
