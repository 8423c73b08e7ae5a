"""What processes that step side by side exchange, in memory that they share."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import numpy as np

from trpo.envs.spaces import Bits, Box, Dict, Leaf, Space, Tree, Tuple
from trpo.envs.spec import EnvSpec


def exchanged(spec: EnvSpec, action: Tree) -> Tuple:
    """What a step exchanges: the policy's actions, and the fields of a :class:`Transition`."""
    flag, seen = Bits((), "bool"), spec.observation
    return Tuple((_space(action), Tuple((seen, Box(()), flag, flag, seen, flag))))


def _space(x: Tree) -> Space:
    """Return what rows of ``x`` are kept in."""
    if isinstance(x, dict):
        return Dict(tuple((name, _space(part)) for name, part in x.items()))
    return Box(x.shape[1:], str(x.dtype)) if isinstance(x, np.ndarray) else Tuple(tuple(map(_space, x)))


def rows_of(x: Tree, rows: slice) -> Tree:
    """Return some rows of every leaf."""
    if isinstance(x, dict):
        return {name: rows_of(part, rows) for name, part in x.items()}
    return x[rows] if isinstance(x, np.ndarray) else tuple([rows_of(part, rows) for part in x])


def size_of(leaf: Leaf, count: int) -> int:
    """Return the bytes that ``count`` rows of a leaf take."""
    return -(-count * leaf.size * np.dtype(leaf.dtype).itemsize // 64) * 64  # every array on a cache line of its own


def views_of(memory: SharedMemory, space: Space, count: int) -> Tree:
    """Return ``count`` rows of ``space`` that lie in this memory."""
    offset = 0

    def view(leaf: Leaf) -> np.ndarray:
        nonlocal offset
        begin, offset = offset, offset + size_of(leaf, count)
        return np.ndarray((count, *leaf.shape), leaf.dtype, buffer=memory.buf, offset=begin)

    return space.map(view)


def write_rows(views: Tree, rows: slice, parts: Tree) -> None:
    """Write into some rows of every leaf."""
    if isinstance(views, np.ndarray):
        views[rows] = parts
        return
    for key in views if isinstance(views, dict) else range(len(views)):
        write_rows(views[key], rows, parts[key])


def copied(views: Tree) -> Tree:
    """Return copies, which the next step leaves alone."""
    if isinstance(views, dict):
        return {name: copied(view) for name, view in views.items()}
    return views.copy() if isinstance(views, np.ndarray) else tuple([copied(view) for view in views])
