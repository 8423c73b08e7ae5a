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


def band(values: Float[np.ndarray, "..."], digits: int = 2, share: float = 0.9) -> str:
    """Write the range of the middle ``share`` of values, "1.98 … 2.03"; of all of them if it is 1."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return f"{low:.{digits}f} … {high:.{digits}f}"


def spread(values: Float[np.ndarray, "..."], digits: int = 3) -> str:
    """Describe values by their median and extremes: "median 2.000 (1.998 … 2.003)"."""
    return f"median {np.median(values):.{digits}f} ({band(values, digits, share=1)})"


def rounding(error: Float[np.ndarray, "..."], typical: str = "RMS") -> str:
    """Describe an error that should be rounding only: "rounding: RMS 1.2e-16, largest 3.4e-15"."""
    size = rms(error) if typical == "RMS" else np.median(error)
    return f"rounding: {typical} {size:.1e}, largest {np.max(error):.1e}"
