"""Checks and findings about single paths: exact, without the library but for Fisher products."""

from __future__ import annotations

import jax
import numpy as np

from trpo.tabular.mdp import MDP, chain, cliff, grid
from trpo.theory.claims._single_path import DISCOUNTS, LENGTHS, PathBias, Shared, path_bias
from trpo.theory.records import Check, at_least, at_most
from trpo.theory.shared.laws import rms, slope, spread


def bias_checks(bias: PathBias) -> list[Check]:
    """Check how the bias of a cut and of dropped γᵗ depend on the length T of the paths."""
    mixing = bias.mixing < 1e-9
    described = ", ".join(f"{r:.4f} at γ = {g:g}" for r, g in zip(_rates(bias), DISCOUNTS, strict=True))
    decay = slope(LENGTHS[4:].astype(float), bias.excess[mixing][:, :, 4:])
    return [
        at_most(
            "γᵗ kept: bias of the cut",
            "(1−γ)∇η less its paths' first T steps = γᵀ times the gradient of the MDP begun at P(s_T = ·) (relative)",
            int(np.isfinite(bias.cut_error).sum()),
            np.nan_to_num(bias.cut_error).max(),
            1e-8,
            f"bias ∝ γᵀ: fitted rate per step, median over the MDPs, {described}",
        ),
        at_most(
            "γᵗ dropped: what is left",
            "T (g_T − g_∞) → Σ_s (μD)(s) ∇π A_π (relative, T = 1000): without γᵗ the gradient tends to that of the "
            "stationary weights d_∞, whatever γ is",
            int(mixing.sum()),
            bias.excess_error[mixing].max() if mixing.any() else np.nan,
            1e-6,
            f"slope {np.median(decay):.4f} ({decay.min():.3f} … {decay.max():.3f}) in log-log, T = 100 … 1000, "
            "with the exact coefficient",
        ),
    ]


def field_checks(kept: np.ndarray, dropped: np.ndarray, mismatch: np.ndarray) -> list[Check]:
    """Check of what the two fields are gradients, and that a natural gradient in a table doesn't tell them apart."""
    return [
        at_most(
            "γᵗ kept: a gradient",
            "The Jacobian of (1 − γ)∇η in θ is symmetric: ‖J − Jᵀ‖/‖J‖",
            kept.size,
            kept.max(),
            1e-9,
            f"rounding: RMS {rms(kept):.1e}",
        ),
        at_least(
            "γᵗ dropped: no gradient",
            "Share of MDPs in which the field without γᵗ (T → ∞) has an asymmetric Jacobian, ‖J − Jᵀ‖/‖J‖ > 1e-6: it "
            "is the gradient of no function",
            dropped.size,
            float(np.mean(dropped > 1e-6)),
            0.95,
            f"‖J − Jᵀ‖/‖J‖ {spread(dropped, 5)}",
        ),
        at_most(
            "natural gradient in a table",
            "F A_π = g for weights d_π, d_∞ and random ones alike (library's products): the weights cancel in F⁻¹g",
            mismatch.size,
            mismatch.max(),
            1e-10,
            f"rounding: RMS {rms(mismatch):.1e}",
        ),
    ]


def _rates(bias: PathBias) -> np.ndarray:
    """Return the median rate per step at which the bias of a cut falls, between two lengths where it is measurable."""
    pairs = ((2, 3), (3, 4), (3, 4), (4, 5))
    rates = []
    for i, (first, last) in enumerate(pairs):
        fall = bias.kept_bias[:, i, last] / np.maximum(bias.kept_bias[:, i, first], 1e-300)
        rates.append(np.median(fall ** (1 / (LENGTHS[last] - LENGTHS[first]))))
    return np.array(rates)


def path_findings(bias: PathBias, shared: Shared) -> tuple[str, ...]:
    """Describe angles by γ and T, in random and in named MDPs, and under shared parameters."""

    def listed(angles: np.ndarray) -> str:
        return ", ".join(f"{a:.2g}° at γ = {g:g}" for a, g in zip(angles, DISCOUNTS, strict=True))

    endless, high = np.median(bias.limit_angle, axis=0), np.quantile(bias.limit_angle, 0.95, axis=0)
    middle = np.median(bias.dropped_angle, axis=0)
    best = ", ".join(
        f"{middle[i].min():.2g}° at T = {LENGTHS[middle[i].argmin()]} for γ = {g:g}" for i, g in enumerate(DISCOUNTS)
    )
    named = "; ".join(f"{name}: {listed(angles)}" for name, angles in named_angles().items())
    return (
        f"Without γᵗ, endless paths: median angle to ∇η {listed(endless)} (95th percentile {listed(high)}, "
        f"largest of all {bias.limit_angle.max():.0f}°; in a table it can't reach 90°).",
        "Without γᵗ the best of the lengths is near T = 1/(1 − γ), where 1/T weighs the transient as 1 − γ does: "
        f"median angle {best}.",
        f"In MDPs that mix slowly dropping γᵗ turns the gradient more; uniform policy, 1000 steps: {named}.",
        f"Shared parameters (3 random features, γ of each MDP): d_∞ in place of d_π turns the gradient by "
        f"{np.median(shared.plain):.1f}° in the median (95th percentile {np.quantile(shared.plain, 0.95):.0f}°), the "
        f"natural gradient by {np.median(shared.natural):.1f}° ({np.quantile(shared.natural, 0.95):.0f}°), beyond 90° "
        f"in {100 * np.mean(shared.plain > 90):.1f} % and {100 * np.mean(shared.natural > 90):.1f} % of "
        f"{shared.plain.size} MDPs; in a table the natural gradient doesn't turn at all.",
    )


def named_angles() -> dict[str, np.ndarray]:
    """Return the angle to ∇η without γᵗ in the named MDPs with the uniform policy, at the longest T, by γ."""
    angles = {}
    for mdp in (chain(), cliff(), grid()):
        one: MDP = jax.tree.map(lambda x: x[None], mdp)
        policy = np.full(one.reward.shape, 1 / one.actions)
        name = {5: "chain", 48: "cliff", 25: "grid"}[one.states]
        angles[name] = path_bias(one, policy).dropped_angle[0, :, -1]
    return angles
