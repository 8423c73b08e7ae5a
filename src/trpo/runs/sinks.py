"""Where metrics go: a JSON-lines file and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trpo.runs.files import replace_durably
from trpo.training.record import Metrics

FILE = "metrics.jsonl"
FLUSH_INTERVAL = 5.0
"""Seconds after which events are passed on to the system."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one record an iteration; a last line cut off by a power failure is left out.

    Raises:
        ValueError: there is no such file, or a line in its middle is damaged.
    """
    path = run / FILE
    if not path.is_file():
        raise ValueError(f"{run} has no {FILE}: is it the directory of a run?")
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            records.append(record)
        except ValueError as error:
            if number < len(lines):  # no newline after the last: the write was cut off
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return records


class JsonLines:
    """Appends one strict-JSON line an iteration to ``metrics.jsonl``."""

    def __init__(self, run: Path, after_iteration: int = 0):
        """Drop what was recorded after ``after_iteration``, the checkpoint that a resumed run starts from."""
        path = run / FILE
        if path.exists():
            kept = [r for r in read_metrics(run) if r["iteration"] <= after_iteration]
            with _naming(path):
                replace_durably(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Sequence[Metrics]) -> None:
        self._file.write("".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in records))
        with _naming(self._file.name):
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # ``write`` has reported what could not be written
            self._file.close()


class TensorBoard:
    """Writes every number as a TensorBoard scalar against environment steps.

    Of iterations that come together, many in a second, only the last: scalars cost more than such an iteration.
    """

    def __init__(self, run: Path, after_step: int = 0):
        from tensorboardX import event_file_writer, proto

        # Not SummaryWriter: it writes in a thread of its own, which a full disk ends, and then waits for it for ever.
        self._event, self._name, self._due = proto.event_pb2.Event, run / "events", 0.0
        with _naming(self._name):
            self._writer = event_file_writer.EventsWriter(str(self._name), f".{after_step}")
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
        with _naming(self._name):
            self._writer.write_event(event)
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + FLUSH_INTERVAL
                self._writer.flush()

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
