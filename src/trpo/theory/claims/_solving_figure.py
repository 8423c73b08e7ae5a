"""The figure of the solving claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims import _solving as measure
from trpo.theory.claims._solving import ITERATIONS, Local, Solves, Updates, chebyshev
from trpo.theory.records import Picture
from trpo.theory.shared import style

_SHOWN = (10.0, 1e2, 1e4, 1e6)
"""Condition numbers."""


def draw(
    directory: Path,
    random: slice,
    undamped: list[Solves],
    damped: tuple[Solves, Solves],
    updates: Updates,
    local: Local,
) -> Picture:
    """Draw the fraction of the attainable gain against k and λ, and the true KL of the full step against δ."""
    drawing, panels = style.figure(columns=3, width=4.5, height=3.9)
    starts = range(random.start, random.stop, measure.DRAWS)
    where = {kappa: slice(i, i + measure.DRAWS) for kappa, i in zip(measure.KAPPAS, starts, strict=True)}
    _draw_iterations(panels[0, 0], undamped, where)
    _draw_damping(panels[0, 1], damped, where)
    _draw_kl(panels[0, 2], updates, local)
    caption = (
        "Left: fraction of the attainable gain after k iterations without damping, for 32 eigenvalues from 1 to κ "
        "(median of 8 systems); dashed: the Chebyshev bound, which no system can fall below. Middle: the same against "
        f"damping, after {measure.TRUNCATED} iterations (solid) and solved completely (dotted): less damping is never "
        "worse, and with few iterations it soon makes no difference. Right: true mean KL of TRPO's undamped full step, "
        f"in units of δ, over {local.weight.shape[0]} MDPs: median and middle 80 %. The quadratic model says 1; above "
        "1 the line search shortens the step."
    )
    return Picture(style.save(drawing, directory, "solving_fraction"), caption)


def _draw_iterations(axes: Any, undamped: list[Solves], where: dict[float, slice]) -> None:
    shown = [i for i, k in enumerate(ITERATIONS) if k <= measure.SIZE]
    k = np.array([ITERATIONS[i] for i in shown])
    smooth = np.geomspace(1, measure.SIZE, 200)
    for colour, kappa in zip(style.COLOURS, _SHOWN, strict=False):
        y = [np.median(undamped[i].fraction[where[kappa]]) for i in shown]
        bound = np.sqrt(1 - np.minimum(chebyshev(np.array(kappa), smooth), 1) ** 2)
        axes.plot(k, y, "o-", color=colour, markersize=3.5)
        # The two largest begin side by side: one label above, one below.
        axes.text(0.96, y[0] + (-0.08 if kappa == 1e4 else 0.075), f"κ = {_power(kappa)}", fontsize=8, color=colour)
        axes.plot(smooth, bound, "--", color=colour, linewidth=1)
    axes.plot([], [], "--", color=style.COLOURS[6], linewidth=1, label="Chebyshev bound")
    axes.axvline(10, color="0.6", linewidth=0.8, zorder=0)
    axes.text(9.6, 1.045, "the paper's 10", fontsize=8, color="0.35", ha="right")
    axes.set(
        xscale="log", xlabel="iterations k", ylabel="fraction of the attainable gain", ylim=(0, 1.1), xlim=(0.93, 34)
    )
    axes.set_xticks((1, 2, 5, 10, 20, 32), ("1", "2", "5", "10", "20", "32"))
    axes.set_xticks([], minor=True)
    axes.set_title("Stopping early, no damping", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.33, 0.36))


def _draw_damping(axes: Any, damped: tuple[Solves, Solves], where: dict[float, slice]) -> None:
    x, many = measure.RELATIVE_DAMPINGS, len(measure.RELATIVE_DAMPINGS)
    for colour, kappa in zip(style.COLOURS, _SHOWN, strict=False):
        for solves, line in zip(damped, ("o-", ":"), strict=True):
            y = np.median(solves.fraction[:many, where[kappa]], axis=-1)
            axes.plot(x, y, line, color=colour, markersize=3.5)
        axes.plot([], [], "o-", color=colour, markersize=3.5, label=f"κ = {_power(kappa)}")
    axes.plot([], [], ":", color=style.COLOURS[6], label="solved completely")
    axes.set(xscale="log", xlabel="damping λ, in units of λ_max", ylim=(0, 1.03))
    axes.set_ylabel("fraction of the attainable gain")
    axes.set_title(f"Damping, {measure.TRUNCATED} iterations", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _draw_kl(axes: Any, updates: Updates, local: Local) -> None:
    y = local.kl(updates.full[-len(measure.DELTAS) :]) / measure.DELTAS[:, None]
    positive = local.skewness > 0
    smooth = np.geomspace(measure.DELTAS[-1], measure.DELTAS[0], 100)
    for colour, kept, label in (
        (style.COLOURS[1], positive, "good actions rare (skewness of A > 0)"),
        (style.COLOURS[0], ~positive, "bad actions rare (skewness of A < 0)"),
    ):
        low, middle, high = np.quantile(y[:, kept], [0.1, 0.5, 0.9], axis=1)
        axes.fill_between(measure.DELTAS, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(measure.DELTAS, middle, "o-", color=colour, markersize=3.5, label=label)
        predicted = 1 + np.sqrt(2 * smooth) / 3 * np.median(local.skewness[kept])
        axes.plot(smooth, predicted, ":", color=style.COLOURS[6], linewidth=1.2)
    axes.plot([], [], ":", color=style.COLOURS[6], linewidth=1.2, label="1 + √(2δ)/3 · median skewness")
    axes.axhline(1, color=style.COLOURS[6], linewidth=0.8, zorder=0)
    axes.axvline(measure.DELTA, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlabel="δ, nats", ylabel="true mean KL of the full step / δ")
    axes.text(
        measure.DELTA * 0.9, axes.get_ylim()[0], "the paper's δ ", fontsize=8, color="0.35", ha="right", va="bottom"
    )
    axes.set_title("The bowl and the true KL", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _power(kappa: float) -> str:
    return "10" if kappa == 10 else "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] for d in str(round(np.log10(kappa))))
