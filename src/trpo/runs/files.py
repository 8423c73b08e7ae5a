"""The directory of a run: made once, and described by its ``config.json``."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo._version import __version__
from trpo.runs.disk import remove_leftovers
from trpo.runs.first_format import before_encoders, config_today
from trpo.runs.interrupts import Interrupted
from trpo.runs.lock import HOLDER, LOCK, DirectoryLostError, RunLock
from trpo.runs.schema import CONFIG_FILE, conform, explained, read_json, write_json
from trpo.training.agent import Agent

CONFIG, METRICS = "config.json", "metrics.jsonl"
FORMAT = 2


def write_config(run: Path, agent: Agent, identity: str, changes: list[dict[str, Any]]) -> None:
    """Write ``config.json``: settings and spaces, all that is needed to rebuild the agent without a simulator.

    ``identity`` is the run's own, by which it is known as trained here (:mod:`trpo.runs.trust`); ``changes`` are of
    its settings, on the way to those that it has now.
    """
    data: dict[str, Any] = {"format": FORMAT, "trpo": __version__, "run": identity, "custom": agent.custom}
    data |= {"spec": agent.spec.to_json(), "config": agent.config.to_json()}
    write_json(run / CONFIG, data | ({"changes": changes} if changes else {}))


def read_config(run: Path) -> dict[str, Any]:
    """Return what :func:`write_config` wrote, checked."""
    path = run / CONFIG
    try:
        data = read_json(path, None, 1, FORMAT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{run} is not the directory of a run: it has no {CONFIG}") from error
    with explained(str(path)):
        data = data | config_today(data) if data["format"] == 1 else data
        conform(data, CONFIG_FILE)
        if "normalise_all" not in data["config"]:
            data = data | {"config": before_encoders(data["config"])}
    return data


@contextlib.contextmanager
def new_directory(out: str | Path | None) -> Iterator[RunLock | None]:
    """Make the directory of a new run and hold its lock; one that has anything in it is refused.

    It is removed if, before its first iteration, the run turns out to be impossible, or is interrupted before there is
    something to go on with.
    """
    if out is None:
        yield None
        return
    place = Path(out)
    _refuse_used(place)
    place.mkdir(parents=True, exist_ok=True)
    with RunLock(place) as lock:
        _refuse_used(place)  # by another that was as quick
        try:
            yield lock
        except (ValueError, OSError, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(place)  # of a full disk it is not said where
            kept = isinstance(error, DirectoryLostError) or (isinstance(error, Interrupted) and error.saved)
            if not kept and not any(file.stat().st_size for file in place.rglob(METRICS)):
                shutil.rmtree(place, ignore_errors=True)
            raise


def _refuse_used(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(path.name not in (LOCK, HOLDER) for path in out.iterdir())):
        raise ValueError(f"out={out}: already exists and is not empty; choose another, or `trpo resume {out}`")


@contextlib.contextmanager
def used_directory(run: Path) -> Iterator[RunLock]:
    """Hold the lock of a run that goes on, and remove what a crash has left half written."""
    with RunLock(run) as lock:
        remove_leftovers(run)
        yield lock
