"""Everything that the claim about sample reuse measures, on exact problems and on batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.problem import Batch
from trpo.tabular import exact
from trpo.theory.claims.sample_reuse import oracle, updates
from trpo.theory.claims.sample_reuse.oracle import Facts
from trpo.theory.claims.sample_reuse.updates import BEGINS, ENDS, UPDATES
from trpo.theory.shared.arrays import take
from trpo.theory.shared.ensemble import ensemble

SHAPE = (6, 3, 3)
"""(states, actions, branching); one program is compiled for all."""
SHARPEST = 2.0
"""Moderate: with it a rare action of these policies still has one chance in a hundred or so."""
BATCHES = (16, 64, 512, 4096)
LEARNER_UPDATES = 4
PAIRED = (0.01, 0.1)
"""δ of the comparisons of the return."""
LAW = (1e-5, 1e-3)
"""Smaller δ, at which laws are sharp."""
KINDS = ("table", "shared")
"""Policies."""


class Cell(NamedTuple):
    """One kind of policy, batch size and δ; first axis MDPs, second updates in the order of the schedule."""

    gain: np.ndarray
    """η(π_k) − η(π), in units of what the linear model promises to the tabular policy without noise."""
    kl: np.ndarray
    """D̄ from the sampling policy, over the states of the batch, in units of δ."""
    surrogate: np.ndarray
    """L(π_k) − L(π), on the batch, in units of the largest |advantage| in it."""
    line: np.ndarray
    """Gain (as above) of the first update's direction, followed exactly to D̄ = δ."""


class Law(NamedTuple):
    """Exact tabular problems at one δ, against their closed forms; first axis MDPs."""

    off_line: np.ndarray
    """Part of θ_k − θ_old that is not a multiple of A, relative, in the norm of F; second axis updates."""
    slack: np.ndarray
    """1 − D̄/δ after K = 1, 2, 4, 8 updates."""
    predicted_slack: np.ndarray
    """κ₃t³/6 of the last increment, over δ, with its sign turned."""
    short: np.ndarray
    """1 − gain of L / gain of the constrained maximiser, K = 1, 2, 4, 8."""
    shape: np.ndarray
    """The same of the first update's direction, followed exactly to D̄ = δ."""
    predicted_shape: np.ndarray
    total: np.ndarray
    """D̄ from the sampling policy after 1 … 8 re-anchored updates, in units of δ."""


def _cell(facts: Facts, features: np.ndarray, batch: Batch, theta: np.ndarray, max_kl: np.ndarray) -> Cell:
    new = oracle.policies(facts, features, theta)
    pairs = np.asarray(batch.weight)
    weight = pairs.sum(axis=-1)
    weighted = pairs / facts.policy * np.asarray(batch.advantage)
    surrogate = (weighted * (new - facts.policy)).sum(axis=(-2, -1))
    line = oracle.to_boundary(facts, np.einsum("nsap,np->nsa", features, theta[:, 0]), weight, max_kl)

    def gain(policy: np.ndarray) -> np.ndarray:
        return (exact.expected_return(facts.group.mdp, policy) - facts.expected_return) / facts.promise(max_kl)

    # A state that the batch lacks counts for nothing, however far its policy went.
    kl = (weight * np.where(weight > 0, oracle.state_kl(facts, new), 0.0)).sum(axis=-1) / max_kl
    largest = np.abs(np.where(pairs > 0, batch.advantage, 0.0)).max(axis=(-2, -1))
    return Cell(gain(new).T, kl.T, (surrogate / largest).T, gain(line))


def _law(facts: Facts, features: np.ndarray, theta: np.ndarray, max_kl: np.ndarray) -> Law:
    new = oracle.policies(facts, features, theta)
    n, states, actions = facts.policy.shape
    joint, a, second = facts.weight[..., None] * facts.policy, facts.advantage, facts.second
    # κ₃ = Σ_s d(s) E[A³], and Σ_s d(s) Var(A²), for a ~ π(·|s).
    square = (facts.policy * a**2).sum(axis=-1, keepdims=True)
    third, spread = ((joint * moment).sum(axis=(-2, -1)) for moment in (a**3, (a**2 - square) ** 2))
    step = theta.reshape(n, -1, states, actions)
    step = step - (facts.policy[:, None] * step).sum(axis=-1, keepdims=True)
    t = (joint[:, None] * step * a[:, None]).sum(axis=(-2, -1)) / second[:, None]
    rest = step - t[..., None, None] * a[:, None]
    off_line = np.sqrt((joint[:, None] * rest**2).sum(axis=(-2, -1)) / (t**2 * second[:, None]))

    def gain(policy: np.ndarray) -> np.ndarray:
        return (facts.weight * exact.expected_advantage(np.broadcast_to(a, policy.shape), policy)).sum(axis=-1)

    best = gain(oracle.constrained_optimum(facts, max_kl))
    kl = ((facts.weight * oracle.state_kl(facts, new)).sum(axis=-1) / max_kl).T
    line = gain(oracle.to_boundary(facts, step[:, 0], facts.weight, max_kl))
    last = np.sqrt(2 * max_kl / second)[:, None] * (1 - np.sqrt(1 - 1 / np.array(UPDATES)))
    return Law(
        off_line=off_line[:, : BEGINS[-1]],
        slack=1 - kl[:, ENDS],
        predicted_slack=-third[:, None] * last**3 / (6 * max_kl[:, None]),
        short=1 - (gain(new[ENDS]) / best).T,
        shape=1 - line / best,
        predicted_shape=max_kl * (spread - third**2 / second) / (4 * second**2),
        total=kl[:, BEGINS[-1] :],
    )


class Measured(NamedTuple):
    """All cells by kind, batch size (0: the expectation) and δ, and the laws by δ."""

    cells: dict[tuple[str, int, float], Cell]
    laws: dict[float, Law]
    learner: np.ndarray
    """Of a few MDPs: |θ by the learner − θ by this claim's loop| / |θ|, and D̄/δ of the learner's, ``[n, 2]``."""


def _learner(facts: Facts, phi: np.ndarray, batch: Batch, theta: np.ndarray, max_kl: float) -> np.ndarray:
    """Compare the updates with those of the learner, K = 4, on the first MDPs of a group."""
    few = np.arange(min(8, facts.group.size))
    part, ours = Facts.of(facts.group.take(few)), theta[few, ENDS[UPDATES.index(LEARNER_UPDATES)]]
    found = updates.learner_updates(max_kl, LEARNER_UPDATES)(part, phi[few], take(batch, few))
    kl = oracle.state_kl(part, oracle.policies(part, phi[few], found[:, None]))[0]
    apart = np.abs(found - ours).max(axis=-1) / np.abs(ours).max(axis=-1)
    return np.stack([apart, (part.weight * kl).sum(axis=-1) / max_kl], axis=-1)


def measure(size: int, seed: int) -> Measured:
    """Run everything on ``size`` random MDPs."""
    rng, update = np.random.default_rng([seed, 10]), updates.compiled()
    cells, laws = {}, {}
    (group,) = ensemble(size, seed, (SHAPE,), SHARPEST)
    facts = Facts.of(group)
    # Batches: every second MDP once with each δ, since all runs must have one shape.
    twice = np.arange(group.size) // 2 * 2
    either = np.where(np.arange(group.size) % 2 == 0, PAIRED[0], PAIRED[1])
    halved = Facts.of(group.take(twice))
    for kind, phi in updates.features(group, rng).items():
        for max_kl in (*LAW, *PAIRED) if kind == "table" else PAIRED:
            bound, batch = np.full(group.size, max_kl), updates.draw_batch(facts, 0, rng)
            theta = update(facts, phi, batch, bound)
            if max_kl in PAIRED:
                cells[kind, 0, max_kl] = _cell(facts, phi, batch, theta, bound)
            if kind == "table":
                laws[max_kl] = _law(facts, phi, theta, bound)
            elif max_kl == PAIRED[1]:
                compared = _learner(facts, phi, batch, theta, max_kl)
        for samples in BATCHES:
            batch = updates.draw_batch(halved, samples, rng)
            cell = _cell(halved, phi[twice], batch, update(halved, phi[twice], batch, either), either)
            for max_kl in PAIRED:
                cells[kind, samples, max_kl] = take(cell, either == max_kl)
    return Measured(cells, laws, compared)
