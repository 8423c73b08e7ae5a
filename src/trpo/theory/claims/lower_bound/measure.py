"""What the claim "lower bound" measures: random pairs, pairs that a search found, short steps, a pair by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.tabular import bounds
from trpo.theory.claims.lower_bound.adversary import CONTROL, DISCOUNTS, Bound, Cases, search
from trpo.theory.claims.lower_bound.nearby import ByHand, Expansion, by_hand, expand, pairs
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import ensemble


class Evidence(NamedTuple):
    """All that was measured."""

    far: Cases
    close: Cases
    found: dict[str, Cases]
    """What the search against each bound ended with."""
    near: Expansion
    hand: ByHand
    lagging: ByHand

    def searched(self, name: str) -> np.ndarray:
        """Ratios for ``name`` on what all searches found, whichever bound they were against."""
        return join([cases.ratio(name) for cases in self.found.values()])

    def best(self, name: str) -> np.ndarray:
        """The largest ratio that any search found, for each of `DISCOUNTS`."""
        gamma = join([cases.discount for cases in self.found.values()])
        return np.array([self.searched(name)[gamma == g].max() for g in DISCOUNTS])


def measure(size: int, seed: int) -> Evidence:
    """Measure ``size`` random MDPs, and search from as many starts against each bound."""
    rng = np.random.default_rng([seed, 5])
    penalties: dict[str, Bound] = {**bounds.BOUNDS, CONTROL: bounds.icml_version}
    far, close = map(join, zip(*(pairs(g, penalties, rng) for g in ensemble(size, seed)), strict=True))
    # theorem_1_kl is twice pinsker, so one search serves both; it is measured on what all searches find.
    targets = {name: bound for name, bound in penalties.items() if name != "theorem_1_kl"}
    # Nearly deterministic policies change too little in short steps for more than a digit or two to be left.
    near = join([expand(g, penalties, rng) for g in ensemble(size, seed, sharpest=2.0)])
    alphas = 10.0 ** -np.arange(1, 6)
    return Evidence(
        far,
        close,
        search(targets, penalties, size, rng),
        near,
        by_hand(DISCOUNTS, alphas, penalties),
        by_hand(DISCOUNTS, alphas[:3], penalties, lag=0.5),
    )
