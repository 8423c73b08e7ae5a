"""Figures of the claim "importance sampling"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims.importance_sampling.measure import RADII, SAMPLES, Measured, PathErrors, Spread
from trpo.theory.claims.importance_sampling.paths import DISCOUNTS, LENGTHS, PathBias
from trpo.theory.records import Picture
from trpo.theory.shared import style
from trpo.theory.shared.laws import rms
from trpo.theory.shared.noise import Noise

KEPT, DROPPED = style.COLOURS[:2]


def draw(directory: Path | None, m: Measured) -> tuple[Picture, ...]:
    """Draw convergence, ratios, and single paths."""
    if directory is None or m.errors is None:
        return ()
    names = {"surrogate": "surrogate at π̃", "gradient": "gradient", "fisher": "Fisher product"}
    noises = {label: m.samples[name].noise(SAMPLES) for name, label in names.items()}
    return (
        _sampling(directory, noises, m.errors),
        _ratio(directory, m.study.far, m.study.deviation),
        _paths(directory, m.study.bias),
    )


def _sampling(directory: Path, noises: dict[str, Noise], errors: PathErrors) -> Picture:
    """Draw how sampled quantities close in on the exact ones: independent samples, and paths with and without γᵗ."""
    drawing, ((left, right),) = style.figure(2)
    left.plot(SAMPLES, 1 / np.sqrt(SAMPLES), color="black", linewidth=1, label="exact: σ/√N")
    for (name, noise), marker, colour in zip(noises.items(), "os^", style.COLOURS, strict=False):
        error = rms(noise.z, axis=0) / np.sqrt(SAMPLES)
        left.plot(SAMPLES, error, marker, color=colour, label=name, markersize=8, markerfacecolor="none")
    title = f"{len(noises['surrogate at π̃'].z)} MDPs, library against exact values"
    style.label(left, title, "independent samples N", "RMS error / σ of the MDP", "xy")
    for i, (colour, name) in enumerate(((KEPT, "with γᵗ"), (DROPPED, "without γᵗ"))):
        right.plot(errors.paths, errors.exact[i], color=colour, linewidth=1)
        right.plot(errors.paths, errors.measured[i], "o", color=colour, label=name)
    right.plot([], [], color="black", linewidth=1, label="exact: √(bias² + σ²/N)")
    title = "gradients from single paths, γ near 0.85"
    style.label(right, title, "paths N", "RMS error of the gradient / σ of a path", "xy")
    for axes, x, y in ((left, SAMPLES, (0.02, 0.04, 0.08)), (right, errors.paths, (0.05, 0.1, 0.2))):
        for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
            axis.set_ticks(ticks, [str(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
    return style.save(drawing, directory, "importance_sampling_convergence")


def _ratio(directory: Path, far: Spread, deviation: np.ndarray) -> Picture:
    """Draw the variance of the ratio and the noise of the surrogate against KL."""
    drawing, ((left, right),) = style.figure(2)
    left.plot(far.kl_new.ravel(), far.chi_square.ravel(), ".", color=KEPT, markersize=2, alpha=0.25, rasterized=True)
    low, high = 1e-4, float(np.quantile(far.kl_new, 0.999))
    kl = np.geomspace(low, high, 100)
    left.plot(kl, np.expm1(kl), color="black", linewidth=1.2, label=r"bound $e^{KL} - 1$")
    left.plot(kl, 2 * kl, color=DROPPED, linewidth=1.2, linestyle="--", label="2 KL, exact for small steps")
    x, y = r"mean $KL(\tilde\pi\,\|\,\pi)$, nats", r"variance of the ratio, $\chi^2(\tilde\pi\,\|\,\pi)$"
    style.label(left, "", x, y, "xy", legend="upper left", xlim=(low, high), ylim=(1e-4, 1e5))
    share, edges = (far.deviation / deviation[:, None]).ravel(), np.geomspace(1e-3, 3, 18)
    which = np.digitize(far.kl_old.ravel(), edges)
    rows = [share[which == i] for i in range(1, edges.size)]
    centres = np.sqrt(edges[:-1] * edges[1:])
    middle, least, most = (np.array([np.quantile(r, q) if r.size else np.nan for r in rows]) for q in (0.5, 0.05, 0.95))
    right.fill_between(centres, least, most, color=KEPT, alpha=0.2, linewidth=0, label="90 % of MDPs and steps")
    right.plot(centres, middle, color=KEPT, label="median")
    right.axvline(RADII[0], color="black", linewidth=0.8, linestyle=":")
    right.annotate("usual δ", (RADII[0], 0.55), (4, 0), textcoords="offset points", fontsize=9)
    right.axhline(1, color="black", linewidth=0.6)
    x, y = r"mean $KL(\pi\,\|\,\tilde\pi)$, nats: the trust region's", "σ of one sample of the surrogate / at π"
    style.label(right, "", x, y, "xy", legend="upper left", ylim=(0.5, 40))
    return style.save(drawing, directory, "importance_sampling_ratio")


def _paths(directory: Path, bias: PathBias) -> Picture:
    """Draw angle and bias of the gradient from paths of T steps, with and without γᵗ."""
    drawing, ((left, right),) = style.figure(2)
    pairs = ((left, bias.kept_angle, bias.dropped_angle), (right, bias.kept_bias, bias.dropped_bias))
    for i, (gamma, colour) in enumerate(zip(DISCOUNTS, style.COLOURS, strict=False)):
        for axes, *values in pairs:
            kept, dropped = (np.median(x[:, i], axis=0) for x in values)
            axes.plot(LENGTHS, kept, color=colour, linestyle="--", linewidth=1.2)
            axes.plot(LENGTHS, dropped, "o-", color=colour, markersize=3.5, label=f"γ = {gamma:g}")
    left.plot([], [], color="black", linestyle="-", label="without γᵗ")
    left.plot([], [], color="black", linestyle="--", label="with γᵗ, cut at T")
    x = "length T of the paths, steps"
    style.label(left, "", x, "angle to ∇η, degrees (median)", "x")
    style.label(right, "", x, "bias / ‖(1−γ)∇η‖ (median)", "xy", legend=None, ylim=(1e-4, 2))
    for axes in (left, right):
        axes.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1000"))
    return style.save(drawing, directory, "importance_sampling_paths", mdps=len(bias.mixing))
