"""Figures of the performance-difference claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims.performance_difference.measure import Sides, Study
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.laws import rms
from trpo.theory.shared.noise import NORMAL_95, Noise


def draw(directory: Path | None, study: Study) -> tuple[Picture, ...]:
    """Draw both sides of the identity, and how the simulation closes in on it."""
    if directory is None:
        return ()
    return _sides_figure(study.sides, directory), _sampling_figure(study.simulated.noise, study.example, directory)


def _sides_figure(sides: Sides, directory: Path) -> Picture:
    drawing, ((left, right),) = style.figure(2)
    x = sides.change / sides.scale
    for axes, y, colour, label in (
        (left, sides.predicted, style.COLOURS[0], r"identity: weighted with $\rho_{\tilde\pi}$"),
        (right, sides.surrogate, style.COLOURS[1], r"surrogate: weighted with $\rho_{\pi}$"),
    ):
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8, zorder=0)
        axes.scatter(x, y / sides.scale, s=7, color=colour, alpha=0.5, linewidths=0)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(r"true change $\eta(\tilde\pi) - \eta(\pi)$, in max|r|/(1 − γ)", fontsize=9)
        limit = 1.05 * np.abs(x).max()
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    left.set_ylabel("the same from the advantages of π, in max|r|/(1 − γ)", fontsize=9)
    left.text(
        0.05, 0.93, f"largest distance from\nthe line: {sides.error.max():.0e}", transform=left.transAxes, va="top"
    )
    wrong = 100 * np.mean(sides.surrogate * sides.change < 0)
    right.text(0.05, 0.93, f"wrong sign: {wrong:.0f} %", transform=right.transAxes, va="top")
    return style.save(drawing, directory, "performance_difference_sides")


def _sampling_figure(noise: Noise, example: tuple[float, np.ndarray], directory: Path) -> Picture:
    drawing, ((left, right),) = style.figure(2)
    change, sums = example
    n = np.arange(8, sums.size + 1)
    mean = np.cumsum(sums)[7:] / n
    half = NORMAL_95 * np.sqrt((np.cumsum(sums**2)[7:] / n - mean**2) / (n - 1))
    left.fill_between(n, mean - half, mean + half, color=style.COLOURS[0], alpha=0.2, linewidth=0)
    left.plot(n, mean, color=style.COLOURS[0], label=r"mean of $\sum A_\pi$ over N paths of $\tilde\pi$, 95 % interval")
    left.axhline(change, color="black", linewidth=1, linestyle="--", label=r"exact $\eta(\tilde\pi) - \eta(\pi)$")
    left.set(xscale="log", xlabel="simulated paths N", ylabel="change of the return, in units of reward")
    left.set_title("one MDP", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    error = rms(noise.z, axis=0) / np.sqrt(noise.samples)
    right.plot(noise.samples, 1 / np.sqrt(noise.samples), color="black", linewidth=1, label="exact: σ/√N")
    right.plot(noise.samples, error, "o", color=style.COLOURS[0], label="RMS error over the MDPs")
    right.set(xscale="log", yscale="log", xlabel="simulated paths N", ylabel="RMS error / σ of the MDP")
    right.set_title(f"{len(noise.z)} MDPs", fontsize=10)
    for axis, ticks in ((right.xaxis, noise.samples), (right.yaxis, (0.03, 0.06, 0.12))):
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    left.set_xticks((10, 100, 1000), ("10", "100", "1000"))
    right.legend(fontsize=8, frameon=False)
    return style.save(drawing, directory, "performance_difference_sampling")
