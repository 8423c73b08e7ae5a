"""Checkpoints that survive a power cut and execute nothing when loaded.

A checkpoint is a directory::

    checkpoints/00000150/
        state.safetensors     every array: parameters, optimiser, statistics, environments in JAX
        state.json            format version, counters, episodes under way, simulators' snapshots
        SHA256SUMS            checksums of both; `sha256sum -c SHA256SUMS` verifies them

It is written under a temporary name, flushed to the disk, and renamed: either all of it is there or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from trpo.rollout import Snapshot
from trpo.runs.files import TEMPORARY, read_json, replacing
from trpo.runs.first_format import arrays_today, with_reset
from trpo.training.state import TrainingState
from trpo.trees import from_named_arrays, named_arrays

FORMAT = 2
TENSORS, DATA, SUMS = "state.safetensors", "state.json", "SHA256SUMS"
_DEVICE, _SEAT = "device.", "rollout."
"""Prefixes of the arrays of environments in JAX, and of a host's seat."""
_COUNTERS = ("iteration", "steps", "seconds", "episodes")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line and says why."""


def write_checkpoint(directory: Path, state: TrainingState, keep: int = 3) -> Path:
    """Write ``state`` below ``directory`` and remove all but the newest ``keep`` checkpoints."""
    arrays, source = named_arrays(state.learner), state.source
    prefix, tree, environments, of = _DEVICE, source, None, ""
    if isinstance(source, Snapshot):
        prefix, tree, environments, of = _SEAT, source.seat, source.environments, source.id
    named = tree if isinstance(tree, dict) else named_arrays(tree)
    arrays |= {f"{prefix}{name}": leaf for name, leaf in named.items()}
    data = {"format": FORMAT} | {name: getattr(state, name) for name in _COUNTERS} | {"environments": environments}
    data["environment"] = of
    contents = {
        TENSORS: safetensors.numpy.save({k: np.array(v, order="C") for k, v in arrays.items()}),
        DATA: json.dumps(data).encode(),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in contents.items())
    contents[SUMS] = sums.encode()
    path = directory / f"{state.iteration:08d}"
    with replacing(path) as temporary:
        temporary.mkdir()
        for file, content in contents.items():
            (temporary / file).write_bytes(content)
    _prune(directory, keep)
    return path


def _prune(directory: Path, keep: int) -> None:
    for old in checkpoints(directory)[keep:]:
        # Renamed first: a crash while deleting must not leave half a checkpoint under a checkpoint's name.
        doomed = old.with_name(f"{TEMPORARY}{old.name}")
        with contextlib.suppress(OSError):
            old.replace(doomed)
            shutil.rmtree(doomed)


def checkpoints(directory: Path) -> list[Path]:
    """Return complete checkpoints' directories, newest first."""
    found = [path for path in directory.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        sums = (path / SUMS).read_text().splitlines()
        contents = {file: (path / file).read_bytes() for file in (TENSORS, DATA)}
        for file, content in contents.items():
            if f"{hashlib.sha256(content).hexdigest()}  {file}" not in sums:
                raise CheckpointError(f"checkpoint {path.name}: {file} is corrupt (its checksum differs)")
        return safetensors.numpy.load(contents[TENSORS]), read_json(path / DATA, 1, FORMAT)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise CheckpointError(f"checkpoint {path.name}: {missing} is missing") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path.name}: cannot be read ({error})") from error


def read_checkpoint(path: Path, like: Any) -> TrainingState:
    """Read one checkpoint into the structure of the learner ``like``.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another structure.
    """
    arrays, data = _read(path)
    device, seat = (_taken(arrays, prefix) for prefix in (_DEVICE, _SEAT))
    if data["format"] == 1:
        arrays, device, seat = arrays_today(arrays, like), with_reset(device), with_reset(seat)
    try:
        learner = from_named_arrays(like, _with_average(_with_units(arrays), like))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path.name}: does not fit this agent ({error})") from error
    on_host = bool(seat) or data["environments"] is not None
    source = Snapshot(data["environments"], seat, data.get("environment", "")) if on_host else device or None
    return TrainingState(learner, source=source, **{name: data[name] for name in _COUNTERS})


def _taken(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Take the arrays with a prefix out, under their names without it."""
    return {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}


def _with_units(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give running statistics that were written without a unit the one that they have: 1."""
    kept = [name for name in arrays if name.startswith(("observations", "value.returns"))]
    ends = [name for name in kept if name.endswith(".deviations")]
    return {f"{name.removesuffix('deviations')}unit": np.ones_like(arrays[name]) for name in ends} | arrays


def _with_average(arrays: dict[str, np.ndarray], like: Any) -> dict[str, np.ndarray]:
    """Begin or drop the average of policies, where the checkpoint was written with another setting of it."""
    kept = {name: leaf for name, leaf in arrays.items() if not name.startswith("average")}
    if getattr(like, "average", None) is None:
        return kept
    if len(kept) < len(arrays):
        return arrays
    return kept | {f"average{name.removeprefix('policy')}": x for name, x in kept.items() if name.startswith("policy")}


def newest_checkpoint(directory: Path, like: Any, not_after: int | None = None) -> tuple[TrainingState, list[str]]:
    """Read the newest checkpoint that is intact; also return one line about each newer one that is not.

    ``not_after`` leaves out those of later iterations.
    """
    problems: list[str] = []
    for path in checkpoints(directory):
        if not_after is not None and int(path.name) > not_after:
            continue
        try:
            return read_checkpoint(path, like), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    raise CheckpointError(f"no checkpoint in {directory}: the run ended before its first one; start it anew")
