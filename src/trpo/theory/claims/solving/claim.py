"""The local problem has a closed-form solution, and truncated conjugate gradient gets close to it at a known rate."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.solving.checks import checks, findings
from trpo.theory.claims.solving.figures import draw
from trpo.theory.claims.solving.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the solution, the solver's rate and the rule's step on at least ``size`` random MDPs."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m))
