"""Climbing the lower bound itself: it touches η at π, so its maximum cannot be worse than π."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.minorization.checks import checks, findings
from trpo.theory.claims.minorization.figures import draw
from trpo.theory.claims.minorization.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check that the bound touches η, that MM finds its maximum, and that η then never falls."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m), draw(figures, m))
