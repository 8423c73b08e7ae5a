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

from trpo.distributions import Distribution
from trpo.policies.function import memoryless
from trpo.policies.protocol import PolicyFunction
from trpo.problem import LocalProblem, PolicyAt
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
    """All states of the trajectories that the roots are a part of, ``[time, env]``."""

    observation: PyTree[Shaped[Array, "..."]]
    weight: Float[Array, "time env"]
    carry: Any = ()
    reset: Bool[Array, "time env"] | None = None


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


def centred(old: Distribution, roots: Roots, standardise: bool = False) -> Roots:
    """Return the same with advantages in place of Q̂: each root's value under ``old`` taken off, so that L(θ_old) = 0.

    ``standardise`` divides by their deviation under ``old`` too, as a single-path batch's are.
    """
    weight = ratios(old, roots)
    present = per_state(roots.weight > 0, roots.q)
    advantage = jnp.where(present, roots.q - jnp.sum(weight * roots.q, axis=-1, keepdims=True), 0.0)
    if standardise:
        largest = jnp.max(jnp.abs(advantage))
        unit = advantage / jnp.where(largest > 0, largest, 1.0)
        std = jnp.sqrt(weighted_sum(roots.weight, jnp.sum(weight * unit**2, axis=-1)))
        rounding = 32 * jnp.finfo(unit.dtype).eps * jnp.max(jnp.abs(jnp.where(present, roots.q, 0.0))) / largest
        signal = ~(std <= rounding)
        advantage = jnp.where(signal, unit / jnp.where(signal, std, 1.0), 0.0)
    return eqx.tree_at(lambda r: r.q, roots, advantage)


def vine_problem(
    policy: PolicyFunction | Callable[[Params, Any], Distribution],
    params: Params,
    roots: Roots,
    trunk: Trunk | None = None,
    standardise: bool = False,
) -> LocalProblem:
    """Build the local problem of a vine around π_old, the policy at ``params``, which the branches followed.

    KL and Fisher products are over the roots; over all states of the trunk where it is given, which a policy with
    memory needs.
    """
    policy = memoryless(policy)
    if trunk is None:
        distributions, weight = PolicyAt(policy, roots.observation), roots.weight
    else:
        distributions, weight = PolicyAt(policy, trunk.observation, trunk.carry, trunk.reset), trunk.weight
    old = jax.lax.stop_gradient(distributions(params))
    of_trunk = trunk is not None
    at = roots_in(old, roots, of_trunk)
    objective = _VineObjective(centred(at, drawn_from(at, roots), standardise), of_trunk)
    return LocalProblem(distributions, objective, old, weight)


def roots_in(distribution: Distribution, roots: Roots, of_trunk: bool) -> Distribution:
    """Return the distributions at the roots, given those of the whole trunk, or already theirs."""
    return jax.tree.map(lambda leaf: leaf[roots.place], distribution) if of_trunk else distribution


class _VineObjective(eqx.Module):
    """π ↦ L of the roots, given distributions of the trunk or of the roots."""

    roots: Roots
    of_trunk: bool = eqx.field(static=True)

    def __call__(self, distribution: Any) -> Scalar:
        return vine_surrogate(roots_in(distribution, self.roots, self.of_trunk), self.roots)
