"""Minorization-maximization and its rivals, run to the optimum on many MDPs at once, and a proof of every maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import trpo
from trpo.rules.mm import MM
from trpo.tabular import bounds, exact, exact_problem
from trpo.tabular.mdp import MDP
from trpo.theory.shared.ensemble import Group

CHUNK = 100
"""Iterations between two looks at who has arrived."""
WIDTH = 64
"""MDPs that climb at the same time; the next one takes the place of one that has arrived."""
CLOSED = 0.99
"""An MDP has arrived when this much of the gap η* − η(π₀) is closed."""
_MARKS = np.unique(np.geomspace(1, 2e5, 120).astype(int))
MARKS = np.concatenate([[0], _MARKS])
"""Iterations at which the remaining gap is noted for the figure."""


class Iteration(NamedTuple):
    """One iteration of MM, with the oracle's numbers and the library's."""

    expected_return: Any
    """η(π_i)."""
    promise: Any
    """M(π_{i+1}) − η(π_i), by the oracle: the gain that is guaranteed."""
    claim: Any
    """The same from the library's own account of the update."""
    max_kl: Any
    """max_s KL(π_i ‖ π_{i+1})."""
    logits: Any
    """Of π_{i+1}."""


Chunk = Callable[[MDP, np.ndarray, np.ndarray], Iteration]


def mm_chunk() -> Chunk:
    """Compile ``CHUNK`` iterations of MM on a batch: (MDPs, multiples of the theory's C, logits) ↦ iterations."""

    def iterate(mdp: MDP, scale: Any, logits: Any) -> tuple[Any, Iteration]:
        policy = exact.softmax(logits)
        coefficient = scale * bounds.penalty_coefficient(mdp, policy)
        # The local problem is in units of (1 − γ)η, and so is its price.
        rule = MM(coefficient=(1 - mdp.discount) * coefficient)
        new, _, info = rule.update(exact_problem(mdp, logits), logits, ())
        # M(π_{i+1}) − M(π_i) written out, since a difference of two large numbers would be less exact.
        after = exact.softmax(new)
        gain = exact.visitation(mdp, policy) * exact.expected_advantage(exact.advantage(mdp, policy), after)
        promise = jnp.sum(gain) - coefficient * jnp.max(exact.kl(policy, after))
        claim = info.surrogate_gain / (1 - mdp.discount) - coefficient * info.max_state_kl
        return new, Iteration(exact.expected_return(mdp, policy), promise, claim, info.max_state_kl, new)

    def chunk(mdp: MDP, scale: Any, logits: Any) -> Iteration:
        return jax.lax.scan(lambda theta, _: iterate(mdp, scale, theta), logits, None, length=CHUNK)[1]

    run = jax.jit(jax.vmap(chunk))
    return lambda mdp, scale, logits: jax.tree.map(np.asarray, run(mdp, jnp.asarray(scale), jnp.asarray(logits)))


class Climb(NamedTuple):
    """What MM did on ``n`` MDPs; changes of η are in units of ``rounding``."""

    iterations: np.ndarray
    """Until ``CLOSED`` of the gap was closed, ``[n]``; ``np.inf`` where the cap came first."""
    total: int
    """Iterations of all MDPs together."""
    least_gain: np.ndarray
    """The smallest η(π_{i+1}) − η(π_i) of all iterations."""
    least_surplus: np.ndarray
    """The smallest gain less what was promised."""
    disagreement: np.ndarray
    """The largest difference between the oracle's promise and the library's."""
    gain_ratio: np.ndarray
    """Σ gains over Σ promises; 0 if nothing was promised."""
    first_kl: np.ndarray
    """max_s KL of the first iteration."""
    curve: np.ndarray
    """(η* − η_i)/(η* − η_0) at ``MARKS``, ``[n, marks]``; what MM no longer ran for counts as 0 after arrival."""
    steps: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Pairs of logits, before and after an update, and the index of their MDP: every first and every last update."""


def climb(chunk: Chunk, mdp: MDP, logits: np.ndarray, best: np.ndarray, cap: int, rounding: np.ndarray) -> Climb:
    """Run MM on every MDP until it has arrived, at most ``cap`` iterations.

    Args:
        chunk: of :func:`mm_chunk`.
        mdp: ``n`` MDPs.
        logits: where to start, ``[n, S, A]``.
        best: η*, ``[n]``.
        cap: most iterations for one MDP, a multiple of ``CHUNK``.
        rounding: what a rounding error of η may amount to, ``[n]``.
    """
    n = logits.shape[0]
    theta = logits.copy()
    start = exact.expected_return(mdp, exact.softmax(logits))
    gap = best - start
    count, arrived = np.zeros(n, int), np.full(n, np.inf)
    extremes = np.array([np.full(n, np.inf), np.full(n, np.inf), np.zeros(n)])  # least gain, least surplus, …
    sums, first_kl, curve = np.zeros((2, n)), np.zeros(n), np.zeros((n, MARKS.size))
    befores, afters, whose = [], [], []
    # The longest climbs first, so that few lanes are idle at the end.
    waiting = list(np.argsort(mdp.discount))
    running: list[int] = []
    while running or waiting:
        while waiting and len(running) < WIDTH:
            running.append(waiting.pop())
        lanes = np.array(running)
        filled = np.resize(lanes, WIDTH)
        found = chunk(jax.tree.map(lambda leaf, i=filled: leaf[i], mdp), np.ones(WIDTH), theta[filled])
        eta, promise, claim, kl, path = (leaf[: lanes.size] for leaf in found)
        # The last iteration's gain is known only to the next chunk, whose first η it is.
        after = exact.expected_return(jax.tree.map(lambda leaf, i=lanes: leaf[i], mdp), exact.softmax(path[:, -1]))
        gain = np.diff(np.concatenate([eta, after[:, None]], axis=1), axis=1)
        unit = rounding[lanes][:, None]
        extremes[0, lanes] = np.minimum(extremes[0, lanes], (gain / unit).min(axis=1))
        extremes[1, lanes] = np.minimum(extremes[1, lanes], ((gain - promise) / unit).min(axis=1))
        extremes[2, lanes] = np.maximum(extremes[2, lanes], (np.abs(promise - claim) / unit).max(axis=1))
        sums[:, lanes] += gain.sum(axis=1), promise.sum(axis=1)
        left = (best[lanes][:, None] - eta) / gap[lanes][:, None]
        fresh = count[lanes] == 0
        first_kl[lanes[fresh]] = kl[fresh, 0]
        _note(curve, lanes, count[lanes], left)
        near = left <= 1 - CLOSED
        here = near.any(axis=1)
        arrived[lanes[here]] = count[lanes[here]] + near[here].argmax(axis=1)
        count[lanes] += CHUNK
        ends = here | (count[lanes] >= cap)
        for some, before, new in (
            (fresh, theta[lanes], path[:, 0]),
            (ends, path[:, -2], path[:, -1]),
        ):
            befores.append(before[some])
            afters.append(new[some])
            whose.append(lanes[some])
        theta[lanes] = path[:, -1]
        running = list(lanes[~ends])
    gain, surplus, disagreement = extremes
    ratio = sums[0] / np.where(sums[1] > 0, sums[1], np.inf)
    steps = np.concatenate(befores), np.concatenate(afters), np.concatenate(whose)
    return Climb(arrived, int(count.sum()), gain, surplus, disagreement, ratio, first_kl, curve, steps)


class Climbed(NamedTuple):
    """A group of MDPs, and what MM and its rivals did there."""

    group: Group
    best: np.ndarray
    """η*."""
    climb: Climb
    rivals: dict[str, np.ndarray]
    """(η* − η_i)/(η* − η_0) of each rival, ``[n, updates + 1]``."""
    trpo_kl: np.ndarray
    """max_s KL of TRPO's first step with the smaller δ."""
    improvements: np.ndarray
    """Of policy iteration."""

    @property
    def kl_ratio(self) -> np.ndarray:
        """How much larger the max_s KL of TRPO's first step is than that of MM's."""
        return self.trpo_kl / np.maximum(self.climb.first_kl, np.finfo(float).tiny)


def _note(curve: np.ndarray, lanes: np.ndarray, first: np.ndarray, left: np.ndarray) -> None:
    """Copy the entries of ``left`` (iterations ``first`` and on) that fall on ``MARKS`` into ``curve``."""
    offset = MARKS[None, :] - first[:, None]
    lane, mark = np.nonzero((offset >= 0) & (offset < left.shape[1]))
    curve[lanes[lane], mark] = left[lane, offset[lane, mark]]


def rival_runs(rule: Any, length: int) -> Callable[[float, MDP, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compile ``length`` updates of a rule: (δ, MDPs, logits) ↦ η(π_i), max_s KL and mean KL, each ``[n, length]``."""

    def run(max_kl: Any, mdp: MDP, logits: Any) -> tuple[Any, Any, Any]:
        configured = rule(max_kl)

        def update(carry: tuple, _: None) -> tuple:
            theta, state = carry
            new, state, info = configured.update(exact_problem(mdp, theta), theta, state)
            eta = exact.expected_return(mdp, exact.softmax(theta))
            return (new, state), (eta, info.max_state_kl, info.mean_kl)

        return jax.lax.scan(update, (logits, configured.init(logits)), None, length=length)[1]

    compiled = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
    return lambda max_kl, mdp, logits: jax.tree.map(np.asarray, compiled(jnp.asarray(max_kl), mdp, jnp.asarray(logits)))


# Soft-max logits are redundant and d_π(s)π(a|s) gets small, so F needs a little damping and all of its S·A dimensions.
RIVALS: dict[str, Callable[[Any], Any]] = {
    "TRPO": lambda d: trpo.TRPO(max_kl=d, damping=1e-8, cg_iterations=20, max_step_norm=100.0),
    "natural gradient": lambda d: trpo.NaturalGradient(max_kl=d, damping=1e-8, cg_iterations=20, max_step_norm=100.0),
    "penalty": lambda d: trpo.Penalty(max_kl=d, damping=1e-8, cg_iterations=20, max_step_norm=100.0),
}


def policy_iteration_returns(mdp: MDP, policy: np.ndarray, improvements: int) -> np.ndarray:
    """Return η of ``policy`` and of each greedy improvement of it, ``[n, improvements + 1]``."""
    returns = [exact.expected_return(mdp, policy)]
    for _ in range(improvements):
        policy = np.eye(mdp.actions)[exact.action_value(mdp, policy).argmax(axis=-1)]
        returns.append(exact.expected_return(mdp, policy))
    return np.stack(returns, axis=-1)
