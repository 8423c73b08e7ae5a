"""Settings from a TOML file of one's own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from trpo.settings.config import Config, merge
from trpo.spelling import on_one_line


def from_toml(file: str | Path, config: Config | None = None) -> Config:
    """Return ``config``, by default that of all defaults, with the settings of a TOML file.

    Groups are tables, or names with a dot; ``max_kl`` may be written ``max-kl``::

        steps = 2_000_000
        [rule]
        max-kl = 0.02

    Raises:
        ValueError: it is not TOML, or a setting that is not known or out of range; the message names the file.
        OSError: it cannot be read.
    """
    with open(file, "rb") as opened:
        try:
            return merge(config or Config(), _named(tomllib.load(opened)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {on_one_line(error, 500)}") from error


def _named(table: Any, name: str = "") -> Any:
    """Return a table with names as settings have them; what an environment is made with keeps its own."""
    if not isinstance(table, dict) or name == "kwargs":
        return table
    return {(key := given.replace("-", "_")): _named(value, key) for given, value in table.items()}
