"""Equal steps in parameters are unequal steps in policies; the natural gradient measures steps by policies."""

from __future__ import annotations

from pathlib import Path

from trpo.theory.claims.parameter_ball.checks import ball_checks, findings, gaussian_checks, invariance_checks
from trpo.theory.claims.parameter_ball.figures import draw
from trpo.theory.claims.parameter_ball.known import gaussians
from trpo.theory.claims.parameter_ball.measure import generator, measure
from trpo.theory.records import Outcome

CODE = (
    "trpo.distributions.diag_gaussian:DiagGaussian.kl_to",
    "trpo.distributions.categorical:Categorical.kl_to",
    "trpo.rules.natural_gradient:NaturalGradient.update",
    "trpo.rules.step:natural_direction",
    "trpo.rules.step:step_length",
)

TESTS = (
    "test_claim_parameter_ball.py::test_the_claim_holds",
    "test_claim_parameter_ball.py::test_a_wrong_gaussian_kl_is_found",
    "test_claim_parameter_ball.py::test_the_plain_gradient_in_the_natural_ones_place_is_found",
    "test_claim_parameter_ball.py::test_large_damping_is_found",
    "test_rules.py::test_reparametrisation_moves_a_natural_step_only_at_second_order",
)


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Take equal steps, and equal rules in two coordinate systems, on ``size`` random MDPs."""
    rng = generator(seed)
    c = measure(rng, size, seed)
    checks = (*gaussian_checks(gaussians(rng, size)), *ball_checks(c), *invariance_checks(c))
    return Outcome(checks, findings(c), draw(figures, c))
