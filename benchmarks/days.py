"""Three days' work at full length: what the examples say, and what their runs became.

    python -m benchmarks.days [--only migrant hacker roboticist] [--write]

Each is the script in ``examples/`` as a user starts it. What came out goes to ``benchmarks/results/days.json``, and
with ``--write`` into docs/days.md. Timings are those of a machine that others may use; the figures of latency are those
of ``python -m benchmarks.deploy``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import machine, versions, write

HERE = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results") / "days.json"
PAGE = HERE / "docs" / "days.md"
DAYS: dict[str, list[str]] = {
    "migrant": ["examples/from_sb3.py"],
    "hacker": ["examples/own_loop.py"],
    "roboticist": ["examples/own_robot.py", "--steps", "600000"],
}
"""Script and arguments."""


def day(command: list[str], place: Path) -> dict[str, Any]:
    """Run a script; return what it said, and about each run that it left."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE / 'src'}", "WANDB_MODE": "offline", "COLUMNS": "120"}
    began = time.perf_counter()
    arguments = [sys.executable, *command, "--out", str(place / "run")]
    done = subprocess.run(arguments, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = done.stdout.replace(f"{place}/", "").splitlines()
    runs = {path.parent.name: run(path.parent) for path in sorted((place / "run").rglob("config.json"))}
    return {"command": ["python", *command], "seconds": time.perf_counter() - began, "said": said, "runs": runs}


def run(place: Path) -> dict[str, Any]:
    """Return what became of a run."""
    records = lines(place / "metrics.jsonl")
    bounded = [record for record in records if record["max_kl"]]
    found = {
        "steps": records[-1]["steps"],
        "iterations": len(records),
        "in a row": [record["iteration"] for record in records] == list(range(1, len(records) + 1)),
        "refused": sum(record["result"] != "accepted" for record in records),
        "largest mean_kl / max_kl": max(record["mean_kl"] / record["max_kl"] for record in bounded),
        "left": sorted({path.name.split(".")[0] for path in place.iterdir()}),
    }
    if (place / "evaluations.jsonl").exists():
        told = [(each["steps"], each["mean_return"], each["best"]) for each in lines(place / "evaluations.jsonl")]
        found["evaluations"] = told
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file with one on each line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def marks(name: str) -> tuple[str, str]:
    """Return what stands before and after a day in the page."""
    return f"<!-- {name}: written by python -m benchmarks.days -->", f"<!-- end of {name} -->"


def section(found: dict[str, Any]) -> str:
    """Return what the page says of a day."""
    said = "\n".join(f"    {line}" for line in ("$ " + " ".join(found["command"]), *found["said"]))
    rows = ["| run | steps | iterations | updates refused | largest mean KL | evaluations | best |", "|---" * 7 + "|"]
    for name, run in found["runs"].items():
        scores = [score for _, score, _ in run.get("evaluations", [])]
        evaluated = [str(len(scores)) if scores else "–", f"{max(scores):.1f}" if scores else "–"]
        cells = [f"{run['steps']:,}", f"{run['iterations']:,}", f"{run['refused']:,}"]
        largest = f"{run['largest mean_kl / max_kl']:.3f} δ"
        rows.append(f"| {' | '.join([name, *cells, largest, *evaluated])} |")
    return "\n".join([said, "", *rows, "", f"All of it took {found['seconds']:.0f} s."])


def page(text: str, days: dict[str, Any]) -> str:
    """Return the page with what is known of each day."""
    for name, found in days.items():
        begin, end = marks(name)
        block = f"{begin}\n{section(found)}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(DAYS), default=list(DAYS))
    parser.add_argument("--write", action="store_true", help="put what came out into docs/days.md")
    options = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"days": {}}
    for name in options.only:
        with tempfile.TemporaryDirectory() as place:
            result["days"][name] = day(DAYS[name], Path(place).resolve())
        print("\n".join([f"{name}:", *result["days"][name]["said"]]), flush=True)
        result |= {"machine": machine(os.cpu_count() or 1), "versions": versions("numpy", "jax", "trpo")}
        write(RESULTS, result)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result["days"]), encoding="utf-8")


if __name__ == "__main__":
    main()
