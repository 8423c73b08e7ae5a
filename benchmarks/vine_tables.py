"""What was measured of vines, from the files below ``benchmarks/results/vine``: the tables and figure of its page.

Usage: ``python -m benchmarks.vine_tables``
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.vine import BASE, LEARNING, RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "rollouts.md"
FIGURE = PAGE.parent / "figures" / "vine_variance.png"
BEGIN, END = "<!-- written by python -m benchmarks.vine_tables -->", "<!-- end of what is written -->"
TITLES = {
    "GAE 0.95": "single path, GAE 0.95",
    json.dumps(BASE): "**vine**",
    **{json.dumps({**BASE, "length": n}): f"length {n}" for n in (4, 8, 32)},
    **{json.dumps({**BASE, "every": n}): f"every {n}" for n in (2, 4, 16)},
    **{json.dumps({**BASE, "actions": n, "proposal": "policy"}): f"{n} samples" for n in (2, 4)},
    json.dumps({**BASE, "branch_lambda": 0.95}): "λ 0.95",
    json.dumps({**BASE, "common random numbers": False}): "independent",
}


def loaded(what: str, out: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """Yield the results of one kind, task after task."""
    for path in sorted(out.glob(f"{what}-*.json")):
        yield json.loads(path.read_text())


def cells(rows: list[dict[str, Any]], has_gradient: bool) -> Iterator[str]:
    """Yield for each kind its variance over Monte Carlo's, and its squared bias where there is a gradient."""
    found = {row["kind"]: row for row in rows}
    base = found["Monte Carlo"]["variance"]
    for kind in TITLES:
        if kind not in found:
            yield "–"
            continue
        row = found[kind]
        bias = f" ({max(row['squared_bias'], 0):.2f})" if has_gradient and row["squared_bias"] > row["unsure"] else ""
        yield f"{row['variance'] / base:.2g}{bias}"


def variances(out: Path = RESULTS) -> Iterator[str]:
    """Yield the lines of the table of variances."""
    yield f"| task | trained for | {' | '.join(TITLES.values())} |"
    yield "|---" * (2 + len(TITLES)) + "|"
    for result in loaded("variance", out):
        for trained, reference in result["references"].items():
            rows = [row for row in result["rows"] if row["trained"] == int(trained)]
            known = is_known(reference)
            mark = "" if known else " ∗"
            yield f"| {result['task']} | {int(trained):,}{mark} | {' | '.join(cells(rows, known))} |"


def is_known(reference: dict[str, float]) -> bool:
    """Return whether a reference gradient is more than its own noise."""
    return reference["squared_length"] > 1e-29 and reference["squared_error"] < 0.5


def speeds(out: Path = RESULTS) -> Iterator[str]:
    """Yield the lines of the table of speeds."""
    yield "| task | single paths, steps per second | branches, steps per second | ratio | half of the rounds | share |"
    yield "|---|---|---|---|---|---|"
    for row in loaded("speed", out):
        rates = f"{row['plain']:,.0f} | {row['branches']:,.0f} | {row['ratio']:.2f}"
        yield f"| {row['task']} | {rates} | {row['low']:.2f} … {row['high']:.2f} | {row['share']:.2f} |"


def learned(out: Path = RESULTS) -> Iterator[str]:
    """Yield the lines of the table of learning runs, those that there are."""
    yield "| task | steps | single path | seeds | vine | seeds |"
    yield "|---|---|---|---|---|---|"
    for name, (_, steps, _) in LEARNING.items():
        shown = []
        for kind in ("single-path", "vine"):
            files = sorted((out / "learning" / name).glob(f"*/{kind}-s*.json"))
            scores = [json.loads(path.read_text())["deterministic"]["mean_return"] for path in files]
            shown.append(f"{statistics.mean(scores):.4g} | {len(scores)}" if scores else "not run | 0")
        if any(not cells.startswith("not run") for cells in shown):
            yield f"| {name} | {steps:,} | {' | '.join(shown)} |"


def section(out: Path = RESULTS) -> str:
    """Return what stands between the marks of the page."""
    runs = list(learned(out))
    return "\n".join(["", *variances(out), "", *speeds(out), "", *(runs if len(runs) > 2 else []), ""])


def draw(out: Path = RESULTS, figure: Path = FIGURE) -> None:
    """Draw variance over Monte Carlo's by kind, a line for each task."""
    from trpo.theory.shared import style

    results = list(loaded("variance", out))
    drawing, panels = style.figure(columns=2, width=6.2, height=4.2)
    names = [name.strip("*") for name in TITLES.values()]
    for axes, which in zip(panels[0], (0, 1), strict=True):
        for result, colour in zip(results, (*style.COLOURS, "black"), strict=False):
            trained = sorted({row["trained"] for row in result["rows"]})[which]
            found = {row["kind"]: row["variance"] for row in result["rows"] if row["trained"] == trained}
            shares = [found.get(kind, float("nan")) / found["Monte Carlo"] for kind in TITLES]
            axes.plot(range(len(names)), shares, "o", color=colour, markersize=5, label=result["task"])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.axhline(0.25, color="black", linewidth=0.8, linestyle="dotted")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        style.label(axes, f"after {trained:,} steps of training", "", "variance at equal steps / Monte Carlo's")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=0)
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(figure, dpi=110, metadata={"Software": None})


def main() -> None:
    """Write tables and figure."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{section()}\n{END}{after}", encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
