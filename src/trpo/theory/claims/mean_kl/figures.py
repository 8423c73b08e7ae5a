"""Figures of the claim "from max to mean KL"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims.mean_kl.measure import Study, Walk, Walks
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.arrays import take

_BLUE, _RED, _GREEN = style.COLOURS[:3]


def draw(directory: Path | None, study: Study) -> tuple[Picture, ...]:
    """Draw first steps, and falls."""
    if directory is None:
        return ()
    return _steps(study, directory), _falls(study.walks, study.table, directory)


def _steps(study: Study, directory: Path) -> Picture:
    """Draw the distribution of D_max/D̄, and gain, error and guarantee of the first step over δ."""
    drawing, ((left, right),) = style.figure(2, width=4.9, height=3.8)
    drawing.get_layout_engine().set(w_pad=0.1)
    _ratios(left, study.shapes)
    _orders(right, study.walks.mean)
    return style.save(drawing, directory, "mean_kl_steps")


def _ratios(axes: Any, shapes: dict[int, Walk]) -> None:
    for colour, (states, w) in zip(style.COLOURS, shapes.items(), strict=False):
        ratio, least = np.sort(w.largest[w.moved] / w.mean[w.moved]), w.least_weight[w.moved]
        axes.plot(ratio, np.linspace(0, 1, ratio.size), color=colour, linewidth=2, label=f"{states} states")
        axes.axvline(np.median(1 / least), color=colour, linewidth=1, linestyle="--")
    axes.text(1 / np.median(least) * 1.12, 0.03, "median\n" + r"$1/\min d_\pi$", fontsize=9, color=colour)
    x = r"$D_{\max}\,/\,\bar D$"
    style.label(axes, "", x, "share of steps with less", "x", legend="center right", xlim=(0.9, 1e3))


def _orders(axes: Any, mean: dict[float, Walk]) -> None:
    deltas, first = np.array(list(mean)), [take(w, 0) for w in mean.values()]
    guarantee = "guarantee:\n" + r"$\frac{4εγ}{(1-γ)^2}\,D_{\max}$"
    for values, colour, label, power, offset in (
        ([w.theorem for w in first], _RED, guarantee, 1, (-66, 2)),
        ([w.gain for w in first], _BLUE, "gain of η", 0.5, (-6, -18)),
        ([np.abs(w.promised - w.gain) for w in first], _GREEN, "surrogate's error", 1, (4, -14)),
    ):
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
        axes.fill_between(deltas, np.maximum(low, 1e-9), high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(deltas, middle, "o-", color=colour, markersize=4)
        axes.plot(deltas, middle[0] * (deltas / deltas[0]) ** power, color="black", linewidth=0.7, linestyle=":")
        axes.annotate(label, (deltas[3], middle[3]), offset, textcoords="offset points", color=colour, fontsize=9)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.text(deltas[0], 1.3, "the whole gap", fontsize=8.5)
    x, y = "δ, bound on the mean KL (nats)", "first step, in units of the gap"
    style.label(axes, "", x, y, "xy", legend=None, ylim=(1e-7, 1e4))


def _falls(study: Walks, table: dict[float, Walk], directory: Path) -> Picture:
    """Draw how often η falls over δ, and over the progress made."""
    drawing, ((left, right),) = style.figure(2, width=4.9, height=3.8)
    drawing.get_layout_engine().set(w_pad=0.1)
    for walks, colour, label, mark, offset in (
        (study.mean, _BLUE, r"mean KL: $\bar D \leq δ$ (TRPO)", "o", (4, -12)),
        (study.largest, _RED, r"max KL: $D_{\max} \leq δ$", "s", (-42, 5)),
        (table, _GREEN, r"$\bar D \leq δ$, complete table", "^", None),
    ):
        share = np.array([100 * w.falls.mean() for w in walks.values()])
        left.plot(list(walks), share, f"{mark}-", color=colour, markersize=5, label=label)
        if offset is None:
            continue
        closed = np.array([100 * (1 - w.gap[-1].mean()) for w in walks.values()])
        right.plot(closed, share, f"{mark}-", color=colour, markersize=5)
        near = {"textcoords": "offset points", "fontsize": 8, "color": colour}
        for x, y, delta in zip(closed, share, walks, strict=True):
            if delta in (1e-3, 1e-2, 1e-1):
                right.annotate(f"δ = {delta:g}", (x, y), offset, **near)
    style.label(left, "", "δ (nats)", "steps that lower η (%)", "x", legend="upper left")
    right.set_ylim(bottom=-0.1 * right.get_ylim()[1])
    style.label(right, "", "gap closed after 20 steps (%, mean over MDPs)", left.get_ylabel(), legend=None)
    steps, mdps = next(iter(study.mean.values())).gain.shape
    return style.save(drawing, directory, "mean_kl_falls", steps=steps, mdps=mdps)
