"""Where metrics go: a JSON-lines file and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trpo.runs.files import replace_durably
from trpo.training.record import Metrics

FILE = "metrics.jsonl"


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
            replace_durably(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Sequence[Metrics]) -> None:
        self._file.write("".join(json.dumps(metrics, allow_nan=False) + "\n" for metrics in records))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Writes every number as a TensorBoard scalar against environment steps.

    Of iterations that come together, many in a second, only the last: a scalar costs more than such an iteration.
    """

    def __init__(self, run: Path, after_step: int = 0):
        from tensorboardX import SummaryWriter

        # purge_step makes TensorBoard forget what was written beyond the checkpoint that a resumed run starts from.
        self._writer = SummaryWriter(str(run), purge_step=after_step + 1 if after_step else None)

    def write(self, records: Sequence[Metrics]) -> None:
        metrics = records[-1]
        step = int(metrics["steps"] or 0)
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


Sink = JsonLines | TensorBoard
