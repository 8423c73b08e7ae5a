"""Derivatives of the return that use neither the policy gradient theorem nor automatic differentiation (NumPy)."""

from __future__ import annotations

import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP


def complex_step_gradient(mdp: MDP, logits: np.ndarray, h: float = 1e-30) -> np.ndarray:
    """Return ∇η = Im η(θ + ih e)/h, coordinate by coordinate; nothing is subtracted, so h may be as small as can be."""
    gradient = np.zeros_like(logits)
    for s in range(mdp.states):
        for a in range(mdp.actions):
            shifted = logits.astype(complex)
            shifted[:, s, a] += 1j * h
            gradient[:, s, a] = exact.expected_return(mdp, exact.softmax(shifted)).imag / h
    return gradient


def second_order(mdp: MDP, logits: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dρ(s) and dĀ(s) along a direction of the soft-max logits, from their closed forms."""
    policy = exact.softmax(logits)
    d_policy = policy * (direction - (policy * direction).sum(axis=-1, keepdims=True))
    d_transition = exact.state_transition(mdp, d_policy)
    rho = exact.visitation(mdp, policy)
    system = np.eye(mdp.states) - mdp.discount[:, None, None] * exact.state_transition(mdp, policy).swapaxes(-1, -2)
    moved = mdp.discount[:, None, None] * d_transition.swapaxes(-1, -2) @ rho[..., None]
    return np.linalg.solve(system, moved)[..., 0], exact.expected_advantage(exact.advantage(mdp, policy), d_policy)
