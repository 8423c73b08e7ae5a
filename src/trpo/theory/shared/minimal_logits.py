"""Soft-max policies without redundancy: the last action's logit is fixed at 0, so that F can be inverted."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.tabular import exact


def reduce(logits: np.ndarray) -> np.ndarray:
    """Return θ of shape ``[..., S, A − 1]``, which gives the same policy as ``logits``."""
    return logits[..., :-1] - logits[..., -1:]


def categorical(theta: Any) -> Categorical:
    """Return the policy at θ, shape ``[S, A − 1]`` (for the library)."""
    return Categorical(jnp.concatenate([theta, jnp.zeros_like(theta[..., :1])], axis=-1))


def log_policy(theta: np.ndarray) -> np.ndarray:
    """Return log π(a|s) at θ, shape ``[..., S, A]`` (NumPy)."""
    logits = np.concatenate([theta, np.zeros_like(theta[..., :1])], axis=-1)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def fisher(weight: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Return the oracle's F over θ, ``[..., S(A−1), S(A−1)]``."""
    states, actions = policy.shape[-2:]
    kept = np.flatnonzero(np.arange(states * actions) % actions != actions - 1)
    return exact.fisher(weight, policy)[..., kept[:, None], kept]


def gradient(weight: np.ndarray, policy: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """Return ∇L = d_π(s) π(a|s) A_π(s, a) over θ, ``[..., S(A−1)]``."""
    g = (weight[..., None] * policy * advantage)[..., :-1]
    return g.reshape(*g.shape[:-2], -1)


def root_fisher(weight: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Return B with F = BᵀB: one row √(d(s) π(a|s)) ∇log π(a|s) for each (s, a), ``[..., S·A, S(A−1)]``."""
    *mdps, states, actions = policy.shape
    score = (np.eye(actions) - policy[..., None, :])[..., :-1]
    rows = np.sqrt(weight[..., None] * policy)[..., None] * score
    which = np.eye(states)[:, None, :, None]
    return (which * rows[..., :, :, None, :]).reshape(*mdps, states * actions, states * (actions - 1))
