"""Advantage estimation with termination and truncation kept apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo.trees import weighted_sum
from trpo.types import Scalar


def gae(
    reward: Float[Array, "time *env"],
    value: Float[Array, "time *env"],
    next_value: Float[Array, "time *env"],
    terminated: Bool[Array, "time *env"],
    truncated: Bool[Array, "time *env"],
    discount: float | Scalar,
    gae_lambda: float | Scalar,
) -> Float[Array, "time *env"]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        δ_t = r_t + γ (1 − terminated_t) V(s'_t) − V(s_t)
        Â_t = δ_t + γλ (1 − terminated_t)(1 − truncated_t) Â_{t+1}

    ``next_value`` is V at the true successor s'_t, *before* any reset: for a truncated episode its final
    observation, which is bootstrapped from; only termination sets the future to zero. The recursion is cut at
    both, so nothing leaks from the next episode. After the last row the recursion starts from zero, so a
    fragment's end is bootstrapped by its ``next_value`` as well.

    All arrays are ``[time, *env]``, rewards and values in units of reward. Returns Â in the same shape.

    This differs from Stable-Baselines3 and Spinning Up in taking two end flags instead of one ``done``.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value
    decay = discount * gae_lambda * jnp.where(terminated | truncated, 0.0, 1.0)

    def backwards(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, decay_t = step
        advantage = delta_t + decay_t * following
        return advantage, advantage

    _, advantage = jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage


def lambda_returns(advantage: Float[Array, "time *env"], value: Float[Array, "time *env"]) -> Float[Array, "time *env"]:
    """Return the λ-returns G^λ_t = Â_t + V(s_t): the regression targets of the value function.

    With λ = 1 they are discounted returns, bootstrapped where the data ends (Sutton and Barto 2018, §12.1).
    """
    return advantage + value


def standardise(advantage: Float[Array, "*batch"], weight: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Shift and scale advantages to weighted mean 0 and standard deviation 1: Σ w Â = 0, Σ w Â² = 1.

    ``weight`` sums to 1. Where all advantages are equal up to rounding there is no signal, and zeros are
    returned: dividing rounding noise by its own deviation would turn it into a full-sized step.
    """
    present = jnp.where(weight > 0, advantage, 0.0)
    centred = jnp.where(weight > 0, advantage - weighted_sum(weight, advantage), 0.0)
    largest = jnp.max(jnp.abs(present))
    # Scale before squaring: advantages of 1e-25 would underflow to a standard deviation of zero.
    unit = centred / jnp.where(largest > 0, largest, 1.0)
    std = jnp.sqrt(weighted_sum(weight, unit**2))
    rounding = 32 * jnp.finfo(advantage.dtype).eps
    signal = ~(std <= rounding)  # NaN counts as a signal: it must reach the checks, not be hidden here
    return jnp.where(signal, unit / jnp.where(signal, std, 1.0), 0.0)
