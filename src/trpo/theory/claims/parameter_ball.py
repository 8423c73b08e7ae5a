"""Equal steps in parameters are unequal steps in policies; the natural gradient measures steps by policies."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical, DiagGaussian
from trpo.theory.claims import _parameter_ball as study
from trpo.theory.claims import _parameter_ball_figures as figures_of
from trpo.theory.records import Check, Outcome, at_least, at_most, within
from trpo.theory.shared import laws
from trpo.theory.shared.ensemble import SHAPES, ensemble

TITLE = "Why not the parameter ball"

EXPLANATION = """
Gradient ascent moves by a learning rate times the gradient: it decides how far to go by the length of the step in
parameters, ‖Δθ‖, and its direction is the one that gains most for steps of equal ‖Δθ‖. But what a step does to the
data that the next iteration will see depends on the policy, not on the numbers that describe it, and one length
in parameters can be any distance between policies.

A Gaussian policy shows it in one line. Moving its mean by Δμ changes the policy by

    KL(N(μ, σ²) ‖ N(μ + Δμ, σ²)) = Δμ² / 2σ²

so the same Δμ is a million times larger a change at σ = 0.01 than at σ = 10. In the logits of a soft-max it is
saturation that decides: a step of length r changes a policy by at most r²/4 nats, which it does near (½, ½), and by as
little as you like where one action has nearly all the probability, falling by a factor e with every nat of the
gap between the logits. A learning rate that is safe at one policy does nothing at the other.

The cure is to measure steps by the policies that they connect. For small steps D̄ = ½ ΔθᵀFΔθ (the next claim), and the
direction that gains most for a given D̄ is the natural gradient (eq. 17; the plain gradient is eq. 18):

    Δθ = β F⁻¹g,   β = √(2δ / gᵀF⁻¹g)

Its other merit is that it does not depend on how the policy is written down. In coordinates φ with θ = h(φ) and
J = ∂h/∂φ, the gradient is Jᵀg and the Fisher matrix JᵀFJ, so the step is J⁻¹F⁻¹g: to first order the same step of the
same policy. What remains is the bend of the coordinates, ½h''[Δφ, Δφ]: one rule, run in θ and in φ, ends at two
policies whose distance falls with the square of the step, with a coefficient that is known. The plain gradient
becomes JJᵀg, another direction, and its two policies differ by a fixed fraction of the step however short that is.

Here φ is bent and mixed at random, θ = θ₀ + M[φ − φ₀ + ½(sin φ − sin φ₀)], and the library's rule is run in both. Where
π is nearly deterministic F has condition numbers beyond 10¹², and no solver in double precision finds all of F⁻¹g.
That does no harm: what it cannot find is just what moves no probability, and the policies agree all the same. For
a soft-max table the natural step is known without any solve, π̃ ∝ π exp(βA) (Kakade 2001); that is checked as well.

The figures show the unequal distances, then the steps of both rules from one policy in six coordinate systems, and how
fast their disagreement goes. The size of a step is the largest change of any log π(a|s) that it makes, so that "small"
means the same for every policy; the distance between policies is √(E_s E_a (log π₁ − log π₂)²), whose half square is
the KL to leading order.
"""

CODE = (
    "trpo.distributions.diag_gaussian:DiagGaussian.kl_to",
    "trpo.distributions.categorical:Categorical.kl_to",
    "trpo.rules.natural_gradient:NaturalGradient.update",
    "trpo.rules.step:natural_direction",
    "trpo.rules.step:step_length",
)

TESTS = (
    "test_claim_parameter_ball.py::test_the_claim_holds",
    "test_claim_parameter_ball.py::test_a_wrong_gaussian_kl_is_found",
    "test_claim_parameter_ball.py::test_the_plain_gradient_in_the_natural_ones_place_is_found",
    "test_claim_parameter_ball.py::test_large_damping_is_found",
    "test_rules.py::test_reparametrisation_moves_a_natural_step_only_at_second_order",
)

_CONDITION = 1e6
"""Beyond this, conjugate gradient in float64 does not find the components of F⁻¹g that hardly move the policy."""


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Take equal steps, and equal rules in two coordinate systems, on ``size`` random MDPs."""
    rng = generator(seed)
    # Compiling costs more than computing, hence few shapes.
    groups = ensemble(size, seed, SHAPES[1::2] if size >= 256 else SHAPES[1:2])
    parts = [study.compare(rng, group) for group in groups]
    c = study.Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    pictures = () if figures is None else (figures_of.distances(figures, c), figures_of.coordinates(figures, c))
    return Outcome((*gaussian_checks(rng, size), *_ball_checks(c), *_invariance_checks(c)), _findings(c), pictures)


def generator(seed: int) -> np.random.Generator:
    """Return the claim's own source of randomness."""
    return np.random.default_rng([seed, 1])


def _gaussian_kl(mean: np.ndarray, std: np.ndarray, other_mean: np.ndarray, other_std: np.ndarray) -> np.ndarray:
    """KL by the library; arrays are ``[cases, d]``."""
    p = DiagGaussian(jnp.asarray(mean), jnp.asarray(np.log(std)))
    return np.asarray(p.kl_to(DiagGaussian(jnp.asarray(other_mean), jnp.asarray(np.log(other_std)))))


def gaussian_checks(rng: np.random.Generator, size: int) -> tuple[Check, ...]:
    """Check the library's KL of Gaussians against its closed form and against its defining integral."""
    sigma = np.geomspace(0.01, 10, 61)
    worst, ratio = 0.0, 0.0
    for d in (1, 2, 6):
        mean, std = rng.standard_normal((sigma.size, d)), np.repeat(sigma[:, None], d, axis=1)
        kl = _gaussian_kl(mean, std, mean + 0.1, std)
        step = (mean + 0.1) - mean
        worst = max(worst, np.abs(kl / ((step**2).sum(axis=-1) / (2 * sigma**2)) - 1).max())
        ratio = kl[0] / kl[-1]
    general, error = _quadrature_error(rng, size)
    return (
        at_most(
            "Gaussian, moved mean",
            "KL(N(μ, σ²) ‖ N(μ + Δμ, σ²)) = Σ_i Δμ_i² / 2σ² in 1, 2 and 6 dimensions, σ = 0.01 … 10: relative error",
            3 * sigma.size,
            worst,
            1e-13,
            f"rounding; the same Δμ is {ratio:.3g} times the KL at σ = 0.01 that it is at σ = 10 (slope −2 in σ)",
        ),
        at_most(
            "Gaussians in general",
            "KL(p ‖ q) = E_p[log p − log q] by Gauss–Hermite quadrature (exact for it), 3 dimensions, both σ random in "
            "0.01 … 10: relative error",
            general,
            error,
            1e-12,
            f"rounding: {error:.1e}",
        ),
    )


def _quadrature_error(rng: np.random.Generator, size: int) -> tuple[int, float]:
    """Compare the library's KL with its defining integral: log p − log q is quadratic, so two nodes suffice."""
    mean, other = rng.standard_normal((2, size, 3))
    std, other_std = np.exp(rng.uniform(np.log(0.01), np.log(10), (2, size, 3)))
    node, mass = np.polynomial.hermite.hermgauss(2)
    action = mean[..., None] + np.sqrt(2) * std[..., None] * node
    log_p = -0.5 * ((action - mean[..., None]) / std[..., None]) ** 2 - np.log(std[..., None])
    log_q = -0.5 * ((action - other[..., None]) / other_std[..., None]) ** 2 - np.log(other_std[..., None])
    exactly = ((log_p - log_q) @ mass).sum(axis=-1) / np.sqrt(np.pi)
    return size, float(np.abs(_gaussian_kl(mean, std, other, other_std) / exactly - 1).max())


def _ball_checks(c: study.Compared) -> tuple[Check, ...]:
    gap = np.linspace(2, 35, 34)
    rare = 1 / (1 + np.exp(gap))
    logits = jnp.stack([jnp.asarray(gap), jnp.zeros(gap.size)], axis=-1)
    kl = np.asarray(Categorical(logits).kl_to(Categorical(logits + jnp.array([[0.0, 1.0]]))))
    # log E exp(Δ) − E Δ for a step of 1 in the rare action's logit.
    error = np.abs(kl / (np.log1p(rare * np.expm1(1.0)) - rare) - 1).max()
    slope = np.polyfit(gap[gap > 10], np.log(kl[gap > 10]), 1)[0]
    radius = study.RADIUS
    factor = np.abs(np.log(c.kl / (0.5 * radius**2 * c.curvature)))
    quantile = np.quantile(c.kl, [0.05, 0.5, 0.95])
    n = c.kl.size
    return (
        at_most(
            "soft-max, saturating",
            "two actions, p = 1/(1 + eˣ), rare action's logit + 1: KL = log(1 + p(e − 1)) − p for gaps x = 2 … 35: "
            "relative error",
            gap.size,
            error,
            1e-12,
            f"log KL falls with slope {slope:.4f} in the gap, in nats: a factor e for each",
        ),
        at_least(
            "equal steps, unequal KL",
            f"mean KL of steps of ‖Δθ‖ = {radius:g} along the plain gradient: largest over smallest among random MDPs",
            n,
            c.kl.max() / c.kl.min(),
            10.0,
            f"from {c.kl.min():.1e} to {c.kl.max():.2f} nats; 5 %, 50 %, 95 %: "
            + ", ".join(f"{q:.2g}" for q in quantile),
        ),
        at_most(
            "no more than r²/4",
            "mean KL ≤ ‖Δθ‖²/4 in logits, because no variance exceeds a quarter of the squared range; largest D̄/(r²/4)",
            n,
            c.kl.max() / (radius**2 / 4),
            1.0,
            "a bound from above only; there is none from below",
        ),
        at_most(
            "the Fisher matrix explains it",
            "D̄ = ½ r² ĝᵀFĝ within a factor exp(√2 r), by which a step of length r can change any ratio of two "
            "probabilities: largest |log(D̄ / ½ r² ĝᵀFĝ)|",
            n,
            factor.max(),
            float(np.sqrt(2) * radius),
            f"the KL spans a factor {c.kl.max() / c.kl.min():.1e}, its ratio to the parabola only "
            f"{np.exp(-factor.max()):.2f} … {np.exp(factor.max()):.2f}",
        ),
    )


def _power(fraction: np.ndarray) -> tuple[float, str]:
    """Power of the step's size in the distance: mean over MDPs, and a description."""
    slopes = 1 + laws.slope(study.SIZES, fraction)
    low, high = np.quantile(slopes, [0.05, 0.95])
    return float(slopes.mean()), f"slope {slopes.mean():.3f} (5 % to 95 %: {low:.2f} … {high:.2f})"


def _invariance_checks(c: study.Compared) -> tuple[Check, ...]:
    n = c.kl.size
    solvable = c.condition <= _CONDITION
    (natural, natural_law), (oracle, oracle_law), (plain, plain_law) = map(_power, (c.natural, c.oracle, c.plain))
    smallest = f"at a size of {study.SIZES[-1]:.2g} a fraction"
    return (
        within(
            "natural gradient, two coordinate systems",
            "NaturalGradient(damping=0) in θ and in φ, θ = h(φ): distance of the two policies ∝ step²; mean "
            "slope in log-log",
            n,
            natural,
            1.95,
            2.05,
            f"{natural_law}; {smallest} {np.median(c.natural[:, -1]):.4f} of the step; F's condition number up to "
            f"{c.condition.max():.0e}",
        ),
        at_most(
            "its coefficient",
            f"distance / step² → ‖½ h''[Δφ, Δφ]‖ for F⁻¹g of unit KL, as a vector, where cond F ≤ {_CONDITION:.0e}",
            int(solvable.sum()),
            c.natural_error[solvable].max(),
            1e-3,
            f"relative error {np.median(c.natural_error[solvable]):.1e} in the median",
        ),
        within(
            "the same by dense algebra",
            "least squares on scores, F = BᵀB and g = Bᵀb, in θ and in φ, all MDPs: distance ∝ step²; mean slope",
            n,
            oracle,
            1.95,
            2.05,
            oracle_law,
        ),
        at_most(
            "natural step of a soft-max table",
            "the library's step gives π̃ ∝ π exp(βA), without being told: distance from it, in fractions of the step",
            n,
            c.advantage_error.max(),
            1e-3,
            f"{np.median(c.advantage_error):.1e} in the median, {c.advantage_error[solvable].max():.1e} at most "
            f"where cond F ≤ {_CONDITION:.0e} ({solvable.sum()} MDPs)",
        ),
        within(
            "plain gradient, two coordinate systems",
            "the gradient, with steps of the same quadratic KL, in θ and in φ: distance ∝ step; mean slope in log-log",
            n,
            plain,
            0.95,
            1.05,
            f"{plain_law}; {smallest} {np.median(c.plain[:, -1]):.2f} of the step, as at every other size",
        ),
        at_most(
            "its coefficient, plain",
            "distance / step → ‖ĝ − JJᵀg‖, both of unit KL, as a vector, in fractions of the step",
            n,
            c.plain_error.max(),
            1e-4,
            f"{np.median(c.plain_error):.1e} in the median",
        ),
    )


def _findings(c: study.Compared) -> tuple[str, ...]:
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
