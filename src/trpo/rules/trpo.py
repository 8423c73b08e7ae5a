"""Trust Region Policy Optimization (Schulman et al. 2015, arXiv:1502.05477)."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import optax

from trpo.line_search import line_search
from trpo.problem import LocalProblem
from trpo.rules.protocol import UpdateInfo
from trpo.rules.step import account, check_fields, natural_direction, outcome, step_along, step_length
from trpo.types import Params, Scalar


class TRPO(eqx.Module):
    """maximise L(θ) subject to D̄(θ) ≤ δ (eq. 14), solved Hessian-free (appendix C).

        g = ∇L(θ),   s ≈ (F + λI)⁻¹ g   by conjugate gradient,
        β = √(2δ / sᵀF s),   θ' = θ + ρ^j β s   with the first j = 0, 1, … for which L improves and D̄ ≤ δ.

    Accepted means: the surrogate improved and the mean KL from the sampling policy is at most ``max_kl``, summed
    over action dimensions, however many updates the batch serves. Otherwise θ is returned bit for bit.

    This differs from Stable-Baselines3, Tianshou and Spinning Up in: 1. KL(π_old ‖ π), summed, not its reverse nor a
    mean over action dimensions; 2. F by a Gauss–Newton product, not by differentiating a KL twice; 3. damping enters
    the solve but not the step length; 4. relative stopping of conjugate gradient; 5. a zero or non-finite gradient is
    an outcome with a reason.
    """

    enforces_max_kl: ClassVar[bool] = True

    max_kl: float | Scalar = 0.01
    """δ, in nats: the paper's value for every experiment."""
    damping: float | Scalar = 0.1
    """λ: conditions the solve (the value of the author's own code, modular_rl)."""
    cg_iterations: int = eqx.field(static=True, default=10)
    """Products for each solve: the paper's 10."""
    cg_tolerance: float | Scalar = 1e-10
    """Stop earlier once ‖r‖² ≤ tolerance · ‖g‖²."""
    max_step_norm: float | Scalar = 10.0
    """Bound on ‖θ' − θ‖, about a hundred ordinary steps: only a saturated policy meets it."""
    backtrack_ratio: float | Scalar = 0.8
    """ρ, the factor between trials."""
    max_backtracks: int = eqx.field(static=True, default=10)
    use_measured_kl: bool = eqx.field(static=True, default=False)
    """Shrink a step whose KL is too large to where its measured KL says the boundary is, not by ρ."""

    def __check_init__(self) -> None:
        cures = {"max_kl": "0.01 is the paper's value", "cg_iterations": "10 is the paper's value"}
        check_fields(self, **cures, backtrack_ratio="0.8 is usual, 0.5 shrinks faster")

    def init(self, params: Params) -> tuple[()]:
        return ()

    def update(self, problem: LocalProblem, params: Params, state: tuple[()]) -> tuple[Params, tuple[()], UpdateInfo]:
        model = problem.linearise(params)
        g, start = model.gradient, model.evaluation
        s = natural_direction(model, g, self.damping, self.cg_iterations, self.cg_tolerance)
        beta = step_length(s, start.mean_kl, self.max_kl)
        full_step = step_along(s, beta, self.max_step_norm)
        new, search = line_search(
            problem.evaluate, params, full_step, self.max_kl, start,
            self.backtrack_ratio, s.tries(self.max_backtracks), self.use_measured_kl,
        )  # fmt: skip
        step = optax.tree.scale(search.fraction, full_step)
        info = UpdateInfo.of(outcome(s, search), g, step, start, search.evaluation, **account(s, search))
        return new, state, info
