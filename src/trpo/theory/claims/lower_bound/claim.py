"""L_π(π̃) minus a penalty never exceeds η(π̃): on random pairs, and on pairs that an optimiser picks against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims.lower_bound.checks import checks, findings
from trpo.theory.claims.lower_bound.figures import draw
from trpo.theory.claims.lower_bound.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the bounds on ``size`` random MDPs and with as many starts of the search against each."""
    evidence = measure(size, seed)
    pictures = draw(figures, evidence)
    # A quantity that is wrongly 0 becomes NaN or infinite here, and then fails its check.
    with np.errstate(all="ignore"):
        return Outcome(checks(evidence), findings(evidence), pictures)
