"""Figure of the Fisher claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trpo.theory.claims.fisher.measure import STEPS, Series, library_kl
from trpo.theory.records import Picture
from trpo.theory.shared import style


def draw(directory: Path | None, s: Series) -> tuple[Picture, ...]:
    """Draw both directions of one KL, the remainders' powers and the coefficients."""
    if directory is None:
        return ()
    drawing, panels = style.figure(columns=3, width=4.3, height=3.8)
    _draw_directions(panels[0, 0])
    _draw_powers(panels[0, 1], s)
    _draw_coefficients(panels[0, 2], s)
    return (style.save(drawing, directory, "fisher_expansion", mdps=s.kappa.size),)


def _draw_directions(axes: Any) -> None:
    t = np.linspace(-2.5, 2.5, 201)
    old = np.array([np.log(9.0), 0.0]) + np.zeros((t.size, 2))
    new = old + np.stack([t, np.zeros_like(t)], axis=-1)
    for kl, colour, label in ((library_kl(old, new), 0, "KL(old ‖ new)"), (library_kl(new, old), 1, "KL(new ‖ old)")):
        axes.plot(t, kl, color=style.COLOURS[colour], label=label)
    axes.plot(t, 0.5 * 0.09 * t**2, "--", color=style.COLOURS[6], label="½ t² ΔᵀFΔ", linewidth=1.2)
    style.label(axes, "One parabola, two directions", "change t of a logit", "KL, nats", ylim=(0, 0.5))


def _draw_powers(axes: Any, s: Series) -> None:
    lines = ((s.kl, 0, 2, "mean KL"), (s.cubic, 1, 3, "without its parabola"), (s.quartic, 2, 4, "and without κ₃ t³/6"))
    for y, colour, power, label in lines:
        middle = style.ribbon(axes, STEPS, np.abs(y), style.COLOURS[colour], f"{label}: slope {power}", markersize=3)
        axes.plot(STEPS, middle[-1] * (STEPS / STEPS[-1]) ** power, ":", color=style.COLOURS[6], linewidth=1)
    style.label(axes, "What is left, and how fast it goes", "step t", "in units of ΔᵀFΔ/6", "xy", "lower right")


def _draw_coefficients(axes: Any, s: Series) -> None:
    ends = np.array([s.kappa.min(), s.kappa.max()])
    for y, factor, colour, label in (
        (s.forward, 1, 0, "KL(old ‖ new): κ₃/6"),
        (s.backward, 2, 1, "KL(new ‖ old): κ₃/3"),
    ):
        axes.plot(ends, factor * ends, color=style.COLOURS[6], linewidth=0.8)
        axes.plot(s.kappa, y, ".", color=style.COLOURS[colour], markersize=3, label=label)
    style.label(axes, "The coefficient is known", "third cumulant of Δ, κ₃/6", "measured coefficient of t³")
