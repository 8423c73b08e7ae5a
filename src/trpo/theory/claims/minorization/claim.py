"""Climbing the lower bound itself: it touches η at π, so its maximum cannot be worse than π."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.minorization.checks import checks, findings
from trpo.theory.claims.minorization.figures import draw
from trpo.theory.claims.minorization.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.rules.mm:MM.update",
    "trpo.rules.mm:MM._log_ratio",
    "trpo.tabular.bounds:lower_bound",
    "trpo.theory.claims.minorization.duality:suboptimality",
)
TESTS = (
    "test_claim_minorization.py::test_holds",
    "test_claim_minorization.py::test_a_penalty_of_first_order_is_noticed",
    "test_claim_minorization.py::test_too_small_a_constant_is_noticed",
    "test_claim_minorization.py::test_the_other_direction_of_the_kl_is_noticed",
    "test_claim_minorization.py::test_a_missing_penalty_is_noticed",
    "test_claim_minorization.py::test_another_step_is_noticed",
    "test_claim_minorization.py::test_the_hard_mdps_are_as_hard_as_they_claim",
    "test_mm.py::test_the_maximiser_is_that_of_scipy",
    "test_mm.py::test_it_never_decreases_the_return",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check that the bound touches η, that MM finds its maximum, and that η then never falls."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m))
