"""What the solving claim measures: systems as the library's conjugate gradient solves them, and the rule's steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.theory.claims.solving import steps, systems
from trpo.theory.claims.solving.systems import KAPPAS, SIZE, Solves, Systems
from trpo.theory.shared.arrays import join, take
from trpo.theory.shared.ensemble import ensemble

SHAPES = ((2, 3, 2), (4, 3, 3), (8, 3, 3))
"""(states, actions, branching): F has S(A − 1) = 4, 8, 16 rows."""
SHARPEST = 4.0
"""Condition numbers then reach some 1e7; far beyond, there is no accurate dense solution to compare with."""
CONVERGED = 120
"""Iterations after which conjugate gradient has converged in float64, up to κ = 1e7 or so."""
ITERATIONS = (1, 2, 4, 8, 10, 16, 32, CONVERGED)
HARDEST = tuple((kappa, k) for kappa in KAPPAS[1:] for k in ITERATIONS if k < SIZE)
"""(κ, k) of the systems on which k iterations do no better than the bound."""
RELATIVE_DAMPINGS = 10.0 ** np.arange(-6, 2)
"""λ/λ_max for conjugate gradient."""
SMALL_DAMPINGS = np.array([1e-3, 2e-3])
"""λ/λ_min, where the effect of damping is quadratic."""


class Solved(NamedTuple):
    """Systems, and what conjugate gradient made of them."""

    systems: Systems
    """Of the MDPs, then the made-up ones, then the hardest ones."""
    mdps: int
    random: int
    """How many of each of the first two."""
    undamped: Solves
    """For each of ``ITERATIONS``, ``[iterations, m]``."""


class Damped(NamedTuple):
    """The same with damping, without the hardest ones; ``[lambdas, m]``."""

    damping: np.ndarray
    """λ: those relative to λ_max, then those relative to λ_min."""
    truncated: Solves
    converged: Solves


def solve(size: int, seed: int) -> Solved:
    """Run conjugate gradient without damping."""
    mdps = join([steps.of_mdps(group) for group in ensemble(size, seed, SHAPES, SHARPEST)])
    random = systems.synthetic(np.random.default_rng([seed, 9]))
    every = join([mdps, random, *(systems.hardest(kappa, k) for kappa, k in HARDEST)])
    found = systems.solve(every, ITERATIONS, np.zeros((1, len(every.rows))))
    return Solved(every, len(mdps.rows), len(random.rows), systems.judge(every, found[:, 0]))


def _solve_damped(solved: Solved) -> Damped:
    every = take(solved.systems, slice(solved.mdps + solved.random))
    damping = np.concatenate([RELATIVE_DAMPINGS[:, None] * every.largest, SMALL_DAMPINGS[:, None] * every.smallest])
    found = systems.solve(every, (steps.TRUNCATED, CONVERGED), damping)
    return Damped(damping, *(systems.judge(every, x) for x in found))


def rule(size: int, seed: int, iterations: tuple[int, ...]) -> tuple[steps.Local, dict[int, steps.Updates]]:
    """Run the rule on the exact problem of each MDP: what the oracle knows of it, and the steps by cg_iterations."""
    group = steps.in_one_shape(ensemble(size, seed, SHAPES, SHARPEST))
    return steps.Local.of(group), steps.updates(group, iterations)


class Measured(NamedTuple):
    """Everything."""

    solved: Solved
    damped: Damped
    local: steps.Local
    updates: dict[int, steps.Updates]
    """The rule's own steps, by cg_iterations."""
    cosine: np.ndarray
    """gᵀΔ/gᵀΔ* of random steps on the boundary."""
    chance: np.ndarray
    """How unusual those uniform on it are, in standard deviations."""


def measure(size: int, seed: int) -> Measured:
    """Solve systems with and without damping, and run the rule."""
    solved, (local, updates) = solve(size, seed), rule(size, seed, (steps.TRUNCATED, steps.FULL))
    of_mdps = take(solved.systems, slice(solved.mdps))
    cosine, chance = steps.random_steps(np.random.default_rng([seed, 10]), local, of_mdps)
    return Measured(solved, _solve_damped(solved), local, updates, cosine, chance)
