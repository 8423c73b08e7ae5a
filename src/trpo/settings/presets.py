"""Best-known settings by environment, read from ``presets.toml``."""

from __future__ import annotations

import fnmatch
import functools
import itertools
import re
import tomllib
from importlib import resources
from typing import Any

from trpo.envs.packages import PREFIXES
from trpo.settings.config import Config, merge
from trpo.spelling import did_you_mean

AUTO, NONE = "auto", "none"


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Return the names of all presets."""
    return list(_table())


def about(name: str) -> str:
    """Return what a preset is for."""
    return str(_table()[name]["about"])


def tasks(name: str) -> str:
    """Return which tasks a preset is for, those of an earlier one left out."""
    table = _table()
    earlier = itertools.chain.from_iterable(table[n]["match"] for n in itertools.takewhile(lambda n: n != name, table))
    taken = set(earlier)
    return ", ".join(task for task in table[name]["match"] if task not in taken)


def settings_of(name: str) -> dict[str, Any]:
    """Return a preset's settings."""
    return {key: value for key, value in _table()[name].items() if key not in ("match", "about")}


def preset_for(env_id: str) -> str:
    """Return the name of the preset for an environment id, or ``none``.

    What counts is the task: its version does not matter, nor that EnvPool simulates it or that a module comes first.
    A pattern may also be of the whole id, as it is for the games that EnvPool has.
    """
    own = env_id.removeprefix("envpool:")
    named = own if own.partition(":")[0] in PREFIXES else own.rpartition(":")[2]
    forms = env_id, *(re.sub(r"-v\d+$", "", form) for form in (env_id, named))
    for name, preset in _table().items():
        if any(fnmatch.fnmatchcase(form, pattern) for form in forms for pattern in preset["match"]):
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
    settings = settings_of(chosen)
    return merge(config, settings), chosen, settings


def describe(settings: dict[str, Any], prefix: str = "") -> str:
    """Return settings as one line, such as ``rule.max_kl=0.02 fragment=128``."""
    return " ".join(
        describe(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key}={value}"
        for key, value in settings.items()
    )
