"""Verdicts on the performance-difference identity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.performance_difference.measure import PATHS, Sides, Study
from trpo.theory.records import Check, at_most, within
from trpo.theory.shared.laws import rounding
from trpo.theory.shared.noise import interval_check, noise_checks


def checks(study: Study) -> tuple[Check, ...]:
    """Check the identity by linear algebra and by simulation."""
    s = study.simulated
    return (
        *_exact(study),
        *noise_checks("simulated", "the mean over N paths", s.noise, "E_π̃[Σ_t γᵗ A_π(s_t, a_t)] = η(π̃) − η(π)"),
        interval_check(PATHS, s.mean, s.deviation, s.moments, s.change),
    )


def _exact(study: Study) -> Iterator[Check]:
    sides, single, named = study.sides, study.single, study.named
    ratio = float(single.error.mean() / sides.error.mean()) if np.any(sides.error) else np.nan
    statement = (
        "|η(π̃) − η(π) − Σ_s ρ_π̃(s) Σ_a π̃(a|s) A_π(s, a)| relative to max|r|/(1 − γ), the largest return possible"
    )
    yield at_most("identity, random MDPs", statement, sides.error, 1e-12, rounding(sides.error))
    says = f"{statement}; chain, cliff and grid with random policies"
    yield at_most("identity, named MDPs", says, named.error, 1e-12, rounding(named.error))
    says = "Mean residual in single precision / in double precision ≈ 2²⁹, the ratio of the two roundings (log₂)"
    law = f"residual ∝ rounding: ratio 2^{np.log2(ratio):.2f}; mean {single.error.mean():.1e} in single precision"
    yield within("residual is rounding", says, np.log2(ratio), 26, 32, law, over=sides.error)


def findings(sides: Sides) -> tuple[str, ...]:
    """Say what ρ_π in place of ρ_π̃ costs, and how exact the identity is relative to the change itself."""
    off = np.abs(sides.surrogate - sides.change)
    share = off[sides.change != 0] / np.abs(sides.change)[sides.change != 0]
    wrong = 100 * np.mean(sides.surrogate * sides.change < 0)
    return (
        f"With ρ_π in place of ρ_π̃ the change of the return between two unrelated random policies is off by "
        f"{100 * np.median(share):.0f} % in the median, and has the wrong sign in {wrong:.0f} % of {sides.change.size} "
        "pairs: L_π is a statement about policies that are close, nothing more.",
        f"Relative to |η(π̃) − η(π)| itself, which may be small by cancellation, the identity holds to "
        f"{np.max((sides.error * sides.scale)[sides.change != 0] / np.abs(sides.change)[sides.change != 0]):.0e} at "
        "worst.",
    )
