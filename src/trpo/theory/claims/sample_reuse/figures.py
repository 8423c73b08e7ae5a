"""What several updates on one batch gain, how far they go, and how often they harm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims.sample_reuse.measure import BATCHES, KINDS, PAIRED, Cell
from trpo.theory.claims.sample_reuse.updates import ANCHORED, ENDS, UPDATES
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.arrays import join

Cells = Mapping[tuple[str, int, float], Cell]


def draw(directory: Path | None, cells: Cells) -> tuple[Picture, ...]:
    """Draw gain, KL and harm against K, for every batch size, at the larger δ; tables and shared parameters pooled."""
    if directory is None:
        return ()
    drawing, panels = style.figure(columns=3, width=4.4, height=3.9)
    left, middle, right = panels.flat
    for colour, samples in zip((6, 0, 2, 4, 1), (0, *reversed(BATCHES)), strict=True):
        label = f"{samples} samples" if samples else "exact, no noise"
        _lines(left, _column(cells, samples, "gain").mean(axis=0), colour, label)
    for colour, samples in zip((1, 4, 2, 0), BATCHES, strict=True):
        _lines(right, 100 * (_column(cells, samples, "gain") < 0).mean(axis=0), colour, f"{samples} samples")
    _draw_kl(middle, _column(cells, 0, "kl"))
    x = "updates K of one batch"
    style.label(left, "True gain per batch", x, "gain of η / linear promise", legend=None, ylim=(0, None))
    style.label(right, "How often an iteration harms", x, "batches that lower η, %", ylim=(0, None))
    style.label(middle, "How far the policy has moved", x, "mean KL from the sampling policy / δ", "y")
    left.legend(frameon=False, fontsize=8.5, title="solid: within δ; dashed: re-anchored", title_fontsize=8.5)
    for axes in panels.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(UPDATES, [str(count) for count in UPDATES])
    return (style.save(drawing, directory, "sample_reuse_updates"),)


def _column(cells: Cells, samples: int, field: str) -> np.ndarray:
    return join([getattr(cells[kind, samples, PAIRED[1]], field) for kind in KINDS])


def _lines(axes: Any, y: np.ndarray, colour: int, label: str) -> None:
    """Draw means over MDPs, ``[updates]``: solid within δ, dashed re-anchored."""
    axes.plot(UPDATES, y[ENDS], "o-", color=style.COLOURS[colour], markersize=4, label=label)
    axes.plot(UPDATES, y[ANCHORED], "s--", color=style.COLOURS[colour], markersize=3.5, linewidth=1.1)


def _draw_kl(axes: Any, kl: np.ndarray) -> None:
    x = np.array(UPDATES)
    style.ribbon(axes, x, kl[:, ANCHORED], style.COLOURS[1], "re-anchored", mark="s--", markersize=4)
    style.ribbon(axes, x, kl[:, ENDS], style.COLOURS[0], "within one cumulative δ", markersize=4)
    axes.plot(x, x**2, ":", color=style.COLOURS[6], linewidth=1.2, label="K²")
