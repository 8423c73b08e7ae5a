"""The identity that compares two policies: exactly, in rounding error only, and along simulated paths."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.performance_difference.checks import checks, findings
from trpo.theory.claims.performance_difference.figures import draw
from trpo.theory.claims.performance_difference.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.tabular.exact:performance_difference",
    "trpo.tabular.exact:visitation",
    "trpo.tabular.exact:advantage",
    "trpo.theory.shared.paths:geometric_sums",
    "trpo.theory.shared.paths:geometric_moments",
)
TESTS = (
    "test_claim_performance_difference.py::test_holds",
    "test_claim_performance_difference.py::test_wrong_visitation_is_noticed",
    "test_claim_performance_difference.py::test_visitation_without_start_is_noticed",
    "test_claim_performance_difference.py::test_values_in_place_of_action_values_are_noticed",
    "test_claim_performance_difference.py::test_exact_moments_are_those_of_the_simulation",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the identity on at least ``size`` random MDPs; draw its figures into ``figures``, if given."""
    study = measure(size, seed)
    return Outcome(checks(study), findings(study.sides), draw(figures, study))
