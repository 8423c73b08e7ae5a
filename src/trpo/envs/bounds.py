"""Bounds of a Box: which of them are meant, and how an action is kept within them, in arithmetic that rounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Number = int | float
Bound = Number | tuple[Number, ...]
"""One number where it is the same for all elements, else one for each, flattened; ±inf where there is none."""


def _rows(box: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.broadcast_to(np.asarray(bound, float), (box.size,))[None] for bound in (box.low, box.high))
    return low, high


def _end(dtype: np.dtype, sign: int) -> float:
    """Return the largest number of a type, or for ``sign`` −1 the smallest, as a double."""
    if dtype.kind == "b":
        return float(sign > 0)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return float(limits.max if sign > 0 else limits.min)


def _meant(bound: np.ndarray, dtype: np.dtype, sign: int) -> np.ndarray:
    """Return where there is an upper (``sign`` 1) or lower (−1) bound: the ends of a wide type stand for none."""
    end = min(abs(_end(dtype, sign)), float(np.finfo(np.float32).max))
    wide = dtype.kind == "f" or (dtype.itemsize >= 4 and end > 0)  # unsigned numbers do end at 0, and bytes at 255
    return np.isfinite(bound) & (sign * bound < end if wide else True)


def _within(bound: np.ndarray, dtype: np.dtype, sign: int, number: np.dtype) -> np.ndarray:
    """Return bounds as numbers of type ``number``, rounded to the inside; no infinity is let through."""
    least = np.minimum(sign * bound, sign * _end(dtype, sign))
    if dtype.kind in "iu":  # a double rounds the ends of 64 bits to the outside
        least = np.where(abs(least) > 2.0**53, np.nextafter(least, -np.inf), np.floor(least))
    with np.errstate(over="ignore"):
        rounded = least.astype(number)
        return sign * np.where(rounded > least, np.nextafter(rounded, number.type(-np.inf)), rounded)


def meaning(box: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a Box's bounds mean: the lower and upper ones, ±inf where there is none, and where it is rescaled."""
    (low, high), dtype = _rows(box), np.dtype(box.dtype)
    below, above = _meant(low, dtype, -1), _meant(high, dtype, 1)
    return np.where(below, low, -np.inf), np.where(above, high, np.inf), below & above & box.rescale


@functools.lru_cache(maxsize=64)
def affine(box: Any, number: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return limits and the map middle + half·a of a Box as rows ``[1, size]``, computed once for each space."""
    (low, high), dtype, rescaled = _rows(box), np.dtype(box.dtype), meaning(box)[2]
    top, bottom = np.where(rescaled, high, 1.0), np.where(rescaled, low, -1.0)
    middle, half = (x.astype(number) for x in ((top + bottom) / 2, (top - bottom) / 2))
    return _within(low, dtype, -1, number), _within(high, dtype, 1, number), middle, half


@functools.lru_cache(maxsize=64)
def whole(box: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a Box of integers as rows of ``dtype``, exact."""
    limits = np.iinfo(dtype)

    def row(bound: Bound, rounded: Callable[[Number], int]) -> np.ndarray:
        each = bound if isinstance(bound, tuple) else (bound,)
        return np.array([[rounded(min(max(x, limits.min), limits.max)) for x in each]], dtype)

    return row(box.low, math.ceil), row(box.high, math.floor)
