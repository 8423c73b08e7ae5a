"""The identity that compares two policies: exactly, in rounding error only, and along simulated paths."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.performance_difference.checks import checks, findings
from trpo.theory.claims.performance_difference.figures import draw
from trpo.theory.claims.performance_difference.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the identity on at least ``size`` random MDPs; draw its figures into ``figures``, if given."""
    study = measure(size, seed)
    return Outcome(checks(study), findings(study.sides), draw(figures, study))
