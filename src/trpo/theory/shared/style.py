"""How the figures look: one palette, one size of type, no Matplotlib state that outlives a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from trpo.theory.records import Picture

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with any colour vision."""


def figure(columns: int = 1, rows: int = 1, width: float = 4.6, height: float = 3.5) -> tuple[Any, np.ndarray]:
    """Return a figure and its array of axes, shape ``[rows, columns]``; sizes are inches for one panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=8.5)
    return drawing, panels


def ribbon(
    axes: Any,
    x: np.ndarray,
    values: Float[np.ndarray, "cases x"],
    colour: str,
    label: str = "",
    quantiles: tuple[float, float, float] = (0.1, 0.5, 0.9),
    mark: str = "o-",
    **line: Any,
) -> np.ndarray:
    """Draw the median of the cases as a line on the range between two quantiles; return the median."""
    low, middle, high = np.quantile(values, quantiles, axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, middle, mark, color=colour, label=label, **line)
    return middle


def label(axes: Any, title: str, x: str, y: str, log: str = "", legend: str | None = "best", **more: Any) -> None:
    """Name a panel and its axes, which are logarithmic where ``log`` says so ("x", "xy"), and list its lines."""
    axes.set(title=title, xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log}, **more)
    if legend is not None:
        axes.legend(frameon=False, fontsize=8.5, loc=legend)


def save(drawing: Any, directory: Path, name: str, **numbers: float) -> Picture:
    """Write ``name``.png into ``directory``; ``numbers`` are those of its caption."""
    directory.mkdir(parents=True, exist_ok=True)
    # Without dates and version numbers the same numbers give the same file.
    drawing.savefig(directory / f"{name}.png", dpi=110, metadata={"Software": None})
    return Picture(f"{name}.png", numbers)
