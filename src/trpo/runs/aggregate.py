"""Summaries over seeds: interquartile mean and bootstrap interval.

The method is that of Agarwal et al. 2021 (arXiv:2108.13264): the interquartile mean ignores the best and the worst
quarter of runs, so one lucky or broken seed does not decide, and uses the others, as a median does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interquartile mean over seeds with its bootstrap interval."""

    iqm: Any
    low: Any
    high: Any

    def to_json(self) -> dict[str, float]:
        """Return plain data."""
        return {"iqm": float(self.iqm), "low": float(self.low), "high": float(self.high)}


def interquartile_mean(scores: Any) -> Any:
    """Return the mean of the middle half over the last axis; ⌊n/4⌋ runs are cut off at each end."""
    return stats.trim_mean(np.asarray(scores, float), 0.25, axis=-1)


def interval(scores: Any, seed: int = 0) -> Interval:
    """Return interquartile mean and percentile bootstrap interval (95 %) over the last axis, the seeds.

    Seeds are drawn with replacement, the same draws for every row. With one seed the interval is that one value.

    >>> interval([1.0, 2.0, 3.0, 4.0]).iqm
    np.float64(2.5)
    """
    scores = np.asarray(scores, float)
    n = scores.shape[-1]
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    resampled = interquartile_mean(scores[..., draws])
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return Interval(interquartile_mean(scores), low, high)


def curves_on_grid(curves: Sequence[tuple[Any, Any]], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return common steps, and each curve's value at them ``[points, curves]``: its latest at or before that step.

    ``curves`` are pairs of steps and values; a value that is NaN is passed over. Where a curve has none yet, NaN.
    """
    first, last = (min(float(end(steps)) for steps, _ in curves) for end in (np.min, np.max))
    grid = np.linspace(first, last, points)
    columns = []
    for curve in curves:
        steps, values = np.asarray(curve, float)
        known = np.isfinite(values)
        index = np.searchsorted(steps[known], grid, side="right")
        columns.append(np.append(np.nan, values[known])[index])  # 0: none yet
    return grid, np.stack(columns, axis=-1)
