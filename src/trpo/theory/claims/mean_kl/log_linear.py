"""Log-linear policies, whose states share parameters: what tables of logits lack and networks have."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.tabular import exact
from trpo.theory.shared.ensemble import Group


class Shared(NamedTuple):
    """MDPs of one shape with policies π_θ(a|s) ∝ π(a|s) exp(φ(s, a)·θ); θ = 0 is the group's random policy π."""

    group: Group
    features: np.ndarray
    """φ, shape ``[n, S, A, d]``."""

    @property
    def parameters(self) -> int:
        """How many parameters: d."""
        return self.features.shape[-1]

    def policy(self, theta: np.ndarray) -> np.ndarray:
        """Return π_θ(a|s) for θ of shape ``[*leading, n, d]`` by the oracle's soft-max, ``[*leading, n, S, A]``."""
        return exact.softmax(self.group.logits + np.einsum("nsad,...nd->...nsa", self.features, theta, optimize=True))


def share(group: Group, rng: np.random.Generator) -> Shared:
    """Give the policies d = S·A/4 parameters with random features, normal with E‖φ(s, a)‖² = 1."""
    d = group.logits[0].size // 4
    return Shared(group, rng.standard_normal((*group.logits.shape, d)) / np.sqrt(d))


def table(group: Group) -> Shared:
    """Give every (s, a) a parameter of its own: the complete table of logits."""
    states, actions = group.logits.shape[1:]
    identity = np.eye(states * actions).reshape(states, actions, -1)
    return Shared(group, np.broadcast_to(identity, (group.size, *identity.shape)))


def log_linear(offset: Any, features: Any, theta: Any) -> Categorical:
    """Return the library's distribution for all states of one MDP: logits = offset + φ·θ (JAX)."""
    return Categorical(offset + jnp.tensordot(features, theta, axes=1))
