"""The figure of the lower bounds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims.lower_bound.adversary import CONTROL, DISCOUNTS
from trpo.theory.claims.lower_bound.measure import Evidence
from trpo.theory.claims.lower_bound.nearby import STEPS
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.laws import rms

_LINES = (
    ("theorem_1", "Theorem 1: TV²", 0, "o-"),
    ("theorem_1_kl", "eq. 9: max KL", 1, "s-"),
    ("pinsker", "Pinsker: half of eq. 9", 4, "^-"),
    ("average_tv", "average TV", 2, "D-"),
    ("average_kl", "average KL", 3, "v-"),
)


def draw(directory: Path | None, e: Evidence) -> tuple[Picture, ...]:
    """Draw both sides of Theorem 1, tightness against γ, and the powers of the step."""
    if directory is None:
        return ()
    drawing, panels = style.figure(columns=3, width=4.4, height=3.9)
    _draw_sides(panels[0, 0], e)
    _draw_tightness(panels[0, 1], e)
    _draw_powers(panels[0, 2], e)
    return (style.save(drawing, directory, "lower_bound", mdps=e.near.coefficient.size),)


def _draw_sides(axes: Any, e: Evidence) -> None:
    ends = np.array([1e-7, 1e5])
    axes.fill_between(ends, ends, 1e6, color="#dddddd", linewidth=0)
    axes.plot(ends, ends, color=style.COLOURS[6], linewidth=1)
    for cases, colour, label in (
        (e.close, 5, "random, steps of 10⁻³ … 1"),
        (e.far, 0, "random, unrelated"),
        (e.found["theorem_1"], 1, "found by the search"),
    ):
        x, y = cases.penalty["theorem_1"] / cases.scale, cases.gap / cases.scale
        look = {"markersize": 2.5, "alpha": 0.6, "rasterized": True}
        axes.plot(x, y, ".", color=style.COLOURS[colour], label=label, **look)
    labels = "Theorem 1's penalty, in max|r|/(1 − γ)", "|L − η|, in max|r|/(1 − γ)"
    style.label(axes, "An adversary comes close, and no closer", *labels, log="xy", legend=None)
    axes.set(xlim=(1e-6, 1e4), ylim=(1e-9, 1e3))
    axes.text(2e-6, 3e1, "would violate\nthe bound", fontsize=9)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8.5, loc="lower right", markerscale=3)


def _draw_tightness(axes: Any, e: Evidence) -> None:
    x = 1 - DISCOUNTS
    axes.axhline(1, color=style.COLOURS[6], linewidth=1)
    for name, label, colour, mark in _LINES:
        axes.plot(x, e.best(name), mark, color=style.COLOURS[colour], markersize=4.5, label=label)
    share = e.far.ratio("theorem_1")
    edges = np.geomspace(0.5, 0.01, 7)
    horizon = 1 - e.far.discount
    inside = [(horizon <= a * 1.0001) & (horizon >= b * 0.9999) for a, b in itertools.pairwise(edges)]
    filled = [
        (np.sqrt(a * b), np.median(share[i])) for a, b, i in zip(edges, edges[1:], inside, strict=False) if i.any()
    ]
    axes.plot(*np.transpose(filled), ":", color=style.COLOURS[0], label="random, Theorem 1 (median)")
    found = "largest |L − η| / penalty found"
    style.label(axes, "How tight, as γ → 1", "1 − γ", found, "xy", "lower left", ylim=(5e-6, 2))
    axes.invert_xaxis()
    axes.set_xticks(x, [f"{value:.2g}" for value in x])
    axes.set_xticks([], minor=True)


def _draw_powers(axes: Any, e: Evidence) -> None:
    root = np.sqrt(rms(e.near.penalty["theorem_1"], axis=0))
    axes.plot(STEPS, root, "--", color="#777777", label="TV in place of TV²: slope 1 (a kink)")
    for name, label, colour, mark in (_LINES[3], _LINES[2], _LINES[0]):
        size, shown = rms(e.near.penalty[name], axis=0), f"{label}: {e.near.slope(name):.3f}"
        axes.plot(STEPS, size, mark, color=style.COLOURS[colour], markersize=4, label=shown)
    axes.plot(STEPS, rms(e.near.gap, axis=0), "P-", color=style.COLOURS[6], label=f"L − η: {e.near.slope():.3f}")
    size, shown = rms(e.near.penalty[CONTROL], axis=0), f"refuted control: {e.near.slope(CONTROL):.3f}"
    axes.plot(STEPS, size, "x-", color=style.COLOURS[5], label=shown)
    labels = "step in the logits / (1 − γ)", "in units of Theorem 1's coefficient"
    style.label(axes, "Powers of the step (slopes)", *labels, log="xy", legend=None, ylim=(1e-9, 1e4))
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=1)
