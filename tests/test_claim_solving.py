"""The claim about solving the local problem holds, and plausible bugs make it fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trpo.conjugate_gradient import CGInfo, conjugate_gradient
from trpo.rules import step as _step
from trpo.rules import trpo as trpo_rule
from trpo.theory.claims.solving import checks, claim, measure, steps, systems

SIZE = 24


def test_the_claim_holds(x64: None, tmp_path: Any) -> None:
    outcome = claim.run(SIZE, tmp_path, seed=1)
    assert outcome.passed, [check for check in outcome.checks if not check.passed]
    assert all(np.isfinite(check.worst) for check in outcome.checks)
    assert outcome.pictures
    assert all((tmp_path / picture.file).exists() for picture in outcome.pictures)


STEP = {"the step ends on the ellipsoid", "TRPO takes the best step", "the true KL of the full step"}


def _rule_checks(size: int = SIZE) -> set[str]:
    """Names of the rule's failing checks; the solver's need not be run again."""
    found = checks.rule_checks(*measure.rule(size, 0, (steps.FULL,)))
    return {check.name for check in found if not check.passed}


def test_damping_inside_the_step_length_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trpo_rule.natural_direction

    def damped_curvature(model: Any, gradient: Any, damping: Any, *rest: Any) -> Any:
        s = right(model, gradient, damping, *rest)
        size = optax.tree.vdot(s.vector, s.vector)
        return eqx.tree_at(lambda s: s.curvature, s, s.curvature + damping * size)

    monkeypatch.setattr(trpo_rule, "natural_direction", damped_curvature)
    assert _rule_checks() == {"the step ends on the ellipsoid"}


def test_a_step_length_without_its_factor_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trpo_rule.step_length
    monkeypatch.setattr(trpo_rule, "step_length", lambda *arguments: right(*arguments) / jnp.sqrt(2.0))
    assert _rule_checks() >= STEP


def test_a_rule_without_its_line_search_is_found(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trpo_rule.line_search

    def no_constraint(evaluate: Any, params: Any, step: Any, max_kl: Any, *rest: Any) -> Any:
        return right(evaluate, params, step, jnp.inf * max_kl, *rest)

    monkeypatch.setattr(trpo_rule, "line_search", no_constraint)
    assert _rule_checks() == {"the line search enforces δ"}


def _one_step_early(product: Any, b: Any, iterations: int = 10, tolerance: Any = 1e-10) -> Any:
    return RIGHT(product, b, max(iterations - 1, 1), tolerance)


def _wrong_beta(product: Any, b: Any, iterations: int = 10, tolerance: Any = 1e-10) -> Any:
    """Conjugate gradient with β = √(r'ᵀr'/rᵀr)."""

    def step(_: Any, state: Any) -> Any:
        x, r, p = state
        q = product(p)
        rr = jnp.vdot(r, r)
        alpha = rr / jnp.where(jnp.vdot(p, q) > 0, jnp.vdot(p, q), 1.0)
        new = r - alpha * q
        return x + alpha * p, new, new + jnp.sqrt(jnp.vdot(new, new) / jnp.where(rr > 0, rr, 1.0)) * p

    x, r, _ = jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b))
    return x, CGInfo(jnp.asarray(iterations), jnp.sqrt(jnp.vdot(r, r)))


def _stops_at_an_absolute_tolerance(product: Any, b: Any, iterations: int = 10, tolerance: Any = 1e-10) -> Any:
    return RIGHT(product, b, iterations, 1e-4)


RIGHT = conjugate_gradient


@pytest.mark.parametrize("wrong", [_one_step_early, _wrong_beta, _stops_at_an_absolute_tolerance])
def test_a_wrong_conjugate_gradient_is_found(
    wrong: Callable[..., Any], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "conjugate_gradient", wrong)
    broken = {check.name for check in checks.solver_checks(measure.solve(SIZE, 0)) if not check.passed}
    assert "the bound is attained" in broken


def test_the_rule_uses_that_conjugate_gradient() -> None:
    assert _step.conjugate_gradient is conjugate_gradient
