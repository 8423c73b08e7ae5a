"""Learning curves of sweeps: interquartile mean and bootstrap interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo.report.figure import (
    check_png,
    colour_of,
    draw_band,
    draw_legend,
    new_figure,
    note,
    plain,
    save_png,
    style,
)
from trpo.report.plots import column, env_name, labels_of
from trpo.runs.aggregate import curves_on_grid, interval
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import groups, read_sweep


def plot_sweeps(places: Sequence[Path], out: Path) -> Path:
    """Draw, for every setting of one or more sweeps, the return over steps and the last return of each seed.

    Thick lines are interquartile means over seeds, bands their 95 % bootstrap intervals, thin lines single seeds.

    Args:
        places: directories of sweeps.
        out: the PNG to write.

    Raises:
        ValueError: a run has no metrics yet, or no episode has ended.
    """
    check_png(out)
    places = list(dict.fromkeys(Path(place).resolve() for place in places))
    curves: dict[str, list[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]] = {}
    for place, name in zip(places, labels_of(places) if len(places) > 1 else [""], strict=True):
        plan = read_sweep(place)
        for label, members in groups(plan).items():
            text = " ".join(part for part in (name, label) if part) or f"{len(members)} seeds"
            curves.setdefault(env_name(place / plan[0].name), []).append((text, _curves(place, members)))
    # Returns of different environments have nothing in common: each has a row of its own.
    figure = new_figure(12, 1 + 4 * len(curves))
    panels = figure.subplots(len(curves), 2, width_ratios=(3, 1), sharey="row", squeeze=False)
    colours: dict[str, Any] = {}
    count = sum(map(len, curves.values()))
    for (over_steps, at_end), (env, found) in zip(panels, curves.items(), strict=True):
        where = f" in {plain(env)}" if len(curves) > 1 else ""
        style(over_steps, f"Return{where}, mean of about the last 100 episodes", "undiscounted")
        style(at_end, "At the end, each seed")
        for i, (label, seeds) in enumerate(found):
            colours[label] = colour = colour_of(len(colours), count)
            _draw(over_steps, seeds, colour)
            _dots(at_end, i, [values[np.isfinite(values)][-1] for _, values in seeds], colour)
        at_end.set_xticks([])
        at_end.margins(x=0.3)
    over_steps.set_xlabel("environment steps of each run")
    draw_legend(figure, colours)
    note(figure, "thick: interquartile mean over seeds · band: 95 % bootstrap interval · thin: single seeds")
    return save_png(figure, out)


def _curves(place: Path, members: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for variant in members:
        records = read_metrics(place / variant.name)
        found.append((column(records, "steps"), column(records, "episode_return")))
        if not np.isfinite(found[-1][1]).any():
            raise ValueError(f"{place / variant.name}: no episode has ended yet; plot it later")
    return found


def _draw(axes: Any, members: list[tuple[np.ndarray, np.ndarray]], colour: Any) -> None:
    steps, values = curves_on_grid(members)
    axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.25)
    known = np.isfinite(values).all(axis=-1)  # from where every seed has a return
    draw_band(axes, steps[known], interval(values[known]), colour)


def _dots(axes: Any, place: int, scores: list[float], colour: Any) -> None:
    spread = np.linspace(-0.25, 0.25, len(scores)) if len(scores) > 1 else np.zeros(1)
    axes.plot(place + spread, sorted(scores), linestyle="none", marker="o", markersize=3.5, color=colour, alpha=0.6)
    band = interval(scores)
    error = [[band.iqm - band.low], [band.high - band.iqm]]
    axes.errorbar([place + 0.4], [band.iqm], yerr=error, color=colour, marker="D", markersize=5, capsize=3)
