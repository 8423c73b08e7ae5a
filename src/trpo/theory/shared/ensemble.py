"""The random MDPs and policies on which claims are checked, in batches of equal shape."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from trpo.tabular.exact import softmax
from trpo.tabular.mdp import MDP, garnet

SHAPES = ((2, 2, 2), (4, 3, 3), (8, 4, 3), (16, 3, 4))
"""(states, actions, branching)."""
SHARPEST = 8.0
"""Standard deviation of the sharpest policies' logits: in most states one action then has all but 1 % or less."""


class Group(NamedTuple):
    """``n`` MDPs of one shape, with two independent random policies each (NumPy, float64)."""

    mdp: MDP
    """Leading axis ``[n]``."""
    logits: np.ndarray
    """Soft-max parameters θ of π, shape ``[n, S, A]``."""
    other_logits: np.ndarray
    """Those of an unrelated second policy π̃."""

    @property
    def size(self) -> int:
        """How many MDPs."""
        return self.logits.shape[0]

    @property
    def policy(self) -> np.ndarray:
        """π(a|s), shape ``[n, S, A]``."""
        return softmax(self.logits)

    @property
    def other_policy(self) -> np.ndarray:
        """π̃(a|s), shape ``[n, S, A]``."""
        return softmax(self.other_logits)

    def take(self, index: np.ndarray) -> Group:
        """Return the MDPs at ``index``."""
        return Group(*(jax.tree.map(lambda leaf: leaf[index], part) for part in self))


def ensemble(
    size: int,
    seed: int = 0,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    sharpest: float = SHARPEST,
) -> list[Group]:
    """Draw at least ``size`` Garnet MDPs with policies, evenly over ``shapes``, one group a shape.

    1 − γ is log-uniform from 0.5 to 0.01 (both ends included). Policies go from uniform (logits 0, the first of every
    group) to nearly deterministic: logits are normal, and their standard deviation rises evenly from 0 to
    ``sharpest``.
    """
    rng = np.random.default_rng(seed)
    count = -(-size // len(shapes))
    groups = []
    for states, actions, branching in shapes:
        gamma = 1 - 0.5 * (0.01 / 0.5) ** rng.permutation(np.linspace(0, 1, count))
        sharpness = np.linspace(0, sharpest, count)[:, None, None]
        logits, other = (sharpness * rng.standard_normal((count, states, actions)) for _ in range(2))
        groups.append(Group(garnet(rng, states, actions, branching, gamma), logits, other[rng.permutation(count)]))
    return groups
