"""Several updates on one batch: how far they may go together, and what they gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims._sample_reuse import ANCHORED, ENDS
from trpo.theory.claims._sample_reuse_cells import BATCHES, PAIRED, Measured, measure
from trpo.theory.claims._sample_reuse_checks import (
    aim,
    anchor_checks,
    effect,
    extra,
    law_checks,
    lowered,
    paired_checks,
    trust_region_checks,
)
from trpo.theory.claims._sample_reuse_figures import draw
from trpo.theory.records import Outcome

TITLE = "Sample reuse"

EXPLANATION = """
Samples are dear, so one batch may serve several updates. The question is what "within δ" means then. In this library
the ratios and the KL of every update are taken against the policy that *sampled* the batch, and the k-th of K updates
may use k/K of δ (eq. 14, with θ_old fixed):

    maximise Σ_i w_i [π_θ(a_i|s_i) / π_old(a_i|s_i)] Â_i   subject to   D̄(θ_old, θ) ≤ (k/K) δ,   k = 1, …, K

So the K updates solve one problem more accurately, they don't solve K problems. One update linearises L and takes D̄ for
a parabola, which leaves three errors: the step ends short of the boundary or is cut back because it went beyond it; it
does not turn where the gradient turns; and noise in Â is followed like signal. Reuse can mend the first two, never the
third. The tempting alternative is to re-anchor, to measure the KL of each update from the policy that the
previous one left. Each update then keeps its own δ, but distances √D̄ add up along a straight path:

    D̄(θ_old, θ_K) ≈ K² δ

while the states and the ratios are still those of the sampling policy. Eight updates go to 64 δ and beyond.

For a table of logits everything has a closed form. The natural gradient of L is A itself (up to a constant for each
state) at *every* θ_k, not only at θ_old, so all updates lie on one line, π exp(tA) normalised, and K only
decides how far they get. With the cumulants κ₂ = Σ_s d(s) E[A²] and κ₃ = Σ_s d(s) E[A³], and t = √(2δ/κ₂), the
last update leaves

    1 − D̄/δ → −κ₃ t³/(6δ) · (1 − √(1 − 1/K))³      (κ₃ < 0; for κ₃ > 0 the step overshoots and is cut back)

of the region unused, which falls as K⁻³. The best policy within D̄ ≤ δ is another curve, π̃ = π/(u(λ_s − A)), with one u
for all states and λ_s to make probabilities sum to 1. What no K can add is then, relative to the gain of L,

    δ · (Σ_s d(s) Var(A²) − κ₃²/κ₂) / (4κ₂²)

Policies that share parameters between states do turn: there eight updates also aim anew. The claim separates
the two by following the first update's direction exactly to D̄ = δ.

What was found: within a cumulative δ the second update adds one to three per cent of what the linear model promises,
on exact problems and on large batches; further ones add little, and a batch of 16 gains hardly more from eight than
from two. Re-anchored updates gain more on average here,
for the plain reason that δ = 0.1 is cautious for such small MDPs and they go much further; a larger δ would do the same
and say so. The price is risk: they turn more small batches into a loss. The promise of the bound is gone, since the KL
that is reported has nothing to do with the distance from the policy that was measured.

Policies here are of moderate sharpness (logits of standard deviation up to 2). States are drawn from d_π, actions
from π, independently, and advantages carry normal noise with the exact standard deviation of a one-sample return. The
figure shows the true gain of one batch (left), the distance from the sampling policy (middle) and how often a batch
lowers η (right), for K updates within δ (solid) and re-anchored (dashed).
"""

CODE = (
    "trpo.training.learner:improve",
    "trpo.rules.repeated:Repeated.update",
    "trpo.rules.trpo:TRPO.update",
    "trpo.rules.step:step_length",
    "trpo.problem:LocalModel.kl_gradient",
    "trpo.problem:sampled_problem",
)

TESTS = (
    "test_claim_sample_reuse.py::test_the_claim_holds",
    "test_claim_sample_reuse.py::test_a_moving_anchor_is_found",
    "test_claim_sample_reuse.py::test_ratios_to_the_present_policy_are_found",
    "test_claim_sample_reuse.py::test_a_swapped_kl_is_found",
    "test_claim_sample_reuse.py::test_a_budget_of_k_deltas_is_found",
)


def _findings(m: Measured) -> tuple[str, ...]:
    def gains(samples: int, kind: str = "shared", columns: np.ndarray = ENDS) -> str:
        mean = m.cells[kind, samples, PAIRED[1]].gain[:, columns].mean(axis=0)
        return ", ".join(f"{v:.3f}" for v in mean)

    small, exactly = m.cells["shared", BATCHES[0], PAIRED[1]], m.cells["shared", 0, PAIRED[1]]
    little, longer = effect(extra(small, 8) - extra(small, 2)), exactly.line - exactly.gain[:, ENDS[0]]
    harmed = [
        ", ".join(
            f"{100 * np.mean([lowered(m.cells[k, b, PAIRED[1]], u) for k in ('table', 'shared')]):.0f} %"
            for b in BATCHES
        )
        for u in (ENDS[0], ENDS[-1], ANCHORED[-1])
    ]
    return (
        f"Mean gain of η within δ = 0.1, shared parameters, K = 1, 2, 4, 8: {gains(0)} of the promise exactly, "
        f"{gains(BATCHES[-1])} with {BATCHES[-1]} samples, {gains(BATCHES[0])} with {BATCHES[0]}.",
        f"Of the {np.mean(extra(exactly, 8)):.3f} that K = 8 adds exactly, {longer.mean():.3f} come from filling the "
        f"trust region and {np.mean(aim(exactly)):.3f} from aiming anew.",
        f"With {BATCHES[0]} samples the updates after the second add {little[0]:+.4f} ± {little[1]:.4f}.",
        f"Re-anchored, K = 1, 2, 4, 8 gain {gains(0, columns=ANCHORED)} exactly and "
        f"{gains(BATCHES[0], columns=ANCHORED)} with {BATCHES[0]} samples: more on average, on these small MDPs, for a "
        "KL that is tens of times δ. A larger δ would have done so too: on a table's straight line it is the same.",
        f"Batches of {', '.join(map(str, BATCHES))} samples that lower η at δ = 0.1: {harmed[0]} after one update, "
        f"{harmed[1]} after eight within δ, {harmed[2]} after eight re-anchored ones.",
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Reuse batches of ``size`` random MDPs."""
    m = measure(size, seed)
    checks = (*trust_region_checks(m), *law_checks(m), *anchor_checks(m), *paired_checks(m))
    return Outcome(checks, _findings(m), () if figures is None else (draw(figures, m.cells, BATCHES, PAIRED[1]),))
