"""The mean KL's second derivative is the Fisher matrix, and nothing of lower order is left."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.fisher.checks import checks, findings
from trpo.theory.claims.fisher.figures import draw
from trpo.theory.claims.fisher.measure import compare, measure
from trpo.theory.records import Outcome
from trpo.theory.shared.arrays import join


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Compare library, definition and derivatives on ``size`` random MDPs."""
    parts = measure(size, seed)
    series = join([compare(part) for part in parts])
    return Outcome(tuple(checks(parts, series)), findings(parts), draw(figures, series))
