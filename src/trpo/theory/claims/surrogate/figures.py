"""Figures of the surrogate claim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trpo.tabular import exact
from trpo.theory.claims.surrogate.measure import STEPS, Study
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.ensemble import Group

REACH = np.linspace(-2.0, 2.0, 81)
"""t, where along the line of logits θ + td the first figure evaluates η and L."""
QUANTILES = (0.25, 0.5, 0.9)


def draw(directory: Path | None, study: Study, group: Group, direction: np.ndarray) -> tuple[Picture, ...]:
    """Draw lines of policies through three MDPs of ``group``, and the error law of all."""
    if directory is None:
        return ()
    return _line(group, direction, directory), _error_law(study.measurable, directory)


def _line(group: Group, direction: np.ndarray, directory: Path) -> Picture:
    """Draw η and L_π along lines of policies in three MDPs, where L_π errs little, typically and much."""
    eta, surrogate, tangent = (np.stack(x, axis=-1) for x in zip(*_along(group, direction), strict=True))
    share = np.abs(eta - surrogate).max(axis=-1) / np.ptp(eta, axis=-1)
    order = np.argsort(share)
    drawing, panels = style.figure(3, width=3.9)
    drawing.get_layout_engine().set(w_pad=0.08)
    for axes, quantile in zip(panels.flat, QUANTILES, strict=True):
        index = order[int(quantile * (order.size - 1))]
        _line_panel(axes, eta[index], surrogate[index], tangent[index])
        axes.set_title(f"error larger than in {100 * quantile:.0f} % of MDPs", fontsize=10)
    panels[0, 0].set_ylabel("expected discounted return")
    panels[0, 0].legend(fontsize=8, frameon=False)
    return style.save(drawing, directory, "surrogate_line", mdps=order.size)


def _along(group: Group, direction: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield η, L_π and their tangent at every t of ``REACH``."""
    mdp, old = group.mdp, group.policy
    start = exact.expected_return(mdp, old)
    rise = (exact.policy_gradient(mdp, group.logits) * direction).sum(axis=(-2, -1))
    for t in REACH:
        new = exact.softmax(group.logits + t * direction)
        yield exact.expected_return(mdp, new), exact.surrogate(mdp, old, new), start + t * rise


def _line_panel(axes: Any, eta: np.ndarray, surrogate: np.ndarray, tangent: np.ndarray) -> None:
    axes.plot(REACH, tangent, color="black", linewidth=0.8, linestyle=":", label="common tangent")
    axes.plot(REACH, surrogate, color=style.COLOURS[1], label=r"surrogate $L_\pi$")
    axes.plot(REACH, eta, color=style.COLOURS[0], linewidth=2, label=r"return $\eta$")
    middle = REACH.size // 2
    axes.plot([0], [eta[middle]], "o", color="black", markersize=5)
    axes.annotate(r"$\pi$", (0, eta[middle]), (4, -12), textcoords="offset points")
    shown = np.concatenate([eta, surrogate])
    margin = 0.1 * np.ptp(shown)
    axes.set_ylim(shown.min() - margin, shown.max() + margin)
    axes.set_xlabel("t, distance from π in logits")


def _error_law(study: Study, directory: Path) -> Picture:
    """Draw |η − L_π| and |η − η(π)| over their exact leading coefficients."""
    missed = np.abs(study.forward / study.coefficient[:, None])
    change = np.abs(study.change / study.slope[:, None])
    drawing, ((axes,),) = style.figure(1, width=5.4, height=4.0)
    for values, power, colour, label in (
        (change, 1, style.COLOURS[5], r"$|\eta - \eta(\pi)|\;/\;|\nabla\eta\cdot d|$"),
        (missed, 2, style.COLOURS[0], r"$|\eta - L_\pi|\;/\;|\sum_s d\rho\,d\bar A|$"),
    ):
        shown = f"{label}: median, 90 % of MDPs"
        style.ribbon(axes, STEPS, values, colour, shown, (0.05, 0.5, 0.95), "o", markersize=4)
        axes.plot(STEPS, STEPS**power, color="black", linewidth=0.8, linestyle="--" if power == 1 else "-")
    axes.text(STEPS[-1] * 1.1, STEPS[-1] * 1.6, "t", fontsize=11)
    axes.text(STEPS[-1] * 1.1, STEPS[-1] ** 2 * 2.2, "t²", fontsize=11)
    axes.set(xscale="log", yscale="log", xlabel="t, length of the step from π in logits")
    axes.set_ylabel("error / exact coefficient")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return style.save(drawing, directory, "surrogate_error_law", mdps=len(missed))
