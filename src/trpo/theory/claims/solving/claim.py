"""The local problem has a closed-form solution, and truncated conjugate gradient gets close to it at a known rate."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.solving.checks import checks, findings
from trpo.theory.claims.solving.figures import draw
from trpo.theory.claims.solving.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.conjugate_gradient:conjugate_gradient",
    "trpo.rules.step:natural_direction",
    "trpo.rules.step:step_length",
    "trpo.rules.trpo:TRPO.update",
    "trpo.line_search:line_search",
    "trpo.theory.claims.solving.systems:hardest",
)

TESTS = (
    "test_claim_solving.py::test_the_claim_holds",
    "test_claim_solving.py::test_damping_inside_the_step_length_is_found",
    "test_claim_solving.py::test_a_step_length_without_its_factor_is_found",
    "test_claim_solving.py::test_a_wrong_conjugate_gradient_is_found",
    "test_conjugate_gradient.py",
    "test_line_search.py",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the solution, the solver's rate and the rule's step on at least ``size`` random MDPs."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m))
