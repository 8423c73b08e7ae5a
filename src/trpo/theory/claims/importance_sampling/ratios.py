"""The variance of importance ratios as two policies part, exactly (NumPy)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.tabular import exact
from trpo.theory.claims.importance_sampling.sampled import Setting
from trpo.theory.shared.arrays import bisect, stack

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
    old, weight = s.group.policy, s.weight
    new = exact.softmax(s.group.logits + t[:, None, None] * s.v)
    second = (weight[..., None] * new**2 / old * s.advantage**2).sum(axis=(-2, -1))
    mean = (weight[..., None] * new * s.advantage).sum(axis=(-2, -1))
    return Spread(
        # Not Σ π̃²/π − 1, which cancels near π.
        chi_square=(weight[..., None] * (new - old) ** 2 / old).sum(axis=(-2, -1)),
        kl_new=(weight * exact.kl(new, old)).sum(axis=-1),
        kl_old=(weight * exact.kl(old, new)).sum(axis=-1),
        deviation=np.sqrt(np.maximum(second - mean**2, 0)),
    )


def along(s: Setting, steps: np.ndarray) -> Spread:
    """Return it at every step of a line, ``[n, k]``."""
    return stack([spread_at(s, np.full(len(s.weight), t)) for t in steps])


def at_radii(s: Setting) -> Spread:
    """Return it where the line leaves each trust region KL(π ‖ π̃) ≤ δ of ``RADII``; NaN if it never does by t = 100."""
    # KL(π ‖ π̃) is convex along the line and 0 at π, so it rises.
    begin = np.zeros((len(s.weight), RADII.size))
    _, end = bisect(lambda t: np.stack([spread_at(s, x).kl_old for x in t.T], axis=-1) <= RADII, begin, begin + 100, 40)
    found = stack([spread_at(s, t) for t in end.T])
    return Spread(*(np.where(end < 100.0, x, np.nan) for x in found))
