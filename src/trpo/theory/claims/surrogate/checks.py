"""Verdicts on the surrogate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.surrogate.measure import MEASURABLE, STEPS, Study
from trpo.theory.records import Check, at_most, within
from trpo.theory.shared.laws import band, rms, rounding, slope


def checks(study: Study) -> tuple[Check, ...]:
    """Check value and gradient on every MDP, and the second order where it is measurable."""
    return *_exact_checks(study), *_order_checks(study.measurable)


def _exact_checks(study: Study) -> Iterator[Check]:
    """Check that the library's values and gradients are exact to rounding."""
    terms = "relative to ‖ρ_π π (|Q| + |V|)‖, the terms whose difference it is"
    listed = "Σ_s,a d_π(s) π(a|s) [π̃(a|s)/π(a|s)] A_π(s, a) through `sampled_problem` is the same number (equation 14)"
    elsewhere = "The library's surrogate/(1 − γ) + η(π) = L_π(π̃) of equation 3 at unrelated π̃"
    derivative = "∇L_π = ∇η by complex steps, relative to the same"
    sampled = "The gradient of `sampled_problem` over all (s, a) = ∇η by complex steps, relative to the same"
    for name, says, error, scale in (
        ("value at π", "L_π(π) = η(π), relative to max|r|/(1 − γ)", study.value_error, study.scale),
        ("value elsewhere", f"{elsewhere}, relative to max|r|/(1 − γ)", study.elsewhere_error, study.scale),
        ("importance-sampled form", listed, study.sampled_elsewhere_error, study.scale),
        ("gradient: theorem", f"∇L_π = ρ_π(s) π(a|s) A_π(s, a), {terms}", study.theorem_error, study.gradient_scale),
        ("gradient: derivative of η", derivative, study.complex_error, study.gradient_scale),
        ("gradient: importance-sampled form", sampled, study.sampled_error, study.gradient_scale),
    ):
        yield at_most(name, says, error / scale, 1e-12, rounding(error / scale))


def _order_checks(study: Study) -> Iterator[Check]:
    """Check slope and coefficient of what L_π misses; ``study`` has only MDPs in which it is measurable."""
    unit = study.coefficient_scale[:, None]
    relative = np.abs(study.forward) / unit
    each = slope(STEPS, relative)
    typical = float(np.median(each))
    # The mean of +t and −t has no third-order term, and one extrapolation in t² takes away the fourth.
    even = (study.forward + study.backward) / (2 * STEPS**2)
    off = np.abs(even - study.coefficient[:, None]) / unit
    ratio = (STEPS[-2] / STEPS[-1]) ** 2
    limit = (ratio * even[:, -1] - even[:, -2]) / (ratio - 1)
    final = np.abs(limit - study.coefficient) / unit[:, 0]
    approach = float(slope(STEPS, rms(off, axis=0)))
    says = "|η − L_π| at θ + td ∝ t^slope, t = 0.1 … 0.01 (median over the MDPs)"
    law = (
        f"slope {typical:.3f} in log-log, 90 % of the MDPs within {band(each)} (t³ shows, most where t² happens to "
        "cancel)"
    )
    yield within("error is of second order", says, typical, 1.95, 2.05, law, over=each)
    says = "(η − L_π)/t² → Σ_s dρ(s) dĀ(s) as t → 0 (extrapolated; relative to Σ_s |dρ||dĀ|)"
    law = f"deviation {np.median(final):.0e} in the median, {final.max():.0e} at worst"
    yield at_most("coefficient of t²", says, final, 1e-4, law)
    says = "|even part of (η − L_π)/t² − Σ_s dρ dĀ| ∝ t^slope: the next even order, t⁴, and nothing in between"
    law = f"slope {approach:.3f}; RMS deviation {rms(off[:, 0]):.1e} at t = 0.1, {rms(off[:, -1]):.1e} at t = 0.01"
    yield within("approach to the coefficient", says, approach, 1.95, 2.05, law, over=off)


def findings(study: Study) -> tuple[str, ...]:
    """Say how exact the gradient is, on which side L_π errs, and where that can be measured."""
    moving = study.gradient_norm > 0
    share = study.complex_error[moving] / study.gradient_norm[moving]
    even = np.abs(study.coefficient) / study.coefficient_scale
    measurable = study.measurable.scale.size
    return (
        f"Relative to ‖∇η‖ itself the library's gradient is within {np.median(share):.0e} of the derivative in the "
        f"median and {share.max():.0e} at worst, where π is nearly deterministic and A a small difference of Q and V.",
        f"L_π errs on either side: it promises too much at second order (Σ_s dρ dĀ < 0) in "
        f"{100 * np.mean(study.coefficient < 0):.0f} % of random directions.",
        f"Second order is measured in {measurable} of {moving.size} MDPs; in the others π is so nearly deterministic "
        f"that the coefficient is below {MEASURABLE:.0e} of the largest return.",
        f"The exact coefficient is {100 * np.median(even):.0f} % of Σ_s |dρ||dĀ| in the median: states gained and lost "
        "cancel in part.",
    )
