"""Arrays of many cases: joined, extrapolated, bisected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float

Tree = TypeVar("Tree")


def join(parts: Sequence[Tree], axis: int = 0) -> Tree:
    """Put the cases of several groups in one row: arrays, or records of arrays, joined leaf by leaf along ``axis``."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *parts)


def stack(parts: Sequence[Tree], axis: int = -1) -> Tree:
    """Give what was measured several times, as at every step of a series, an axis for that."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *parts)


def limit_weights(steps: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Return w with Σ_k w_k f(steps_k) = f(0) for every polynomial through as many points (Richardson)."""
    ratios = steps[None, :] / (steps[None, :] - steps[:, None] + np.eye(steps.size))
    np.fill_diagonal(ratios, 1.0)
    return ratios.prod(axis=1)


def take(record: Tree, index: Any) -> Tree:
    """Return some of the cases: ``leaf[index]`` of every array of a record."""
    return jax.tree.map(lambda leaf: leaf[index], record)


def limit(values: Float[np.ndarray, "... k"], steps: Float[np.ndarray, " k"]) -> Float[np.ndarray, "..."]:
    """Extrapolate ``values[..., k]`` at ``steps[k]`` to step 0 by the polynomial through all of them."""
    return values @ limit_weights(steps)


def bisect(
    inside: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, rounds: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Close in, entry by entry, on where ``inside`` turns from true (towards ``low``) to false (towards ``high``)."""
    for _ in range(rounds):
        middle = (low + high) / 2
        reached = inside(middle)
        low, high = np.where(reached, middle, low), np.where(reached, high, middle)
    return low, high
