"""Where metrics go: a JSON-lines file and TensorBoard events."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from trpo.runs.disk import NO_FOLLOW, is_same, read_regular, replace_durably
from trpo.runs.files import METRICS
from trpo.runs.schema import conform, one_line, parse_json
from trpo.training.record import Metrics

FILE = METRICS
_BYTES = 2**32
"""The largest file of metrics that is read."""
_Record = Annotated[dict[str, float | str | bool | None], lambda record: type(record.get("iteration", 0)) is int]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one record an iteration; a last line cut off by a power failure is left out.

    Raises:
        ValueError: there is no such file, or a line in its middle is damaged.
    """
    path = run / FILE
    try:
        lines = read_regular(path, _BYTES).split(b"\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{run} has no {FILE}: is it the directory of a run?") from error
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
        self._path, kept = run / FILE, []
        if os.path.lexists(self._path):
            kept = [r for r in read_metrics(run) if r.get("iteration", 0) <= after_iteration]
        self._begin("".join(json.dumps(r) + "\n" for r in kept).encode())

    def _begin(self, content: bytes) -> None:
        replace_durably(self._path, content)  # a new file: what was there may be a link's end
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_APPEND | NO_FOLLOW), "a+b")

    def write(self, records: Sequence[Metrics]) -> None:
        self._file.write("".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in records).encode())
        self._file.flush()

    def renew(self) -> None:
        """Write all of it again, if the file was deleted or replaced meanwhile."""
        if not is_same(self._path, os.fstat(self._file.fileno())):
            self._file.seek(0)
            content = self._file.read()
            self._file.close()
            self._begin(content)

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Writes every number as a TensorBoard scalar against environment steps.

    Of iterations that come together, many in a second, only the last: a scalar costs more than such an iteration.
    """

    def __init__(self, run: Path, after_step: int = 0):
        self._run = run
        self._begin(after_step)

    def _begin(self, after_step: int) -> None:
        from tensorboardX import SummaryWriter

        # A name that nobody can know beforehand: the package would write through a link of that name.
        # purge_step makes TensorBoard forget what was written beyond the checkpoint that a resumed run starts from.
        self._end = f".{secrets.token_hex(8)}"
        purge = after_step + 1 if after_step else None
        self._writer = SummaryWriter(str(self._run), purge_step=purge, filename_suffix=self._end)

    def write(self, records: Sequence[Metrics]) -> None:
        metrics = records[-1]
        step = int(metrics["steps"] or 0)
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def renew(self) -> None:
        """Go on in a new file, if the one before was deleted; what was in it is lost."""
        if not any(path.name.endswith(self._end) for path in self._run.iterdir()):
            self._writer.close()
            self._begin(0)

    def close(self) -> None:
        self._writer.close()


Sink = JsonLines | TensorBoard
