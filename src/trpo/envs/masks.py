"""Which actions are allowed: a mask, which is a part of an observation.

So it goes wherever an observation goes, to the policy that acts, into batches and checkpoints. It is one vector of
zeros and ones, a number for each action of a Discrete, for each of every component's of a MultiDiscrete, and for
those of the parts of a Dict (by name) or Tuple one after the other; other parts of an action have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trpo.envs.spaces import Choice, Choices, Dict, Space, Tuple, by_name
from trpo.spelling import on_one_line

MASK = "action_mask"
"""What the part of an observation is called, and what environments call it in ``info``."""


def choices(action: Space) -> tuple[int, ...]:
    """Return how many actions each choice has that a mask tells of, in its order."""
    match action:
        case Choice():
            return (action.n,)
        case Choices():
            return action.sizes
        case Dict() | Tuple():
            return tuple(n for _, part in by_name(action) for n in choices(part))
    return ()


def blocked(sizes: Sequence[int], mask: Any) -> Any:
    """Return where masks ``[..., Σ sizes]`` leave a choice without any action, ``[...]``."""
    xp = mask.__array_namespace__()
    ends = itertools.accumulate(sizes)
    allowed = [(mask[..., end - n : end] > 0).any(axis=-1) for n, end in zip(sizes, ends, strict=True)]
    return ~xp.stack(allowed, axis=-1).all(axis=-1)


def none_left(which: str = "") -> str:
    """Say that a mask, of ``which``, allows no action."""
    return f"the {MASK}{which} allows no action; end episodes where none is left"


def flat_mask(action: Space, mask: Any) -> np.ndarray:
    """Return a mask, or a batch of them, as vectors ``[..., n]`` of 0 and 1.

    Taken are such vectors, and what Gymnasium's ``space.sample(mask)`` takes: for a MultiDiscrete a tuple of arrays,
    for a Dict or Tuple its parts' masks, None where all is allowed.

    Raises:
        ValueError: it has another form or shape, or other numbers.
    """
    size = sum(choices(action))
    try:
        array = np.asarray(_joined(action, mask))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{MASK} {on_one_line(mask, 60)} is no mask of {action}: {error}") from error
    if array.dtype.kind not in "biuf" or array.shape[-1:] != (size,):
        raise ValueError(
            f"{MASK} of shape {array.shape} and type {array.dtype}: masks of {action} have shape ({size},), a 0 or 1 "
            "for each action"
        )
    if array.dtype.kind != "b" and not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{MASK} {on_one_line(mask, 60)} must have zeros and ones alone: 1 where an action is allowed")
    return array.astype(np.int8)


def _joined(action: Space, mask: Any) -> Any:
    """Return a tree of masks as one array."""
    if isinstance(action, Dict) and isinstance(mask, Mapping):
        if odd := mask.keys() - dict(action.items).keys():
            raise ValueError(f"an action has no part {sorted(map(str, odd))[0]!r}")
        return _concatenated([_part(part, mask.get(key)) for key, part in by_name(action)])
    nested = isinstance(mask, tuple | list) and any(part is None or np.ndim(part) for part in mask)
    if nested and isinstance(action, Tuple):
        return _concatenated([_part(part, of) for (_, part), of in zip(by_name(action), mask, strict=True)])
    if nested and isinstance(action, Choices):
        # Of an array of choices with several axes, the masks are nested as its rows are.
        return _concatenated([_joined(action, part) if isinstance(part, tuple | list) else part for part in mask])
    return mask


def _part(action: Space, mask: Any) -> Any:
    size = sum(choices(action))
    if mask is None:
        return np.ones(size, np.int8)
    if not size:
        raise ValueError(f"{action} has no mask; Discrete and MultiDiscrete have")
    array = np.asarray(_joined(action, mask))
    if array.shape[-1:] != (size,):
        raise ValueError(f"the part for {action} has shape {array.shape}, not ({size},)")
    return array


def _concatenated(parts: list[Any]) -> np.ndarray:
    arrays = [np.asarray(part) for part in parts]
    leading = np.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    return np.concatenate([np.broadcast_to(array, (*leading, array.shape[-1])) for array in arrays], axis=-1)
