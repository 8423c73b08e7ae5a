"""Learning curves and the health of the trust region, from the metrics of finished or unfinished runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trpo.report.figure import (
    check_png,
    colour_of,
    draw_legend,
    new_figure,
    note,
    plain,
    save_png,
    shortened,
    style,
)
from trpo.runs.evaluating import read_evaluations
from trpo.runs.files import METRICS, read_config
from trpo.runs.sinks import read_metrics

ACTUAL, PREDICTED, BOUND = "-", (0, (2.5, 1.5)), (0, (6, 3))
"""Line styles: one for each meaning, since colours are the runs."""


def plot_runs(runs: Sequence[Path], out: Path) -> Path:
    """Draw return, KL, surrogate gain, explained variance, σ and entropy of ``runs`` over steps into one PNG.

    Thin lines are single iterations, thick lines running medians. Crosses are iterations whose update was rejected,
    dots are evaluations.

    Args:
        runs: directories of runs; one that is named twice is drawn once.
        out: the PNG to write; its directory is made if need be.

    Returns:
        ``out``.

    Raises:
        ValueError: no run was given, or one has no metrics; the message names the file and the cure.
    """
    out = Path(out)
    unique = list(dict.fromkeys(Path(run).resolve() for run in runs))
    if not unique:
        raise ValueError("no run to plot: give one run directory or more")
    check_png(out)
    curves = curves_of(unique)
    tasks = {run.env for run in curves}
    panels = panels_of(curves, named=len(tasks) > 1)
    rows = -(-len(panels) // 3)
    figure = new_figure(13, 3.6 * rows)
    grid = list(figure.subplots(rows, 3, sharex=True).flat)
    for axes, (draw, members) in zip(grid, panels, strict=False):
        draw(axes, members)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in figure.axes[-3:]:
        axes.set_xlabel("environment steps")
        axes.tick_params(labelbottom=True)
    _legend(figure, curves, len(tasks) > 1)
    window = max(run.window for run in curves)
    notes = [f"thin: every iteration · thick: running median of {window} iterations"] if window > 1 else []
    notes += ["dots: evaluations"] if any(run.evaluations for run in curves) else []
    notes += ["× update rejected"] if any(run.rejected.any() for run in curves) else []
    note(figure, " · ".join(notes))
    return save_png(figure, out)


Draw: TypeAlias = Callable[[Any, Any], None]
"""(axes, curves) ↦, which draws a panel."""


def curves_of(runs: Sequence[Path]) -> list[RunCurves]:
    """Return what is drawn of each run, in a colour of its own; ValueError where there is nothing."""
    return [
        RunCurves(label, colour_of(i, len(runs)), run, _evaluations_of(run))
        for i, (label, run) in enumerate(zip(labels_of(runs), runs, strict=True))
    ]


def _evaluations_of(run: Path) -> list[dict[str, Any]]:
    """Return a run's evaluations, with a warning and none where they cannot be read: curves do without."""
    try:
        return read_evaluations(run)
    except (ValueError, OSError) as error:
        warnings.warn(f"{str(error).partition('; delete')[0]}; drawn without evaluations", stacklevel=2)
        return []


def panels_of(curves: Sequence[RunCurves], named: bool) -> list[tuple[Draw, Sequence[RunCurves]]]:
    """Return what draws each panel, and of which runs; ``named`` says that titles have environments' names.

    Returns of different environments have nothing in common: each has a panel of its own.
    """
    tasks = list(dict.fromkeys(run.env for run in curves)) if named else [""]
    returns = [(_return_in(task), [run for run in curves if run.env == task or not task]) for task in tasks]
    return returns + [(draw, curves) for draw in (_kl, _gain, _explained, _std, _entropy)]


DOTS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4, "alpha": 0.7}
"""How evaluations are drawn."""


class RunCurves:
    """One run's columns, colour and smoothing."""

    def __init__(self, label: str, colour: Any, run: Path, evaluations: list[dict[str, Any]]):
        self.label, self.colour, self.records, self.env = label, colour, read_metrics(run), env_name(run)
        self.evaluations = evaluations
        n = len(self.records)
        if not n:
            raise ValueError(f"{run / METRICS} has no iteration yet; plot the run after its first one")
        self.steps = self["steps"]
        self.rejected = np.array([r.get("result", "accepted") != "accepted" for r in self.records])
        self.window = 1 if n < 20 else min(51, 2 * (n // 40) + 3)
        """Iterations in the running median, odd."""

    def __getitem__(self, name: str) -> np.ndarray:
        return column(self.records, name)


def column(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Return a metric of every iteration, NaN where it is null, absent or not finite."""
    values = [record.get(name) for record in records]
    return np.array([x if isinstance(x, int | float) and math.isfinite(x) else np.nan for x in values], float)


def running_median(x: np.ndarray, window: int) -> np.ndarray:
    """Return the centred median over up to ``window`` entries that are numbers; NaN where ``x`` is."""
    half = window // 2
    padded = np.pad(x, half, constant_values=np.nan)
    present = np.isfinite(x)
    result = np.full(len(x), np.nan)
    if present.any():
        result[present] = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window)[present], axis=-1)
    return result


def env_name(run: Path) -> str:
    """Return the name of a run's environment; of metrics alone it is not known."""
    try:
        return str(read_config(run)["spec"]["id"])
    except (ValueError, OSError):
        return "unknown environment"


def labels_of(runs: Sequence[Path]) -> list[str]:
    """Return each run's directory name, with as many parents as tell equal names apart."""
    depth = [1] * len(runs)
    while True:
        labels = ["/".join(run.parts[-d:]) for run, d in zip(runs, depth, strict=True)]
        clashing = [i for i, label in enumerate(labels) if labels.count(label) > 1]
        if not clashing:
            return labels
        for i in clashing:
            depth[i] += 1


def _curves(axes: Any, curves: Sequence[RunCurves], name: str) -> None:
    """Draw a column of each run: thin as it is, thick its running median."""
    for run in curves:
        y = run[name]
        if run.window > 1:
            axes.plot(run.steps, y, linestyle=ACTUAL, color=run.colour, linewidth=0.6, alpha=0.3)
        _line(axes, run, running_median(y, run.window), 1.6)


def _line(axes: Any, run: RunCurves, y: np.ndarray, width: float) -> None:
    # A number between two nulls has no line to be part of.
    marker = "o" if np.isfinite(y).sum() == 1 else None
    axes.plot(run.steps, y, linestyle=ACTUAL, color=run.colour, linewidth=width, marker=marker, markersize=4)


def _return_in(env: str) -> Callable[[Any, Sequence[RunCurves]], None]:
    def draw(axes: Any, curves: Sequence[RunCurves]) -> None:
        title = f"Return in {plain(shortened(env, 36))}" if env else "Return, mean of the last 100 episodes"
        style(axes, title, "undiscounted, last 100 episodes" if env else "undiscounted")
        for run in curves:
            _line(axes, run, run["episode_return"], 1.8)
            if run.evaluations:
                steps, found = (column(run.evaluations, name) for name in ("steps", "mean_return"))
                axes.plot(steps, found, color=run.colour, **DOTS)
        if not _known(curves, "episode_return").size:
            _message(axes, "no episode has ended yet")

    return draw


def _kl(axes: Any, curves: Sequence[RunCurves]) -> None:
    style(axes, r"Mean KL($\pi_{\mathrm{old}} \Vert \pi$)", "nats")
    _curves(axes, curves, "mean_kl")
    known = {f"{x:.3g}" for x in _known(curves, "max_kl")}
    for run in curves:
        if run.rejected.any():
            crosses = {"linestyle": "none", "marker": "x", "markersize": 5, "clip_on": False, "zorder": 5}
            axes.plot(run.steps[run.rejected], run["mean_kl"][run.rejected], color=run.colour, **crosses)
        colour = "0.25" if len(known) == 1 else run.colour
        axes.plot(run.steps, run["max_kl"], color=colour, linewidth=1.2, linestyle=BOUND)
    if known:
        _explain(axes, {f"bound δ = {known.pop()}" if len(known) == 1 else "bound δ": BOUND})
    axes.set_ylim(bottom=0)
    _headroom(axes)


def _gain(axes: Any, curves: Sequence[RunCurves]) -> None:
    style(axes, "Surrogate gain", "units of the advantage")
    for run in curves:
        _curves(axes, [run], "surrogate_gain")
        predicted = running_median(run["predicted_gain"], run.window)
        axes.plot(run.steps, predicted, color=run.colour, linestyle=PREDICTED, linewidth=1.2)
    axes.axhline(0, color="0.6", linewidth=0.8)
    known = _known(curves, "surrogate_gain", "predicted_gain")
    if len(known) >= 100:  # one outlier, from one unlikely action, would flatten all the rest
        low, high = np.quantile(known, [0.01, 0.99])
        axes.set_ylim(min(0.0, low) - 0.1 * (high - low), high + 0.15 * (high - low))
    _explain(axes, {"actual": ACTUAL, "predicted (linear model)": PREDICTED})
    _headroom(axes)


def _explained(axes: Any, curves: Sequence[RunCurves]) -> None:
    style(axes, "Explained variance of the value function", "1 is perfect")
    _curves(axes, curves, "explained_variance")
    lowest = min(_known(curves, "explained_variance"), default=0.0)
    axes.set_ylim(max(-1.0, min(0.0, lowest)) - 0.05, 1.05)  # a new value function may start far below −1
    axes.axhline(0, color="0.6", linewidth=0.8)


def _std(axes: Any, curves: Sequence[RunCurves]) -> None:
    style(axes, "Standard deviation σ of the policy", "mean over dimensions")
    _curves(axes, curves, "std")
    if _known(curves, "std").size:
        axes.set_ylim(bottom=0)
    else:
        _message(axes, "no σ: discrete actions")


def _entropy(axes: Any, curves: Sequence[RunCurves]) -> None:
    style(axes, "Entropy of the policy", "nats")
    _curves(axes, curves, "entropy")


def _known(curves: Sequence[RunCurves], *names: str) -> np.ndarray:
    """Return the numbers in columns of all runs."""
    everything = np.concatenate([run[name] for run in curves for name in names])
    return everything[np.isfinite(everything)]


def _message(axes: Any, text: str) -> None:
    axes.set_ylabel("")
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.45", fontsize=11)


def _headroom(axes: Any) -> None:
    """Leave room for a legend above the data."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.2 * (top - bottom))


def _explain(axes: Any, styles: dict[str, Any]) -> None:
    """Say what the line styles of a panel mean, in grey: colours are the runs."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="0.25", linewidth=1.3, linestyle=style, label=text) for text, style in styles.items()]
    placed = {"loc": "upper right", "fontsize": 8.5, "frameon": False, "ncols": len(lines), "handlelength": 2.6}
    axes.legend(handles=lines, **placed).set_in_layout(False)


def _legend(figure: Any, curves: Sequence[RunCurves], several: bool) -> None:
    colours = {}
    for run in curves:
        refused = int(run.rejected.sum())
        label = f"{run.label} · {run.env}" if several else run.label
        colours[f"{label} ({refused} of {len(run.records)} updates rejected)" if refused else label] = run.colour
    draw_legend(figure, colours)
