"""Exact quantities of a finite MDP and a policy, from their definitions by dense linear algebra.

Nothing here knows the code that it judges: no distribution, Fisher product, objective or rule of the library, and no
automatic differentiation. Every function takes leading axes (many MDPs at once) and NumPy or JAX arrays; a policy
is its table of probabilities π(a|s), shape ``[*mdps, S, A]``. Equation numbers are those of the TRPO paper
(Schulman et al. 2015, arXiv:1502.05477).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from trpo.tabular.mdp import MDP, Table, check_probabilities
from trpo.trees import namespace, per_element
from trpo.types import AnyArray

# Complex numbers pass as well, so that derivatives can be taken by a complex step.
Policy: TypeAlias = Inexact[Table, "*mdps s a"]
States: TypeAlias = Inexact[Table, "*mdps s"]
Pairs: TypeAlias = Inexact[Table, "*mdps s a"]
Number: TypeAlias = Inexact[Table, "*mdps"]


def check_policy(mdp: MDP, policy: Any) -> None:
    """Raise ``ValueError`` unless ``policy`` is a table of probabilities with the shape of ``mdp.reward``."""
    if np.shape(policy) != mdp.reward.shape:
        raise ValueError(
            f"policy has shape {np.shape(policy)}: must be [*mdps, S, A] = {mdp.reward.shape}, as the reward"
        )
    check_probabilities("policy", policy, "π(·|s)")


def softmax(logits: Pairs) -> Policy:
    """π(a|s) = exp(θ_sa) / Σ_b exp(θ_sb)."""
    xp = namespace(logits)
    e = xp.exp(logits - xp.max(logits.real, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _solve(matrix: AnyArray, vector: AnyArray) -> AnyArray:
    """Solve with I − γP_π or its transpose."""
    if isinstance(matrix, np.ndarray):
        return np.linalg.solve(matrix, vector[..., None])[..., 0]
    # Not jnp.linalg.solve: XLA may run two batched LU factorisations of one program at the same time, and on a CPU with
    # two cores each was seen to wait for ever for threads that the other held (jaxlib 0.10.2). Elimination needs no
    # pivots here: the matrix is diagonally dominant, because γ < 1.
    system = jnp.concatenate([matrix, vector[..., None]], axis=-1)
    size = matrix.shape[-1]

    def eliminate(k: Any, system: Any) -> Any:
        row = jax.lax.dynamic_index_in_dim(system, k, axis=-2)
        row = row / jax.lax.dynamic_index_in_dim(row, k, axis=-1)
        others = system - jax.lax.dynamic_index_in_dim(system, k, axis=-1) * row
        this = jnp.reshape(jnp.arange(size) == k, (1,) * (system.ndim - 2) + (size, 1))
        return jnp.where(this, row, others)

    return jax.lax.fori_loop(0, size, eliminate, system)[..., -1]


def _resolvent(mdp: MDP, policy: Policy) -> AnyArray:
    """I − γ P_π."""
    p = state_transition(mdp, policy)
    xp = namespace(p)
    return xp.broadcast_to(xp.eye(mdp.states, dtype=mdp.transition.dtype), p.shape) - mdp.discount[..., None, None] * p


def state_transition(mdp: MDP, policy: Policy) -> Any:
    """P_π(s'|s) = Σ_a π(a|s) P(s'|s, a), shape ``[*mdps, S, S]``."""
    return namespace(policy).sum(policy[..., None] * mdp.transition, axis=-2)


def value(mdp: MDP, policy: Policy) -> States:
    """V_π = (I − γP_π)⁻¹ r_π."""
    xp = namespace(policy)
    return _solve(_resolvent(mdp, policy), xp.sum(policy * mdp.reward, axis=-1))


def action_value_of(mdp: MDP, value: States) -> Pairs:
    """Q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) V(s')."""
    xp = namespace(value)
    ahead = xp.sum(mdp.transition * value[..., None, None, :], axis=-1)
    return mdp.reward + mdp.discount[..., None, None] * ahead


def action_value(mdp: MDP, policy: Policy) -> Pairs:
    """Q_π(s, a)."""
    return action_value_of(mdp, value(mdp, policy))


def advantage(mdp: MDP, policy: Policy) -> Pairs:
    """A_π(s, a) = Q_π(s, a) − V_π(s); Σ_a π(a|s) A_π(s, a) = 0."""
    v = value(mdp, policy)
    return action_value_of(mdp, v) - v[..., None]


def visitation(mdp: MDP, policy: Policy) -> States:
    """ρ_π(s) = Σ_t γᵗ P(s_t = s): discounted and *unnormalised*, as in the paper; it sums to 1/(1 − γ)."""
    return _solve(namespace(policy).swapaxes(_resolvent(mdp, policy), -1, -2), mdp.start)


def state_weight(mdp: MDP, policy: Policy) -> States:
    """d_π(s) = (1 − γ) ρ_π(s), which sums to 1."""
    return (1 - mdp.discount)[..., None] * visitation(mdp, policy)


def expected_return(mdp: MDP, policy: Policy) -> Number:
    """η(π) = Σ_s μ(s) V_π(s), the expected discounted return."""
    return namespace(policy).sum(mdp.start * value(mdp, policy), axis=-1)


def expected_advantage(advantage: Pairs, policy: Policy) -> States:
    """Ā(s) = Σ_a π̃(a|s) A_π(s, a), from A_π and π̃."""
    return namespace(policy).sum(policy * advantage, axis=-1)


def surrogate(mdp: MDP, old: Policy, new: Policy) -> Number:
    """L_π(π̃) = η(π) + Σ_s ρ_π(s) Σ_a π̃(a|s) A_π(s, a)  (eq. 3)."""
    xp = namespace(old)
    gain = xp.sum(visitation(mdp, old) * expected_advantage(advantage(mdp, old), new), axis=-1)
    return expected_return(mdp, old) + gain


def performance_difference(mdp: MDP, old: Policy, new: Policy) -> Number:
    """η(π̃) − η(π) = Σ_s ρ_π̃(s) Σ_a π̃(a|s) A_π(s, a)  (eq. 2; Kakade and Langford 2002): note π̃'s visitation."""
    xp = namespace(old)
    return xp.sum(visitation(mdp, new) * expected_advantage(advantage(mdp, old), new), axis=-1)


def kl(p: Policy, q: Policy) -> States:
    """KL(p ‖ q) = Σ_a p(a) log(p(a)/q(a)) in each state, in nats; ∞ where q forbids what p does."""
    xp = namespace(p)
    allowed = (p > 0) & (q > 0)
    terms = p * (xp.log(xp.where(allowed, p, 1.0)) - xp.log(xp.where(allowed, q, 1.0)))
    return xp.sum(xp.where((p > 0) & ~allowed, xp.inf, terms), axis=-1)


def total_variation(p: Policy, q: Policy) -> States:
    """D_TV(p, q) = ½ Σ_a |p(a) − q(a)| in each state."""
    xp = namespace(p)
    return 0.5 * xp.sum(xp.abs(p - q), axis=-1)


def policy_gradient(mdp: MDP, logits: Pairs) -> Pairs:
    """∂η/∂θ_sa = ρ_π(s) π(a|s) A_π(s, a) for the soft-max policy (Sutton et al. 2000)."""
    policy = softmax(logits)
    return visitation(mdp, policy)[..., None] * policy * advantage(mdp, policy)


def state_fisher(policy: Policy) -> Any:
    """E[score scoreᵀ] = diag(π(·|s)) − π(·|s) π(·|s)ᵀ in each state; score_b(a) = 1[a = b] − π(b|s).

    Shape ``[*mdps, S, A, A]``.
    """
    xp = namespace(policy)
    actions = policy.shape[-1]
    score = xp.broadcast_to(xp.eye(actions, dtype=policy.dtype), (*policy.shape, actions)) - policy[..., None, :]
    return xp.sum(policy[..., None, None] * score[..., :, None] * score[..., None, :], axis=-3)


def fisher(weight: States, policy: Policy) -> Any:
    """F = Σ_s w(s) E_a[∇log π ∇log πᵀ] over all soft-max logits; block-diagonal, shape ``[*mdps, S·A, S·A]``."""
    xp = namespace(policy)
    *mdps, states, actions = policy.shape
    blocks = weight[..., None, None] * state_fisher(policy)
    same_state = per_element(xp.eye(states, dtype=policy.dtype)[:, None, :, None], blocks.ndim + 1)
    return xp.reshape(same_state * blocks[..., :, :, None, :], (*mdps, states * actions, states * actions))


class Optimum(NamedTuple):
    """What policy iteration found."""

    policy: Policy
    """Deterministic."""
    value: States
    expected_return: Number
    iterations: Any
    """Improvements until the policy no longer changed, for each MDP."""


def policy_iteration(mdp: MDP, policy: Policy | None = None, max_iterations: int = 1000) -> Optimum:
    """Return an optimal policy by Howard's policy iteration, starting from ``policy`` (uniform if None). NumPy only.

    Raises:
        RuntimeError: no fixed point within ``max_iterations``.
    """
    policy = np.full(mdp.reward.shape, 1 / mdp.actions) if policy is None else np.asarray(policy)
    count = np.zeros(mdp.reward.shape[:-2], int)
    for _ in range(max_iterations):
        q = action_value(mdp, policy)
        # A greedy action replaces the present one only if better by more than rounding: else ties might cycle.
        current = expected_advantage(q, policy)[..., None]
        slack = 1e-12 * (1 + np.abs(q).max(axis=-1, keepdims=True))
        settled = (policy.max(axis=-1, keepdims=True) == 1.0) & (q.max(axis=-1, keepdims=True) <= current + slack)
        greedy = np.eye(mdp.actions)[q.argmax(axis=-1)]
        new = np.where(settled, policy, greedy)
        changed = np.any(new != policy, axis=(-2, -1))
        if not np.any(changed):
            return Optimum(policy, value(mdp, policy), expected_return(mdp, policy), count)
        count = count + changed
        policy = new
    raise RuntimeError(f"policy iteration did not settle within {max_iterations} iterations")
