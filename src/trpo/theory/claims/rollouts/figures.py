"""Figures of the claim "rollouts"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims.rollouts.measure import KS, LENGTHS, SAMPLES, Measured
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.laws import rms


def draw(directory: Path | None, m: Measured) -> tuple[Picture, ...]:
    """Draw errors of branches, of their tails, and of sampled actions."""
    if directory is None:
        return ()
    drawing, ((left, middle, right),) = style.figure(3)
    left.plot(SAMPLES, 1 / np.sqrt(SAMPLES), color="black", linewidth=1, label="σ/√N")
    for (name, noise), marker, colour in zip(m.noises.items(), "os^D", style.COLOURS, strict=False):
        error = rms(noise.z, axis=0) / np.sqrt(SAMPLES)
        left.plot(SAMPLES, error, marker, color=colour, label=name, markersize=8, markerfacecolor="none")
    style.label(left, "branches against exact values", "roots N", "RMS error / σ of a root", "xy")
    tail = m.cases.tail[np.isfinite(m.cases.tail).all(axis=-1)]
    style.ribbon(middle, LENGTHS, tail, style.COLOURS[0], "90 % of MDPs, and median", (0.05, 0.5, 0.95))
    middle.axhline(1, color="black", linewidth=0.8, label="bound: γⁿ × error of V")
    style.label(middle, "bias of the tail, over its bound", "steps of a branch n", "share", "x", ylim=(0, 1.1))
    for i, (name, colour) in enumerate((("K actions from π", style.COLOURS[0]), ("uniform ones", style.COLOURS[1]))):
        bias = np.abs(m.cases.bias[:, i])
        style.ribbon(right, KS, bias[np.isfinite(bias).all(axis=-1)], colour, name)
    right.plot(KS, 1 / KS, color="black", linewidth=1, label="1/K")
    style.label(right, "self-normalised: |bias|", "actions K", "of E_q ρ² |Q − E Q|", "xy")
    for axes, ticks in ((left, SAMPLES), (middle, LENGTHS), (right, KS)):
        axes.xaxis.set_ticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_ticks([], minor=True)
    return (style.save(drawing, directory, "rollouts"),)
