"""The part of ``docs/results.md`` on memory, images, masks and mixed actions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.beyond import RESULTS, ROWS, SEEDS, jobs_of
from benchmarks.learning_tables import number, spread

TEXT = """
Deterministic return at the end, every seed and their mean; the policy is the one that is deployed, an average of the
latest ones. Settings were chosen on seeds from 100 on. *needed*: of the mean, unless it is said of seeds. ✓: reached.
Settings are in `benchmarks/beyond.toml` and, where it names none, in the preset that `trpo train` applies by itself.
Command: `python -m benchmarks.beyond`; one row: `python -m benchmarks.beyond ROW`.
"""

Scores = dict[str, list[float]]


def scores(name: str, out: Path = RESULTS) -> Scores:
    """Return the last deterministic return of every seed that was run, by setting of a row."""
    row = ROWS[name]
    found: Scores = {name: [] for name in row["settings"]}
    for seed in range(row.get("seeds", SEEDS)):
        for job in jobs_of(name, seed, out):
            if job.path.exists():
                found[job.variant].append(json.loads(job.path.read_text())["deterministic"]["mean_return"])
    return found


def verdict(row: dict[str, Any], found: Scores) -> tuple[str, bool | None]:
    """Return what the first setting of a row needs, and whether it has it; None as long as seeds are missing."""
    values = found[next(iter(row["settings"]))]
    complete = len(values) == row.get("seeds", SEEDS)
    if "of" in row:
        other, share = row["of"]
        known = complete and len(found[other]) == len(values)
        return f"≥ {share:g} of “{other}”", at_least(values, found[other], share) if known else None
    if "needed" not in row:
        return "–", None
    text = f"≥ {row['needed']:g}"
    if "on" in row:
        enough = sum(value >= row["needed"] for value in values) >= row["on"]
        return f"{text} on {row['on']} of {SEEDS}", enough if complete else None
    return text, statistics.mean(values) >= row["needed"] if complete else None


def at_least(values: list[float], others: list[float], share: float) -> bool:
    """Return whether a mean is at least this share of another one; of a negative one, at most that much below it."""
    ours, theirs = statistics.mean(values), statistics.mean(others)
    return ours >= theirs - (1 - share) * abs(theirs)


def _lines(name: str, out: Path) -> Iterator[str]:
    row, found = ROWS[name], scores(name, out)
    needed, reached = verdict(row, found)
    for i, (setting, values) in enumerate(found.items()):
        steps = int(next(job for job in jobs_of(name, 0, out) if job.variant == setting).steps)
        shown = f"{spread(values)} | **{number(statistics.mean(values))}**" if values else "not run | "
        need = f"{needed}{' ✓' if reached else ''} | {row.get('whose', '')}" if i == 0 else " | "
        yield f"| {row['title'] if i == 0 else ''} | {setting} | {steps:,} | {shown} | {need} |"


def section(out: Path = RESULTS) -> list[str]:
    """Return the lines of the page."""
    return [
        "## Memory, images, masks, mixed actions",
        *TEXT.splitlines(),
        "",
        "| task | setting | steps | by seed | mean | needed | against |",
        "|---|---|---|---|---|---|---|",
        *(line for name in ROWS for line in _lines(name, out)),
        "",
    ]
