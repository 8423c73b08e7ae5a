"""Minorization-maximization with the theory's penalty (TRPO paper, algorithm 1), for tabular policies."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo.problem import LocalProblem
from trpo.results import Result, UpdateInfo
from trpo.rules._step import check
from trpo.types import Scalar, all_finite

_ITERATIONS = 60
"""Most Newton steps; five or so suffice for the short steps that the theory permits."""
_LARGEST_Z = 150.0
_LEAST_LOGIT = -60.0
"""Where a state's worse actions are all but gone, D may ask for probabilities below what a float can hold. They stop at
e⁻⁶⁰ of the largest, which costs nothing that could be measured and keeps their advantages known."""


class MM(eqx.Module):
    """π' = argmax_π̃ [ L(π̃) − C · max_s KL(π ‖ π̃) ]: the exact maximiser of the lower bound (eq. 9, 10).

    With C from the theory (:func:`trpo.tabular.bounds.penalty_coefficient`, times 1 − γ, since L is in units of
    (1 − γ)η), η never decreases, and the steps are tiny: that is why TRPO bounds the mean KL instead.

    The maximisation is over all policies, not a parametrised class, so ``params`` must be soft-max logits of shape
    ``[S, A]``. With b = ∂L/∂π̃(a|s), the maximiser is π̃(a|s) = π(a|s) / [u_s (λ_s − b_sa)], where
    u_s = Σ_a π(a|s)/(λ_s − b_sa) normalises, λ_s gives every state the same KL D, and Σ_s 1/u_s = C makes D the best
    trade of gain against penalty.
    """

    enforces_max_kl: ClassVar[bool] = False

    coefficient: float | Scalar = 1.0
    """C, the price of one nat of max_s KL, in units of L."""
    max_kl: float | Scalar = math.inf
    """No bound: the penalty alone limits the step."""
    tolerance: float | Scalar = 1e-10
    """Relative accuracy of √D; the bound is flat at its maximum, so its own error is the square of this."""

    def __check_init__(self) -> None:
        check("coefficient", self.coefficient, 0, math.inf, "trpo.tabular.bounds.penalty_coefficient is the theory's")
        check("tolerance", self.tolerance, 0, 1, "1e-10 is more than the maximum can show")

    def init(self, params: Float[Array, "s a"]) -> tuple[()]:
        """MM carries nothing from one update to the next."""
        return ()

    def update(
        self, problem: LocalProblem, params: Float[Array, "s a"], state: tuple[()]
    ) -> tuple[Float[Array, "s a"], tuple[()], UpdateInfo]:
        """Jump to the maximiser of the lower bound around ``params``, which must be the sampling policy."""
        model = problem.linearise(params)
        start = model.evaluation
        probability = jax.nn.softmax(params, axis=-1)
        # ∂L/∂θ_sa = π(a|s) b_sa with E_π b = 0 in every state: a constant in b changes no policy.
        b = jnp.where(probability > 0, model.gradient / jnp.where(probability > 0, probability, 1.0), 0.0)
        log_ratio, divergence = self._maximiser(probability, b)
        gain = jnp.sum(probability * jnp.expm1(log_ratio) * b) - self.coefficient * divergence
        new = params + log_ratio
        new = jnp.maximum(new, jnp.max(new, axis=-1, keepdims=True) + _LEAST_LOGIT)
        sound = all_finite((new, gain))
        result = jnp.where(gain > 0, Result.ACCEPTED, Result.NO_IMPROVEMENT)
        result = jnp.where(sound, result, Result.NONFINITE_TRIAL)
        result = jnp.where(jnp.any(model.gradient != 0), result, Result.NO_SIGNAL)
        result = jnp.where(all_finite(model.gradient), result, Result.NONFINITE_GRADIENT)
        taken = result == Result.ACCEPTED
        new = jnp.where(taken, new, params)
        step = jnp.where(taken, log_ratio, 0.0)
        end = problem.evaluate(new)
        info = UpdateInfo(
            result=result,
            surrogate_gain=end.surrogate - start.surrogate,
            predicted_gain=jnp.sum(model.gradient * step),
            mean_kl=end.mean_kl,
            max_state_kl=end.max_state_kl,
            gradient_norm=jnp.linalg.norm(model.gradient),
            step_norm=jnp.linalg.norm(step),
            cg_iterations=jnp.asarray(0),
            cg_residual=jnp.zeros_like(gain),
            backtracks=jnp.asarray(0),
            step_fraction=jnp.where(taken, 1.0, 0.0),
            entropy=end.entropy,
        )
        return new, state, info

    def _maximiser(self, probability: Float[Array, "s a"], b: Float[Array, "s a"]) -> tuple[Array, Scalar]:
        """Return log(π̃/π) and D = max_s KL of the maximiser.

        Newton's method on all unknowns at once: log z_s, which sets λ_s, and log q with D = q²/2.
        """
        best = jnp.max(b, axis=-1)
        deviation = jnp.sqrt(jnp.sum(probability * b**2, axis=-1))
        # No policy gains more than max b in a state; below rounding that state is left alone.
        moves = best > jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(b))
        log_price = jnp.log(self.coefficient)

        def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            log_z, log_q, _, count = state
            tilt = _tilt(jnp.exp(log_z), probability, b, best)
            # Every state's KL is q²/2: log √(2 KL_s) = log q. The price is right: log Σ 1/u_s = log C.
            mismatch = jnp.where(moves, 0.5 * jnp.log(2 * tilt.kl) - log_q, 0.0)
            share = jnp.where(moves, jnp.exp(-tilt.log_u), 0.0)
            total = jnp.sum(share)
            fall = share / total * tilt.log_u_slope / tilt.log_kl_slope
            change_q = (jnp.log(total) - log_price + jnp.sum(fall * mismatch)) / jnp.maximum(jnp.sum(fall), 1e-8)
            change_q = jnp.clip(change_q, -1.0, 1.0)
            change_z = jnp.where(moves, jnp.clip((change_q - mismatch) / tilt.log_kl_slope, -1.0, 1.0), 0.0)
            new = jnp.minimum(log_z + change_z, jnp.log(_LARGEST_Z))
            # A state that is still short of D holds nobody up unless it could add to the gain, which is about 2 C D.
            matters = best > self.tolerance * self.coefficient * jnp.exp(2 * log_q)
            unsettled = (jnp.abs(new - log_z) > self.tolerance) & ((mismatch > self.tolerance) | matters)
            unsettled = jnp.any(unsettled) | (jnp.abs(change_q) > self.tolerance)
            return new, log_q + change_q, unsettled, count + 1

        safe = jnp.where(moves, deviation, 1.0)
        # To second order KL = σ²/2λ² and u = 1/λ, hence this start.
        log_q = jnp.log(jnp.sum(jnp.where(moves, deviation, 0.0))) - log_price
        log_z = jnp.minimum(jnp.where(moves, log_q + jnp.log(jnp.where(moves, best, 1.0) / safe), 0.0), 0.0)
        start = (log_z, log_q, jnp.any(moves), jnp.asarray(0))
        log_z, *_ = jax.lax.while_loop(lambda state: state[2] & (state[3] < _ITERATIONS), step, start)
        tilt = _tilt(jnp.exp(log_z), probability, b, best)
        log_ratio = jnp.where(moves[:, None] & (probability > 0), tilt.log_ratio, 0.0)
        return log_ratio, jnp.max(jnp.where(moves, tilt.kl, 0.0))


class _Tilt(NamedTuple):
    """π̃ = π / [u (λ − b)] in each state, with 1/λ = (1 − e⁻ᶻ) / max b, so that any z > 0 is admissible."""

    log_ratio: Float[Array, "s a"]
    log_u: Float[Array, " s"]
    kl: Float[Array, " s"]
    log_u_slope: Float[Array, " s"]
    """∂ log u / ∂ log z."""
    log_kl_slope: Float[Array, " s"]
    """∂ log √KL / ∂ log z."""


def _tilt(z: Array, probability: Float[Array, "s a"], b: Float[Array, "s a"], best: Array) -> _Tilt:
    safe = jnp.where(best > 0, best, 1.0)
    inverse = -jnp.expm1(-z) / safe
    xb = inverse[:, None] * b
    # 1 − b/λ, which may be as small as e⁻ᶻ for the best action.
    gap = ((safe[:, None] - b) + b * jnp.exp(-z)[:, None]) / safe[:, None]
    log_gap = jnp.where(xb < 0.5, jnp.log1p(-jnp.minimum(xb, 0.5)), jnp.log(gap))
    r = 1 / gap
    # E[r] − 1 = E[(b/λ)² r], because E[b] = 0: this form and the next don't cancel for tiny steps.
    excess = jnp.sum(probability * xb**2 * r, axis=-1)
    mean = 1 + excess
    variance = jnp.sum(probability * (r - mean[:, None]) ** 2, axis=-1)
    kl = jnp.log1p(excess) + jnp.sum(probability * log_gap, axis=-1)
    kl = jnp.maximum(kl, jnp.finfo(z.dtype).tiny)
    chain = z * jnp.exp(-z) / -jnp.expm1(-z)  # ∂ log(1/λ) / ∂ log z
    return _Tilt(
        log_ratio=-log_gap - jnp.log1p(excess)[:, None],
        log_u=jnp.log(inverse) + jnp.log1p(excess),
        kl=kl,
        log_u_slope=chain * jnp.sum(probability * r**2, axis=-1) / mean,
        log_kl_slope=jnp.maximum(chain * variance / (2 * mean * kl), 1e-8),
    )
