"""TRPO bounds the mean KL, not the theory's max: what that keeps, what it costs, and how often η falls."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.mean_kl.checks import checks, findings
from trpo.theory.claims.mean_kl.figures import draw
from trpo.theory.claims.mean_kl.measure import measure
from trpo.theory.records import Outcome


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Walk TRPO through at least ``size`` random MDPs at several δ and judge every step."""
    m = measure(size, seed)
    return Outcome(checks(m), findings(m.walks), draw(figures, m))
