"""Any observation, any action, and memory: the tasks of ``beyond.toml``, each with its settings, seeds and score.

    python -m benchmarks.beyond [ROW ...] [--seeds 0 1 2 3 4] [--jobs 2]
    python -m benchmarks.beyond --quick          # two batches of every row and setting, nothing kept

Every result is a file below ``benchmarks/results/beyond`` that is never overwritten, as those of
:mod:`benchmarks.learning`, which trains and evaluates: interrupt the command at any point, and the same command goes on
from there. ``python -m benchmarks.tables`` writes the table. The last score is that of the deployed policy, and
deterministic.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.learning import Job, configure, nested, run_all

RESULTS = Path(__file__).with_name("results") / "beyond"
ROWS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("beyond.toml").read_text(encoding="utf-8"))
SEEDS = 5


def jobs_of(name: str, seed: int, out: Path) -> Iterator[Job]:
    """Yield a run for every setting of a row."""
    row = ROWS[name]
    for variant, setting in row["settings"].items():
        own = setting if isinstance(setting, dict) else {"changes": setting}
        yield Job(
            task=own.get("task", row["task"]),
            variant=variant,
            seed=seed,
            changes=nested([*row.get("all", []), *own.get("changes", [])]),
            preset=own.get("preset", row.get("preset", "auto")),
            every=row.get("every", 50_000),
            episodes=row.get("episodes", 20),
            simulator=row.get("simulator", "auto"),
            out=out / name,
        )


def plan(rows: list[str], seeds: list[int] | None, out: Path = RESULTS) -> list[Job]:
    """Return the runs of some rows, every seed of all of them before the next one."""
    most = range(max(ROWS[row].get("seeds", SEEDS) for row in rows)) if seeds is None else seeds
    return [
        job
        for seed in most
        for row in rows
        if seeds is not None or seed < ROWS[row].get("seeds", SEEDS)
        for job in jobs_of(row, seed, out)
    ]


def short(row: dict[str, Any], job: Job) -> Job:
    """Return a run of two batches, with networks, fragments and evaluations as they are."""
    changes = nested([*row.get("all", []), *row.get("quick", [])]) if "quick" in row else job.changes
    job = dataclasses.replace(job, changes=changes, episodes=1)
    steps = 2 * configure(job).batch
    return dataclasses.replace(job, task=f"{job.env}:{steps}", every=steps)


def main() -> None:
    """Run whatever is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows of the table; all, if none: {', '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="by default those that the table wants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="two batches of every row and setting, nothing kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]}; there are {', '.join(ROWS)}")
    rows = options.rows or list(ROWS)
    if not options.quick:
        run_all(plan(rows, options.seeds, options.out), options.jobs)
        return
    with tempfile.TemporaryDirectory() as out:
        run_all([short(ROWS[row], job) for row in rows for job in jobs_of(row, 0, Path(out))], options.jobs)


if __name__ == "__main__":
    main()
