"""Minorization-maximization with the theory's penalty (TRPO paper, algorithm 1), for tabular policies."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo.problem import LocalProblem
from trpo.rules.protocol import Result, UpdateInfo
from trpo.rules.step import check
from trpo.trees import all_finite, tree_where
from trpo.types import Scalar

_ITERATIONS = 100
"""Most Newton steps; three or four suffice for the short steps that the theory permits."""
_LARGEST_Y = 80.0
"""e⁸⁰ is within float32, and more than any ratio of probabilities that ``_LEAST_LOGIT`` leaves."""
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
    trade of gain against penalty: 1/u_s is the gain per nat in state s, and a nat of D costs C.

    Accepted means that the bound improved, by the numbers of the policy that is returned.
    """

    enforces_max_kl: ClassVar[bool] = False

    coefficient: float | Scalar = 1.0
    """C, the price of one nat of max_s KL, in units of L. At 0 the maximiser is the greedy policy."""
    max_kl: float | Scalar = math.inf
    """No bound: the penalty alone limits the step."""
    tolerance: float | Scalar = 1e-6
    """Newton's method stops once √D is right to this relative accuracy, and its last step about squares it."""

    def __check_init__(self) -> None:
        cure = "trpo.tabular.bounds.penalty_coefficient is the theory's"
        check("coefficient", self.coefficient, 0, math.inf, cure, strict=False)
        check("tolerance", self.tolerance, 0, 1, "1e-6 is more than the maximum can show")

    def init(self, params: Float[Array, "s a"]) -> tuple[()]:
        return ()

    def update(
        self, problem: LocalProblem, params: Float[Array, "s a"], state: tuple[()]
    ) -> tuple[Float[Array, "s a"], tuple[()], UpdateInfo]:
        """Jump to the maximiser of the lower bound around ``params``, which must be the sampling policy."""
        model = problem.linearise(params)
        probability = jax.nn.softmax(params, axis=-1)
        possible = probability > 0
        # ∂L/∂θ_sa = π(a|s) b_sa with E_π b = 0 in every state: a constant in b changes no policy.
        b = jnp.where(possible, model.gradient / jnp.where(possible, probability, 1.0), 0.0)
        new = params + self._log_ratio(probability, b)
        new = jnp.where(possible, jnp.maximum(new, jnp.max(new, axis=-1, keepdims=True) + _LEAST_LOGIT), params)
        step = jnp.where(possible, new - params, 0.0)
        end = problem.evaluate(new)
        # L(π̃) − L(π) = Σ (π̃ − π) b, written so that it does not cancel for short steps.
        growth = probability * jnp.expm1(step)
        surrogate_gain = jnp.sum(jnp.sum(growth * b, axis=-1) / (1 + jnp.sum(growth, axis=-1)))
        gain = surrogate_gain - self.coefficient * end.max_state_kl
        result = jnp.where(gain > 0, Result.ACCEPTED, Result.NO_IMPROVEMENT)
        result = jnp.where(all_finite((step, gain)), result, Result.NONFINITE_TRIAL)
        result = jnp.where(jnp.any(model.gradient != 0), result, Result.NO_SIGNAL)
        result = jnp.where(all_finite(model.gradient), result, Result.NONFINITE_GRADIENT)
        taken = result == Result.ACCEPTED
        new, step, end = tree_where(taken, (new, step, end), (params, jnp.zeros_like(step), model.evaluation))
        predicted = jnp.sum(model.gradient * step)
        info = UpdateInfo.of(result, model.gradient, step, model.evaluation, end, predicted_gain=predicted)
        return new, state, info

    def _log_ratio(self, probability: Float[Array, "s a"], b: Float[Array, "s a"]) -> Float[Array, "s a"]:
        """Return log(π̃/π) of the maximiser.

        Newton's method on all unknowns at once: y_s, which sets λ_s = (1 + e⁻ʸ) max_a b_sa, and log q with D = q²/2.
        For short steps log √KL_s and log u_s are straight in y_s, and two or three steps are enough. Where a state's
        gain is nearly exhausted they are not, and what is known of the curve so far keeps y_s from running away.
        """
        largest = jnp.max(jnp.abs(b))
        scale = jnp.where(largest > 0, largest, 1.0)  # only b/C matters
        states = _States.of(probability, b / scale)
        log_price = jnp.log(jnp.maximum(self.coefficient / scale, math.exp(_LEAST_LOGIT)))
        tolerance = jnp.maximum(self.tolerance, 64 * jnp.finfo(b.dtype).eps)

        def newton(search: _Search) -> _Search:
            tilt = states.tilt(search.y)
            # What must vanish: every state's log √(2 KL_s) − log q, and log Σ 1/u_s − log C.
            log_kl = 0.5 * jnp.log(2 * tilt.kl)
            excess = jnp.where(states.moves, log_kl - search.log_q, 0.0)
            # Where KL > D a step on KL itself, not on its logarithm, does not come back too far.
            damped = jnp.minimum(jnp.exp(-2 * excess), 1.0)
            miss = jnp.where(excess > 0, 0.5 * (1 - damped), excess)
            price = jnp.where(states.moves, tilt.price, 0.0)
            total = jnp.sum(price)
            fall = price / total * tilt.price_slope / tilt.kl_slope
            dear = jnp.log(total) - log_price
            change = (dear + jnp.sum(fall * miss)) / jnp.maximum(jnp.sum(fall * damped), 1e-8)
            # To exceed D costs C a nat, but to fall short costs only what that state would have gained.
            error = jnp.max(jnp.where(search.y < _LARGEST_Y, jnp.maximum(excess, -excess * price / total), excess))
            # Far from D the slopes say little about the price: let the states come closer before D is changed.
            near = error < jnp.where(search.newton_steps < 10, 0.5, 0.02)
            least, most = search.range_of_q(dear, error)
            log_q = jnp.where(near, _between(search.log_q + jnp.clip(change, -2.0, 2.0), least, most), search.log_q)
            change = log_q - search.log_q
            low, high = search.bracket(log_kl, log_q)
            y = search.y + jnp.clip((damped * change - miss) / tilt.kl_slope, -20.0, 20.0)
            y = jnp.minimum(_between(y, low[0], high[0]), _LARGEST_Y)
            unsettled = (error > tolerance) | (jnp.abs(change) > tolerance) | ~near
            # The last step is not looked at again, so it is only for states that it cannot take far.
            moves = states.moves & (unsettled | (jnp.abs(excess) < 1e-2))
            y = jnp.where(moves, y, search.y)
            return _Search(y, log_q, low, high, least, most, unsettled, search.newton_steps + 1)

        start = states.start(log_price)
        search = jax.lax.while_loop(lambda s: s.unsettled & (s.newton_steps < _ITERATIONS), newton, start)
        moved = states.moves[:, None] & (probability > 0)
        return jnp.where(moved, states.tilt(search.y).log_ratio, 0.0)


class _Search(NamedTuple):
    """Where Newton's method stands."""

    y: Float[Array, " s"]
    log_q: Scalar
    low: Float[Array, "2 s"]
    """The largest (y, log √(2 KL)) seen with KL ≤ D."""
    high: Float[Array, "2 s"]
    """The smallest with KL > D."""
    least: Scalar
    most: Scalar
    """What log q is known to be between."""
    unsettled: Array
    newton_steps: Array

    def bracket(self, log_kl: Array, log_q: Scalar) -> tuple[Array, Array]:
        """Take account of the present point, and forget those that a new D has put on the other side."""
        here = jnp.stack([self.y, log_kl])
        low = jnp.where((self.low[1] <= log_q)[None, :], self.low, -jnp.inf)
        high = jnp.where((self.high[1] > log_q)[None, :], self.high, jnp.inf)
        below = (log_kl <= log_q)[None, :]
        return jnp.where(below, jnp.maximum(low, here), low), jnp.where(below, high, jnp.minimum(high, here))

    def range_of_q(self, dear: Scalar, error: Scalar) -> tuple[Scalar, Scalar]:
        """Take account of the present price, if the states are close enough to D for it to mean something."""
        known = error < 0.02
        least = jnp.where(known & (dear > 0), jnp.maximum(self.least, self.log_q - 0.1), self.least)
        most = jnp.where(known & (dear < 0), jnp.minimum(self.most, self.log_q + 0.1), self.most)
        return least, most


def _between(y: Array, low: Array, high: Array) -> Array:
    """Return y, or the middle of the bracket if y lies outside."""
    middle = jnp.where(jnp.isfinite(low) & jnp.isfinite(high), (low + high) / 2, jnp.clip(y, low, high))
    return jnp.where((y >= low) & (y <= high), y, middle)


class _States(NamedTuple):
    """What stays put during the search."""

    probability: Float[Array, "s a"]
    b: Float[Array, "s a"]
    best: Float[Array, " s"]
    """max_a b_sa, or 1 in states that don't move."""
    below: Float[Array, "s a"]
    """max_a b_sa − b_sa."""
    moves: Array

    @classmethod
    def of(cls, probability: Float[Array, "s a"], b: Float[Array, "s a"]) -> _States:
        best = jnp.max(b, axis=-1)
        # A compiler that computes b twice, rounded differently, must not find the best action a little below itself.
        is_best = jnp.arange(b.shape[-1])[None, :] == jnp.argmax(b, axis=-1)[:, None]
        below = jnp.where(is_best, 0.0, jnp.maximum(best[:, None] - b, 0.0))
        # No policy gains more than max b in a state; below rounding that state is left alone.
        moves = best > jnp.finfo(b.dtype).eps
        return cls(probability, b, jnp.where(moves, best, 1.0), below, moves)

    def start(self, log_price: Scalar) -> _Search:
        """Start as if the step were short: to second order KL = σ²/2λ² and 1/u = λ."""
        deviation = jnp.where(self.moves, jnp.sqrt(jnp.sum(self.probability * self.b**2, axis=-1)), 0.0)
        # No D is larger than the KL to the greedy policy.
        greedy = jnp.max(jnp.where((self.below == 0) & self.moves[:, None], -jnp.log(self.probability), 0.0))
        log_q = jnp.minimum(jnp.log(jnp.sum(deviation)) - log_price, 0.5 * jnp.log(2 * greedy))
        ratio = jnp.where(self.moves, self.best / jnp.where(self.moves, deviation, 1.0), 1.0)
        y = jnp.where(self.moves, jnp.minimum(log_q + jnp.log(ratio), _LARGEST_Y), 0.0)
        infinite = jnp.full((2, *y.shape), jnp.inf, y.dtype)
        ends = -infinite, infinite, -infinite[0, 0], infinite[0, 0]
        return _Search(y, log_q, *ends, jnp.any(self.moves), jnp.asarray(0))

    def tilt(self, y: Float[Array, " s"]) -> _Tilt:
        """Return π̃ at λ = (1 + e⁻ʸ) max b."""
        above = jnp.exp(-y) * self.best  # λ − max b
        top = self.best + above
        gap = (self.below + above[:, None]) / top[:, None]  # 1 − b/λ, as small as e⁻ʸ for the best action
        xb = self.b / top[:, None]
        # Σ π/gap − 1 = Σ π (b/λ)²/gap, because E_π b = 0: this form and the next two don't cancel for short steps.
        spare = jnp.sum(self.probability * xb**2 / gap, axis=-1)
        change = (xb / gap - spare[:, None]) / (1 + spare)[:, None]  # π̃/π − 1
        log_gap = jnp.where(xb > 0, -1.0, 1.0) * jnp.log1p(jnp.where(xb > 0, xb / gap, -xb))
        log_ratio = -log_gap - jnp.log1p(spare)[:, None]
        kl = jnp.sum(self.probability * _less_its_log(change, log_ratio), axis=-1)
        kl = jnp.maximum(kl, jnp.finfo(kl.dtype).tiny)
        chi2 = jnp.sum(self.probability * change * change, axis=-1)
        price = top / (1 + spare)
        chain = above / price  # since ∂λ/∂y = −(λ − max b), ∂KL/∂λ = −u χ² and ∂u/∂λ = −u² (1 + χ²)
        kl_slope = jnp.maximum(chain * chi2 / (2 * kl), 1e-8)
        return _Tilt(log_ratio, kl, kl_slope, price, chain * (1 + chi2))


class _Tilt(NamedTuple):
    """π̃ = π / [u (λ − b)] in each state, and what Newton's method needs of it."""

    log_ratio: Float[Array, "s a"]
    kl: Float[Array, " s"]
    kl_slope: Float[Array, " s"]
    """∂ log √KL / ∂y."""
    price: Float[Array, " s"]
    """1/u, the gain of this state's last nat."""
    price_slope: Float[Array, " s"]
    """−∂ log(1/u) / ∂y."""


def _less_its_log(x: Array, log_1px: Array) -> Array:
    """Return x − log(1 + x) to full relative accuracy: with t = x/(2 + x), log(1 + x) = 2(t + t³/3 + t⁵/5 + …)."""
    near = jnp.abs(x) < 0.1
    small = jnp.where(near, x, 0.0)
    t = small / (2 + small)
    t2 = t * t
    tail = t2 * (1 / 3 + t2 * (1 / 5 + t2 * (1 / 7 + t2 * (1 / 9 + t2 / 11))))
    return jnp.where(near, small * t - 2 * t * tail, x - log_1px)
