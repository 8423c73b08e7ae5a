"""Best-known settings by environment, read from ``presets.toml``."""

from __future__ import annotations

import fnmatch
import functools
import tomllib
from importlib import resources
from typing import Any

from trpo.settings.config import Config, merge
from trpo.spelling import did_you_mean

AUTO, NONE = "auto", "none"


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Return the names of all presets."""
    return list(_table())


def preset_for(env_id: str) -> str:
    """Return the name of the preset for an environment id, or ``none``."""
    bare = env_id.removeprefix("envpool:")
    for name, preset in _table().items():
        if any(fnmatch.fnmatchcase(bare, pattern) for pattern in preset["match"]):
            return name
    return NONE


def apply_preset(config: Config, name: str = AUTO) -> tuple[Config, str, dict[str, Any]]:
    """Apply a preset to ``config``; return the result, the preset's name and its settings.

    ``auto`` picks by ``config.env.id``; ``none`` changes nothing.
    """
    chosen = preset_for(config.env.id) if name == AUTO else name
    if chosen == NONE:
        return config, NONE, {}
    if chosen not in _table():
        raise ValueError(f"preset={chosen!r}: unknown; {did_you_mean(chosen, [*names(), AUTO, NONE])}")
    settings = {key: value for key, value in _table()[chosen].items() if key != "match"}
    return merge(config, settings), chosen, settings


def describe(settings: dict[str, Any], prefix: str = "") -> str:
    """Return settings as one line, such as ``rule.max_kl=0.02 fragment=128``."""
    return " ".join(
        describe(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}"
        for key, value in settings.items()
    )
