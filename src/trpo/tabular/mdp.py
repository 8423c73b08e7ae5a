"""Finite Markov decision processes with known dynamics: the class, random ones and named ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from trpo.types import AnyArray

if TYPE_CHECKING:
    Table = Any
else:
    Table = AnyArray
    """NumPy or JAX: what a function returns is what it was given, which type checkers can't follow."""


def _as_float(x: Any) -> Any:
    """Keep JAX arrays and tracers; make everything else float64."""
    return x if isinstance(x, jax.Array) else np.asarray(x, np.float64)


class MDP(eqx.Module):
    """(P, r, μ, γ): a finite MDP of S states and A actions, or a batch of MDPs of equal size.

    It is a pytree, so functions of it can be jitted and mapped. NumPy and JAX arrays both work, and every function of
    :mod:`trpo.tabular.exact` returns what it was given. An absorbing state with reward 0 stands for termination.

    Raises:
        ValueError: shapes disagree, probabilities are negative, not finite or don't sum to 1, or γ is not in [0, 1).

    >>> from trpo.tabular import MDP
    >>> MDP(transition=[[[0.5, 0.5]], [[0.0, 1.0]]], reward=[[1.0], [0.0]], start=[1.0, 0.0], discount=0.9).states
    2
    """

    transition: Float[Table, "..."] = eqx.field(converter=_as_float)
    """P(s'|s, a), shape ``[*mdps, S, A, S]``."""
    reward: Float[Table, "..."] = eqx.field(converter=_as_float)
    """r(s, a), expected over s', shape ``[*mdps, S, A]``."""
    start: Float[Table, "..."] = eqx.field(converter=_as_float)
    """μ(s), the paper's ρ₀, shape ``[*mdps, S]``."""
    discount: Float[Table, "..."] = eqx.field(converter=_as_float)
    """γ, shape ``[*mdps]``."""

    def __check_init__(self) -> None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return
        _check_shapes(self)
        check_probabilities("transition", self.transition, "P(·|s, a)")
        check_probabilities("start", self.start, "the start distribution")
        if not np.all(np.isfinite(self.reward)):
            raise ValueError(f"reward{_where(~np.isfinite(self.reward))} is not finite")
        bad = ~((np.asarray(self.discount) >= 0) & (np.asarray(self.discount) < 1))
        if np.any(bad):
            value = np.asarray(self.discount)[bad].flat[0]
            raise ValueError(
                f"discount{_where(bad)}={value:g}: must be in [0, 1); at γ ≥ 1 values of an endless MDP need not be "
                "finite. For an undiscounted episode take γ close to 1"
            )

    @property
    def states(self) -> int:
        """S."""
        return self.reward.shape[-2]

    @property
    def actions(self) -> int:
        """A."""
        return self.reward.shape[-1]


def _check_shapes(mdp: MDP) -> None:
    shape = mdp.reward.shape
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"reward has shape {shape}: must be [*mdps, S, A] with at least one state and one action")
    *mdps, states, actions = shape
    for name, wanted, meaning in (
        ("transition", (*mdps, states, actions, states), "[*mdps, S, A, S]"),
        ("start", (*mdps, states), "[*mdps, S]"),
        ("discount", tuple(mdps), "[*mdps]"),
    ):
        if getattr(mdp, name).shape != wanted:
            raise ValueError(
                f"{name} has shape {getattr(mdp, name).shape}: must be {meaning} = {wanted}, since reward has shape "
                f"{shape} = [*mdps, S, A]"
            )


def _where(bad: Any) -> str:
    """Name the first offending entry, as in ``[0, 3]``; nothing for a scalar."""
    index = np.argwhere(np.asarray(bad))[0]
    return f"[{', '.join(map(str, index))}]" if index.size else ""


def check_probabilities(name: str, p: Any, meaning: str) -> None:
    """Raise ``ValueError`` unless ``p`` is a distribution over its last axis."""
    p = np.asarray(p)
    for problem, bad in (("not finite", ~np.isfinite(p)), ("negative", p < 0)):
        if np.any(bad):
            raise ValueError(f"{name}{_where(bad)}={p[bad].flat[0]:g}: {problem}, and {meaning} must be probabilities")
    total = p.sum(axis=-1)
    bad = np.abs(total - 1) > (1e-8 if p.dtype == np.float64 else 1e-5)
    if np.any(bad):
        raise ValueError(
            f"{name}{_where(bad)} sums to {total[bad].flat[0]:.6g}: {meaning} must sum to 1 over the last axis"
        )


def garnet(rng: np.random.Generator, states: int, actions: int, branching: int, discount: float | np.ndarray) -> MDP:
    """Draw random MDPs "GARNET(states, actions, branching)" (Archibald et al. 1995; Bhatnagar et al. 2009).

    Each (s, a) leads to ``branching`` (1..S) distinct random states, with probabilities from the spacings of uniform
    points; rewards are standard normal; the start distribution is uniform on the simplex. An array of discounts, shape
    ``[*mdps]``, draws as many MDPs at once.
    """
    if states < 1 or actions < 1:
        raise ValueError(f"states={states}, actions={actions}: both must be at least 1")
    if not 1 <= branching <= states:
        raise ValueError(f"branching={branching}: must be in 1..{states}, the number of states")
    gamma = np.asarray(discount, np.float64)
    rows = (*gamma.shape, states, actions)
    weight = rng.dirichlet(np.ones(branching), rows)
    successors = np.argsort(rng.random((*rows, states)), axis=-1)[..., :branching]
    transition = np.zeros((*rows, states))
    np.put_along_axis(transition, successors, weight, axis=-1)
    return MDP(
        transition / transition.sum(axis=-1, keepdims=True),
        rng.standard_normal(rows),
        rng.dirichlet(np.ones(states), gamma.shape),
        gamma,
    )


def chain(length: int = 5, discount: float = 0.95, slip: float = 0.2) -> MDP:
    """Return the chain: walk right through states worth nothing to a reward of 10, or take 2 and start again.

    Action 0 moves right (and earns 10 in the last state, where it stays), action 1 returns to state 0 and earns 2; with
    probability ``slip`` the other one happens (Dearden et al. 1998; Strens 2000). The greedy choice is the wrong one.
    """
    _check_named(length=(length, 2), slip=slip)
    transition, reward = np.zeros((length, 2, length)), np.zeros((length, 2))
    for s in range(length):
        for action in (0, 1):
            for happens, p in ((action, 1 - slip), (1 - action, slip)):
                transition[s, action, min(s + 1, length - 1) if happens == 0 else 0] += p
                reward[s, action] += p * (2.0 if happens == 1 else 10.0 * (s == length - 1))
    return MDP(transition, reward, np.eye(length)[0], discount)


_MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
"""Up, right, down, left: the order of Gymnasium's toy-text environments."""


def cliff(rows: int = 4, columns: int = 12, discount: float = 0.95) -> MDP:
    """Return the cliff walk (Sutton and Barto 2018, example 6.6), in the numbering of Gymnasium's ``CliffWalking``.

    From the lower left corner to the lower right one, −1 a step; the cells between them are a cliff: −100 and back to
    the start. The goal is absorbing, with reward 0.
    """
    _check_named(rows=(rows, 2), columns=(columns, 3))
    states = rows * columns
    begin, goal = (rows - 1) * columns, states - 1
    landing = _neighbours(rows, columns)
    falls = (begin < landing) & (landing < goal)
    transition = np.eye(states)[np.where(falls, begin, landing)]
    reward = np.where(falls, -100.0, -1.0)
    transition[goal], reward[goal] = np.eye(states)[goal], 0.0
    return MDP(transition, reward, np.eye(states)[begin], discount)


def grid(size: int = 5, discount: float = 0.95, slip: float = 0.1) -> MDP:
    """Return a size × size room: from one corner to the opposite one, +1 on arrival, which ends the episode.

    Actions are up, right, down, left; with probability ``slip`` the move goes in a uniformly random direction.
    """
    _check_named(size=(size, 2), slip=slip)
    states = size * size
    moves = (1 - slip) * np.eye(4) + slip / 4
    transition = moves @ np.eye(states)[_neighbours(size, size)]
    goal = states - 1
    reward = transition[:, :, goal].copy()
    transition[goal], reward[goal] = np.eye(states)[goal], 0.0
    return MDP(transition, reward, np.eye(states)[0], discount)


def _neighbours(rows: int, columns: int) -> np.ndarray:
    """Return where each of the four moves leads from each state, shape ``[S, 4]``; a wall keeps one where one is."""
    row, column = np.divmod(np.arange(rows * columns)[:, None], columns)
    return np.clip(row + _MOVES[:, 0], 0, rows - 1) * columns + np.clip(column + _MOVES[:, 1], 0, columns - 1)


def _check_named(slip: float = 0.0, **sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip={slip}: must be a probability, in [0, 1]")
