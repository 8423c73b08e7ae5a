"""The one bridge from the tabular oracle to the library: an exact :class:`LocalProblem`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo.distributions import Categorical
from trpo.problem import LocalProblem
from trpo.tabular.exact import advantage, state_weight
from trpo.tabular.mdp import MDP
from trpo.trees import weighted_sum
from trpo.types import Params, Scalar


def expected_surrogate(distribution: Categorical, advantage: Float[Array, "s a"], weight: Float[Array, " s"]) -> Scalar:
    """Σ_s w(s) Σ_a π_θ(a|s) A_π(s, a): the surrogate without its constant, with the sum over actions carried out."""
    probability = jax.nn.softmax(distribution.logits, axis=-1)
    return weighted_sum(weight, jnp.sum(probability * advantage, axis=-1))


def exact_problem(mdp: MDP, params: Params, policy: Callable[[Params], Categorical] = Categorical) -> LocalProblem:
    """Build the local problem of a known MDP around the policy at ``params``: nothing is sampled.

        L(θ) = Σ_s d_π(s) Σ_a π_θ(a|s) A_π(s, a) = (1 − γ)(L_π(π_θ) − η(π)),   weight = d_π = (1 − γ) ρ_π  (eq. 3, 13)

    so L is in units of (1 − γ)η, as a batch's surrogate is. What differs from :func:`trpo.sampled_problem` is the
    weights and the sum over actions; the rules that run on either are the same.

    Args:
        mdp: one MDP (no leading axes; map over more with ``jax.vmap``).
        params: θ_old; by default soft-max logits, shape ``[S, A]``.
        policy: θ ↦ ``Categorical`` over all states, shape ``[S, A]``.
    """
    old = jax.lax.stop_gradient(policy(params))
    if old.logits.shape != mdp.reward.shape:
        raise ValueError(f"the policy's logits have shape {old.logits.shape}: must be [S, A] = {mdp.reward.shape}")
    dtype = old.logits.dtype
    mdp = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), mdp)
    probability = jax.nn.softmax(old.logits, axis=-1)
    weight = state_weight(mdp, probability)
    objective = jax.tree_util.Partial(expected_surrogate, advantage=advantage(mdp, probability), weight=weight)
    return LocalProblem(jax.tree_util.Partial(policy), objective, old, weight)
