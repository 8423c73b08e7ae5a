"""What figures have in common: colours, quiet axes, notes, and a PNG that is complete or not there."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo.runs.disk import replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b00", "#000000")
"""Okabe and Ito's palette, distinguishable with any colour vision; its yellow is too light for lines."""


def new_figure(width: float, height: float) -> Any:
    """Return an empty white figure of so many inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def check_png(out: Path) -> None:
    """Refuse a file that is not to be a PNG, before anything is drawn."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={str(out)!r}: must end in .png")


def save_png(figure: Any, out: Path, dpi: int = 150) -> Path:
    """Write the figure whole or not at all."""
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    return out


def to_svg(figure: Any, salt: str) -> str:
    """Return the figure as SVG with its text as text, without a background; ``salt`` makes its names its own."""
    import matplotlib

    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue().partition("<svg")[2].join(["<svg", ""])


def colour_of(i: int, count: int) -> Any:
    """Return the i-th of ``count`` colours."""
    if count <= len(COLOURS):
        return COLOURS[i]
    import matplotlib

    return matplotlib.colormaps["turbo"](0.05 + 0.9 * i / (count - 1))


def style(axes: Any, title: str, unit: str = "") -> None:
    """Give a panel its title and quiet axes."""
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_ylabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color="0.6")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)


def draw_band(axes: Any, x: Any, band: Any, colour: Any, label: str | None = None, alpha: float = 0.2) -> None:
    """Draw an :class:`~trpo.runs.aggregate.Interval` for each x: its mean as a thick line in a band."""
    axes.fill_between(x, band.low, band.high, color=colour, alpha=alpha, linewidth=0)
    axes.plot(x, band.iqm, color=colour, linewidth=2, label=label)


def draw_legend(figure: Any, colours: Mapping[str, Any]) -> None:
    """Say above the panels what the colours are: in as many columns as fit, for which the figure grows.

    Labels that are wider than the figure lose their middle.
    """
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    for length in (max(map(len, colours)), 160, 120, 80, 40):
        handles = [
            Line2D([], [], color=colour, linewidth=2.5, label=plain(shortened(label, length)))
            for label, colour in colours.items()
        ]
        for columns in range(min(len(handles), 8), 0, -1):
            placed = {"loc": "outside upper center", "ncols": columns, "frameon": False, "fontsize": 10}
            legend = figure.legend(handles=handles, **placed)
            extent = legend.get_window_extent(figure.canvas.get_renderer())
            if extent.width <= 0.98 * width * figure.dpi:
                figure.set_size_inches(width, height + max(0.0, extent.height / figure.dpi - 0.5))
                return
            legend.remove()


def shortened(label: str, length: int) -> str:
    """Cut the middle out of a label that is too long."""
    return label if len(label) <= length else f"{label[: length // 2]}…{label[-(length // 2) :]}"


def plain(text: str) -> str:
    """Return text that Matplotlib shows as it is: no mathematics between dollars, and an initial _ does not hide it."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def note(figure: Any, text: str) -> None:
    """Say below the panels, in grey, how to read them."""
    figure.supxlabel(text, fontsize=8.5, color="0.4")
