"""Sampled surrogate, gradient and Fisher products against the exact ones; what importance ratios and γᵗ do."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.importance_sampling.checks import checks, findings
from trpo.theory.claims.importance_sampling.figures import draw
from trpo.theory.claims.importance_sampling.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check sampling, ratios and single paths on at least ``size`` random MDPs; draw into ``figures``, if given."""
    m = measure(size, seed, errors=figures is not None)
    return Outcome(checks(m), findings(m), draw(figures, m))
