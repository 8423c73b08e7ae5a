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
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group

CHUNK = 100
"""Iterations between two looks at who has arrived."""
WIDTH = 64
"""MDPs that climb at the same time; the next one takes the place of one that has arrived."""
CLOSED = 0.99
"""An MDP has arrived when this much of the gap η* − η(π₀) is closed."""
MARKS = np.unique(np.concatenate([[0], np.geomspace(1, 2e5, 120).astype(int)]))
"""Iterations at which the remaining gap is noted for the figure."""


def rounding(mdp: MDP) -> np.ndarray:
    """How large a rounding error of η may be: values are at most |r|/(1 − γ), and a solve multiplies by 1/(1 − γ)."""
    return np.finfo(float).eps * np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount) ** 2


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

    def chunk(mdp: MDP, scale: Any, logits: Any) -> Iteration:
        def iterate(logits: Any, nothing: None) -> tuple[Any, Iteration]:
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

        return jax.lax.scan(iterate, logits, None, length=CHUNK)[1]

    run = jax.jit(jax.vmap(chunk))
    return lambda mdp, scale, logits: jax.tree.map(np.asarray, run(mdp, jnp.asarray(scale), jnp.asarray(logits)))


class Climb(NamedTuple):
    """What MM did on ``n`` MDPs; changes of η, one for each iteration of any MDP, are in units of ``rounding``."""

    iterations: np.ndarray
    """Until ``CLOSED`` of the gap was closed, ``[n]``; ``np.inf`` where the cap came first."""
    gain: np.ndarray
    """η(π_{i+1}) − η(π_i)."""
    surplus: np.ndarray
    """The gain less what was promised."""
    disagreement: np.ndarray
    """Between the oracle's promise and the library's."""
    whose: np.ndarray
    """The MDP of each row of these three, ``[rows, CHUNK]``."""
    gain_ratio: np.ndarray
    """Σ gains over Σ promises, ``[n]``; 0 if nothing was promised."""
    first_kl: np.ndarray
    """max_s KL of the first iteration, ``[n]``."""
    curve: np.ndarray
    """(η* − η_i)/(η* − η_0) at ``MARKS``, ``[n, marks]``; what MM no longer ran for counts as 0 after arrival."""
    steps: tuple[np.ndarray, ...]
    """Pairs of logits, before and after an update, and the index of their MDP: every first and every last update."""

    @property
    def largest_disagreement(self) -> np.ndarray:
        """Of each MDP, ``[n]``."""
        largest = np.zeros(self.iterations.size)
        np.maximum.at(largest, self.whose, self.disagreement.max(axis=1))
        return largest


def climb(chunk: Chunk, group: Group, best: np.ndarray, cap: int) -> Climb:
    """Run MM from the group's policies until it has arrived (``best`` is η*), at most ``cap`` iterations on an MDP."""
    mdp, theta, n = group.mdp, group.logits.copy(), group.size
    gap, unit = best - exact.expected_return(mdp, group.policy), rounding(mdp)[:, None]
    count, arrived, first_kl, curve = np.zeros(n, int), np.full(n, np.inf), np.zeros(n), np.zeros((n, MARKS.size))
    rows, steps = [], []
    # The longest climbs first, so that few lanes are idle at the end.
    waiting, running = list(np.argsort(mdp.discount)), np.zeros(0, int)
    while running.size or waiting:
        lanes = np.array([*running, *(waiting.pop() for _ in range(min(WIDTH - running.size, len(waiting))))])
        filled = np.resize(lanes, WIDTH)
        found = chunk(group.take(filled).mdp, np.ones(WIDTH), theta[filled])
        eta, promise, claim, kl, path = (leaf[: lanes.size] for leaf in found)
        # The last iteration's gain is known only to the next chunk, whose first η it is.
        after = exact.expected_return(group.take(lanes).mdp, exact.softmax(path[:, -1]))
        gain = np.diff(np.concatenate([eta, after[:, None]], axis=1), axis=1)
        changes = [x / unit[lanes] for x in (gain, gain - promise, np.abs(promise - claim))]
        rows.append((lanes, gain.sum(axis=1), promise.sum(axis=1), *changes))
        left = (best[lanes][:, None] - eta) / gap[lanes][:, None]
        fresh = count[lanes] == 0
        first_kl[lanes[fresh]] = kl[fresh, 0]
        offset = MARKS - count[lanes][:, None]
        lane, mark = np.nonzero((offset >= 0) & (offset < left.shape[1]))
        curve[lanes[lane], mark] = left[lane, offset[lane, mark]]
        near = left <= 1 - CLOSED
        here = near.any(axis=1)
        arrived[lanes[here]] = count[lanes[here]] + near[here].argmax(axis=1)
        count[lanes] += CHUNK
        ends = here | (count[lanes] >= cap)
        steps.append((theta[lanes][fresh], path[fresh, 0], lanes[fresh]))
        steps.append((path[ends, -2], path[ends, -1], lanes[ends]))
        theta[lanes] = path[:, -1]
        running = lanes[~ends]
    whose, gained, promised, gain, surplus, disagreement = join(rows)
    gains, promises = (np.bincount(whose, weights=x, minlength=n) for x in (gained, promised))
    ratio = gains / np.where(promises > 0, promises, np.inf)
    return Climb(arrived, gain, surplus, disagreement, whose, ratio, first_kl, curve, join(steps))


RIVALS = {"TRPO": trpo.TRPO, "natural gradient": trpo.NaturalGradient, "penalty": trpo.Penalty}


def rival_runs(rule: Any, length: int) -> Callable[[float, MDP, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Compile ``length`` updates of a rule: (δ, MDPs, logits) ↦ η(π_i) and max_s KL, both ``[n, length]``."""

    def run(max_kl: Any, mdp: MDP, logits: Any) -> tuple[Any, Any]:
        # Soft-max logits are redundant and d_π(s)π(a|s) gets small, so F needs a little damping and all of its
        # dimensions.
        configured = rule(max_kl=max_kl, damping=1e-8, cg_iterations=20, max_step_norm=100.0)

        def update(carry: tuple, _: None) -> tuple:
            theta, state = carry
            new, state, info = configured.update(exact_problem(mdp, theta), theta, state)
            return (new, state), (exact.expected_return(mdp, exact.softmax(theta)), info.max_state_kl)

        return jax.lax.scan(update, (logits, configured.init(logits)), None, length=length)[1]

    compiled = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
    return lambda max_kl, mdp, logits: jax.tree.map(np.asarray, compiled(jnp.asarray(max_kl), mdp, jnp.asarray(logits)))


def policy_iteration_returns(mdp: MDP, policy: np.ndarray, improvements: int) -> np.ndarray:
    """Return η of ``policy`` and of each greedy improvement of it, ``[n, improvements + 1]``."""
    returns = [exact.expected_return(mdp, policy)]
    for _ in range(improvements):
        policy = np.eye(mdp.actions)[exact.action_value(mdp, policy).argmax(axis=-1)]
        returns.append(exact.expected_return(mdp, policy))
    return np.stack(returns, axis=-1)
