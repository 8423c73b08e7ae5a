"""Equal steps in parameters are unequal steps in policies; the natural gradient measures steps by policies."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.parameter_ball.checks import ball_checks, findings, gaussian_checks, invariance_checks
from trpo.theory.claims.parameter_ball.figures import draw
from trpo.theory.claims.parameter_ball.known import gaussians
from trpo.theory.claims.parameter_ball.measure import generator, measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Take equal steps, and equal rules in two coordinate systems, on ``size`` random MDPs."""
    rng = generator(seed)
    c = measure(rng, size, seed)
    checks = (*gaussian_checks(gaussians(rng, size)), *ball_checks(c), *invariance_checks(c))
    return Outcome(checks, findings(c), draw(figures, c))
