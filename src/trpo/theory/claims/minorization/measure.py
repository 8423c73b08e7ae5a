"""What the claim "minorization" measures: contact of the bound, proofs of its maxima, the law of the step, climbs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from trpo.tabular import bounds, chain, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims.minorization import climb as runs
from trpo.theory.claims.minorization.duality import suboptimality
from trpo.theory.shared.arrays import join, stack, take
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.laws import slope

SHAPES = ((2, 2, 2), (5, 2, 3), (4, 3, 3))
NAMED = 1
"""Index of the shape that the chain has as well; all rules run on its MDPs, TRPO alone on the others."""
SHARPEST = 1.5
"""Standard deviation of the sharpest initial logits."""
SMALL = 1e-3 * 2.0 ** np.arange(4)
FAR = np.geomspace(0.03, 10.0, 8)
"""Distances along lines of logits."""
HARD = np.array([0.5, 0.7, 0.9, 0.95, 0.99])
"""γ of the MDPs in which the bound is nearly tight."""
LENGTHS = np.array([0.1, 0.05, 0.025])
"""√(2D)·max|b|/σ, at which the law of the step is measured."""
LONGER = (1e-2, 1e-3, 1e-4)
"""Multiples of the theory's C with which the maximiser is checked on longer steps."""
CAP = 10_000
"""Most iterations of MM for one MDP."""
RIVAL_UPDATES = 150
TARGETS = (0.01, 0.1)
"""δ of the rivals."""


def theory_price(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """C in units of (1 − γ)η."""
    return (1 - mdp.discount) * bounds.penalty_coefficient(mdp, policy)


def detour(discount: np.ndarray) -> tuple[Group, np.ndarray]:
    """Return MDPs in which the bound is nearly as tight as it can be, a policy, and the direction in which it is.

    All values are 0, and all advantages ±1. In state 0 one moves from an action with −1 to one with +1, which leads to
    state 1 for ever; there one moves from +1 to −1. The surrogate counts only what is gained in state 0. For short
    steps L − η is [(1 − γ)/(1 − γ + γp)]² · 2p/(1 + 2p) of C · max_s KL, p being the probability of leaving under π.
    The other states can't be reached and have no rewards: ε is a maximum, so that they make no difference.
    """
    n, states = discount.size, 20
    leave = np.minimum(1 - discount, 0.4)
    policy, shift = np.full((n, states, 3), 1 / 3), np.zeros((n, states, 3))
    policy[:, 0] = np.stack([np.full(n, 0.5), 0.5 - leave, leave], axis=-1)
    policy[:, 1] = 0.5, 0.25, 0.25
    shift[:, 0], shift[:, 1] = (-1.0, 0.0, 1.0), (-1.0, 0.5, 0.5)
    transition = np.broadcast_to(np.eye(states)[:, None, :], (n, states, 3, states)).copy()
    transition[:, 0, 2] = np.eye(states)[1]
    reward = np.zeros((n, states, 3))
    reward[:, 0], reward[:, 1] = (-1.0, 1.0, 1.0), (1.0, -1.0, -1.0)
    mdp = MDP(transition, reward, np.broadcast_to(np.eye(states)[0], (n, states)), discount)
    return Group(mdp, np.log(policy), np.log(policy)), shift / policy


class Contact(NamedTuple):
    """M on lines of logits: random ones, the gradient's, and those along which the bound is tightest."""

    touch: np.ndarray
    """|M_π(π) − η(π)| in units of the rounding error, ``[lines]``."""
    room: np.ndarray
    """η − M in the same units, ``[lines, distances]``."""
    order: np.ndarray
    """Of η − M near π, ``[lines]``."""


def contact(groups: list[Group], rng: np.random.Generator) -> Contact:
    """Measure M at π, near it, and far from it."""
    found = []
    lines = [(group, rng.standard_normal(group.logits.shape)) for group in groups]
    lines += [(group, exact.policy_gradient(group.mdp, group.logits)) for group in groups]
    for group, direction in (*lines, detour(HARD)):
        mdp, policy, unit = group.mdp, group.policy, runs.rounding(group.mdp)
        touch = np.abs(bounds.lower_bound(mdp, policy, policy) - exact.expected_return(mdp, policy)) / unit
        direction = direction / np.linalg.norm(direction, axis=(-2, -1), keepdims=True)
        news = [exact.softmax(group.logits + t * direction) for t in np.concatenate([SMALL, FAR, -SMALL, -FAR])]
        room = stack([exact.expected_return(mdp, new) - bounds.lower_bound(mdp, policy, new) for new in news])
        # A bound that is violated has no slope, and fails without one.
        order = slope(SMALL, np.maximum(room[:, : SMALL.size], np.finfo(float).tiny))
        found.append(Contact(touch, room / unit[:, None], order))
    return join(found)


class Scaled(NamedTuple):
    """Iterations of MM with another C than the theory's, on the first MDPs of a group."""

    price: np.ndarray
    """C in units of (1 − γ)η, at the first policy."""
    few: Group
    found: runs.Iteration

    @property
    def missed(self) -> np.ndarray:
        """Which share of the possible gain in M the first update missed."""
        return suboptimality(self.few.mdp, self.price, self.few.logits, self.found.logits[:, 0])

    @property
    def broken(self) -> np.ndarray:
        """Whether η ever gained less than M promised."""
        short = self.found.claim[:, :-1] - np.diff(self.found.expected_return, axis=1)
        return (short > 1e3 * runs.rounding(self.few.mdp)[:, None]).any(axis=1)


def scaled(few: Group, chunk: runs.Chunk, factor: np.ndarray) -> Scaled:
    """Run MM on at most ``WIDTH`` MDPs, with multiples of the theory's C."""
    filled = np.resize(np.arange(few.size), runs.WIDTH)
    found = chunk(few.take(filled).mdp, factor[filled], few.logits[filled])
    price = factor * theory_price(few.mdp, few.policy)
    return Scaled(price, few, take(found, slice(few.size)))


def missed(climb: runs.Climb, group: Group) -> np.ndarray:
    """Hold every first and every last update of a climb against its ceiling: which share of the gain it missed."""
    before, after, whose = climb.steps
    mdp = group.take(whose).mdp
    return suboptimality(mdp, theory_price(mdp, exact.softmax(before)), before, after)


def _moments(group: Group) -> tuple[np.ndarray, ...]:
    """Return b's largest entry over σ_s, Σ_s σ_s and κ."""
    b = exact.state_weight(group.mdp, group.policy)[..., None] * exact.advantage(group.mdp, group.policy)
    sigma = np.sqrt((group.policy * b**2).sum(axis=-1))
    third = (group.policy * b**3).sum(axis=-1)
    largest = (np.abs(b).max(axis=-1) / sigma).max(axis=-1)
    return largest, sigma.sum(axis=-1), 2 / 3 * (third / sigma**2).sum(axis=-1)


def step_law(few: list[Group], chunks: list[runs.Chunk]) -> tuple[np.ndarray, np.ndarray]:
    """Return D relative to (Σσ)²/2C² and to (Σσ)²/2C² · (1 − κ/C)⁻², less 1, both ``[n, lengths]``."""
    found = []
    for group, chunk in zip(few, chunks, strict=True):
        largest, total, kappa = _moments(group)
        factors = [largest * total / length / theory_price(group.mdp, group.policy) for length in LENGTHS]
        all_runs = [scaled(group, chunk, factor) for factor in factors]
        price, kl = stack([run.price for run in all_runs]), stack([run.found.max_kl[:, 0] for run in all_runs])
        found.append([2 * kl * x**2 / total[:, None] ** 2 - 1 for x in (price, price - kappa[:, None])])
    raw, rest = join(found)
    return raw, rest


class Climbed(NamedTuple):
    """A group of MDPs, and what MM and its rivals did there."""

    group: Group
    best: np.ndarray
    """η*."""
    climb: runs.Climb
    rivals: dict[str, np.ndarray]
    """(η* − η_i)/(η* − η_0) of each rival, ``[n, updates + 1]``."""
    kl_ratio: np.ndarray
    """How much larger the max_s KL of TRPO's first step with the smaller δ is than that of MM's."""
    improvements: np.ndarray
    """Of policy iteration."""


def climbed(group: Group, chunk: runs.Chunk, all_rules: bool) -> Climbed:
    """Let MM climb, and its rivals (or only TRPO) after it."""
    optimum = exact.policy_iteration(group.mdp, group.policy)
    best, kls, rivals = optimum.expected_return, [], {}
    climb = runs.climb(chunk, group, best, CAP)
    for name, rule in runs.RIVALS.items() if all_rules else [("TRPO", runs.RIVALS["TRPO"])]:
        updates = runs.rival_runs(rule, RIVAL_UPDATES)
        for target in TARGETS:
            eta, max_kl = updates(target, group.mdp, group.logits)
            rivals[f"{name}, δ = {target:g}"] = (best[:, None] - eta) / (best - eta[:, 0])[:, None]
            kls.append(max_kl[:, 0])
    ratio = kls[0] / np.maximum(climb.first_kl, np.finfo(float).tiny)
    return Climbed(group, best, climb, rivals, ratio, optimum.iterations)


class Measured(NamedTuple):
    """Everything."""

    size: int
    """How many random MDPs there are."""
    contact: Contact
    law: tuple[np.ndarray, np.ndarray]
    """Of :func:`step_law`."""
    climbed: list[Climbed]
    named: Climbed
    """The one with a named MDP, its last."""
    longer: dict[float, list[Scaled]]
    """By multiples of C."""


def measure(size: int, seed: int) -> Measured:
    """Let MM climb at least ``size`` random MDPs and the chain, and look at the bound there."""
    groups = ensemble(size, seed, SHAPES, SHARPEST)
    chunks = [runs.mm_chunk() for _ in groups]
    # The chain comes last in its group, and starts from the uniform policy.
    uniform = np.zeros((1, *groups[NAMED].logits.shape[1:]))
    one = Group(jax.tree.map(lambda leaf: np.asarray(leaf)[None], chain(discount=0.9)), uniform, uniform)
    starts = [join([group, one]) if i == NAMED else group for i, group in enumerate(groups)]
    found = [climbed(starts[i], chunk, all_rules=i == NAMED) for i, chunk in enumerate(chunks)]
    few = [group.take(np.arange(min(group.size, runs.WIDTH))) for group in groups]
    longer = {
        scale: [scaled(group, chunk, np.full(group.size, scale)) for group, chunk in zip(few, chunks, strict=True)]
        for scale in LONGER
    }
    touching = contact(groups, np.random.default_rng([seed, 6]))
    return Measured(sum(g.size for g in groups), touching, step_law(few, chunks), found, found[NAMED], longer)
