"""The variance of importance ratios as two policies part, exactly (NumPy)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.tabular import exact
from trpo.theory.claims._sampled import Setting

NEAR = np.geomspace(0.1, 0.01, 5)
"""t, along lines of logits θ + tv with standard normal v, where the law near π is measured."""
FAR = np.geomspace(0.05, 12.0, 25)
"""t, out to where the policies have little in common."""
RADII = np.array([0.01, 0.1, 1.0])
"""δ: mean KL(π ‖ π̃) at which ratios are compared; 0.01 is the usual trust region."""


class Spread(NamedTuple):
    """How far π̃ is from π; means over the states that π visits."""

    chi_square: np.ndarray
    """E_π[(π̃/π)²] − 1 = χ²(π̃ ‖ π), the variance of the ratio."""
    kl_new: np.ndarray
    """KL(π̃ ‖ π)."""
    kl_old: np.ndarray
    """KL(π ‖ π̃), the trust region's."""
    deviation: np.ndarray
    """Standard deviation of π̃/π · A_π, one sample of the surrogate."""


def spread_at(s: Setting, t: np.ndarray) -> Spread:
    """Return it at θ + tv; ``t`` has shape ``[n]``."""
    old = s.group.policy
    new = exact.softmax(s.group.logits + t[:, None, None] * s.v)
    weight = s.weight
    second = (weight[..., None] * new**2 / old * s.advantage**2).sum(axis=(-2, -1))
    mean = (weight[..., None] * new * s.advantage).sum(axis=(-2, -1))
    return Spread(
        # Not Σ π̃²/π − 1, which cancels near π.
        (weight[..., None] * (new - old) ** 2 / old).sum(axis=(-2, -1)),
        (weight * exact.kl(new, old)).sum(axis=-1),
        (weight * exact.kl(old, new)).sum(axis=-1),
        np.sqrt(np.maximum(second - mean**2, 0)),
    )


def along(s: Setting, steps: np.ndarray) -> Spread:
    """Return it at every step of a line, ``[n, k]``."""
    parts = [spread_at(s, np.full(len(s.weight), t)) for t in steps]
    return Spread(*(np.stack(column, axis=-1) for column in zip(*parts, strict=True)))


def at_radii(s: Setting) -> Spread:
    """Return it where the line leaves each trust region KL(π ‖ π̃) ≤ δ of ``RADII``; NaN if it never does by t = 100."""
    columns = []
    for radius in RADII:
        low, high = np.zeros(len(s.weight)), np.full(len(s.weight), 100.0)
        # KL(π ‖ π̃) is convex along the line and 0 at π, so it rises: bisection.
        for _ in range(40):
            middle = (low + high) / 2
            outside = spread_at(s, middle).kl_old > radius
            low, high = np.where(outside, low, middle), np.where(outside, middle, high)
        reached = high < 100.0
        columns.append(Spread(*(np.where(reached, x, np.nan) for x in spread_at(s, high))))
    return Spread(*(np.stack(column, axis=-1) for column in zip(*columns, strict=True)))
