"""The surrogate matches the return in value and gradient; what it misses is of second order, and known."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.surrogate.checks import checks, findings
from trpo.theory.claims.surrogate.figures import draw
from trpo.theory.claims.surrogate.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check value, gradient and second order of L_π on at least ``size`` random MDPs; draw into ``figures``."""
    study, line = measure(size, seed)
    return Outcome(checks(study), findings(study), draw(figures, study, *line))
