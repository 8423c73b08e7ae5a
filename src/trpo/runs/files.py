"""Files of a run: written so that a power cut leaves the old or the new, and its settings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trpo._version import __version__
from trpo.training.agent import Agent

_TEMPORARY = ".tmp-"


CONFIG, CHECKPOINTS = "config.json", "checkpoints"


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries (names, renames) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it over ``path``."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    write_durably(temporary, data)
    temporary.replace(path)
    sync_directory(path.parent)


FORMAT = 1


def write_config(run: Path, agent: Agent, custom: bool) -> None:
    """Write ``config.json``: settings and spaces, all that is needed to rebuild the agent without a simulator."""
    data = {
        "format": FORMAT,
        "trpo": __version__,
        "custom_policy": custom,
        "custom_env": agent.env is not None and not isinstance(agent.env, str),
        "custom_rule": agent.rule is not None,
        "spec": agent.spec.to_json(),
        "config": agent.config.to_json(),
    }
    replace_durably(run / CONFIG, (json.dumps(data, indent=2) + "\n").encode())


def read_config(run: Path) -> dict[str, Any]:
    """Return what :func:`write_config` wrote."""
    path = run / CONFIG
    if not path.is_file():
        raise ValueError(f"{run} is not the directory of a run: it has no {CONFIG}")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.get('format')!r}, but this version reads format {FORMAT}")
    return data


def claim_directory(out: Path) -> Path:
    """Make the directory of a new run; one that has anything in it is refused."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: already exists and is not empty; choose another, or `trpo resume {out}`")
    out.mkdir(parents=True, exist_ok=True)
    return out
