"""Figures of the claim "minorization"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trpo.tabular import bounds, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims import _minorization as runs
from trpo.theory.records import Picture
from trpo.theory.shared import style


def bound(mdp: MDP, figures: Path) -> Picture:
    """Draw η, L and M along the gradient from the uniform policy of one MDP, at two scales."""
    logits = np.zeros(mdp.reward.shape)
    policy = exact.softmax(logits)
    direction = exact.policy_gradient(mdp, logits)
    direction = direction / np.linalg.norm(direction)

    def along(t: np.ndarray) -> tuple[np.ndarray, ...]:
        new = [exact.softmax(logits + x * direction) for x in t]
        curves = (
            [exact.expected_return(mdp, p) for p in new],
            [exact.surrogate(mdp, policy, p) for p in new],
            [bounds.lower_bound(mdp, policy, p) for p in new],
        )
        return tuple(np.array(curve) for curve in curves)

    # Near π, M = η + gt − at², so its maximum is at g/2a.
    h = 1e-5
    up, down = along(np.array([h, -h]))[2]
    middle = exact.expected_return(mdp, policy)
    peak = h * (up - down) / (2 * (2 * middle - up - down))
    drawing, panels = style.figure(2, width=4.9, height=3.7)
    for axes, t, origin in (
        (panels[0, 0], np.union1d(np.linspace(-4, 12, 400), np.linspace(-0.2, 0.2, 41)), 0.0),
        (panels[0, 1], np.linspace(-1.5, 4, 300) * peak, middle),
    ):
        curves = along(t)
        for curve, colour, label, wide in zip(
            curves,
            (style.COLOURS[0], style.COLOURS[1], style.COLOURS[2]),
            (r"return $\eta$", r"surrogate $L_\pi$", r"bound $M_\pi$"),
            (2.4, 1.4, 1.8),
            strict=True,
        ):
            axes.plot(t, curve - origin, color=colour, label=label, linewidth=wide)
            best = curve.argmax()
            if 0 < best < t.size - 1:
                axes.plot(t[best], curve[best] - origin, "v", color=colour, markersize=7)
        axes.plot(0, middle - origin, "o", color="black", markersize=5, zorder=5)
    _label(panels[0], along, peak, middle)
    return Picture(
        style.save(drawing, figures, "minorization_bound"),
        "Return η, surrogate L_π and lower bound M_π along the gradient of η from the uniform policy π of the chain "
        f"(5 states, γ = {float(mdp.discount):g}, C = {float(bounds.penalty_coefficient(mdp, policy)):,.0f}); "
        "triangles mark maxima. "
        "Left, at the scale of η: M is the needle at π. Right, the same curves magnified at π: M touches η there with "
        "the same slope and lies below it; its maximum is an improvement, but a minute one.",
    )


def _label(panels: np.ndarray, along: Any, peak: float, middle: float) -> None:
    left, right = panels
    eta, surrogate, _ = along(np.linspace(-4, 12, 400))
    low, high = min(eta.min(), surrogate.min()), max(eta.max(), surrogate.max())
    left.set_ylim(low - 0.12 * (high - low), high + 0.08 * (high - low))
    left.set_xlabel("distance along the gradient, in logits")
    left.set_ylabel("expected discounted return")
    left.set_title("true scale", fontsize=10)
    left.legend(fontsize=8.5, frameon=False, loc="lower right")
    left.annotate(r"$\pi$", (0, middle), (7, -4), textcoords="offset points", fontsize=11)
    gain = along(np.array([peak]))[2][0] - middle
    right.set_ylim(-3 * gain, 7 * gain)
    right.set_xlabel("distance along the gradient, in logits")
    right.set_ylabel(r"gain over $\eta(\pi)$")
    right.set_title(f"magnified {12 / (4 * peak):,.0f} times at " + r"$\pi$", fontsize=10)
    right.ticklabel_format(scilimits=(0, 0), useMathText=True)
    right.annotate(r"$\pi$", (0, 0), (5, -13), textcoords="offset points", fontsize=11)
    right.annotate(
        "guaranteed gain",
        (peak, gain),
        (peak, -1.9 * gain),
        ha="center",
        fontsize=9,
        color=style.COLOURS[2],
        arrowprops={"arrowstyle": "-", "color": style.COLOURS[2], "linewidth": 0.8},
    )


_LOOKS = {
    "MM": (style.COLOURS[2], "-"),
    "TRPO, δ = 0.01": (style.COLOURS[0], "-"),
    "TRPO, δ = 0.1": (style.COLOURS[0], "--"),
    "natural gradient, δ = 0.01": (style.COLOURS[4], (0, (2, 2))),
    "penalty, δ = 0.01": (style.COLOURS[3], "-"),
    "policy iteration": (style.COLOURS[6], ":"),
}


def progress(climbed: list[Any], named: int, figures: Path) -> Picture:
    """Draw the remaining gap against updates, on the chain and on the random MDPs of its shape."""
    part = climbed[named]
    improved = runs.policy_iteration_returns(part.group.mdp, part.group.policy, 8)
    gap = part.best - improved[:, 0]
    iterated = (part.best[:, None] - improved) / gap[:, None]
    curves = {"MM": (runs.MARKS, part.climb.curve), **{k: (None, v) for k, v in part.rivals.items()}}
    curves["policy iteration"] = (None, iterated)
    drawing, panels = style.figure(2, width=4.9, height=3.7)
    left, right = panels[0]
    for name, (colour, dashes) in _LOOKS.items():
        marks, left_over = curves[name]
        marks = np.arange(left_over.shape[1]) if marks is None else marks
        for axes, values, end in (
            (left, left_over[-1], part.climb.iterations[-1]),
            (right, np.median(left_over[:-1], axis=0), np.median(part.climb.iterations[:-1])),
        ):
            x, y = marks + 1.0, np.maximum(values, 1e-9)
            if name == "MM":
                # Between two marks it arrived, and then it was stopped.
                before = values > 1 - runs.CLOSED
                x, y = np.append(x[before], end + 1), np.append(y[before], 1 - runs.CLOSED)
                axes.plot(x[-1], y[-1], "o", color=colour, markersize=5)
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.8, label=name)
    for axes, title in ((left, "the chain, from the uniform policy"), (right, "random MDPs of that size: median")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(7e-3, 1.3)
        axes.axhline(1 - runs.CLOSED, color="black", linewidth=0.6, linestyle=":")
        axes.set_xlabel("policies so far, the first included")
        axes.set_title(title, fontsize=10)
    left.set_ylabel(r"remaining share of the gap $\eta^* - \eta$")
    left.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.33, 0.08))
    return Picture(
        style.save(drawing, figures, "minorization_progress"),
        "How much of the gap between the first policy's return and the optimal one remains (logarithmic axes; dotted: "
        "1 %, where MM was stopped). TRPO and the natural gradient with the same δ are all but one curve. Left: the "
        f"chain of 5 states. Right: the median over {part.group.size - 1} random MDPs with as many states and actions.",
    )


def steps(climbed: list[Any], target: float, figures: Path) -> Picture:
    """Draw how much longer TRPO's first step is than the bound's."""
    ratio = np.concatenate([part.kl_ratio for part in climbed])
    horizon = np.concatenate([1 / (1 - part.group.mdp.discount) for part in climbed])
    drawing, panels = style.figure(2, width=4.9, height=3.5)
    left, right = panels[0]
    left.hist(np.log10(ratio), bins=30, color=style.COLOURS[0], alpha=0.85)
    middle = np.median(np.log10(ratio))
    left.axvline(middle, color="black", linewidth=1)
    left.annotate(
        f"median {10**middle:,.0f}", (middle, 1), (5, -10), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=9,
    )  # fmt: skip
    left.set_xlabel(r"$\log_{10}$ of TRPO's largest KL over the bound's $D$")
    left.set_ylabel("random MDPs")
    right.loglog(horizon, ratio, ".", color=style.COLOURS[0], alpha=0.5, markersize=4)
    x = np.geomspace(2, 100, 2)
    power = np.polyfit(np.log(horizon), np.log(ratio), 1)
    right.plot(x, np.exp(power[1]) * x ** power[0], color="black", linewidth=1, label=f"slope {power[0]:.1f}")
    right.set_xlabel(r"horizon $1/(1 - \gamma)$, steps")
    right.set_ylabel(r"TRPO's largest KL over the bound's $D$")
    right.legend(fontsize=9, frameon=False)
    return Picture(
        style.save(drawing, figures, "minorization_steps"),
        f"The largest KL of any state in TRPO's first step (mean KL at most {target:g}), divided by the KL of the step "
        f"that maximises the lower bound from the same policy, on {ratio.size} MDPs; right, against the horizon.",
    )
