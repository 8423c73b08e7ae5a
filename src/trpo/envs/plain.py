"""Arrays as plain data, for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

_PLAIN = ("numpy", "shape", "values")
"""The keys of an array as plain data."""
_PLAIN_TYPES = "?bBhHiIlLqQefdU"
"""Types of which JSON keeps every bit."""


def to_plain(data: Any) -> Any:
    """Copy JSON-able data that may hold NumPy arrays and scalars, which become numbers with their type and shape."""
    if isinstance(data, dict):
        return {name: to_plain(part) for name, part in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(to_plain, data)) if type(data) in (list, tuple) else data
    if isinstance(data, np.ndarray | np.generic) and data.dtype.char in _PLAIN_TYPES:
        return dict(zip(_PLAIN, (data.dtype.str, list(data.shape), data.ravel().tolist()), strict=True))
    return data


def from_plain(data: Any) -> Any:
    """Return what :func:`to_plain` copied; zero-dimensional arrays are scalars."""
    if isinstance(data, dict):
        if tuple(data) == _PLAIN:
            kind, shape, values = data.values()
            return np.array(values, kind).reshape(shape)[()]
        return {name: from_plain(part) for name, part in data.items()}
    return type(data)(map(from_plain, data)) if type(data) in (list, tuple) else data
