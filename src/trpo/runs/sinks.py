"""Where metrics go: a JSON-lines file and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from trpo.runs.disk import NO_FOLLOW, is_same, read_regular, replace_durably
from trpo.runs.files import METRICS
from trpo.runs.schema import conform, one_line, parse_json
from trpo.training.record import Metrics

FLUSH_INTERVAL = 5.0
"""Seconds after which events are passed on to the system."""
_BYTES = 2**32
"""The largest file of metrics that is read."""
_Record = Annotated[dict[str, float | str | bool | None], lambda record: type(record.get("iteration", 0)) is int]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one record an iteration; a last line cut off by a power failure is left out.

    Raises:
        ValueError: there is no such file, or a line in its middle is damaged.
    """
    path = run / METRICS
    try:
        lines = read_regular(path, _BYTES).split(b"\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{run} has no {METRICS}: is it the directory of a run?") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, constants=False)
            conform(record, _Record)
            records.append(record)
        except ValueError as error:
            if number < len(lines):  # no newline after the last: the write was cut off
                raise ValueError(f"{path}, line {number}: not JSON ({one_line(error)})") from error
    return records


class JsonLines:
    """Appends one strict-JSON line an iteration to ``metrics.jsonl``."""

    def __init__(self, run: Path, after_iteration: int = 0):
        """Drop what was recorded after ``after_iteration``, the checkpoint that a resumed run starts from."""
        self._path, kept = run / METRICS, []
        if os.path.lexists(self._path):
            kept = [r for r in read_metrics(run) if r.get("iteration", 0) <= after_iteration]
        self._begin("".join(json.dumps(r) + "\n" for r in kept).encode())

    def _begin(self, content: bytes) -> None:
        with _naming(self._path):
            replace_durably(self._path, content)  # a new file: what was there may be a link's end
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_APPEND | NO_FOLLOW), "a+b")

    def write(self, records: Sequence[Metrics]) -> None:
        with _naming(self._path):
            self._file.write("".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in records).encode())
            self._file.flush()

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Leave out what is not of every iteration."""

    def renew(self) -> None:
        """Write all of it again, if the file was deleted or replaced meanwhile."""
        if not is_same(self._path, os.fstat(self._file.fileno())):
            self._file.seek(0)
            content = self._file.read()
            self._file.close()
            self._begin(content)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # ``write`` has reported what could not be written
            self._file.close()


class TensorBoard:
    """Writes every number as a TensorBoard scalar against environment steps.

    Of iterations that come together, many in a second, only the last: scalars cost more than such an iteration.
    """

    def __init__(self, run: Path, after_step: int = 0):
        self._run = run
        self._begin(after_step)

    def _begin(self, after_step: int) -> None:
        from tensorboardX import event_file_writer, proto

        # Not SummaryWriter: it writes in a thread of its own, which a full disk ends, and then waits for it for ever.
        self._event, self._name, self._due = proto.event_pb2.Event, self._run / "events", 0.0
        # A name that nobody can know beforehand: the package would write through a link of that name.
        self._end = f".{after_step}.{secrets.token_hex(8)}"
        with _naming(self._name):
            self._writer = event_file_writer.EventsWriter(str(self._name), self._end)
            if after_step:
                # TensorBoard forgets what was written beyond the checkpoint that a resumed run starts from.
                start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
                event = self._event(wall_time=time.time(), step=after_step + 1, session_log=start)
                self._writer.write_event(event)
            self._writer.flush()

    def write(self, records: Sequence[Metrics]) -> None:
        event = self._event(wall_time=time.time(), step=int(records[-1]["steps"] or 0))
        for name, value in records[-1].items():
            if isinstance(value, int | float):
                event.summary.value.add(tag=name, simple_value=value)
        self._pass_on(event)

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Write further numbers, in a group of their own."""
        event = self._event(wall_time=time.time(), step=steps)
        for name, value in values.items():
            event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        self._pass_on(event)

    def _pass_on(self, event: Any) -> None:
        with _naming(self._name):
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


Sink = JsonLines | TensorBoard


@contextlib.contextmanager
def _naming(path: Any) -> Iterator[None]:
    """Name the file in the error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
