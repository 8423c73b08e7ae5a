"""Single paths and vines: what branches estimate, with which error, and what common random numbers are worth."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.rollouts.checks import checks, findings
from trpo.theory.claims.rollouts.figures import draw
from trpo.theory.claims.rollouts.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Follow branches in at least ``size`` random MDPs; draw into ``figures``, if given."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m))
