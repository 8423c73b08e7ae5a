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
TODO
"""

CODE = (
    "trpo.learner:improve",
    "trpo.learner:_updates",
    "trpo.rules.trpo:TRPO.update",
    "trpo.rules._step:step_length",
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

    small, aim = m.cells["shared", BATCHES[0], PAIRED[1]], m.cells["shared", 0, PAIRED[1]]
    little, longer = effect(extra(small, 8) - extra(small, 2)), aim.line - aim.gain[:, ENDS[0]]
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
        f"Of the {np.mean(extra(aim, 8)):.3f} that K = 8 adds exactly, {longer.mean():.3f} come from filling the "
        f"trust region and {np.mean(aim(aim)):.3f} from aiming anew.",
        f"With {BATCHES[0]} samples the updates after the second add {little[0]:+.4f} ± {little[1]:.4f}.",
        f"Re-anchored, K = 1, 2, 4, 8 gain {gains(0, columns=ANCHORED)} exactly and "
        f"{gains(BATCHES[0], columns=ANCHORED)} with {BATCHES[0]} samples: more on average, on these small MDPs, for a KL "
        "that is tens of times δ. A larger δ would have done so too: on a table's straight line it is the very same.",
        f"Batches of {', '.join(map(str, BATCHES))} samples that lower η at δ = 0.1: {harmed[0]} after one update, "
        f"{harmed[1]} after eight within δ, {harmed[2]} after eight re-anchored ones.",
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Reuse batches of ``size`` random MDPs."""
    m = measure(size, seed)
    checks = (*trust_region_checks(m), *law_checks(m), *anchor_checks(m), *paired_checks(m))
    return Outcome(checks, _findings(m), () if figures is None else (draw(figures, m.cells, BATCHES, PAIRED[1]),))
