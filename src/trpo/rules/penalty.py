"""KL-penalised policy optimisation with an adaptive coefficient."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trpo.line_search import Evaluation, line_search
from trpo.problem import LocalProblem
from trpo.rules.protocol import Result, UpdateInfo
from trpo.rules.step import account, check, check_fields, natural_direction, outcome, step_along
from trpo.trees import tree_where
from trpo.types import Params, Scalar


class PenaltyState(eqx.Module):
    """What the next update needs."""

    coefficient: Float[Array, ""]
    """β, the price of one nat of mean KL."""


class Penalty(eqx.Module):
    """maximise L(θ) − β D̄(θ), the form that the theory suggests (TRPO paper, section 4), with β adapted.

    Each update takes ``inner_steps`` Newton–CG steps, θ ← θ + ρ^j (βF + λI)⁻¹ ∇[L − β D̄](θ), each with the first j for
    which the penalised objective improves. Then β doubles if D̄ > 1.5 δ and halves if D̄ < δ / 1.5
    (Schulman et al. 2017, arXiv:1707.06347, section 4). It doubles as well if no step improved the objective.

    δ is the *target* of the adaptation, not a bound: the KL of an update may exceed it, and then β grows.
    """

    enforces_max_kl: ClassVar[bool] = False

    max_kl: float | Scalar = 0.01
    """δ, in nats: the KL that β is adapted to."""
    initial_coefficient: float | Scalar = 10.0
    """β to start from."""
    inner_steps: int = eqx.field(static=True, default=3)
    damping: float | Scalar = 0.1
    """λ, relative to β."""
    cg_iterations: int = eqx.field(static=True, default=10)
    cg_tolerance: float | Scalar = 1e-10
    max_step_norm: float | Scalar = 10.0
    """Bound on each inner step, about a hundred ordinary ones: only a saturated policy meets it."""
    backtrack_ratio: float | Scalar = 0.8
    max_backtracks: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        check_fields(self, damping="0.1 is usual")
        check("initial_coefficient", self.initial_coefficient, 0, math.inf, "10 is a fair start: it adapts")
        check("inner_steps", self.inner_steps, 1, math.inf, "3 nearly solves the penalised problem", strict=False)

    def init(self, params: Params) -> PenaltyState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return PenaltyState(jnp.asarray(self.initial_coefficient, dtype))

    def update(
        self, problem: LocalProblem, params: Params, state: PenaltyState
    ) -> tuple[Params, PenaltyState, UpdateInfo]:
        beta = state.coefficient

        def penalised(theta: Params) -> Evaluation:
            e = problem.evaluate(theta)
            return dataclasses.replace(e, surrogate=e.surrogate - beta * e.mean_kl)

        def newton_step(theta: Params, _: None) -> tuple[Params, tuple[Array, Params, dict[str, Array]]]:
            model = problem.linearise(theta)
            gradient = optax.tree.add_scale(model.gradient, -beta, model.kl_gradient())
            s = natural_direction(model, gradient, self.damping, self.cg_iterations, self.cg_tolerance)
            # The direction solves (F + λI) s = ∇/max|∇|; the Newton step of the quadratic model along it is
            # ∇ᵀs / (β sᵀF s).
            length = optax.tree.vdot(gradient, s.vector) / (beta * jnp.where(s.usable, s.curvature, 1.0))
            step = step_along(s, length, self.max_step_norm)
            new, search = line_search(
                penalised, theta, step, jnp.inf, penalised(theta), self.backtrack_ratio, s.tries(self.max_backtracks)
            )
            return new, (outcome(s, search), model.gradient, account(s, search))

        new, (results, gradients, accounts) = jax.lax.scan(newton_step, params, None, length=self.inner_steps)
        start, end, step = problem.evaluate(params), problem.evaluate(new), optax.tree.sub(new, params)
        # One update, from end to end: accepted if any step was, else for the first one's reason.
        result = jnp.where(jnp.any(results == Result.ACCEPTED), Result.ACCEPTED, results[0])
        gradient, first = jax.tree.map(lambda leaf: leaf[0], (gradients, accounts))
        work = {name: jnp.sum(accounts[name]) for name in ("cg_iterations", "backtracks")}
        own = first | work | {"step_fraction": jnp.mean(accounts["step_fraction"])}
        info = UpdateInfo.of(result, gradient, step, start, end, **own)
        moved = result == Result.ACCEPTED
        # A search that found nothing had steps too long by far: β was too small, and would stay so for ever.
        failed = (result == Result.NO_IMPROVEMENT) | (result == Result.NONFINITE_TRIAL)
        too_far = failed | moved & (end.mean_kl > 1.5 * self.max_kl)
        too_near = moved & (end.mean_kl < self.max_kl / 1.5)
        factor = jnp.where(too_far, 2.0, jnp.where(too_near, 0.5, 1.0))
        return tree_where(moved, new, params), PenaltyState(beta * factor), info
