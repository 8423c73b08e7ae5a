"""Figures of the parameter-ball claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from trpo.distributions import DiagGaussian
from trpo.tabular import MDP
from trpo.tabular.exact import softmax
from trpo.theory.claims.parameter_ball import measure as study
from trpo.theory.records import Picture
from trpo.theory.shared import minimal_logits as minimal
from trpo.theory.shared import style
from trpo.theory.shared.arrays import bisect
from trpo.theory.shared.ensemble import Group

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
_BALL = 0.5
"""Radius of the balls that are drawn, in logits."""
_KL = 0.02
"""Of the steps that are drawn, in nats."""


def draw(directory: Path | None, c: study.Compared) -> tuple[Picture, ...]:
    """Draw the unequal distances, and what coordinates do to steps."""
    return () if directory is None else (_distances(directory, c), _coordinates(directory, c))


def _distances(directory: Path, c: study.Compared) -> Picture:
    """Draw the unequal distances: Gaussians, balls in the simplex, random MDPs."""
    drawing, panels = style.figure(columns=3, width=4.3, height=3.8)
    _gaussians(panels[0, 0])
    _balls(panels[0, 1])
    _saturation(panels[0, 2], c)
    return style.save(drawing, directory, "parameter_ball_distances", mdps=c.kl.size)


def _coordinates(directory: Path, c: study.Compared) -> Picture:
    """Draw steps from one policy in several coordinate systems, and how fast the disagreement goes."""
    drawing, panels = style.figure(columns=2, width=5.2, height=4.2)
    _steps(panels[0, 0])
    _disagreement(panels[0, 1], c)
    return style.save(drawing, directory, "parameter_ball_coordinates", mdps=c.kl.size)


def _gaussians(axes: Any) -> None:
    sigma = np.geomspace(0.01, 10, 31)
    zero, log_std = jnp.zeros((31, 1)), jnp.asarray(np.log(sigma))[:, None]
    kl = np.asarray(DiagGaussian(zero, log_std).kl_to(DiagGaussian(zero + 0.1, log_std)))
    axes.plot(sigma, 0.1**2 / (2 * sigma**2), color=style.COLOURS[6], linewidth=0.8, label="Δμ² / 2σ²")
    axes.plot(sigma, kl, "o", color=style.COLOURS[0], markersize=4, label="DiagGaussian.kl_to")
    for i, note in ((0, "50 nats: another policy"), (-1, "0.00005 nats: nothing")):
        axes.annotate(
            note, (sigma[i], kl[i]), (12, -3) if i == 0 else (-118, -3), textcoords="offset points", fontsize=8.5
        )
    style.label(axes, "The same step Δμ = 0.1", "standard deviation σ", "KL, nats", "xy", "center right")


def _circle() -> np.ndarray:
    """Unit steps in the plane of logits that sum to 0: the third direction changes no policy."""
    angle = np.linspace(0, 2 * np.pi, 181)
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2.0], [6.0]])
    return np.cos(angle)[:, None] * plane[0] + np.sin(angle)[:, None] * plane[1]


def _balls(axes: Any) -> None:
    circle = _BALL * _circle()
    axes.fill(*_CORNERS.T, facecolor="none", edgecolor=style.COLOURS[6], linewidth=1)
    for i, favour in enumerate((0.0, 1.5, 3.0, 4.5)):
        for k in range(1 if favour == 0 else 3):
            logits = favour * np.eye(3)[k]
            axes.fill(*(softmax(logits + circle) @ _CORNERS).T, color=style.COLOURS[i], alpha=0.75, linewidth=0)
        label = f"{softmax(logits).max():.2f}"
        axes.fill([], [], color=style.COLOURS[i], alpha=0.75, linewidth=0, label=label)
    axes.legend(title="π(favourite)", frameon=False, fontsize=8.5, title_fontsize=8.5, loc="upper left")
    for corner, name, where in zip(_CORNERS, "abc", ((-8, -4), (8, -4), (0, 6)), strict=True):
        axes.annotate(f"{name}", corner, where, textcoords="offset points", fontsize=9, ha="center")
    axes.set(aspect="equal", title="Balls of one size in logits")
    axes.axis("off")


def _saturation(axes: Any, c: study.Compared) -> None:
    axes.axhline(study.RADIUS**2 / 4, color=style.COLOURS[1], linewidth=1.2)
    axes.annotate("r²/4", (c.doubt.min(), study.RADIUS**2 / 4), (0, 4), textcoords="offset points", fontsize=8.5)
    axes.plot(c.doubt, c.kl, ".", color=style.COLOURS[0], markersize=4)
    doubt = "probability of another action than the favourite"
    style.label(axes, "The same ‖Δθ‖ = 1, random MDPs", doubt, "mean KL, nats", "xy", legend=None)


def _bandit_steps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Policies that both rules reach from one policy over three actions in six charts, and that policy."""
    rng, charts = np.random.default_rng(4), 6
    start = np.array([0.5, 0.3, 0.2])
    mdp = MDP(
        np.ones((charts, 1, 3, 1)), np.tile([0.0, 1.0, -0.4], (charts, 1, 1)), np.ones((charts, 1)), np.zeros(charts)
    )
    logits = np.tile(np.log(start), (charts, 1, 1))
    chart = study.random_chart(rng, minimal.reduce(logits).reshape(charts, 2))
    (steps,) = study.library_steps(Group(mdp, logits, logits), (chart,), np.full((charts, 1), _KL))
    natural, plain = (np.exp(minimal.log_policy(chart(p[:, 0])[:, None])[:, 0]) for p in (steps.natural, steps.plain))
    return start, natural, plain


def _boundary(start: np.ndarray) -> np.ndarray:
    """Policies with KL(start ‖ π) = ``_KL``, in every direction of the simplex, by bisection."""
    direction = _circle()

    def reached(length: np.ndarray) -> np.ndarray:
        return softmax(np.log(start) + length[:, None] * direction)

    def inside(length: np.ndarray) -> np.ndarray:
        return (start * np.log(start / reached(length))).sum(axis=-1) < _KL

    return reached(bisect(inside, np.zeros(len(direction)), np.full(len(direction), 3.0))[0])


def _steps(axes: Any) -> None:
    start, natural, plain = _bandit_steps()

    def place(policy: np.ndarray) -> np.ndarray:
        return (policy - start) @ _CORNERS

    axes.plot(*place(_boundary(start)).T, color=style.COLOURS[6], linewidth=0.8)
    for ends, colour, width in ((plain, 1, 1.2), (natural, 0, 1.6)):
        for end in place(ends):
            axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": style.COLOURS[colour], "lw": width})
    axes.plot(0, 0, "o", color=style.COLOURS[6], markersize=5)
    for label, colour in (("natural gradient", 0), ("plain gradient", 1)):
        axes.plot([], [], color=style.COLOURS[colour], label=label)
    axes.plot([], [], color=style.COLOURS[6], linewidth=0.8, label=f"KL = {_KL:g}")
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(0.06, 0.45))
    axes.set(aspect="equal", title="One policy, six coordinate systems", xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)


def _disagreement(axes: Any, c: study.Compared) -> None:
    for fraction, colour, label in ((c.plain, 1, "plain gradient"), (c.natural, 0, "natural gradient")):
        style.ribbon(axes, study.SIZES, 100 * fraction, style.COLOURS[colour], label, markersize=4)
    labels = "size of the step: largest change of a log-probability, nats", "disagreement, per cent of the step"
    style.label(axes, "What new coordinates change", *labels, log="xy")
