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
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from trpo.envs.plain import to_plain
from trpo.rollout import Snapshot
from trpo.runs.disk import TEMPORARY, is_link, open_regular, refuse_link, remove, replacing
from trpo.runs.first_format import arrays_today, with_reset
from trpo.runs.schema import JSON_BYTES, STATE_FILE, conform, one_line, parse_json
from trpo.training.state import TrainingState
from trpo.trees import from_named_arrays, named_arrays, named_leaves, number
from trpo.value_fits import ValueInfo

FORMAT = 2
TENSORS, DATA, SUMS = "state.safetensors", "state.json", "SHA256SUMS"
_DEVICE, _SEAT = "device.", "rollout."
"""Prefixes of the arrays of environments in JAX, and of a host's seat."""
_COUNTERS = ("iteration", "steps", "seconds", "episodes")
TENSOR_BYTES = 2**33
"""The largest checkpoint that is read, and so written."""
_LIMITS = {TENSORS: TENSOR_BYTES, DATA: JSON_BYTES}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line and says why."""


def write_checkpoint(directory: Path, state: TrainingState) -> Path:
    """Write ``state`` below ``directory``."""
    arrays, source = named_arrays(state.learner), state.source
    prefix, tree, environments, of = _DEVICE, source, None, ""
    if isinstance(source, Snapshot):
        prefix, tree, environments, of = _SEAT, source.seat, to_plain(source.environments), source.id
    named = tree if isinstance(tree, dict) else named_arrays(tree)
    arrays |= {f"{prefix}{name}": leaf for name, leaf in named.items()}
    data = {"format": FORMAT} | {name: getattr(state, name) for name in _COUNTERS} | {"environments": environments}
    data["environment"] = of
    if state.value_fit is not None:
        data["value_fit"] = [number(state.value_fit.loss), bool(state.value_fit.finite)]
    contents = {
        TENSORS: safetensors.numpy.save({k: np.array(v, order="C") for k, v in arrays.items()}),
        DATA: json.dumps(data).encode(),
    }
    for file, content in contents.items():
        if len(content) > _LIMITS[file]:
            raise ValueError(
                f"the run's {file} would have {len(content):,} bytes; up to {_LIMITS[file]:,} can be saved"
            )
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in contents.items())
    contents[SUMS] = sums.encode()
    path = refuse_link(directory) / f"{state.iteration:08d}"
    with replacing(path) as temporary:
        temporary.mkdir()
        for file, content in contents.items():
            (temporary / file).write_bytes(content)
    return path


def prune(directory: Path, iteration: int, keep: int) -> None:
    """Keep the newest ``keep`` checkpoints up to ``iteration``, where the run is.

    Later ones, which are damaged or of a sweep's run that was ahead of the others, are left until the run passes them.
    """
    for old in [path for path in checkpoints(directory) if int(path.name) <= iteration][keep:]:
        # Renamed first: a crash while deleting must not leave half a checkpoint under a checkpoint's name.
        doomed = old.with_name(f"{TEMPORARY}{old.name}")
        with contextlib.suppress(OSError):
            remove(doomed)
            old.replace(doomed)
            remove(doomed)


def checkpoints(directory: Path) -> list[Path]:
    """Return complete checkpoints' directories, newest first; links and other names are none."""
    found = list(directory.iterdir()) if directory.is_dir() and not is_link(directory) else []
    found = [path for path in found if re.fullmatch("[0-9]{8,10}", path.name) and path.is_dir() and not is_link(path)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with open_regular(path / SUMS, 4096) as file:
        sums = file.read().decode().splitlines()
    contents = {}
    for name, limit in _LIMITS.items():
        with open_regular(path / name, limit) as file:
            # Before any of it is in memory.
            if f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}" not in sums:
                raise CheckpointError(f"{name} is corrupt (its checksum differs)")
            file.seek(0)
            contents[name] = file.read(os.fstat(file.fileno()).st_size)
    data = parse_json(contents[DATA])
    conform(data, STATE_FILE)
    if data["format"] not in (1, FORMAT):
        raise CheckpointError(f"has format {data['format']}, but this version reads format {FORMAT}")
    return safetensors.numpy.load(contents[TENSORS]), data


def read_checkpoint(
    path: Path, like: Any, check: Callable[[TrainingState], None] = lambda state: None
) -> TrainingState:
    """Read one checkpoint into the structure of the learner ``like``.

    Args:
        path: its directory.
        like: a learner.
        check: raises ValueError where the state does not fit what it is for.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another structure.
    """
    try:
        state = _state(*_read(path), like)
        if state.iteration != int(path.name):
            raise CheckpointError(f"is of iteration {state.iteration}")
        check(state)
        return state
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path.name}: {Path(error.filename).name} is missing") from error
    except Exception as error:  # what is wrong in a file shows as any error of those who use it
        raise CheckpointError(f"checkpoint {path.name}: {one_line(error)}") from error


def _state(arrays: dict[str, np.ndarray], data: dict[str, Any], like: Any) -> TrainingState:
    device, seat = (_taken(arrays, prefix) for prefix in (_DEVICE, _SEAT))
    if data["format"] == 1:
        arrays, device, seat = arrays_today(arrays, like), with_reset(device), with_reset(seat)
    try:
        learner = from_named_arrays(like, _with_average(_with_units(arrays), like))
    except ValueError as error:
        raise CheckpointError(f"does not fit this agent ({error})") from error
    _refuse_nonfinite(learner, like)
    on_host = bool(seat) or data["environments"] is not None
    source = Snapshot(data["environments"], seat, data.get("environment", "")) if on_host else device or None
    fit = None
    if said := data.get("value_fit"):
        fit = ValueInfo(jnp.asarray(np.nan if said[0] is None else said[0], float), jnp.asarray(said[1]))
    return TrainingState(learner, source=source, value_fit=fit, **{name: data[name] for name in _COUNTERS})


def _refuse_nonfinite(learner: Any, like: Any) -> None:
    """Refuse numbers that are not finite, but where they are so from the beginning, such as masks of one's own."""
    begun = named_leaves(like)
    for name, leaf in named_leaves(learner).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not (np.isfinite(leaf) | ~np.isfinite(begun[name])).all():
            raise CheckpointError(f"{name} has a NaN or infinity")


def _taken(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Take the arrays with a prefix out, under their names without it."""
    return {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}


def _with_units(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give running statistics that were written without a unit the one that they have: 1."""
    kept = [name for name in arrays if name.startswith(("observations", "value.returns"))]
    if any(name.endswith(".unit") for name in kept):
        return arrays
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


def largest_checkpoint(directory: Path) -> int | None:
    """Return the bytes of the largest file of arrays that a checkpoint has, None if there is none."""
    sizes = []
    for path in checkpoints(refuse_link(directory)):
        with contextlib.suppress(OSError):
            sizes.append((path / TENSORS).lstat().st_size)
    return max(sizes, default=None)


def newest_checkpoint(
    directory: Path,
    like: Any,
    not_after: int | None = None,
    check: Callable[[TrainingState], None] = lambda state: None,
) -> tuple[TrainingState, list[str]]:
    """Read the newest checkpoint that is intact; also return one line about each newer one that is not.

    ``not_after`` leaves out those of later iterations; ``check`` is that of :func:`read_checkpoint`.
    """
    problems: list[str] = []
    found = checkpoints(refuse_link(directory))
    for path in found:
        if not_after is not None and int(path.name) > not_after:
            continue
        try:
            return read_checkpoint(path, like, check), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    if found:
        raise CheckpointError(f"no checkpoint in {directory} is of iteration {not_after} or before")
    if os.path.lexists(directory) and not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory")
    raise CheckpointError(f"no checkpoint in {directory}: the run ended before its first one; start it anew")
