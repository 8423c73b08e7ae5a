"""Several updates on one batch: how far they may go together, and what they gain."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.sample_reuse.checks import checks, findings
from trpo.theory.claims.sample_reuse.figures import draw
from trpo.theory.claims.sample_reuse.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.training.learner:improve",
    "trpo.training.learner:_updates",
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


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Reuse batches of ``size`` random MDPs."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m.cells))
