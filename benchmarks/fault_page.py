"""The page of the campaign, written from its result files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "faults"
PAGE = HERE.parent / "docs" / "reliability.md"
ORDER = ("kill -9", "other signals", "pairs of processes", "damaged checkpoints", "damaged configurations")
ORDER += ("links and names", "disk", "environments", "sizes", "threads")


SHORTER = (
    ("other signals", ", [^,]*$", ""),
    ("pairs of processes", "^(.*, .*), ", r"\1: "),
    ("damaged checkpoints", "array: .*", "an array"),
    ("links and names", r"^\S+ ", ""),
    ("environments", ", (?!death).* in (init|reset|step|close|snapshot)$", r", raises in \1"),
    ("environments", ", (.* raises|exits)$", ", raises"),
    ("environments", ", (?!raises|death).*", ", answers wrongly"),
    ("sizes", " of .*", ""),
)
"""What of a fault's name the page has in its place."""


def grouped(kind: str, faults: dict[str, list[int]]) -> dict[str, dict[str, int]]:
    """Return how many faults of each group, and of what is told apart in it, were injected."""
    found: dict[str, dict[str, int]] = {}
    for name, (count, _) in sorted(faults.items()):
        for _, pattern, shorter in (entry for entry in SHORTER if entry[0] == kind):
            name = re.sub(pattern, shorter, name)
        group, _, detail = name.partition(": " if ": " in name else ", ")
        group, detail = (group, detail) if detail else ("", group)
        details = found.setdefault(group, {})
        details[detail] = details.get(detail, 0) + count
    return found


def commit() -> str:
    """Return the commit of the package under test, with a mark if it differs from that."""
    root = HERE.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    head = git("log", "-1", "--format=%h", "--", "src")
    return head + ("+" if git("status", "--porcelain", "--", "src") else "")


def versions() -> str:
    names = ("jax", "numpy", "gymnasium", "safetensors")
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {importlib.metadata.version(n)}" for n in names)])


def write_page() -> None:
    """Write ``docs/reliability.md`` from the result files."""
    found = {data["kind"]: data for path in sorted(RESULTS.glob("*.json")) for data in [json.loads(path.read_text())]}
    kinds = [found[name] for name in ORDER if name in found]
    lines = [
        "# Reliability",
        "",
        "What happens to runs when something goes wrong, tried by a campaign of injected faults:",
        "",
        "    python -m benchmarks.faults",
        "",
        "Processes are real, and so are files; what is checked afterwards does not use the code under test. For every",
        "fault: the exit code is one that is documented, nobody is shown a traceback, nothing hangs, nothing outside",
        "of the run's directory is written or deleted, iterations are 1, 2, … without gap or double, no more than",
        "those since the last checkpoint are lost, and what is said names the cause. Results are kept by kind: a",
        "campaign that was interrupted goes on, and `--only KIND --fresh` injects a kind again.",
        "",
        "| fault | injected | survived | checked besides | commit |",
        "|---|---|---|---|---|",
    ]
    for data in kinds:
        number = "all" if data["survived"] == data["injected"] else f"{data['survived']:,}"
        injected = f"{data['injected']:,}" + (f" of {data['wanted']:,}" if data["injected"] < data["wanted"] else "")
        lines.append(f"| {data['kind']} | {injected} | {number} | {data['holds']} | {data['commit']} |")
    total, all_ = sum(d["injected"] for d in kinds), sum(d["survived"] for d in kinds)
    lines += [f"| together | {total:,} | {'all' if total == all_ else f'{all_:,}'} | | |", ""]
    for data in kinds:
        for number, fault, problem in data["lost"]:
            lines += [f"* Did not survive: {data['kind']} {number}, {fault}: {' '.join(problem.split())[:300]}"]
    lines += ["", "## What was injected", "", "`benchmarks/results/faults` has every fault by its name.", ""]
    lines += ["| fault | of which | how many |", "|---|---|---|"]
    for data in kinds:
        for group, details in grouped(data["kind"], data["faults"]).items():
            shown = ", ".join(f"{name} {count}" for name, count in sorted(details.items()))
            lines += [f"| {data['kind']} | {group or 'all'} | {shown} |"]
    lines += ["", f"Versions: {versions()}. Written by `benchmarks/faults.py`.", ""]
    PAGE.write_text("\n".join(lines))
