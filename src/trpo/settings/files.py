"""Settings from a TOML file of one's own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def read_toml(file: str | Path) -> dict[str, Any]:
    """Return the settings of a TOML file, in groups.

    Groups are tables, or names with a dot; ``max_kl`` may be written ``max-kl``::

        steps = 2_000_000
        [rule]
        max-kl = 0.02

    Raises:
        ValueError: it is not TOML; the message names the file.
        OSError: it cannot be read.
    """
    return named(load_toml(file))


def load_toml(file: str | Path) -> dict[str, Any]:
    """Return what a TOML file says, as it says it; raises as :func:`read_toml` does."""
    with open(file, "rb") as opened:
        try:
            return tomllib.load(opened)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {error}") from error


def named(table: Any, name: str = "") -> Any:
    """Return a table with names as settings have them; what an environment is made with keeps its own."""
    if not isinstance(table, dict) or name == "kwargs":
        return table
    return {(key := given.replace("-", "_")): named(value, key) for given, value in table.items()}
