"""What several updates on one batch gain, how far they go, and how often they harm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims._sample_reuse import ANCHORED, ENDS, UPDATES
from trpo.theory.records import Picture
from trpo.theory.shared import style

KINDS = ("table", "shared")
"""Policies; the figure pools them."""


def draw(
    directory: Path, cells: Mapping[tuple[str, int, float], Any], batches: tuple[int, ...], max_kl: float
) -> Picture:
    """Draw gain, KL and harm against K, for every batch size, at one δ."""
    drawing, panels = style.figure(columns=3, width=4.4, height=3.9)
    _draw_gain(panels[0, 0], cells, batches, max_kl)
    _draw_kl(panels[0, 1], cells, max_kl)
    _draw_harm(panels[0, 2], cells, batches, max_kl)
    for axes in panels.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(UPDATES, [str(count) for count in UPDATES])
        axes.set_xlabel("updates K of one batch")
    caption = (
        f"δ = {max_kl:g}; tables and shared parameters together. Solid: K updates within one cumulative δ. Dashed: "
        "re-anchored updates, each with a δ of its own. Left: true gain of η for one batch, in units of what the "
        "linear model promises the table without noise, mean over MDPs. Middle: mean KL from the sampling policy in "
        "units of δ, exact problems, median and the middle 80 %. Right: share of batches that lower η."
    )
    return Picture(style.save(drawing, directory, "sample_reuse_updates"), caption)


def _column(cells: Mapping[tuple[str, int, float], Any], samples: int, max_kl: float, field: str) -> np.ndarray:
    return np.concatenate([getattr(cells[kind, samples, max_kl], field) for kind in KINDS])


def _lines(axes: Any, y: np.ndarray, colour: int, label: str) -> None:
    """Draw means over MDPs, ``[updates]``: solid within δ, dashed re-anchored."""
    axes.plot(UPDATES, y[ENDS], "o-", color=style.COLOURS[colour], markersize=4, label=label)
    axes.plot(UPDATES, y[ANCHORED], "s--", color=style.COLOURS[colour], markersize=3.5, linewidth=1.1)


def _draw_gain(axes: Any, cells: Mapping[tuple[str, int, float], Any], batches: tuple[int, ...], max_kl: float) -> None:
    for colour, samples in zip((6, 0, 2, 4, 1), (0, *reversed(batches)), strict=True):
        mean = _column(cells, samples, max_kl, "gain").mean(axis=0)
        _lines(axes, mean, colour, f"{samples} samples" if samples else "exact, no noise")
    axes.set(ylabel="gain of η / linear promise", title="True gain per batch", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8.5, title="solid: within δ; dashed: re-anchored", title_fontsize=8.5)


def _draw_kl(axes: Any, cells: Mapping[tuple[str, int, float], Any], max_kl: float) -> None:
    kl = _column(cells, 0, max_kl, "kl")
    x = np.array(UPDATES)
    for columns, colour, marker, label in (
        (ANCHORED, 1, "s--", "re-anchored"),
        (ENDS, 0, "o-", "within one cumulative δ"),
    ):
        low, middle, high = np.nanquantile(kl[:, columns], [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(x, low, high, color=style.COLOURS[colour], alpha=0.18, linewidth=0)
        axes.plot(x, middle, marker, color=style.COLOURS[colour], markersize=4, label=label)
    axes.plot(x, x**2, ":", color=style.COLOURS[6], linewidth=1.2, label="K²")
    axes.set(yscale="log", ylabel="mean KL from the sampling policy / δ", title="How far the policy has moved")
    axes.legend(frameon=False, fontsize=8.5)


def _draw_harm(axes: Any, cells: Mapping[tuple[str, int, float], Any], batches: tuple[int, ...], max_kl: float) -> None:
    for colour, samples in zip((1, 4, 2, 0), batches, strict=True):
        lowered = 100 * (_column(cells, samples, max_kl, "gain") < 0).mean(axis=0)
        _lines(axes, lowered, colour, f"{samples} samples")
    axes.set(ylabel="batches that lower η, %", title="How often an iteration harms", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8.5)
