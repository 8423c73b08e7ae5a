"""The vine estimator: the local problem from several actions followed at each of some states (TRPO paper, §5.2).

Single path knows of each state what came of one action. The vine knows it of several, begun in the same state with the
same randomness, so that their *differences* are precise. Problem, rule and search are those of any other data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from trpo.advantages import standardise
from trpo.distributions import Distribution
from trpo.policies.function import memoryless
from trpo.policies.protocol import PolicyFunction
from trpo.problem import LocalProblem, problem_on
from trpo.trees import per_state, weighted_sum
from trpo.types import Params, Scalar


class Roots(eqx.Module):
    """States, and for each of them K actions with what following the policy after each of them brought."""

    observation: PyTree[Shaped[Array, "..."]]
    """As the policy takes it, leaves ``[*roots, …]``."""
    action: PyTree[Shaped[Array, "..."]]
    """As the policy means it, leaves ``[*roots, K, …]``."""
    q: Float[Array, "*roots k"]
    """Q̂(s, a), in units of reward."""
    weight: Float[Array, "*roots"]
    """≥ 0, summing to 1."""
    proposal_log_prob: Float[Array, "*roots k"] | None = None
    """log q(a|s) of the proposal that drew the actions; None where it is π_old, or where all actions are there."""
    place: tuple[Array, Array] | None = None
    """Time and environment of each root on the trunk; None where the roots are no part of one."""
    complete: bool = eqx.field(static=True, default=False)
    """Whether each possible action is there, once."""


class Trunk(eqx.Module):
    """States that KL and Fisher products are over: all of the trajectories that the roots are a part of."""

    observation: PyTree[Shaped[Array, "..."]]
    """As the policy takes it, leaves ``[time, env, …]``."""
    weight: Float[Array, "*states"]
    carry: Any = ()
    reset: Bool[Array, "*states"] | None = None


def branch_returns(
    reward: Float[Array, "length *branches"],
    alive: Bool[Array, "length *branches"],
    terminated: Bool[Array, "*branches"],
    value: Float[Array, "steps *branches"],
    discount: float | Scalar,
    branch_lambda: float | Scalar,
) -> Float[Array, "*branches"]:
    """Return what following the policy brought, closed with V where a branch ended.

        Q̂(s, a) = G_0,   G_t = r_t + γ [(1 − λ) V(s_{t+1}) + λ G_{t+1}],   at the branch's last step G = r + γ V

    with V = 0 after termination.

    Args:
        reward: of each step.
        alive: whether that step was taken; a branch ends early with its episode.
        terminated: whether it ended in an absorbing state.
        value: V of what followed each step; where λ = 1, of what followed the last one alone, with one step.
        discount: γ.
        branch_lambda: λ; 1 is the paper's Monte Carlo sum.
    """
    last = alive & ~jnp.concatenate([alive[1:], jnp.zeros_like(alive[:1])])
    following = jnp.where(last & terminated[None], 0.0, jnp.broadcast_to(value, reward.shape))
    share = jnp.where(last, 1.0, 1.0 - branch_lambda)
    factor = (discount * branch_lambda) ** jnp.arange(len(reward))
    return jnp.tensordot(factor, jnp.where(alive, reward + discount * share * following, 0.0), 1)


def log_probs(distribution: Distribution, action: PyTree) -> Float[Array, "*roots k"]:
    """Return log π(a_k|s) of K actions for each state, leaves ``[*roots, K, …]``."""
    axis = distribution.entropy().ndim
    return jax.vmap(distribution.log_prob, in_axes=axis, out_axes=axis)(action)


def ratios(distribution: Distribution, roots: Roots) -> Float[Array, "*roots k"]:
    """Return the weight of each action under π: π(a|s) where all are there, else π(a|s)/q(a|s) over their sum.

    They sum to 1 over the actions of a root.
    """
    log_prob = log_probs(distribution, roots.action)
    if roots.complete:
        return jnp.exp(log_prob)
    if roots.proposal_log_prob is None:
        raise ValueError("the roots' actions were sampled: proposal_log_prob must say with which probabilities")
    return jax.nn.softmax(log_prob - roots.proposal_log_prob, axis=-1)


def drawn_from(old: Distribution, roots: Roots) -> Roots:
    """Return the same with the proposal's log-probabilities, which are π_old's where none are given."""
    if roots.complete or roots.proposal_log_prob is not None:
        return roots
    return dataclasses.replace(roots, proposal_log_prob=jax.lax.stop_gradient(log_probs(old, roots.action)))


def state_values(distribution: Distribution, roots: Roots) -> Float[Array, "*roots"]:
    """Return Σ_k of :func:`ratios` · Q̂_k: each root's value under π, exact in the actions where all are there."""
    return jnp.sum(ratios(distribution, roots) * roots.q, axis=-1)


def vine_surrogate(distribution: Distribution, roots: Roots) -> Scalar:
    """L(θ) = Σ_s w Σ_a π_θ(a|s) Q̂(s,a), or self-normalised Σ_s w Σ_k ρ_k Q̂_k / Σ_k ρ_k, ρ = π_θ/q  (eq. 15, 16).

    The self-normalised one is biased by O(1/K), and does not change when a number is added to the Q̂ of a root.
    """
    return weighted_sum(roots.weight, state_values(distribution, roots))


def centred(old: Distribution, roots: Roots, unit: bool = False) -> Roots:
    """Return the same with advantages in place of Q̂: each root's value under ``old`` taken off, so that L(θ_old) = 0.

    With ``unit`` they have the deviation 1 under ``old``, as a single-path batch's may.
    """
    weight = ratios(old, roots)
    # From the first action's, so that equal Q̂ give exactly 0; what is within their rounding is no difference either.
    relative = roots.q - roots.q[..., :1]
    advantage = relative - jnp.sum(weight * relative, axis=-1, keepdims=True)
    rounding = 32 * jnp.finfo(roots.q.dtype).eps * jnp.max(jnp.abs(roots.q), axis=-1, keepdims=True)
    nothing = (jnp.abs(advantage) <= rounding) | ~per_state(roots.weight > 0, roots.q)
    advantage = jnp.where(nothing, 0.0, advantage)
    if unit:
        advantage = standardise(advantage, roots.weight[..., None] * weight)
    return dataclasses.replace(roots, q=advantage)


def vine_problem(
    policy: PolicyFunction | Callable[[Params, Any], Distribution],
    params: Params,
    roots: Roots,
    trunk: Trunk | None = None,
    unit: bool = False,
    fisher_subsample: int = 1,
    block: int = 0,
    strata: int = 1,
) -> LocalProblem:
    """Build the local problem of a vine around π_old, the policy at ``params``, which the branches followed.

    Args:
        policy: as for :func:`~trpo.problem.sampled_problem`.
        params: its parameters.
        roots: the states, their actions, and what came of each.
        trunk: where it is given, KL and Fisher products are over all its states, of which the roots are some: what a
            policy with memory needs. Else they are over the roots.
        unit: whether advantages are brought to a deviation of 1.
        fisher_subsample: k > 1 lets Fisher products use a fixed 1/k of those states, as for ``sampled_problem``.
        block: states that are worked on at a time, as there.
        strata: parts of the environments, as there.
    """
    policy = memoryless(policy)
    of_trunk = trunk is not None
    over = trunk or Trunk(roots.observation, roots.weight)

    def objective(old: Distribution) -> _VineObjective:
        at = roots_in(old, roots, of_trunk)
        return _VineObjective(centred(at, drawn_from(at, roots), unit), of_trunk)

    states = over.observation, over.weight, over.carry, over.reset
    return problem_on(policy, params, objective, *states, fisher_subsample=fisher_subsample, block=block, strata=strata)


def roots_in(distribution: Distribution, roots: Roots, of_trunk: bool) -> Distribution:
    """Return the distributions at the roots, given those of the whole trunk, or already theirs."""
    return jax.tree.map(lambda leaf: leaf[roots.place], distribution) if of_trunk else distribution


class _VineObjective(eqx.Module):
    """π ↦ L of the roots, given distributions of the trunk or of the roots."""

    roots: Roots
    of_trunk: bool = eqx.field(static=True)

    def __call__(self, distribution: Any) -> Scalar:
        return vine_surrogate(roots_in(distribution, self.roots, self.of_trunk), self.roots)
