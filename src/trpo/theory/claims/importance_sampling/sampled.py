"""The library's sampled problem on tabular batches, next to the exact mean and moments of what it sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.problem import Batch, sampled_problem
from trpo.tabular import exact
from trpo.theory.shared.ensemble import Group
from trpo.theory.shared.tabular_batch import table_policy

ROWS = 2048
"""Rows of every batch; those that are not needed have weight 0."""
LARGEST = (16, 4)
"""States and actions of every table: MDPs that have fewer get states that are never met and actions of logit −inf. So
one compiled program serves all."""
WEIGHTS = 3
"""Weightings of a batch that are evaluated at once."""
STEP = 0.5
"""π̃ is π with ``STEP`` times standard normal numbers added to the logits."""
QUANTITIES = ("surrogate", "gradient", "fisher", "ratio", "ratio²")
MISMATCH = "‖F A − g‖/‖g‖"
"""Zero where every action of a state has its probability as weight: then F⁻¹g = A_π, whatever the states' weights."""


class Setting(NamedTuple):
    """MDPs, π, π̃ and two directions; everything here is NumPy and exact. Leading axis ``[n]``."""

    group: Group
    new_logits: np.ndarray
    u: np.ndarray
    """Direction in which the gradient is measured."""
    v: np.ndarray
    """Direction in which the Fisher matrix is measured; π̃ lies on it."""
    advantage: np.ndarray
    weight: np.ndarray
    """d_π."""

    @property
    def ratio(self) -> np.ndarray:
        """π̃(a|s)/π(a|s)."""
        return exact.softmax(self.new_logits) / self.group.policy

    def summands(self) -> dict[str, np.ndarray]:
        """Return f(s, a) whose weighted sum over samples is the estimate of each quantity, ``[n, S, A]``."""
        policy, ratio = self.group.policy, self.ratio
        centred = [x - (policy * x).sum(axis=-1, keepdims=True) for x in (self.u, self.v)]
        variance = (policy * centred[1] ** 2).sum(axis=-1, keepdims=True)
        values = (ratio * self.advantage, self.advantage * centred[0], variance + 0 * policy, ratio, ratio**2)
        return dict(zip(QUANTITIES, values, strict=True))

    def magnitudes(self) -> dict[str, np.ndarray]:
        """Return what the summands are differences of: their rounding errors are relative to these."""
        policy, found = self.group.policy, {name: np.abs(f) for name, f in self.summands().items()}
        sizes = [np.abs(x) + (policy * np.abs(x)).sum(axis=-1, keepdims=True) for x in (self.u, self.v)]
        return found | {"gradient": np.abs(self.advantage) * sizes[0], "fisher": sizes[1] ** 2}


def setting(group: Group, rng: np.random.Generator) -> Setting:
    """Draw directions for a group of MDPs."""
    u, v = (rng.standard_normal(group.logits.shape) for _ in range(2))
    advantage, weight = exact.advantage(group.mdp, group.policy), exact.state_weight(group.mdp, group.policy)
    return Setting(group, group.logits + STEP * v, u, v, advantage, weight)


Estimator = Callable[[Setting, np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""(setting, states ``[n, rows]``, actions ``[n, rows]``, weights ``[n, k, rows]``) ↦ estimates, ``[n, k]`` each."""


def _evaluate(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run the library's sampled problem on one MDP's batch, for each of the weightings."""
    logits, new_logits, u, v, advantage, ratio, state, action, weights = arguments
    rows = jnp.stack([advantage[state, action], jnp.ones(ROWS), ratio[state, action]])

    def weighted(weight: Any) -> tuple[Any, ...]:
        def problem(advantages: Any) -> Any:
            return sampled_problem(table_policy, logits, Batch(state, action, advantages, weight))

        model = problem(rows[0]).linearise(logits)
        surrogate, mean_ratio, mean_square = jax.vmap(lambda x: problem(x).surrogate(new_logits))(rows)
        fisher_v, fisher_advantage = jax.vmap(model.fisher_vp)(jnp.stack([v, advantage]))
        off = jnp.sum((fisher_advantage - model.gradient) ** 2) / jnp.maximum(jnp.sum(model.gradient**2), 1e-300)
        gradient = jnp.vdot(u, model.gradient)
        return surrogate, gradient, jnp.vdot(v, fisher_v), mean_ratio, mean_square, jnp.sqrt(off)

    return jax.lax.map(weighted, weights)


def _table(x: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Enlarge ``[n, S, A]`` to ``LARGEST``; absent actions get ``fill``, absent states zeros."""
    n, states, actions = x.shape
    table = np.zeros((n, *LARGEST))
    table[..., actions:] = fill
    table[:, :states, :actions] = x
    return table


def estimator() -> Estimator:
    """Return a function that runs the library's sampled problem on groups of MDPs of any shape up to ``LARGEST``."""
    run = jax.jit(lambda arguments: jax.lax.map(_evaluate, arguments))

    def estimate(s: Setting, state: np.ndarray, action: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        absent = ROWS - state.shape[-1]
        state, action = (np.pad(x, ((0, 0), (0, absent))) for x in (state, action))
        weight = np.pad(weight, ((0, 0), (0, WEIGHTS - weight.shape[1]), (0, absent)))
        tables = [_table(x, -np.inf) for x in (s.group.logits, s.new_logits)]
        tables += [_table(x) for x in (s.u, s.v, s.advantage, s.ratio)]
        answers = run(jax.tree.map(jnp.asarray, (*tables, state, action, weight)))
        return {name: np.asarray(x) for name, x in zip((*QUANTITIES, MISMATCH), answers, strict=True)}

    return estimate


def draw(rng: np.random.Generator, s: Setting, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw independent s ~ d_π, a ~ π(·|s): states and actions, ``[n, rows]`` each."""
    pairs = (s.weight[..., None] * s.group.policy).reshape(len(s.weight), -1)
    cumulative = np.cumsum(pairs, axis=-1)[:, None, :-1]
    index = (rng.random((len(pairs), rows))[..., None] >= cumulative).sum(axis=-1)
    return np.divmod(index, s.group.policy.shape[-1])


def enumerate_pairs(s: Setting, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List every (s, a) once: states, actions ``[n, S·A]`` and weights w(s) π(a|s) for ``weights`` ``[n, k, S]``."""
    n, states, actions = s.group.policy.shape
    pair = np.broadcast_to(np.arange(states * actions), (n, states * actions))
    return *np.divmod(pair, actions), (weights[..., None] * s.group.policy[:, None]).reshape(n, weights.shape[1], -1)
