"""Verdicts and findings of the claim "from max to mean KL"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.mean_kl.measure import FALL, MEAN, PAPER, SMALL, Study, Walk, Walks
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.arrays import join, stack, take
from trpo.theory.shared.laws import band, slope

ENOUGH = 1500
"""Fewer steps come from so few MDPs that none need lower η, or that one which often does would count for much."""


def checks(study: Study) -> tuple[Check, ...]:
    """Judge both KLs, the laws for small δ, and when η falls."""
    return (*_relations(study.walks), *_orders(study.walks), *_falls(study))


def _relations(study: Walks) -> Iterator[Check]:
    """Check D̄ and D_max in every step with D̄ ≤ δ."""
    parts = []
    for max_kl, w in study.mean.items():
        off = np.maximum(np.abs(w.library_mean - w.mean), np.abs(w.library_max - w.largest))
        violation = np.maximum(w.mean - w.largest, w.least_weight * w.largest - w.mean)
        in_units = (x / max_kl for x in (off[w.accepted], violation.ravel(), w.mean[w.accepted]))
        parts.append((*in_units, ~w.unmoved[~w.accepted]))
    wrong, beyond, share, moved = join(parts)
    paper = study.mean[PAPER]
    ratio = (paper.largest / np.where(paper.moved, paper.mean, 1))[paper.moved]
    attained = np.max(paper.least_weight * paper.largest / np.where(paper.mean > 0, paper.mean, np.inf))
    says = "Both agree with the oracle's Σ_s d_π(s) KL_s and max_s KL_s, in units of δ"
    law = f"rounding: {wrong.max():.0e} at worst, at δ = {MEAN[0]:g}, where each KL is a small difference"
    yield at_most("the library's D̄ and D_max", says, wrong, 1e-8, law)
    says = "Violation of either inequality in any step, in units of δ"
    law = (
        f"D_max/D̄ at δ = {PAPER:g}: median {np.median(ratio):.1f}, 95 % below {np.quantile(ratio, 0.95):.0f}, "
        f"largest {ratio.max():.0f}; it came to {100 * attained:.0f} % of 1/min d_π"
    )
    yield at_most("D̄ ≤ D_max ≤ D̄ / min_s d_π(s)", says, np.maximum(beyond, 0.0), 1e-9, law)
    says = "D̄/δ of every accepted step, by the oracle"
    law = (
        f"median D̄/δ {np.median(study.mean[MEAN[0]].mean / MEAN[0]):.3f} at δ = {MEAN[0]:g}, "
        f"{np.median(paper.mean[0] / PAPER):.3f} at the first step with δ = {PAPER:g}"
    )
    yield at_most("accepted ⇒ D̄ ≤ δ", says, share, 1 + 1e-9, law)
    says = "Rejected steps after which any bit of θ differs"
    law = f"exact: {moved.size} steps were rejected"
    yield at_most("rejected ⇒ θ unchanged", says, int(moved.sum()), 0, law, over=moved)


def _orders(study: Walks) -> Iterator[Check]:
    """Check how gain and error of the first step scale with δ."""
    small = np.array(SMALL)
    first = stack([take(study.mean[max_kl], 0) for max_kl in SMALL])
    # One D̄ for all: what each MDP's line search left of δ differs by a factor near 1.
    gains = slope(small, first.gain / np.sqrt(first.mean / small))
    errors = slope(small, np.abs(first.promised - first.gain) / (first.mean / small))
    off = np.median(np.abs(study.coefficient - 1), axis=1)
    mean, largest = (take(walks[SMALL[-1]], 0) for walks in (study.mean, study.largest))
    shrink = np.sqrt(largest.mean / mean.mean)
    kept = largest.gain / mean.gain / shrink
    says = "η(π̃) − η(π) ∝ δ^slope at the first step, δ = 1e-5 … 1e-3 (median over the MDPs)"
    law = f"slope {np.median(gains):.4f}, 90 % of the MDPs within {band(gains)}"
    yield within("the gain is ∝ √δ", says, np.median(gains), 0.48, 0.52, law, over=gains)
    says = "Δη/√D̄ → √(2 gᵀF⁻¹g) as δ → 0, exact gradient and Fisher matrix (median relative deviation at δ = 1e-5)"
    law = (
        f"deviation {off[0]:.1e}, {off[1]:.1e}, {off[2]:.1e} at δ = 1e-5, 1e-4, 1e-3: "
        f"∝ δ^{float(slope(small, off)):.2f}, as the next order, √δ, demands"
    )
    yield at_most("its coefficient", says, off[0], 0.01, law, over=gains)
    says = "|L_π(π̃) − η(π̃)| ∝ δ^slope at the first step, δ = 1e-5 … 1e-3 (median over the MDPs)"
    law = f"slope {np.median(errors):.4f}, 90 % of the MDPs within {band(errors)}"
    yield within("what the surrogate misses is ∝ δ", says, np.median(errors), 0.97, 1.03, law, over=errors)
    says = "The step shortened to D_max ≤ δ gains √(D̄'/D̄) of what TRPO's gains, D̄' its own mean KL (δ = 1e-3, median)"
    law = (
        f"to first order only the length counts: {np.median(kept):.4f} (90 %: {band(kept, 3)}); "
        f"the median step keeps {100 * np.median(shrink):.0f} % of its length"
    )
    yield within("D_max ≤ δ costs √(D_max/D̄)", says, np.median(kept), 0.99, 1.01, law, over=kept)


def _times(w: Walk) -> float:
    """Return how many times the surrogate's error an accepted first step gains, in the median."""
    first = take(w, (0, w.accepted[0]))
    return 1 / np.median(np.abs(first.promised - first.gain) / first.promised)


def _share_void(w: Walk) -> float:
    """Return the share of accepted steps whose guarantee exceeds what L_π promises, in percent."""
    return 100 * float(np.mean((w.theorem > w.promised)[w.accepted]))


def _used(w: Walk) -> np.ndarray:
    """Return which part of Achiam et al.'s bound was used, where it is more than rounding."""
    real = w.accepted & (w.average > 1e-7)
    return (w.promised - w.gain)[real] / w.average[real]


def _falls(study: Study) -> Iterator[Check]:
    """Check when η falls, and how deep."""
    walks = study.walks.mean
    cautious, paper, wild = (walks[max_kl] for max_kl in (SMALL[1], PAPER, MEAN[-1]))
    enough = paper.gain.size >= ENOUGH
    early = join([take(walks[max_kl], 0).falls for max_kl in SMALL[:2]])
    steps = ", ".join(f"{max_kl:g}" for max_kl in MEAN)
    says = f"First steps from the random policies with δ ≤ {SMALL[1]:g} that lower η"
    law = (
        f"there the gain is {_times(cautious):.0f} times the surrogate's error in the median, "
        f"and {_times(paper):.0f} times at δ = {PAPER:g}"
    )
    yield at_most("small first steps never fall", says, int(early.sum()), 0, law, over=early)
    says = f"Share of the accepted steps of whole paths that lower η at δ = {SMALL[1]:g}"
    law = f"{', '.join(f'{100 * w.falls.mean():.3g} %' for w in walks.values())} of the steps at δ = {steps}"
    most = 1e-3 if enough else 1e-2
    yield at_most("falls vanish with δ", says, cautious.falls.mean(), most, law, over=cautious.falls)
    if enough:
        # Fewer steps need not contain a fall.
        depths = ", ".join(f"{max(-w.gain.min(), 0):.1g}" for w in walks.values())
        says = f"Accepted steps with δ = {MEAN[-1]:g} that lower η: the check above can see a fall"
        law = f"the deepest fall is {depths} of the first gap at δ = {steps}"
        yield at_least("large δ: η does fall", says, int(wild.falls.sum()), 1, law, over=wild.falls)
    says = f"Share of accepted steps at δ = {PAPER:g} that do not lower η"
    law = (
        f"in {_share_void(paper):.2f} % of them 4εγ/(1−γ)² D_max exceeds L_π(π̃) − η(π), so the theory promises nothing"
    )
    least = 0.99 if enough else 0.9
    yield at_least("improvement without a guarantee", says, 1 - paper.falls.mean(), least, law, over=paper.falls)
    used = join([_used(w) for w in walks.values()])
    says = "(L_π(π̃) − η(π̃)) / (2ε_π̃γ/(1−γ)² √(D̄/2)) in every accepted step (Achiam et al. 2017, corollary 3)"
    law = f"a proved bound, so ≤ 1 must hold: largest {used.max():.3f}, median {np.median(used):.4f}"
    yield at_most("no fall beyond the bound in D̄", says, used, 1.0, law)
    error = study.walks.theory_error.ravel()
    says = "The bounds used here equal `trpo.tabular.bounds` (relative difference at first steps)"
    yield at_most("the same bounds", says, error, 1e-6, f"rounding: {error.max():.0e}")
    table = join([np.maximum(-w.gain, 0.0).ravel() for w in study.table.values()])
    state = min(w.worst_state.min() for w in study.table.values())
    says = "Deepest fall of η with a logit for every (s, a), δ = 0.01, 0.1 and 1, in units of the first gap"
    law = f"rounding: {table.max():.0e}; min_s Σ_a π̃ A_π ≥ {state:.0e} of max |A_π|, so every state improves"
    yield at_most("a complete table never falls", says, table, FALL, law)


def findings(study: Walks) -> tuple[str, ...]:
    """Say how much is gained and lost, in units of the gap."""
    paper, cautious, matched = study.mean[PAPER], study.largest[PAPER], study.largest[1e-1]
    first, falling = take(paper, 0), paper.accepted & (paper.gain < -FALL)
    promised = np.median(paper.promised[falling]) if falling.any() else 0
    depth = max(float(-w.gain.min()) / max_kl for max_kl, w in study.mean.items())
    closed = {max_kl: _closed(w) for max_kl, w in study.mean.items()}
    return (
        f"At δ = {PAPER:g} the first step gains {np.median(first.gain):.3f} of the gap in the median, the surrogate "
        f"errs by {np.median(np.abs(first.promised - first.gain)):.1g}, and the theorem allows an error of "
        f"{np.median(first.theorem):.2g}, all in units of the gap.",
        f"The {int(falling.sum())} steps that lower η at δ = {PAPER:g} were promised {promised:.1g} of the gap in the "
        f"median, all first steps {np.median(first.promised):.1g}: they are near stationary points. The deepest fall "
        f"at any δ is {max(depth, 0):.2g} δ, in units of the gap.",
        f"Even at δ = {MEAN[0]:g} the theorem promises nothing about {_share_void(study.mean[MEAN[0]]):.0f} % of "
        "the steps.",
        f"{paper.gain.shape[0]} steps close {closed[1e-4]:.0f} %, {closed[1e-3]:.0f} %, {closed[PAPER]:.0f} % and "
        f"{closed[1e-1]:.0f} % of the gap to the best policy of any kind at δ = 1e-4, 1e-3, 0.01 and 0.1, on average "
        "over the MDPs.",
        f"With D_max ≤ {PAPER:g} they close {_closed(cautious):.0f} %, and {100 * cautious.falls.mean():.2f} % of the "
        f"steps lower η, against {closed[PAPER]:.0f} % and {100 * paper.falls.mean():.2f} % with D̄ ≤ {PAPER:g}; with "
        f"D_max ≤ 0.1, {_closed(matched):.0f} % and {100 * matched.falls.mean():.2f} %.",
    )


def _closed(w: Walk) -> float:
    """Return the share of the gap that is closed at last, in percent."""
    return 100 * (1 - w.gap[-1].mean())
