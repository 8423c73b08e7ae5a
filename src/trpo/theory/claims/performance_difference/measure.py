"""What the performance-difference claim measures: both sides of the identity, and what simulated paths collect."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP, chain, cliff, grid
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.noise import Noise
from trpo.theory.shared.paths import Moments, geometric_moments, geometric_sums

PATHS = np.array([64, 128, 256, 512, 1024])
"""N, the numbers of simulated paths for each MDP."""


class Sides(NamedTuple):
    """Both sides of the identity, one entry for each MDP, and L's side for contrast."""

    change: np.ndarray
    """η(π̃) − η(π)."""
    predicted: np.ndarray
    """Σ_s ρ_π̃(s) Σ_a π̃ A_π."""
    surrogate: np.ndarray
    """The same with ρ_π."""
    scale: np.ndarray
    """max|r|/(1 − γ), the largest return that the rewards allow."""

    @property
    def error(self) -> np.ndarray:
        """|change − predicted|, relative to ``scale``."""
        return np.abs(self.change - self.predicted) / self.scale


def _sides(mdp: MDP, old: np.ndarray, new: np.ndarray) -> Sides:
    eta = exact.expected_return(mdp, old)
    return Sides(
        exact.expected_return(mdp, new) - eta,
        exact.performance_difference(mdp, old, new),
        exact.surrogate(mdp, old, new) - eta,
        np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount),
    )


def _single_precision(group: Group) -> Sides:
    # Mapping over the leaves skips the class's conversion to double precision.
    mdp, old, new = jax.tree.map(lambda x: np.asarray(x, np.float32), (group.mdp, group.policy, group.other_policy))
    return _sides(mdp, old, new)


def _named(count: int, seed: int) -> Sides:
    """Measure the named MDPs with ``count`` pairs of random policies each."""
    rng = np.random.default_rng((seed, 1))
    sharpness = np.linspace(0, 8, count)[:, None, None]
    parts = []
    for one in (chain(), cliff(), grid()):
        mdp = jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), one)
        old, new = (exact.softmax(sharpness * rng.standard_normal(mdp.reward.shape)) for _ in range(2))
        parts.append(_sides(mdp, old, new))
    return join(parts)


class Simulated(NamedTuple):
    """What N paths gave, per MDP (``[n, k]`` over ``PATHS``), and the exact values."""

    mean: np.ndarray
    deviation: np.ndarray
    moments: Moments
    change: np.ndarray
    """η(π̃) − η(π), from the two values and not from the identity."""

    @property
    def noise(self) -> Noise:
        """The means' errors in units of their exact deviations."""
        return Noise.of(PATHS, self.mean, self.moments, self.change)


def _simulate(rng: np.random.Generator, group: Group) -> tuple[Simulated, tuple[float, np.ndarray]]:
    """Simulate every MDP of a group; beside it, one MDP's change and sums as an example."""
    mdp, old, new = group.mdp, group.policy, group.other_policy
    advantage = exact.advantage(mdp, old)
    sums = geometric_sums(rng, mdp, new, advantage, int(PATHS[-1]))
    change = exact.expected_return(mdp, new) - exact.expected_return(mdp, old)
    middling = int(np.argmin(np.abs(mdp.discount - 0.9)))
    found = Simulated(
        np.stack([sums[:, :n].mean(axis=-1) for n in PATHS], axis=-1),
        np.stack([sums[:, :n].std(axis=-1, ddof=1) for n in PATHS], axis=-1),
        geometric_moments(mdp, new, advantage),
        change,
    )
    return found, (float(change[middling]), sums[middling])


class Study(NamedTuple):
    """All that is measured."""

    sides: Sides
    single: Sides
    """The same in single precision."""
    named: Sides
    """In the named MDPs."""
    simulated: Simulated
    example: tuple[float, np.ndarray]
    """η(π̃) − η(π) and every path's sum in one MDP, for the figure."""


def measure(size: int, seed: int) -> Study:
    """Measure at least ``size`` random MDPs."""
    groups = ensemble(size, seed)
    rng = np.random.default_rng((seed, 2))
    sides = join([_sides(g.mdp, g.policy, g.other_policy) for g in groups])
    single = join([_single_precision(g) for g in groups])
    simulated, examples = zip(*(_simulate(rng, g) for g in groups), strict=True)
    return Study(sides, single, _named(max(4, size // 32), seed), join(simulated), examples[-1])
