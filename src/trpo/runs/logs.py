"""Further places where metrics go, where settings ask for them: a CSV file, and Weights & Biases."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trpo.envs.protocol import MissingExtraError
from trpo.runs.disk import NO_FOLLOW, is_same, replace_durably
from trpo.runs.sinks import naming, read_metrics, tag
from trpo.spelling import in_words
from trpo.training.record import Metrics

CSV = "metrics.csv"


class CsvLog:
    """Writes a line an iteration to ``metrics.csv``, the same as ``metrics.jsonl`` has: that must be written first."""

    def __init__(self, run: Path):
        self._run, self._path = run, run / CSV
        self._begin()

    def _begin(self) -> None:
        """Write all of it anew, from what the run has recorded."""
        records = read_metrics(self._run)
        self._names = list(dict.fromkeys(name for record in records for name in record))
        header = self._lines([dict(zip(self._names, self._names, strict=True))]) if self._names else b""
        with naming(self._path):
            replace_durably(self._path, header + self._lines(records))
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | NO_FOLLOW), "ab")

    def _lines(self, records: Sequence[Any]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._names, lineterminator="\n").writerows(records)
        return text.getvalue().encode()

    def write(self, records: Sequence[Metrics]) -> None:
        if any(record.keys() - set(self._names) for record in records):  # the first, or another key of env.info
            self._file.close()
            self._begin()
            return
        with naming(self._path):
            self._file.write(self._lines(records))
            self._file.flush()

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Leave out what is not of every iteration."""

    def renew(self) -> None:
        if not is_same(self._path, os.fstat(self._file.fileno())):
            self._file.close()
            self._begin()

    def close(self) -> None:
        self._file.close()


class WandbLog:
    """Sends numbers to Weights & Biases (extra ``wandb``), under the tags that TensorBoard has, against ``steps``.

    The package's own environment variables hold: ``WANDB_MODE=offline`` writes into the run's directory alone. A run
    that goes on has the same id there. ``quiet`` lets it say nothing.
    """

    def __init__(self, run: Path, project: str, identity: str, settings: dict[str, Any], quiet: bool = False):
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError(
                f"log.wandb={project!r} needs Weights & Biases ({in_words(error)}): pip install 'trpo[wandb]'"
            ) from error
        self._run = wandb.init(
            project=project, name=run.name, id=identity, dir=str(run), config=settings, resume="allow",
            reinit="create_new", **({"settings": wandb.Settings(silent=True)} if quiet else {}),
        )  # fmt: skip
        self._run.define_metric("steps")
        self._run.define_metric("*", step_metric="steps")

    def write(self, records: Sequence[Metrics]) -> None:
        for record in records:
            numbers = {tag(name): value for name, value in record.items() if isinstance(value, int | float)}
            self._run.log({"steps": record["steps"], **numbers})

    def add(self, group: str, steps: int, values: dict[str, Any]) -> None:
        """Send further numbers, in a group of their own."""
        self._run.log({"steps": steps} | {f"{group}/{name}": value for name, value in values.items()})

    def renew(self) -> None:
        """Leave it to the package."""

    def close(self) -> None:
        self._run.finish()
