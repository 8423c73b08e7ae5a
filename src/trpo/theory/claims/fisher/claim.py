"""The mean KL's second derivative is the Fisher matrix, and nothing of lower order is left."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.fisher.checks import checks, findings
from trpo.theory.claims.fisher.figures import draw
from trpo.theory.claims.fisher.measure import compare, measure
from trpo.theory.records import Outcome
from trpo.theory.shared.arrays import join

CODE = (
    "trpo.fisher:fisher_vp",
    "trpo.fisher:Linearisation.fisher_vp",
    "trpo.problem:LocalModel.kl_along",
    "trpo.objectives:mean_kl",
    "trpo.distributions.categorical:Categorical.fisher_product",
    "trpo.distributions.categorical:Categorical.kl_to",
    "trpo.tabular.exact:fisher",
)

TESTS = (
    "test_claim_fisher.py::test_the_claim_holds",
    "test_claim_fisher.py::test_a_swapped_kl_is_found",
    "test_claim_fisher.py::test_lost_visitation_weights_are_found",
    "test_claim_fisher.py::test_a_fisher_product_without_its_mean_is_found",
    "test_fisher.py::test_product_is_the_dense_hessian_of_the_mean_kl",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Compare library, definition and derivatives on ``size`` random MDPs."""
    parts = measure(size, seed)
    series = join([compare(part) for part in parts])
    return Outcome(tuple(checks(parts, series)), findings(parts), draw(figures, series))
