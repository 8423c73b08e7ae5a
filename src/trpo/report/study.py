"""The tables and figures of a study: scores.csv, table.md, returns.png and, with normalised scores, aggregate.png."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trpo.report.figure import colour_of, draw_band, draw_legend, new_figure, note, plain, save_png, style
from trpo.runs.aggregate import interval
from trpo.runs.disk import replace_durably
from trpo.runs.scores import overall, performance_profile, probability_of_improvement
from trpo.runs.sinks import read_metrics
from trpo.runs.study import Study, Task, results

COLUMNS = ("task", "setting", "seed", "steps", "deterministic", "stochastic", "normalised", "seconds")


def write_tables(study: Study, out: Path) -> list[Path]:
    """Write what there is of a study, from the runs that have ended; return the files.

    Raises:
        ValueError: no run has ended.
    """
    rows = [
        {**found, "task": job.task.env, "normalised": normalised(job.task, found["deterministic"])}
        for job, found in results(study, out)
    ]
    if not rows:
        raise ValueError(f"{out}: no run of this study has ended yet")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {"scores.csv": text.getvalue(), "table.md": "\n".join(_lines(study, rows)) + "\n"}
    for name, content in files.items():
        replace_durably(out / name, content.encode())
    written = [out / name for name in files]
    written.append(_draw_returns(study, out, out / "returns.png"))
    if all(task.low is not None for task in study.tasks) and _matrices(study, rows):
        written.append(_draw_aggregate(study, rows, out / "aggregate.png"))
    return written


def normalised(task: Task, score: float) -> float | None:
    """Return (score − low) / (high − low); None where the study gives none."""
    if task.low is None or task.high is None:
        return None
    return (score - task.low) / (task.high - task.low)


def _of(rows: list[dict[str, Any]], task: Task, setting: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["task"] == task.env and row["setting"] == setting]


def _matrices(study: Study, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the normalised scores ``[task, seed]`` of every setting that has runs of all tasks."""
    found = {}
    for setting in study.settings:
        scores = np.full((len(study.tasks), len(study.seeds)), np.nan)
        for i, task in enumerate(study.tasks):
            for row in _of(rows, task, setting):
                scores[i, study.seeds.index(row["seed"])] = row["normalised"]
        if np.isfinite(scores).any(axis=1).all():
            found[setting] = scores
    return found


def _lines(study: Study, rows: list[dict[str, Any]]) -> Iterator[str]:
    settings = list(study.settings)
    yield f"Deterministic return at the end, mean ± standard deviation over seeds (of {len(study.seeds)}, if not all)."
    yield ""
    yield f"| task | steps | {' | '.join(settings)} |"
    yield "|---" * (2 + len(settings)) + "|"
    for task in study.tasks:
        yield f"| {task.env} | {task.steps:,} | {' | '.join(_cell(study, _of(rows, task, s)) for s in settings)} |"
    matrices = _matrices(study, rows) if all(task.low is not None for task in study.tasks) else {}
    if not matrices:
        return
    yield ""
    yield "Normalised scores of all tasks and seeds together (Agarwal et al. 2021), with 95 % bootstrap intervals:"
    yield ""
    yield "| setting | interquartile mean |"
    yield "|---|---|"
    for name, scores in matrices.items():
        yield f"| {name} | {_shown(overall(scores))} |"
    for a, b in itertools.combinations(matrices, 2):
        better = probability_of_improvement(matrices[a], matrices[b])
        yield f"| probability that {a} is better than {b} | {_shown(better)} |"


def _shown(found: Any) -> str:
    return f"{found.iqm:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _cell(study: Study, rows: list[dict[str, Any]]) -> str:
    scores = [row["deterministic"] for row in rows]
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.3g}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.4g}{spread}" + (f" ({len(scores)})" if len(scores) < len(study.seeds) else "")


def _draw_returns(study: Study, out: Path, file: Path) -> Path:
    """Draw the returns of training, interquartile mean and interval over seeds, a panel for each task."""
    columns = min(3, len(study.tasks))
    figure = new_figure(5 * columns, 1 + 3.2 * -(-len(study.tasks) // columns))
    panels = figure.subplots(-(-len(study.tasks) // columns), columns, squeeze=False).ravel()
    colours = {name: colour_of(i, len(study.settings)) for i, name in enumerate(study.settings)}
    for axes, task in zip(panels, study.tasks, strict=False):
        style(axes, plain(task.env), "return")
        axes.set_xlabel("environment steps", fontsize=9)
        for name, colour in colours.items():
            places = [out / job.name for job, _ in results(study, out) if (job.task, job.setting) == (task, name)]
            _draw_curves(axes, places, colour)
    for axes in panels[len(study.tasks) :]:
        axes.set_visible(False)
    draw_legend(figure, colours)
    note(
        figure,
        "returns while training, stochastic · thick: interquartile mean over seeds · band: 95 % bootstrap interval",
    )
    return save_png(figure, file)


def _draw_curves(axes: Any, places: list[Path], colour: Any) -> None:
    from trpo.report.plots import column
    from trpo.runs.aggregate import curves_on_grid

    curves = []
    for place in places:
        records = read_metrics(place)
        returns = column(records, "episode_return")
        if np.isfinite(returns).any():
            curves.append((column(records, "steps"), returns))
    if curves:
        steps, values = curves_on_grid(curves)
        known = np.isfinite(values).all(axis=-1)
        draw_band(axes, steps[known], interval(values[known]), colour)


def _draw_aggregate(study: Study, rows: list[dict[str, Any]], file: Path) -> Path:
    """Draw interquartile means, performance profiles and probabilities of improvement."""
    matrices = _matrices(study, rows)
    colours = {name: colour_of(i, len(matrices)) for i, name in enumerate(matrices)}
    figure = new_figure(14, 4.2)
    means, profiles, better = figure.subplots(1, 3)
    style(means, "All tasks together")
    for i, (name, scores) in enumerate(matrices.items()):
        found = overall(scores)
        means.barh(i, found.high - found.low, left=found.low, color=colours[name], alpha=0.4, height=0.5)
        means.plot([found.iqm, found.iqm], [i - 0.25, i + 0.25], color=colours[name], linewidth=2)
    means.set_yticks(range(len(matrices)), list(matrices))
    means.set_xlabel("interquartile mean of normalised scores", fontsize=9)
    style(profiles, "Performance profile", "share of runs that score more")
    most = max(1.0, max(np.nanmax(scores) for scores in matrices.values()))
    levels = np.linspace(min(0.0, min(np.nanmin(scores) for scores in matrices.values())), most, 101)
    for name, scores in matrices.items():
        draw_band(profiles, levels, performance_profile(scores, levels), colours[name])
    profiles.set_xlabel("normalised score τ", fontsize=9)
    style(better, "Probability of improvement")
    for axes in (means, profiles, better):
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.05)
    pairs = list(itertools.combinations(matrices, 2))
    for i, (a, b) in enumerate(pairs):
        found = probability_of_improvement(matrices[a], matrices[b])
        better.barh(i, found.high - found.low, left=found.low, color=colours[a], alpha=0.4, height=0.5)
        better.plot([found.iqm, found.iqm], [i - 0.25, i + 0.25], color=colours[a], linewidth=2)
    better.set_yticks(range(len(pairs)), [f"{a} > {b}" for a, b in pairs])
    better.axvline(0.5, color="0.6", linewidth=0.8, linestyle="dashed")
    better.set_xlim(0, 1)
    better.set_xlabel("P(a run of the first beats one of the second)", fontsize=9)
    draw_legend(figure, colours)
    note(figure, "95 % intervals: bootstrap, stratified by task (Agarwal et al. 2021)")
    return save_png(figure, file)
