"""Sampled surrogate, gradient and Fisher products against the exact ones; what importance ratios and γᵗ do."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.importance_sampling.checks import checks, findings
from trpo.theory.claims.importance_sampling.figures import draw
from trpo.theory.claims.importance_sampling.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.problem:sampled_problem",
    "trpo.problem:Batch",
    "trpo.objectives:importance_sampled_surrogate",
    "trpo.fisher:Linearisation.fisher_vp",
    "trpo.distributions.categorical:Categorical.log_prob",
    "trpo.theory.claims.importance_sampling.paths:path_bias",
)
TESTS = (
    "test_claim_importance_sampling.py::test_holds",
    "test_claim_importance_sampling.py::test_weights_dropped_are_noticed",
    "test_claim_importance_sampling.py::test_weights_not_normalised_are_noticed",
    "test_claim_importance_sampling.py::test_ratio_inverted_is_noticed",
    "test_claim_importance_sampling.py::test_ratio_missing_is_noticed",
    "test_claim_importance_sampling.py::test_log_probability_of_the_wrong_action_is_noticed",
    "test_claim_importance_sampling.py::test_fisher_without_weights_is_noticed",
    "test_claim_importance_sampling.py::test_discount_weights_forgotten_are_noticed",
    "test_claim_importance_sampling.py::test_discount_weights_kept_where_dropped_are_noticed",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check sampling, ratios and single paths on at least ``size`` random MDPs; draw into ``figures``, if given."""
    m = measure(size, seed, errors=figures is not None)
    return Outcome(checks(m), findings(m), draw(figures, m))
