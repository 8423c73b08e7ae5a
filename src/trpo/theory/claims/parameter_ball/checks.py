"""Verdicts on steps of equal length, and on equal rules in two coordinate systems."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.parameter_ball.known import Gaussians, saturation
from trpo.theory.claims.parameter_ball.measure import RADIUS, SIZES, Compared
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared import laws

_CONDITION = 1e6
"""Beyond this, conjugate gradient in float64 does not find the components of F⁻¹g that hardly move the policy."""


def gaussian_checks(g: Gaussians) -> Iterator[Check]:
    """Check the library's KL of Gaussians against its closed form and against its defining integral."""
    says = "KL(N(μ, σ²) ‖ N(μ + Δμ, σ²)) = Σ_i Δμ_i² / 2σ² in 1, 2 and 6 dimensions, σ = 0.01 … 10: relative error"
    law = f"rounding; the same Δμ is {g.ratio:.3g} times the KL at σ = 0.01 that it is at σ = 10 (slope −2 in σ)"
    yield at_most("Gaussian, moved mean", says, g.moved, 1e-13, law)
    says = (
        "KL(p ‖ q) = E_p[log p − log q] by Gauss–Hermite quadrature (exact for it), 3 dimensions, both σ random in "
        "0.01 … 10: relative error"
    )
    yield at_most("Gaussians in general", says, g.general, 1e-12, f"rounding: {g.general.max():.1e}")


def ball_checks(c: Compared) -> Iterator[Check]:
    """Check how far steps of equal length in parameters go."""
    error, slope = saturation()
    factor = np.abs(np.log(c.kl / (0.5 * RADIUS**2 * c.curvature)))
    quantile = np.quantile(c.kl, [0.05, 0.5, 0.95])
    says = (
        "two actions, p = 1/(1 + eˣ), rare action's logit + 1: KL = log(1 + p(e − 1)) − p for gaps x = 2 … 35: "
        "relative error"
    )
    law = f"log KL falls with slope {slope:.4f} in the gap, in nats: a factor e for each"
    yield at_most("soft-max, saturating", says, error, 1e-12, law)
    says = f"mean KL of steps of ‖Δθ‖ = {RADIUS:g} along the plain gradient: largest over smallest among random MDPs"
    law = f"from {c.kl.min():.1e} to {c.kl.max():.2f} nats; 5 %, 50 %, 95 %: " + ", ".join(f"{q:.2g}" for q in quantile)
    yield at_least("equal steps, unequal KL", says, c.kl.max() / c.kl.min(), 10.0, law, over=c.kl)
    says = "mean KL ≤ ‖Δθ‖²/4 in logits, because no variance exceeds a quarter of the squared range; largest D̄/(r²/4)"
    law = "a bound from above only; there is none from below"
    yield at_most("no more than r²/4", says, c.kl / (RADIUS**2 / 4), 1.0, law)
    says = (
        "D̄ = ½ r² ĝᵀFĝ within a factor exp(√2 r), by which a step of length r can change any ratio of two "
        "probabilities: largest |log(D̄ / ½ r² ĝᵀFĝ)|"
    )
    law = (
        f"the KL spans a factor {c.kl.max() / c.kl.min():.1e}, its ratio to the parabola only "
        f"{np.exp(-factor.max()):.2f} … {np.exp(factor.max()):.2f}"
    )
    yield at_most("the Fisher matrix explains it", says, factor, float(np.sqrt(2) * RADIUS), law)


def _power(fraction: np.ndarray) -> tuple[float, str]:
    """Power of the step's size in the distance: mean over MDPs, and a description."""
    slopes = 1 + laws.slope(SIZES, fraction)
    return float(slopes.mean()), f"slope {slopes.mean():.3f} (5 % to 95 %: {laws.band(slopes)})"


def invariance_checks(c: Compared) -> Iterator[Check]:
    """Check what a change of coordinates does to the policies that two rules reach."""
    solvable = c.condition <= _CONDITION
    (natural, natural_law), (oracle, oracle_law), (plain, plain_law) = map(_power, (c.natural, c.oracle, c.plain))
    smallest = f"at a size of {SIZES[-1]:.2g} a fraction"
    says = (
        "NaturalGradient(damping=0) in θ and in φ, θ = h(φ): distance of the two policies ∝ step²; mean "
        "slope in log-log"
    )
    law = (
        f"{natural_law}; {smallest} {np.median(c.natural[:, -1]):.4f} of the step; F's condition number up to "
        f"{c.condition.max():.0e}"
    )
    yield within("natural gradient, two coordinate systems", says, natural, 1.95, 2.05, law, over=c.natural)
    says = f"distance / step² → ‖½ h''[Δφ, Δφ]‖ for F⁻¹g of unit KL, as a vector, where cond F ≤ {_CONDITION:.0e}"
    law = f"relative error {np.median(c.natural_error[solvable]):.1e} in the median"
    yield at_most("its coefficient", says, c.natural_error[solvable], 1e-3, law)
    says = "least squares on scores, F = BᵀB and g = Bᵀb, in θ and in φ, all MDPs: distance ∝ step²; mean slope"
    yield within("the same by dense algebra", says, oracle, 1.95, 2.05, oracle_law, over=c.oracle)
    says = "the library's step gives π̃ ∝ π exp(βA), without being told: distance from it, in fractions of the step"
    law = (
        f"{np.median(c.advantage_error):.1e} in the median, {c.advantage_error[solvable].max():.1e} at most "
        f"where cond F ≤ {_CONDITION:.0e} ({solvable.sum()} MDPs)"
    )
    yield at_most("natural step of a soft-max table", says, c.advantage_error, 1e-3, law)
    says = "the gradient, with steps of the same quadratic KL, in θ and in φ: distance ∝ step; mean slope in log-log"
    law = f"{plain_law}; {smallest} {np.median(c.plain[:, -1]):.2f} of the step, as at every other size"
    yield within("plain gradient, two coordinate systems", says, plain, 0.95, 1.05, law, over=c.plain)
    says = "distance / step → ‖ĝ − JJᵀg‖, both of unit KL, as a vector, in fractions of the step"
    law = f"{np.median(c.plain_error):.1e} in the median"
    yield at_most("its coefficient, plain", says, c.plain_error, 1e-4, law)


def findings(c: Compared) -> tuple[str, ...]:
    """Say how long steps of equal KL are, and how often new coordinates matter."""
    length = np.sqrt(2 * 0.01 / c.curvature)
    low, middle, high = np.quantile(length, [0.05, 0.5, 0.95])
    conditions = c.plain[:, -1] > 0.1, c.natural[:, -1] > 0.1, c.condition > 1e12
    moved, natural, singular = (100 * np.mean(condition) for condition in conditions)
    return (
        f"To change the policy by 0.01 nats along the plain gradient takes ‖Δθ‖ = {length.min():.2g} to "
        f"{length.max():.2g} logits (5 %, 50 %, 95 % of MDPs: {low:.2g}, {middle:.2g}, {high:.2g}).",
        f"In {moved:.0f} % of the MDPs a change of coordinates moves the plain gradient's policy by more than a tenth "
        f"of the step, however short it is; the natural gradient's, at the shortest step, in {natural:.1f} %.",
        f"{singular:.0f} % of the Fisher matrices in bent coordinates have condition numbers above 1e12, and conjugate "
        "gradient without damping still finds the right policy for every one, to "
        f"{c.advantage_error.max():.0e} of the step.",
    )
