"""Comparisons over tasks and seeds, with the formulas of Agarwal et al. 2021 (arXiv:2108.13264).

Scores are arrays ``[task, seed]``, normalised so that tasks may be put together; NaN where a run is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trpo.runs.aggregate import LEVEL, RESAMPLES, Interval, interquartile_mean


def resampled(scores: Any, seed: int = 0) -> np.ndarray:
    """Return bootstrap samples ``[RESAMPLES, task, seed]``, stratified: of each task, as many of its own runs."""
    random = np.random.default_rng(seed)
    rows = []
    for row in np.asarray(scores, float):
        known = row[np.isfinite(row)]
        drawn = known[random.integers(len(known), size=(RESAMPLES, len(known)))]
        rows.append(np.pad(drawn, ((0, 0), (0, len(row) - len(known))), constant_values=np.nan))
    return np.stack(rows, 1)


def overall(scores: Any, seed: int = 0) -> Interval:
    """Return the interquartile mean of the runs of all tasks together, with its stratified bootstrap interval."""
    samples = np.array([interquartile_mean(one[np.isfinite(one)]) for one in resampled(scores, seed)])
    scores = np.asarray(scores, float)
    return Interval(interquartile_mean(scores[np.isfinite(scores)]), *_ends(samples))


def performance_profile(scores: Any, levels: Any, seed: int = 0) -> Interval:
    """Return for each level τ the share of runs that score more, the mean over tasks of each task's share."""

    def share(scores: np.ndarray) -> np.ndarray:
        above = np.where(np.isfinite(scores)[..., None], scores[..., None] > np.asarray(levels), np.nan)
        return np.nanmean(np.nanmean(above, axis=-2), axis=-2)

    samples = np.stack([share(one) for one in resampled(scores, seed)])
    return Interval(share(np.asarray(scores, float)), *_ends(samples))


def probability_of_improvement(ours: Any, theirs: Any, seed: int = 0) -> Interval:
    """Return P(X > Y) + ½ P(X = Y) of a run each on the same task, the mean over tasks (Mann and Whitney's U / nm)."""

    def mean(ours: np.ndarray, theirs: np.ndarray) -> float:
        found = []
        for x, y in zip(ours, theirs, strict=True):
            x, y = x[np.isfinite(x), None], y[None, np.isfinite(y)]
            found.append(np.mean((x > y) + 0.5 * (x == y)))
        return float(np.mean(found))

    pairs = zip(resampled(ours, seed), resampled(theirs, seed + 1), strict=True)
    samples = np.array([mean(*pair) for pair in pairs])
    return Interval(mean(np.asarray(ours, float), np.asarray(theirs, float)), *_ends(samples))


def _ends(samples: np.ndarray) -> Any:
    return np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
