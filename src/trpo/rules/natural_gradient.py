"""Natural policy gradient with a KL-normalised step (Kakade 2001; Duan et al. 2016, arXiv:1604.06778, "TNPG")."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax

from trpo.problem import LocalProblem
from trpo.rules.protocol import Result, UpdateInfo
from trpo.rules.step import account, check_fields, natural_direction, step_along, step_length
from trpo.trees import all_finite, tree_where
from trpo.types import Params, Scalar


class NaturalGradient(eqx.Module):
    """θ' = θ + β s with s ≈ (F + λI)⁻¹ g and β = √(2δ / sᵀF s): TRPO without its line search.

    δ is a *target* that the quadratic model meets, not a bound: neither the KL nor the improvement is checked.
    Only a step to non-finite parameters, KL or surrogate is refused.
    """

    enforces_max_kl: ClassVar[bool] = False

    max_kl: float | Scalar = 0.01
    """δ, in nats, under the quadratic model."""
    damping: float | Scalar = 0.1
    cg_iterations: int = eqx.field(static=True, default=10)
    cg_tolerance: float | Scalar = 1e-10
    max_step_norm: float | Scalar = 10.0
    """Bound on ‖θ' − θ‖, about a hundred ordinary steps: only a saturated policy meets it."""

    def __check_init__(self) -> None:
        check_fields(self)

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, problem: LocalProblem, params: Params, state: tuple[()]) -> tuple[Params, tuple[()], UpdateInfo]:
        model = problem.linearise(params)
        g, start = model.gradient, model.evaluation
        s = natural_direction(model, g, self.damping, self.cg_iterations, self.cg_tolerance)
        beta = step_length(s, start.mean_kl, self.max_kl)
        step = step_along(s, beta, self.max_step_norm)
        new = optax.tree.add(params, step)
        end = problem.evaluate(new)
        finite = all_finite((new, end.surrogate, end.mean_kl))
        result = jnp.where(finite, Result.ACCEPTED, Result.NONFINITE_TRIAL)
        result = jnp.where(s.usable, result, s.result)
        taken = result == Result.ACCEPTED
        new, end, step = tree_where(taken, (new, end, step), (params, start, optax.tree.zeros_like(step)))
        return new, state, UpdateInfo.of(result, g, step, start, end, **account(s))
