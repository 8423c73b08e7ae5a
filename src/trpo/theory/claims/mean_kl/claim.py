"""TRPO bounds the mean KL, not the theory's max: what that keeps, what it costs, and how often η falls."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.mean_kl.checks import checks, findings
from trpo.theory.claims.mean_kl.figures import draw
from trpo.theory.claims.mean_kl.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.rules.trpo:TRPO.update",
    "trpo.line_search:line_search",
    "trpo.objectives:mean_kl",
    "trpo.objectives:max_state_kl",
    "trpo.tabular.bridge:exact_problem",
    "trpo.tabular.bounds:theorem_1_kl",
    "trpo.tabular.bounds:average_kl",
)
TESTS = (
    "test_claim_mean_kl.py::test_holds",
    "test_claim_mean_kl.py::test_swapped_kl_is_noticed",
    "test_claim_mean_kl.py::test_dropped_weights_are_noticed",
    "test_claim_mean_kl.py::test_search_that_ignores_the_bound_is_noticed",
    "test_claim_mean_kl.py::test_step_kept_after_rejection_is_noticed",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Walk TRPO through at least ``size`` random MDPs at several δ and judge every step."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m.walks), draw(figures, m))
