"""L_π(π̃) minus a penalty never exceeds η(π̃): on random pairs, and on pairs that an optimiser picks against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims.lower_bound.checks import checks, findings
from trpo.theory.claims.lower_bound.figures import draw
from trpo.theory.claims.lower_bound.measure import measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.tabular.bounds:theorem_1",
    "trpo.tabular.bounds:theorem_1_kl",
    "trpo.tabular.bounds:pinsker",
    "trpo.tabular.bounds:average_tv",
    "trpo.tabular.bounds:average_kl",
    "trpo.tabular.bounds:icml_version",
    "trpo.tabular.exact:surrogate",
    "trpo.theory.claims.lower_bound.adversary:search",
    "trpo.theory.claims.lower_bound.nearby:by_hand",
)

TESTS = (
    "test_claim_lower_bound.py::test_the_claim_holds",
    "test_claim_lower_bound.py::test_a_constant_that_is_too_small_is_refuted",
    "test_claim_lower_bound.py::test_total_variation_without_its_square_is_found",
    "test_claim_lower_bound.py::test_a_mean_epsilon_is_refuted",
    "test_claim_lower_bound.py::test_a_swapped_kl_is_found",
    "test_claim_lower_bound.py::test_the_wrong_visitation_is_found",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the bounds on ``size`` random MDPs and with as many starts of the search against each."""
    evidence = measure(size, seed)
    pictures = draw(figures, evidence)
    # A quantity that is wrongly 0 becomes NaN or infinite here, and then fails its check.
    with np.errstate(all="ignore"):
        return Outcome(checks(evidence), findings(evidence), pictures)
