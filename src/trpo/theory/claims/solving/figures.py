"""The figure of the solving claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims.solving.measure import ITERATIONS, RELATIVE_DAMPINGS, Damped, Measured
from trpo.theory.claims.solving.steps import DELTA, DELTAS, FULL, TRUNCATED, Local, Updates
from trpo.theory.claims.solving.systems import DRAWS, KAPPAS, SIZE, Solves, chebyshev
from trpo.theory.records import Picture
from trpo.theory.shared import style

_SHOWN = (10.0, 1e2, 1e4, 1e6)
"""Condition numbers."""
_FRACTION = "fraction of the attainable gain"


def draw(directory: Path | None, m: Measured) -> tuple[Picture, ...]:
    """Draw the fraction of the attainable gain against k and λ, and the true KL of the full step against δ."""
    if directory is None:
        return ()
    drawing, ((left, middle, right),) = style.figure(columns=3, width=4.5, height=3.9)
    starts = [m.solved.mdps + DRAWS * i for i in range(len(KAPPAS))]
    where = {kappa: slice(i, i + DRAWS) for kappa, i in zip(KAPPAS, starts, strict=True)}
    _draw_iterations(left, m.solved.undamped, where)
    _draw_damping(middle, m.damped, where)
    _draw_kl(right, m.local, m.updates[FULL])
    return (style.save(drawing, directory, "solving_fraction", mdps=len(m.local.weight)),)


def _draw_iterations(axes: Any, undamped: Solves, where: dict[float, slice]) -> None:
    k, smooth = np.array([k for k in ITERATIONS if k <= SIZE]), np.geomspace(1, SIZE, 200)
    for colour, kappa in zip(style.COLOURS, _SHOWN, strict=False):
        y = np.median(undamped.fraction[: k.size, where[kappa]], axis=-1)
        bound = np.sqrt(1 - np.minimum(chebyshev(np.array(kappa), smooth), 1) ** 2)
        axes.plot(k, y, "o-", color=colour, markersize=3.5)
        # The two largest begin side by side: one label above, one below.
        axes.text(0.96, y[0] + (-0.08 if kappa == 1e4 else 0.075), f"κ = {_power(kappa)}", fontsize=8, color=colour)
        axes.plot(smooth, bound, "--", color=colour, linewidth=1)
    axes.plot([], [], "--", color=style.COLOURS[6], linewidth=1, label="Chebyshev bound")
    axes.axvline(10, color="0.6", linewidth=0.8, zorder=0)
    axes.text(9.6, 1.045, "the paper's 10", fontsize=8, color="0.35", ha="right")
    limits = {"ylim": (0, 1.1), "xlim": (0.93, 34)}
    style.label(axes, "Stopping early, no damping", "iterations k", _FRACTION, "x", legend=None, **limits)
    axes.set_xticks((1, 2, 5, 10, 20, 32), ("1", "2", "5", "10", "20", "32"))
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.33, 0.36))


def _draw_damping(axes: Any, damped: Damped, where: dict[float, slice]) -> None:
    many = len(RELATIVE_DAMPINGS)
    for colour, kappa in zip(style.COLOURS, _SHOWN, strict=False):
        for solves, line in ((damped.truncated, "o-"), (damped.converged, ":")):
            y = np.median(solves.fraction[:many, where[kappa]], axis=-1)
            axes.plot(RELATIVE_DAMPINGS, y, line, color=colour, markersize=3.5)
        axes.plot([], [], "o-", color=colour, markersize=3.5, label=f"κ = {_power(kappa)}")
    axes.plot([], [], ":", color=style.COLOURS[6], label="solved completely")
    title, x = f"Damping, {TRUNCATED} iterations", "damping λ, in units of λ_max"
    style.label(axes, title, x, _FRACTION, "x", legend="lower left", ylim=(0, 1.03))


def _draw_kl(axes: Any, local: Local, updates: Updates) -> None:
    y = local.kl(updates.full[-len(DELTAS) :]) / DELTAS[:, None]
    positive = local.skewness > 0
    smooth = np.geomspace(DELTAS[-1], DELTAS[0], 100)
    for colour, kept, label in (
        (style.COLOURS[1], positive, "good actions rare (skewness of A > 0)"),
        (style.COLOURS[0], ~positive, "bad actions rare (skewness of A < 0)"),
    ):
        style.ribbon(axes, DELTAS, y[:, kept].T, colour, label, markersize=3.5)
        predicted = 1 + np.sqrt(2 * smooth) / 3 * np.median(local.skewness[kept])
        axes.plot(smooth, predicted, ":", color=style.COLOURS[6], linewidth=1.2)
    axes.plot([], [], ":", color=style.COLOURS[6], linewidth=1.2, label="1 + √(2δ)/3 · median skewness")
    axes.axhline(1, color=style.COLOURS[6], linewidth=0.8, zorder=0)
    axes.axvline(DELTA, color="0.6", linewidth=0.8, zorder=0)
    bottom = axes.get_ylim()[0]
    axes.text(DELTA * 0.9, bottom, "the paper's δ ", fontsize=8, color="0.35", ha="right", va="bottom")
    y = "true mean KL of the full step / δ"
    style.label(axes, "The bowl and the true KL", "δ, nats", y, "x", legend="upper left")


def _power(kappa: float) -> str:
    return "10" if kappa == 10 else "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] for d in str(round(np.log10(kappa))))
