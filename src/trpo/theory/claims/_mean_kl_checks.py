"""Verdicts of the claim "from max to mean KL"."""

from __future__ import annotations

import numpy as np

from trpo.theory.claims._mean_kl import MEAN, PAPER, SMALL, Study, Walk
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.laws import slope

FALL = 1e-9
"""η is lowered if it falls by more than this, in units of the first gap."""

ENOUGH = 1500
"""Fewer steps come from so few MDPs that none need lower η, or that one which often does would count for much."""


def relation_checks(study: Study) -> list[Check]:
    """Check D̄ and D_max in every step with D̄ ≤ δ."""
    steps = sum(w.accepted.size for w in study.mean.values())
    taken = sum(int(w.accepted.sum()) for w in study.mean.values())
    rejected = steps - taken
    wrong = max(
        float(np.max(np.abs(np.stack([w.library_mean - w.mean, w.library_max - w.largest])[:, w.accepted]) / max_kl))
        for max_kl, w in study.mean.items()
    )
    beyond = max(
        float(np.max(np.maximum(w.mean - w.largest, w.least_weight * w.largest - w.mean) / max_kl))
        for max_kl, w in study.mean.items()
    )
    share = max(float(np.max(w.mean[w.accepted] / max_kl)) for max_kl, w in study.mean.items())
    ratio = _ratio(study.mean[PAPER])
    attained = np.max((w := study.mean[PAPER]).least_weight * w.largest / np.where(w.mean > 0, w.mean, np.inf))
    moved = sum(int((~w.unmoved & ~w.accepted).sum()) for w in study.mean.values())
    return [
        at_most(
            "the library's D̄ and D_max",
            "Both agree with the oracle's Σ_s d_π(s) KL_s and max_s KL_s, in units of δ",
            taken,
            wrong,
            1e-8,
            f"rounding: {wrong:.0e} at worst, at δ = {MEAN[0]:g}, where each KL is a small difference",
        ),
        at_most(
            "D̄ ≤ D_max ≤ D̄ / min_s d_π(s)",
            "Violation of either inequality in any step, in units of δ",
            steps,
            max(beyond, 0.0),
            1e-9,
            f"D_max/D̄ at δ = {PAPER:g}: median {np.median(ratio):.1f}, 95 % below {np.quantile(ratio, 0.95):.0f}, "
            f"largest {ratio.max():.0f}; it came to {100 * attained:.0f} % of 1/min d_π",
        ),
        at_most(
            "accepted ⇒ D̄ ≤ δ",
            "D̄/δ of every accepted step, by the oracle",
            taken,
            share,
            1 + 1e-9,
            f"median D̄/δ {np.median(study.mean[MEAN[0]].mean / MEAN[0]):.3f} at δ = {MEAN[0]:g}, "
            f"{np.median(study.mean[PAPER].mean[0] / PAPER):.3f} at the first step with δ = {PAPER:g}",
        ),
        at_most(
            "rejected ⇒ θ unchanged",
            "Rejected steps after which any bit of θ differs",
            rejected,
            moved,
            0,
            f"exact: {rejected} steps were rejected",
        ),
    ]


def _ratio(w: Walk) -> np.ndarray:
    """Return D_max/D̄ of accepted steps that are not lost in rounding."""
    real = w.accepted & (w.mean > 1e-10)
    return w.largest[real] / w.mean[real]


def order_checks(study: Study) -> list[Check]:
    """Check how gain and error of the first step scale with δ."""
    first = [study.mean[max_kl].select(0) for max_kl in SMALL]
    mean = np.stack([w.mean for w in first], axis=-1)
    gain = np.stack([w.gain for w in first], axis=-1)
    error = np.stack([np.abs(w.promised - w.gain) for w in first], axis=-1)
    # One D̄ for all: what each MDP's line search left of δ differs by a factor near 1.
    gains = slope(np.array(SMALL), gain / np.sqrt(mean / SMALL))
    errors = slope(np.array(SMALL), error / (mean / SMALL))
    off = np.median([np.abs(study.coefficient[max_kl] - 1) for max_kl in SMALL], axis=1)
    approach = float(slope(np.array(SMALL), off))
    both = [study.mean[SMALL[-1]].select(0), study.largest[SMALL[-1]].select(0)]
    shrink = np.sqrt(both[1].mean / both[0].mean)
    law = both[1].gain / both[0].gain / shrink
    cases = gain.shape[0]
    return [
        within(
            "the gain is ∝ √δ",
            "η(π̃) − η(π) ∝ δ^slope at the first step, δ = 1e-5 … 1e-3 (median over the MDPs)",
            cases,
            float(np.median(gains)),
            0.48,
            0.52,
            f"slope {np.median(gains):.4f}, 90 % of the MDPs within {np.quantile(gains, 0.05):.2f} … "
            f"{np.quantile(gains, 0.95):.2f}",
        ),
        at_most(
            "its coefficient",
            "Δη/√D̄ → √(2 gᵀF⁻¹g) as δ → 0, exact gradient and Fisher matrix (median relative deviation at δ = 1e-5)",
            cases,
            off[0],
            0.01,
            f"deviation {off[0]:.1e}, {off[1]:.1e}, {off[2]:.1e} at δ = 1e-5, 1e-4, 1e-3: ∝ δ^{approach:.2f}, as the "
            "next order, √δ, demands",
        ),
        within(
            "what the surrogate misses is ∝ δ",
            "|L_π(π̃) − η(π̃)| ∝ δ^slope at the first step, δ = 1e-5 … 1e-3 (median over the MDPs)",
            cases,
            float(np.median(errors)),
            0.97,
            1.03,
            f"slope {np.median(errors):.4f}, 90 % of the MDPs within {np.quantile(errors, 0.05):.2f} … "
            f"{np.quantile(errors, 0.95):.2f}",
        ),
        within(
            "D_max ≤ δ costs √(D_max/D̄)",
            "The step shortened to D_max ≤ δ gains √(D̄'/D̄) of what TRPO's gains, D̄' its own mean KL (δ = 1e-3, median)",
            cases,
            float(np.median(law)),
            0.99,
            1.01,
            f"to first order only the length counts: {np.median(law):.4f} (90 %: {np.quantile(law, 0.05):.3f} … "
            f"{np.quantile(law, 0.95):.3f}); the median step keeps {100 * np.median(shrink):.0f} % of its length",
        ),
    ]


def share_that_falls(w: Walk) -> float:
    """Return the share of accepted steps that lower η."""
    return float(np.mean(w.gain[w.accepted] < -FALL))


def _error_share(w: Walk) -> np.ndarray:
    """Return |L_π(π̃) − η(π̃)| / (L_π(π̃) − η(π)) of accepted first steps."""
    first = w.select((0, w.accepted[0]))
    return np.abs(first.promised - first.gain) / first.promised


def share_void(w: Walk) -> float:
    """Return the share of accepted steps whose guarantee exceeds what L_π promises."""
    return float(np.mean((w.theorem > w.promised)[w.accepted]))


def _control(wild: Walk, depths: str, steps: str) -> list[Check]:
    """Check that falls can be seen, if there are enough steps to expect one."""
    if wild.gain.size < ENOUGH:
        return []
    return [
        at_least(
            "large δ: η does fall",
            f"Accepted steps with δ = {MEAN[-1]:g} that lower η: the check above can see a fall",
            int(wild.accepted.sum()),
            int((wild.gain < -FALL).sum()),
            1,
            f"the deepest fall is {depths} of the first gap at δ = {steps}",
        )
    ]


def fall_checks(study: Study) -> list[Check]:
    """Check when η falls, and how deep."""
    small = [study.mean[max_kl] for max_kl in SMALL[:2]]
    paper, wild = study.mean[PAPER], study.mean[MEAN[-1]]
    void = share_void(paper)
    used = np.concatenate([_used(w) for w in study.mean.values()])
    table_falls = [w.gain.min() for w in study.table.values()]
    table_state = min(w.worst_state.min() for w in study.table.values())
    shares = ", ".join(f"{100 * share_that_falls(w):.3g} %" for w in study.mean.values())
    depths = ", ".join(f"{max(-w.gain.min(), 0):.1g}" for w in study.mean.values())
    steps = ", ".join(f"{max_kl:g}" for max_kl in MEAN)
    return [
        at_most(
            "small first steps never fall",
            f"First steps from the random policies with δ ≤ {SMALL[1]:g} that lower η",
            sum(int(w.accepted[0].sum()) for w in small),
            sum(int((w.gain[0] < -FALL).sum()) for w in small),
            0,
            f"there the gain is {1 / np.median(_error_share(small[1])):.0f} times the surrogate's error in the median, "
            f"and {1 / np.median(_error_share(paper)):.0f} times at δ = {PAPER:g}",
        ),
        at_most(
            "falls vanish with δ",
            f"Share of the accepted steps of whole paths that lower η at δ = {SMALL[1]:g}",
            int(small[1].accepted.sum()),
            share_that_falls(small[1]),
            1e-3 if paper.gain.size >= ENOUGH else 1e-2,
            f"{shares} of the steps at δ = {steps}",
        ),
        *_control(wild, depths, steps),
        at_least(
            "improvement without a guarantee",
            f"Share of accepted steps at δ = {PAPER:g} that do not lower η",
            int(paper.accepted.sum()),
            1 - share_that_falls(paper),
            0.99 if paper.gain.size >= ENOUGH else 0.9,
            f"in {100 * void:.2f} % of them 4εγ/(1−γ)² D_max exceeds L_π(π̃) − η(π), so the theory promises nothing",
        ),
        at_most(
            "no fall beyond the bound in D̄",
            "(L_π(π̃) − η(π̃)) / (2ε_π̃γ/(1−γ)² √(D̄/2)) in every accepted step (Achiam et al. 2017, corollary 3)",
            used.size,
            used.max(),
            1.0,
            f"a proved bound, so ≤ 1 must hold: largest {used.max():.3f}, median {np.median(used):.4f}",
        ),
        at_most(
            "the same bounds",
            "The bounds used here equal `trpo.tabular.bounds` (relative difference at first steps)",
            sum(w.gain.shape[1] for w in study.mean.values()),
            study.theory_error,
            1e-6,
            f"rounding: {study.theory_error:.0e}",
        ),
        at_most(
            "a complete table never falls",
            "Deepest fall of η with a logit for every (s, a), δ = 0.01, 0.1 and 1, in units of the first gap",
            sum(w.gain.size for w in study.table.values()),
            max(0.0, -min(table_falls)),
            FALL,
            f"rounding: {max(0.0, -min(table_falls)):.0e}; min_s Σ_a π̃ A_π ≥ {table_state:.0e} of max |A_π|, so every "
            "state improves",
        ),
    ]


def _used(w: Walk) -> np.ndarray:
    """Return which part of Achiam et al.'s bound was used, where it is more than rounding."""
    real = w.accepted & (w.average > 1e-7)
    return (w.promised - w.gain)[real] / w.average[real]
