"""The surrogate matches the return in value and gradient; what it misses is of second order, and known."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.surrogate.checks import checks, findings
from trpo.theory.claims.surrogate.figures import draw
from trpo.theory.claims.surrogate.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.tabular.bridge:exact_problem",
    "trpo.tabular.bridge:expected_surrogate",
    "trpo.problem:LocalProblem.linearise",
    "trpo.problem:sampled_problem",
    "trpo.objectives:importance_sampled_surrogate",
    "trpo.tabular.exact:surrogate",
    "trpo.tabular.exact:policy_gradient",
)
TESTS = (
    "test_claim_surrogate.py::test_holds",
    "test_claim_surrogate.py::test_uniform_weights_are_noticed",
    "test_claim_surrogate.py::test_unnormalised_visitation_is_noticed",
    "test_claim_surrogate.py::test_action_values_for_advantages_are_noticed",
    "test_claim_surrogate.py::test_rewards_for_advantages_are_noticed",
    "test_claim_surrogate.py::test_importance_ratio_dropped_is_noticed",
    "test_claim_surrogate.py::test_log_probability_for_ratio_is_noticed",
    "test_claim_surrogate.py::test_wrong_coefficient_is_noticed",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check value, gradient and second order of L_π on at least ``size`` random MDPs; draw into ``figures``."""
    study, line = measure(size, seed)
    return Outcome(checks(study), findings(study), draw(figures, study, *line))
