"""Error laws: how fast a remainder vanishes, rather than whether it is below some tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float


def slope(x: Float[np.ndarray, " k"], y: Float[np.ndarray, "*cases k"]) -> Any:
    """Return the least-squares slope of log y over log x along the last axis: p where y ∝ xᵖ."""
    lx, ly = np.log(x), np.log(y)
    lx = lx - lx.mean()
    return (ly * lx).sum(axis=-1) / (lx**2).sum()


def rms(x: Float[np.ndarray, "..."], axis: int | tuple[int, ...] | None = None) -> Any:
    """Return √(mean x²)."""
    return np.sqrt(np.mean(np.square(x), axis=axis))


def spread(values: Float[np.ndarray, "..."], digits: int = 3) -> str:
    """Describe values by their median and extremes: "median 2.000 (1.998 … 2.003)"."""
    return f"median {np.median(values):.{digits}f} ({np.min(values):.{digits}f} … {np.max(values):.{digits}f})"
