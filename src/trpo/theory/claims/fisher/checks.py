"""Verdicts on the Fisher matrix and the KL's series."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.fisher.measure import SMALL, STEPS, WAYS, Part, Series, coins, fisher_error, library_kl
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared import laws
from trpo.theory.shared.arrays import join

_DIGITS = 1e-6
"""For extrapolated coefficients: logits of size 30 are rounded at 4e-15, which division by t² and the extrapolation
magnify by 1e7 or so. A wrong coefficient would be wrong by a good part of 1."""


def _slope(remainder: np.ndarray) -> float:
    """The power of t in the root mean square over MDPs; one MDP's coefficient may vanish, that of all cannot."""
    return float(laws.slope(STEPS[SMALL], laws.rms(remainder[:, SMALL], axis=0)))


def checks(parts: list[Part], s: Series) -> Iterator[Check]:
    """Hold matrices, remainders and coefficients against the theory's."""
    error = join([fisher_error(part) for part in parts])
    start = join([np.abs(part.measured.start) for part in parts])
    by_way = ", ".join(f"{way} {worst:.1f}" for way, worst in zip(WAYS, error.max(axis=0), strict=True))
    cubic, gap = np.abs(s.forward - s.kappa), np.abs(s.backward - 2 * s.kappa)
    slopes = {name: _slope(getattr(s, name)) for name in ("cubic", "quartic", "gap")}
    _, coin_error, ratio = coins()
    says = (
        "E[score scoreᵀ] from its definition = library products on all basis vectors = scores of log_prob = "
        "∇²D̄(θ_old), entry by entry; in units of rounding, ε d(s)√(π(a|s) π(b|s)) / (1 − γ)"
    )
    yield at_most("F in six ways", says, error, 64, f"rounding; largest by way: {by_way}")
    says = "D̄(θ_old) = 0, max_s KL = 0 and ∇D̄(θ_old) = 0"
    law = f"rounding: D̄ {start[:, 0].max():.1e}, max_s KL {start[:, 1].max():.1e}, ∇D̄ {start[:, 2].max():.1e}"
    yield at_most("flat at θ_old", says, start, np.finfo(float).eps, law)
    says = (
        "∇D̄(θ_old + tΔ) = t F Δ + ½ t² d(s) π(a|s) [(Δ_sa − EΔ)² − κ₂(s)] + O(t³): the error of the t² "
        "coefficient, extrapolated to t → 0, in units of Σ_s d(s) max_a Δ²"
    )
    law = f"coefficient of t² exact to {s.gradient.max():.1e} (median {np.median(s.gradient):.1e})"
    yield at_most("slope of the KL nearby", says, s.gradient, _DIGITS, law)
    says = "D̄(θ_old, θ_old + tΔ) − ½ t² ΔᵀFΔ = O(t³): slope in log-log of the root mean square over MDPs"
    law = f"slope {slopes['cubic']:.4f}; {slopes['quartic']:.4f} after the third cumulant is taken off as well"
    yield within("the remainder is cubic", says, slopes["cubic"], 2.97, 3.03, law, over=s.cubic)
    says = "[D̄ − ½ t² ΔᵀFΔ] / t³ → Σ_s d(s) κ₃(s)/6, sign included, in units of ΔᵀFΔ/6"
    law = f"agrees to {cubic.max():.1e} (median {np.median(cubic):.1e})"
    yield at_most("its coefficient", says, cubic, _DIGITS, law)
    says = "KL(π_new ‖ π_old) has the same parabola and cubic coefficient Σ_s d(s) κ₃(s)/3, in the same units"
    law = f"agrees to {gap.max():.1e}; the directions differ by slope {slopes['gap']:.4f} in log-log"
    yield at_most("the other direction", says, gap, _DIGITS, law)
    says = (
        "KL((½, ½) ‖ (1 − q, q)) = ½ log 1/(4q(1 − q)), and back log 2 + q log q + (1 − q) log(1 − q): relative error"
    )
    law = f"ratio of the directions from {ratio[0]:.2f} at q = 0.1 to {ratio[-1]:.1f} at 1e-12: it grows as log 1/q"
    yield at_most("a fair coin and an unfair one", says, coin_error, 1e-14, law)
    says = "largest ratio of the two directions among the coins: far from each other they are different distances"
    yield at_least("directions that disagree", says, ratio.max(), 10, "½ log(1/4q) / log 2: no bound", over=ratio)


def findings(parts: list[Part]) -> tuple[str, ...]:
    """How different the two directions are between unrelated policies, and how far the parabola can be trusted."""
    ratios, used = [], []
    for part in parts:
        pair = part.group.logits, part.group.other_logits
        there, back = ((part.weight * kl).sum(axis=-1) for kl in (library_kl(*pair), library_kl(*pair[::-1])))
        apart = there > 1e-3
        ratios.append(np.maximum(there, back)[apart] / np.minimum(there, back)[apart])
        used.append(part.measured.forward[:, 0] / (0.5 * part.measured.curvature * STEPS[0] ** 2))
    ratio, measured = join(ratios), join(used)
    low, high = np.quantile(measured, [0.05, 0.95])
    return (
        f"Between two unrelated random policies the larger direction of the mean KL exceeds the smaller one by a "
        f"factor of {np.median(ratio):.2f} in the median and {ratio.max():.0f} at most ({ratio.size} pairs).",
        f"At t = {STEPS[0]:g} the mean KL is {low:.2f} to {high:.2f} of its parabola in 90 % of the MDPs "
        f"({measured.min():.2f} to {measured.max():.2f} in all): a step that the parabola puts on the boundary may "
        "leave the trust region, hence the line search.",
    )
