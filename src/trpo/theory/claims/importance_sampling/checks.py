"""Verdicts and findings of the claim "importance sampling"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.importance_sampling.measure import (
    NEAR,
    PATHS,
    RADII,
    SAMPLES,
    STEPS,
    Estimates,
    Measured,
    Study,
)
from trpo.theory.claims.importance_sampling.paths import DISCOUNTS, LENGTHS, PathBias
from trpo.theory.records import Check, at_least, at_most
from trpo.theory.shared.laws import band, rms, rounding, slope, spread
from trpo.theory.shared.noise import bias_check, noise_checks


def checks(m: Measured) -> tuple[Check, ...]:
    """Judge samples, ratios, paths and the fields that they estimate."""
    sampled = (*_sampling(m.study, m.samples), *_ratio(m.study), *_simulation(m.paths))
    return (*sampled, *_bias(m.study.bias), *_field(m.study))


def _sampling(study: Study, independent: dict[str, Estimates]) -> Iterator[Check]:
    says = (
        "With every (s, a) listed once, weighted w(s) π(a|s), the sampled problem gives the exact surrogate at π̃, "
        "gradient, Fisher product and moments of the ratio; w = d_π, d_∞ and random (relative to Σ w π |summand|)"
    )
    yield at_most("all pairs listed", says, study.pairs.error, 1e-12, rounding(study.pairs.error))
    for name, what, statement in (
        ("surrogate", "the sampled surrogate at π̃", "Σ_i (1/N) [π̃/π](a_i|s_i) A_π(s_i, a_i) → Σ_s d_π Σ_a π̃ A_π"),
        ("gradient", "the sampled gradient along u", "u·∇L of a batch → (1 − γ) u·∇η"),
        ("fisher", "the sampled Fisher product", "vᵀF v of a batch's states → vᵀF v under d_π"),
    ):
        yield from noise_checks(name, what, independent[name].noise(SAMPLES), statement)
    for name, what, statement in (
        ("ratio", "the mean ratio", "E_π[π̃/π] = 1, with variance χ²(π̃ ‖ π)/N"),
        ("ratio²", "the mean squared ratio", "E_π[(π̃/π)²] = 1 + χ²(π̃ ‖ π)"),
    ):
        yield bias_check(name, what, independent[name].noise(SAMPLES), statement)


def _ratio(study: Study) -> Iterator[Check]:
    excess = (np.log1p(study.far.chi_square) - study.far.kl_new).ravel()
    off = study.near.chi_square / NEAR**2 / study.pairs.fisher[:, None] - 1
    shrink = float(slope(NEAR, rms(off, axis=0)))
    # Two extrapolations: the next orders are t and t².
    first = (off[:, 1:] * NEAR[:-1] - off[:, :-1] * NEAR[1:]) / (NEAR[:-1] - NEAR[1:])
    second = (first[:, 1:] * NEAR[:-2] - first[:, :-1] * NEAR[2:]) / (NEAR[:-2] - NEAR[2:])
    final = np.abs(second[:, -1])
    says = "log(1 + χ²(π̃ ‖ π)) − KL(π̃ ‖ π) ≥ 0: the variance of the ratio is at least e^KL − 1"
    law = f"excess over KL: median {np.median(excess):.2g}, largest {excess.max():.2g} nats"
    yield at_least("variance grows exponentially", says, excess, -1e-12, law)
    says = "χ²(π̃ ‖ π)/t² → vᵀF v at θ + tv, F v the library's product (extrapolated, relative)"
    law = (
        f"so χ² = 2 D̄ + O(t³): deviation falls with slope {shrink:.3f} in log-log, from "
        f"{rms(off[:, 0]):.1e} at t = 0.1 to {rms(off[:, -1]):.1e} at t = 0.01; extrapolated {rms(final):.0e}"
    )
    yield at_most("variance near π", says, final, 1e-3, law)


def _simulation(paths: dict[str, Estimates]) -> list[Check]:
    kept, dropped = "Σ_{t<T} γᵗ P(s_t = s)/Σγᵗ", "d_T(s) = Σ_{t<T} P(s_t = s)/T"
    statements = {
        "γᵗ kept, gradient": f"Paths with weights γᵗ/Σγᵗ: E[u·∇L] = u·gradient weighted with {kept}",
        "γᵗ kept, fisher": "The same for vᵀF v: the states on the paths are distributed as that visitation",
        "γᵗ dropped, gradient": f"Paths with weights 1/T: E[u·∇L] = u·gradient weighted with {dropped}",
        "γᵗ dropped, fisher": "The same for vᵀF v",
    }
    what, count = f"{PATHS} paths of {STEPS} steps", np.array([PATHS])
    return [bias_check(name, what, paths[name].noise(count), statement) for name, statement in statements.items()]


def _bias(bias: PathBias) -> Iterator[Check]:
    """Check how the bias of a cut and of dropped γᵗ depend on the length T of the paths."""
    mixing, cut = bias.mixing[:, 0] < 1e-9, bias.cut_error[np.isfinite(bias.cut_error)]
    described = ", ".join(f"{r:.4f} at γ = {g:g}" for r, g in zip(_rates(bias), DISCOUNTS, strict=True))
    decay = slope(LENGTHS[4:].astype(float), bias.excess[mixing][:, :, 4:])
    says = "(1−γ)∇η less its paths' first T steps = γᵀ times the gradient of the MDP begun at P(s_T = ·) (relative)"
    law = f"bias ∝ γᵀ: fitted rate per step, median over the MDPs, {described}"
    yield at_most("γᵗ kept: bias of the cut", says, cut, 1e-8, law)
    says = (
        "T (g_T − g_∞) → Σ_s (μD)(s) ∇π A_π (relative, T = 1000): without γᵗ the gradient tends to that of the "
        "stationary weights d_∞, whatever γ is"
    )
    law = (
        f"slope {np.median(decay):.4f} ({band(decay, 3, share=1)}) in log-log, T = 100 … 1000, "
        "with the exact coefficient"
    )
    yield at_most("γᵗ dropped: what is left", says, bias.excess_error[mixing], 1e-6, law)


def _field(study: Study) -> Iterator[Check]:
    """Check of what the two fields are gradients, and that a natural gradient in a table doesn't tell them apart."""
    (kept, dropped), mismatch = study.asymmetry, study.pairs.mismatch
    says = "The Jacobian of (1 − γ)∇η in θ is symmetric: ‖J − Jᵀ‖/‖J‖"
    law = f"rounding: RMS {rms(kept):.1e}"
    yield at_most("γᵗ kept: a gradient", says, kept, 1e-9, law)
    says = (
        "Share of MDPs in which the field without γᵗ (T → ∞) has an asymmetric Jacobian, ‖J − Jᵀ‖/‖J‖ > 1e-6: it "
        "is the gradient of no function"
    )
    law = f"‖J − Jᵀ‖/‖J‖ {spread(dropped, 5)}"
    yield at_least("γᵗ dropped: no gradient", says, np.mean(dropped > 1e-6), 0.95, law, over=dropped)
    says = "F A_π = g for weights d_π, d_∞ and random ones alike (library's products): the weights cancel in F⁻¹g"
    law = f"rounding: RMS {rms(mismatch):.1e}"
    yield at_most("natural gradient in a table", says, mismatch, 1e-10, law)


def _rates(bias: PathBias) -> np.ndarray:
    """Return the median rate per step at which the bias of a cut falls, between two lengths where it is measurable."""
    rates = []
    for i, (first, last) in enumerate(((2, 3), (3, 4), (3, 4), (4, 5))):
        fall = bias.kept_bias[:, i, last] / np.maximum(bias.kept_bias[:, i, first], 1e-300)
        rates.append(np.median(fall ** (1 / (LENGTHS[last] - LENGTHS[first]))))
    return np.array(rates)


def findings(m: Measured) -> tuple[str, ...]:
    """Describe ratios, and angles by γ and T, in random and in named MDPs and with shared parameters."""
    bias, shared = m.study.bias, m.study.shared
    chi, sigma = m.study.radii.chi_square, m.study.radii.deviation / m.study.deviation[:, None]
    ratio = "; ".join(
        f"δ = {r:g}: χ² {np.nanmedian(chi[:, i]):.2g} ({np.nanquantile(chi[:, i], 0.95):.2g}), σ of a sample "
        f"{np.nanmedian(sigma[:, i]):.2f} ({np.nanquantile(sigma[:, i], 0.95):.2f}) times that at π"
        for i, r in enumerate(RADII)
    )

    def listed(angles: np.ndarray) -> str:
        return ", ".join(f"{a:.2g}° at γ = {g:g}" for a, g in zip(angles, DISCOUNTS, strict=True))

    endless, high = np.median(bias.limit_angle, axis=0), np.quantile(bias.limit_angle, 0.95, axis=0)
    best = ", ".join(
        f"{y.min():.2g}° at T = {LENGTHS[y.argmin()]} for γ = {g:g}"
        for y, g in zip(np.median(bias.dropped_angle, axis=0), DISCOUNTS, strict=True)
    )
    named = "; ".join(f"{name}: {listed(angles)}" for name, angles in m.named.items())
    return (
        f"Median (and 95th percentile) over the MDPs where the mean KL(π ‖ π̃) reaches a radius δ: {ratio}.",
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
