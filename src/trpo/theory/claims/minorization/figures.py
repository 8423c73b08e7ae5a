"""Figures of the claim "minorization"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo.tabular import bounds, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims.minorization import climb as runs
from trpo.theory.claims.minorization.measure import Climbed, Measured
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.arrays import join

_BLUE, _RED, _GREEN, _PINK, _ORANGE, _, _BLACK = style.COLOURS
_LOOKS = {
    "MM": (_GREEN, "-"),
    "TRPO, δ = 0.01": (_BLUE, "-"),
    "TRPO, δ = 0.1": (_BLUE, "--"),
    "natural gradient, δ = 0.01": (_ORANGE, (0, (2, 2))),
    "penalty, δ = 0.01": (_PINK, "-"),
    "policy iteration": (_BLACK, ":"),
}


def draw(directory: Path | None, m: Measured) -> tuple[Picture, ...]:
    """Draw the bound of the named MDP, progress on it and on those of its shape, and steps on all."""
    if directory is None:
        return ()
    mdp = m.named.group.take(np.array(-1)).mdp
    return _bound(mdp, directory), _progress(m.named, directory), _steps(m.climbed, directory)


def _bound(mdp: MDP, directory: Path) -> Picture:
    """Draw η, L and M along the gradient from the uniform policy of one MDP, at two scales."""
    logits = np.zeros(mdp.reward.shape)
    policy, direction = exact.softmax(logits), exact.policy_gradient(mdp, logits)
    direction = direction / np.linalg.norm(direction)

    def along(t: np.ndarray) -> np.ndarray:
        new = [exact.softmax(logits + x * direction) for x in t]
        pairs = [(exact.surrogate(mdp, policy, p), bounds.lower_bound(mdp, policy, p)) for p in new]
        return np.array([[exact.expected_return(mdp, p) for p in new], *zip(*pairs, strict=True)])

    # Near π, M = η + gt − at², so its maximum is at g/2a.
    h = 1e-5
    up, down = along(np.array([h, -h]))[2]
    middle = exact.expected_return(mdp, policy)
    peak = h * (up - down) / (2 * (2 * middle - up - down))
    drawing, ((left, right),) = style.figure(2, width=4.9, height=3.7)
    looks = ((_BLUE, r"return $\eta$", 2.4), (_RED, r"surrogate $L_\pi$", 1.4), (_GREEN, r"bound $M_\pi$", 1.8))
    whole = np.union1d(np.linspace(-4, 12, 400), np.linspace(-0.2, 0.2, 41))
    for axes, t, origin in ((left, whole, 0.0), (right, np.linspace(-1.5, 4, 300) * peak, middle)):
        for curve, (colour, label, wide) in zip(along(t), looks, strict=True):
            axes.plot(t, curve - origin, color=colour, label=label, linewidth=wide)
            best = curve.argmax()
            if 0 < best < t.size - 1:
                axes.plot(t[best], curve[best] - origin, "v", color=colour, markersize=7)
        axes.plot(0, middle - origin, "o", color="black", markersize=5, zorder=5)
    _label(left, right, along(np.linspace(-4, 12, 400))[:2], peak, middle, along(np.array([peak]))[2][0] - middle)
    return style.save(
        drawing,
        directory,
        "minorization_bound",
        gamma=float(mdp.discount),
        price=float(bounds.penalty_coefficient(mdp, policy)),
    )


def _label(left: Any, right: Any, seen: np.ndarray, peak: float, middle: float, gain: float) -> None:
    low, high = seen.min(), seen.max()
    x, ylim = "distance along the gradient, in logits", (low - 0.12 * (high - low), high + 0.08 * (high - low))
    style.label(left, "true scale", x, "expected discounted return", legend="lower right", ylim=ylim)
    left.annotate(r"$\pi$", (0, middle), (7, -4), textcoords="offset points", fontsize=11)
    magnified = f"magnified {12 / (4 * peak):,.0f} times at " + r"$\pi$"
    style.label(right, magnified, x, r"gain over $\eta(\pi)$", legend=None, ylim=(-3 * gain, 7 * gain))
    right.ticklabel_format(scilimits=(0, 0), useMathText=True)
    right.annotate(r"$\pi$", (0, 0), (5, -13), textcoords="offset points", fontsize=11)
    line = {"arrowstyle": "-", "color": _GREEN, "linewidth": 0.8}
    at, below = (peak, gain), (peak, -1.9 * gain)
    right.annotate("guaranteed gain", at, below, ha="center", fontsize=9, color=_GREEN, arrowprops=line)


def _progress(part: Climbed, directory: Path) -> Picture:
    """Draw the remaining gap against updates, on the last MDP and in the median over the others."""
    improved = runs.policy_iteration_returns(part.group.mdp, part.group.policy, 8)
    iterated = (part.best[:, None] - improved) / (part.best - improved[:, 0])[:, None]
    remaining = {"MM": part.climb.curve, **part.rivals, "policy iteration": iterated}
    drawing, ((left, right),) = style.figure(2, width=4.9, height=3.7)
    for name, (colour, dashes) in _LOOKS.items():
        marks = runs.MARKS if name == "MM" else np.arange(remaining[name].shape[1])
        for axes, values, end in (
            (left, remaining[name][-1], part.climb.iterations[-1]),
            (right, np.median(remaining[name][:-1], axis=0), np.median(part.climb.iterations[:-1])),
        ):
            x, y = marks + 1.0, np.maximum(values, 1e-9)
            if name == "MM":
                # Between two marks it arrived, and then it was stopped.
                before = values > 1 - runs.CLOSED
                x, y = np.append(x[before], end + 1), np.append(y[before], 1 - runs.CLOSED)
                axes.plot(x[-1], y[-1], "o", color=colour, markersize=5)
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.8, label=name)
    for axes, title in ((left, "the chain, from the uniform policy"), (right, "random MDPs of that size: median")):
        y = r"remaining share of the gap $\eta^* - \eta$"
        style.label(axes, title, "policies so far, the first included", y, "xy", legend=None, ylim=(7e-3, 1.3))
        axes.axhline(1 - runs.CLOSED, color="black", linewidth=0.6, linestyle=":")
    left.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.33, 0.08))
    return style.save(drawing, directory, "minorization_progress", mdps=part.group.size - 1)


def _steps(climbed: Sequence[Climbed], directory: Path) -> Picture:
    """Draw how much longer TRPO's first step is than the bound's."""
    ratio = join([part.kl_ratio for part in climbed])
    horizon = join([1 / (1 - part.group.mdp.discount) for part in climbed])
    drawing, ((left, right),) = style.figure(2, width=4.9, height=3.5)
    left.hist(np.log10(ratio), bins=30, color=_BLUE, alpha=0.85)
    middle, where = np.median(np.log10(ratio)), {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    left.axvline(middle, color="black", linewidth=1)
    left.annotate(f"median {10**middle:,.0f}", (middle, 1), (5, -10), fontsize=9, **where)
    over = "TRPO's largest KL over the bound's $D$"
    style.label(left, "", r"$\log_{10}$ of " + over, "random MDPs", legend=None)
    right.plot(horizon, ratio, ".", color=_BLUE, alpha=0.5, markersize=4)
    x = np.geomspace(2, 100, 2)
    power = np.polyfit(np.log(horizon), np.log(ratio), 1)
    right.plot(x, np.exp(power[1]) * x ** power[0], color="black", linewidth=1, label=f"slope {power[0]:.1f}")
    style.label(right, "", r"horizon $1/(1 - \gamma)$, steps", over, "xy")
    return style.save(drawing, directory, "minorization_steps", mdps=ratio.size)
