"""Files of a run: written so that a power cut leaves the old or the new, and its settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo._version import __version__
from trpo.runs.first_format import config_today
from trpo.training.agent import Agent

TEMPORARY = ".tmp-"
"""Begins the name of what is not complete, or about to be removed."""
CONFIG, CHECKPOINTS = "config.json", "checkpoints"
FORMAT = 2


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a name for a file or directory that takes the place of ``path`` when the block ends, and then is on disk.

    If the block raises, what it wrote is removed, and ``path`` is as it was. Directories above are made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    _remove(temporary)  # what a crash has left
    try:
        yield temporary
        for written in (*temporary.glob("*"), temporary):
            _sync(written)
        if temporary.is_dir():
            _remove(path)  # a directory is renamed to a free name only
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise
    _sync(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> None:
    """Write a whole file in place of ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file that people may read."""
    replace_durably(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path, *formats: int) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError unless its ``format`` is one of those that this version reads."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    found = data.get("format")
    if found not in formats:
        raise ValueError(f"{path} has format {found!r}, but this version reads format {formats[-1]}")
    return data


def write_config(run: Path, agent: Agent) -> None:
    """Write ``config.json``: settings and spaces, all that is needed to rebuild the agent without a simulator."""
    data: dict[str, Any] = {"format": FORMAT, "trpo": __version__, "custom": agent.custom}
    write_json(run / CONFIG, data | {"spec": agent.spec.to_json(), "config": agent.config.to_json()})


def read_config(run: Path) -> dict[str, Any]:
    """Return what :func:`write_config` wrote."""
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} is not the directory of a run: it has no {CONFIG}")
    data = read_json(run / CONFIG, 1, FORMAT)
    return config_today(data) if data["format"] == 1 else data


def claim_directory(out: Path) -> Path:
    """Make the directory of a new run; one that has anything in it is refused."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: already exists and is not empty; choose another, or `trpo resume {out}`")
    out.mkdir(parents=True, exist_ok=True)
    return out
