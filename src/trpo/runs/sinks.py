"""Where metrics go: a JSON-lines file and TensorBoard events."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Protocol, runtime_checkable

from trpo.runs.disk import NO_FOLLOW, is_same, open_regular, replace_durably, replacing
from trpo.runs.files import METRICS
from trpo.runs.schema import conform, one_line, parse_json
from trpo.training.record import INFO, Metrics

FLUSH_INTERVAL = 5.0
"""Seconds after which events are passed on to the system."""
_BYTES = 2**32
"""The largest file of metrics that is read."""
_LINE_BYTES = 2**20
"""The longest line that is read."""
DAMAGED = "metrics-damaged.jsonl"
"""What ``metrics.jsonl`` was when a line in it could not be read."""
_Record = Annotated[dict[str, float | str | bool | None], lambda record: type(record.get("iteration", 0)) is int]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one record an iteration; a last line cut off by a power failure is left out.

    So is any other line that cannot be read, with a warning that names the first of them.

    Raises:
        ValueError: there is no such file, or none of its lines can be read.
    """
    try:
        found = _Lines(run / METRICS)
        records = [record for _, record in found]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{run} has no {METRICS}: is it the directory of a run?") from error
    if found.damaged and not records:
        raise ValueError(found.damage)
    if found.damaged:
        warnings.warn(f"{found.damage}; left out", stacklevel=2)
    return records


class _Lines:
    """The lines of a file of metrics with their records, one after the other: there may be millions."""

    def __init__(self, path: Path):
        self.path, self.damaged, self._first = path, 0, ""
        """How many lines could not be read; not counted is a last one without its end, whose writing was cut off."""

    def __iter__(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        with open_regular(self.path, _BYTES) as file:
            for number in itertools.count(1):
                line = piece = file.readline(_LINE_BYTES)
                while piece and not piece.endswith(b"\n"):  # the rest of a line that is too long
                    piece = file.readline(_LINE_BYTES)
                if not line:
                    return
                if not line.strip():
                    continue
                try:
                    record = parse_json(line, constants=False)
                    conform(record, _Record)
                except ValueError as error:
                    if piece:
                        self.damaged += 1
                        self._first = self._first or f"line {number}: not JSON ({one_line(error)})"
                    continue
                yield line.rstrip(b"\n") + b"\n", record

    @property
    def damage(self) -> str:
        """What is wrong."""
        more = f", and {self.damaged - 1:,} more lines" if self.damaged > 1 else ""
        return f"{self.path}, {self._first}{more}"


@runtime_checkable
class Sink(Protocol):
    """Where metrics go."""

    def write(self, records: Sequence[Metrics]) -> None:
        """Write iterations that come together."""

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Write further numbers, in a group of their own."""

    def renew(self) -> None:
        """Write again what was deleted meanwhile."""

    def close(self) -> None:
        """Write what is held back."""


GROUPS = {
    "rollout": ("episodes", "episode_return", "episode_length"),
    "time": ("iteration", "seconds", "steps_per_second", "collect_seconds"),
    "value": ("value_loss", "explained_variance"),
}
"""Of the metrics' tags; all others are of the policy's update."""


def tag(name: str) -> str:
    """Return a metric's name in its group, such as ``policy/mean_kl``, as TensorBoard shows them together."""
    if name.startswith(INFO):
        return f"info/{name.removeprefix(INFO)}"
    return f"{next((group for group, names in GROUPS.items() if name in names), 'policy')}/{name}"


class JsonLines:
    """Appends one strict-JSON line an iteration to ``metrics.jsonl``."""

    def __init__(self, run: Path, after_iteration: int = 0):
        """Drop what was recorded after ``after_iteration``, the checkpoint that a resumed run starts from.

        If a line cannot be read, the file as it was is kept beside it: the run goes on without that line.
        """
        self._path, kept = run / METRICS, b""
        if os.path.lexists(self._path):
            found = _Lines(self._path)
            kept = b"".join(line for line, record in found if record.get("iteration", 0) <= after_iteration)
            if found.damaged:
                aside = _free(run / DAMAGED)
                with naming(aside), replacing(aside) as temporary:
                    shutil.copyfile(self._path, temporary)
                warnings.warn(f"{found.damage}; going on without, all of it is kept in {aside}", stacklevel=2)
        self._begin(kept)

    def _begin(self, content: bytes) -> None:
        with naming(self._path):
            replace_durably(self._path, content)  # a new file: what was there may be a link's end
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_APPEND | NO_FOLLOW), "a+b")

    def write(self, records: Sequence[Metrics]) -> None:
        with naming(self._path):
            self._file.write("".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in records).encode())
            self._file.flush()

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Leave out what is not of every iteration."""

    def renew(self) -> None:
        """Write all of it again, if the file was deleted or replaced meanwhile."""
        if not is_same(self._path, os.fstat(self._file.fileno())):
            self._file.seek(0)
            before = self._file
            self._begin(before.read())
            before.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # ``write`` has reported what could not be written
            self._file.close()


class TensorBoard:
    """Writes every number as a TensorBoard scalar against environment steps.

    Of iterations that come together, many in a second, only the last: scalars cost more than such an iteration.
    ``settings``, by dotted name, are its hyperparameters.
    """

    def __init__(self, run: Path, after_step: int = 0, settings: Mapping[str, Any] = MappingProxyType({})):
        self._run, self._settings = run, settings
        self._begin(after_step)

    def _begin(self, after_step: int) -> None:
        from tensorboardX import event_file_writer, proto, summary

        # Not SummaryWriter: it writes in a thread of its own, which a full disk ends, and then waits for it for ever.
        self._event, self._name, self._due = proto.event_pb2.Event, self._run / "events", 0.0
        # A name that nobody can know beforehand: the package would write through a link of that name.
        self._end = f".{after_step}.{secrets.token_hex(8)}"
        with naming(self._name):
            self._writer = event_file_writer.EventsWriter(str(self._name), self._end)
            if after_step:
                # TensorBoard forgets what was written beyond the checkpoint that a resumed run starts from.
                start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
                event = self._event(wall_time=time.time(), step=after_step + 1, session_log=start)
                self._writer.write_event(event)
            if self._settings:
                shown = {name: _hparam(value) for name, value in self._settings.items()}
                metrics = {tag("episode_return"): 0.0}  # of metrics, only names are taken
                for part in summary.hparams(shown, metrics):
                    self._writer.write_event(self._event(wall_time=time.time(), step=after_step, summary=part))
            self._writer.flush()

    def write(self, records: Sequence[Metrics]) -> None:
        event = self._event(wall_time=time.time(), step=int(records[-1]["steps"] or 0))
        for name, value in records[-1].items():
            if isinstance(value, int | float) and name != "steps":
                event.summary.value.add(tag=tag(name), simple_value=value)
        self._pass_on(event)

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Write further numbers, in a group of their own."""
        event = self._event(wall_time=time.time(), step=steps)
        for name, value in values.items():
            event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        self._pass_on(event)

    def _pass_on(self, event: Any) -> None:
        with naming(self._name):
            self._writer.write_event(event)
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + FLUSH_INTERVAL
                self._writer.flush()

    def renew(self) -> None:
        """Go on in a new file, if the one before was deleted; what was in it is lost."""
        if not any(path.name.endswith(self._end) for path in self._run.iterdir()):
            self.close()
            self._begin(0)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # these are for looking at: nothing is read back from them
            self._writer.close()


def _hparam(value: Any) -> bool | int | float | str:
    """Return a setting as TensorBoard shows it; what it cannot hold, such as infinity, as text."""
    number = isinstance(value, bool | int | float) and math.isfinite(value)
    return value if number or isinstance(value, str) else str(value)


def _free(path: Path) -> Path:
    """Return ``path``, or, where there is such a file, the first name with a number that is free."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Name the file in the error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
