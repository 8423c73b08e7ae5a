"""The surrogate objective and the trust region's divergence, at the level of distributions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from trpo.distributions import Distribution
from trpo.trees import weighted_sum
from trpo.types import Scalar


def importance_sampled_surrogate(
    distribution: Distribution,
    action: PyTree[Shaped[Array, "..."]],
    old_log_prob: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    weight: Float[Array, "*batch"],
) -> Scalar:
    """L(θ) = Σ_i w_i [π_θ(a_i|s_i) / π_old(a_i|s_i)] Â_i  (TRPO paper, eq. 14).

    ``old_log_prob`` is under the policy that *sampled* the actions. With standardised advantages L(θ_old) = 0.
    """
    ratio = jnp.exp(distribution.log_prob(action) - old_log_prob)
    return weighted_sum(weight, ratio * advantage)


def clipped_surrogate(
    distribution: Distribution,
    action: PyTree[Shaped[Array, "..."]],
    old_log_prob: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    weight: Float[Array, "*batch"],
    clip: Scalar | float,
) -> Scalar:
    """L^CLIP(θ) = Σ_i w_i min(r_i Â_i, clip(r_i, 1 − ε, 1 + ε) Â_i), r_i = π_θ(a_i|s_i) / π_old(a_i|s_i).

    Schulman et al. 2017, arXiv:1707.06347, eq. 7: the surrogate of :func:`importance_sampled_surrogate`, without what a
    ratio beyond 1 ± ε would still gain.
    """
    ratio = jnp.exp(distribution.log_prob(action) - old_log_prob)
    return weighted_sum(weight, jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage))


def mean_kl(old: Distribution, new: Distribution, weight: Float[Array, "*batch"]) -> Scalar:
    """D̄ = Σ_i w_i KL(π_old(·|s_i) ‖ π_new(·|s_i)), in nats  (TRPO paper, eq. 12).

    The old policy comes first, as in the paper, and the KL of an action vector is the *sum* over its dimensions.
    """
    return weighted_sum(weight, old.kl_to(new))


def max_state_kl(old: Distribution, new: Distribution, weight: Float[Array, "*batch"]) -> Scalar:
    """max_i KL(π_old(·|s_i) ‖ π_new(·|s_i)) over states of positive weight: the theory's D_max (eq. 8)."""
    return jnp.max(jnp.where(weight > 0, old.kl_to(new), 0.0))
