"""What the oracle knows of MDPs before any update, and of policies near and far."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP
from trpo.theory.shared.arrays import bisect
from trpo.theory.shared.ensemble import Group


def return_deviation(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Return the standard deviation of Σ_t γᵗ r_t from (s, a), ``[n, S, A]``, by its second moments' linear system."""
    gamma = mdp.discount[:, None, None]
    v = exact.value(mdp, policy)
    q = exact.action_value_of(mdp, v)
    # Var(s, a) = γ² (E Var(s') + Var V(s')), Var(s) = E_a[Var(s, a) + (Q − V)²].
    ahead = (mdp.transition @ v[:, None, :, None])[..., 0]
    known = gamma**2 * ((mdp.transition @ (v**2)[:, None, :, None])[..., 0] - ahead**2)
    system = np.eye(mdp.states) - gamma**2 * exact.state_transition(mdp, policy)
    right = (policy * (known + (q - v[..., None]) ** 2)).sum(axis=-1)
    variance = np.linalg.solve(system, right[..., None])
    total = known + gamma**2 * (mdp.transition @ variance[:, None])[..., 0]
    return np.sqrt(np.maximum(total, 0.0))


class Facts(NamedTuple):
    """What the oracle knows of a group before any update; leading axis ``[n]``."""

    group: Group
    policy: np.ndarray
    weight: np.ndarray
    advantage: np.ndarray
    deviation: np.ndarray
    """Of a one-sample return from (s, a)."""
    expected_return: np.ndarray
    second: np.ndarray
    """κ₂ = Σ_s d(s) E[A²]."""

    @classmethod
    def of(cls, group: Group) -> Facts:
        """Collect them."""
        mdp, policy = group.mdp, group.policy
        weight, advantage = exact.state_weight(mdp, policy), exact.advantage(mdp, policy)
        second = (weight[..., None] * policy * advantage**2).sum(axis=(-2, -1))
        deviation = return_deviation(mdp, policy)
        return cls(group, policy, weight, advantage, deviation, exact.expected_return(mdp, policy), second)

    def promise(self, max_kl: np.ndarray) -> np.ndarray:
        """Return √(2δ κ₂)/(1 − γ), the gain of η that the linear model promises to the tabular policy."""
        return np.sqrt(2 * max_kl * self.second) / (1 - self.group.mdp.discount)


def policies(facts: Facts, features: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return π after each update, ``[updates, n, S, A]`` (oracle)."""
    logits = np.einsum("nsap,nup->unsa", features, theta, optimize=True)
    return exact.softmax(facts.group.logits + logits)


def state_kl(facts: Facts, new: np.ndarray) -> np.ndarray:
    """Return KL(π ‖ π_k) in each state after each update, ``[updates, n, S]`` (oracle)."""
    return exact.kl(np.broadcast_to(facts.policy, new.shape), new)


def _largest(inside: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return the largest positive x, to 1e-13 or so, with ``inside(x)``; true below and false above."""
    high = np.ones(count)
    while np.any(grow := inside(high) & (high < 1e12)):
        high = np.where(grow, 2 * high, high)
    return bisect(inside, np.zeros(count), high, rounds=46)[0]


def to_boundary(facts: Facts, step: np.ndarray, weight: np.ndarray, max_kl: np.ndarray) -> np.ndarray:
    """Return the policy on the line of logits ``step`` at which D̄ = δ, ``[n, S, A]``."""

    def along(t: np.ndarray) -> np.ndarray:
        return exact.softmax(facts.group.logits + t[:, None, None] * step)

    def inside(t: np.ndarray) -> np.ndarray:
        return (weight * exact.kl(facts.policy, along(t))).sum(axis=-1) <= max_kl

    return along(_largest(inside, len(step)))


def constrained_optimum(facts: Facts, max_kl: np.ndarray) -> np.ndarray:
    """Return the maximiser of L within D̄ ≤ δ among all policies: π̃(a|s) = π(a|s) / (u (λ_s − A(s, a))).

    One multiplier u = 1/ν serves all states, λ_s > max_a A(s, a) makes π̃(·|s) sum to 1, and ν is such that D̄ = δ.
    """
    policy, a = facts.policy, facts.advantage
    likely = np.take_along_axis(policy, a.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    distance = a.max(axis=-1, keepdims=True) - a

    def tilted(nu: np.ndarray) -> np.ndarray:
        # x = λ_s − max A. The sum is convex in x and ≥ 1 at x = ν π(best): Newton's method rises to the root.
        nu = nu[:, None]
        x = nu * likely
        for _ in range(14):
            terms = policy / (x[..., None] + distance)
            x = x + (nu * terms.sum(axis=-1) - 1) / (nu * (terms / (x[..., None] + distance)).sum(axis=-1))
        new = policy / (x[..., None] + distance)
        return new / new.sum(axis=-1, keepdims=True)

    def inside(u: np.ndarray) -> np.ndarray:
        return (facts.weight * exact.kl(policy, tilted(1 / np.maximum(u, 1e-300)))).sum(axis=-1) <= max_kl

    return tilted(1 / _largest(inside, len(a)))
