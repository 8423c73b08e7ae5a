"""The flags of `trpo train`: every setting is one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from trpo.settings.config import Config
from trpo.settings.presets import AUTO


@dataclass(frozen=True)
class Train:
    """Train a policy by TRPO, leaving a run directory that can be evaluated, resumed, recorded and plotted."""

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment: a Gymnasium id, module:Id-v0, envpool:ID, gymnax:ID, brax:NAME, playground:NAME or probe:NAME."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    out: Path | None = None
    """Directory of the run; by default runs/ENV-sSEED."""
    preset: str = AUTO
    """Name of a preset, auto (by environment) or none."""
    quiet: bool = False
    """Show no progress."""
    seeds: int = 1
    """Independent runs, from --seed on, each with a directory of its own; in JAX all at once."""
    vary: tuple[str, ...] = ()
    """Settings to try several values of, in every combination: rule.max-kl=0.01,0.02 discount=0.98,0.99."""


def varied(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """Turn ``rule.max-kl=0.01,0.02`` into ``{"rule.max_kl": [0.01, 0.02]}``; values are JSON, or names."""
    varied: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, sign, values = assignment.partition("=")
        if not (name and sign and values):
            raise ValueError(f"vary {assignment!r}: must be SETTING=VALUE,VALUE,…, such as rule.max-kl=0.01,0.02")
        name = name.replace("-", "_")
        if name == "seed":
            raise ValueError("vary 'seed': use --seeds N")
        varied[name] = [_value(text) for text in values.split(",")]
    return varied


def _value(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text
