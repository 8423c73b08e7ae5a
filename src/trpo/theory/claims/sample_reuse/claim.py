"""Several updates on one batch: how far they may go together, and what they gain."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.sample_reuse.checks import checks, findings
from trpo.theory.claims.sample_reuse.figures import draw
from trpo.theory.claims.sample_reuse.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Reuse batches of ``size`` random MDPs."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m.cells))
