"""A search for MDPs and pairs of policies that violate a lower bound on η: gradient ascent from many starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trpo.tabular import exact
from trpo.tabular.mdp import MDP
from trpo.trees import namespace

DISCOUNTS = np.array([0.5, 0.7, 0.9, 0.95, 0.99])
CONTROL = "icml_version"
STATES, ACTIONS = 2, 3
"""Two states and three actions suffice to come as close as one likes to the bounds that are tight (see `witness`)."""
STEPS = 150
RATE = 0.2
_FLOOR = 1e-8
"""Keeps the search where penalties are well above the rounding of η; in units of max|r|/(1 − γ)."""

Bound = Callable[[MDP, Any, Any], Any]


class Cases(NamedTuple):
    """Pairs of policies in MDPs, and both sides of the bounds (one entry for each pair)."""

    discount: np.ndarray
    gap: np.ndarray
    """|L_π(π̃) − η(π̃)|: all bounds are as good with the rewards' sign changed, so they bound both signs."""
    rounding: np.ndarray
    """What rounding may have added to the gap."""
    scale: np.ndarray
    """max|r|/(1 − γ), the largest return that the rewards allow."""
    penalty: dict[str, np.ndarray]

    def ratio(self, name: str) -> np.ndarray:
        """(gap − rounding)/penalty, 0 where rounding could be all of the gap: a violation is above 1."""
        gap = np.maximum(self.gap - self.rounding, 0)
        penalty = self.penalty[name]
        return np.where(gap > 0, gap / np.where(penalty > 0, penalty, np.finfo(float).tiny), 0)


def compare(mdp: MDP, old: np.ndarray, new: np.ndarray, penalties: dict[str, Bound]) -> Cases:
    """Compare L_π(π̃) − η(π̃) with each penalty."""
    gap = np.abs(exact.surrogate(mdp, old, new) - exact.expected_return(mdp, new))
    scale = np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount)
    # A solve with I − γP is stable, and its condition number is at most (1 + γ)/(1 − γ).
    rounding = 4 * mdp.states * np.finfo(float).eps * scale / (1 - mdp.discount)
    # The mean KL of two equal policies may be rounded to below 0, where it has no root.
    with np.errstate(invalid="ignore"):
        value = {name: bound(mdp, old, new) for name, bound in penalties.items()}
    return Cases(mdp.discount, gap, rounding, scale, value)


_SHAPES = {
    "transition": (STATES, ACTIONS, STATES),
    "reward": (STATES, ACTIONS),
    "start": (STATES,),
    "old": (STATES, ACTIONS),
    "direction": (STATES, ACTIONS),
    "size": (),
}
_DIMENSION = sum(math.prod(shape) for shape in _SHAPES.values())


def _build(x: Any, discount: Any) -> tuple[MDP, Any, Any]:
    """The MDP, π and π̃ of a vector of unconstrained parameters; π̃'s logits are π's plus e^size times a direction."""
    part, used = {}, 0
    for name, shape in _SHAPES.items():
        part[name] = x[..., used : used + math.prod(shape)].reshape(*x.shape[:-1], *shape)
        used += math.prod(shape)
    start = exact.softmax(part["start"][..., None, :])[..., 0, :]
    mdp = MDP(exact.softmax(part["transition"]), part["reward"], start, discount)
    step = namespace(x).exp(part["size"])[..., None, None] * part["direction"]
    return mdp, exact.softmax(part["old"]), exact.softmax(part["old"] + step)


def search(
    targets: dict[str, Bound], penalties: dict[str, Bound], restarts: int, rng: np.random.Generator
) -> dict[str, Cases]:
    """Climb gap/penalty of every target from ``restarts`` random starts, γ in turn from `DISCOUNTS`.

    Adam on the logits of P, the rewards, the logits of the start distribution and both policies. One program serves
    all targets and discounts. The best of every climb is measured afresh by the NumPy oracle.

    Returns:
        What the search for each target found, measured with ``penalties``. The control gets an eighth of the
        restarts, since it falls at once.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, STEPS, 0.05))

    def objective(x: Any, discount: Any, which: Any) -> Any:
        mdp, old, new = _build(x, discount)
        gap = jnp.abs(exact.surrogate(mdp, old, new) - exact.expected_return(mdp, new))
        penalty = jnp.stack([bound(mdp, old, new) for bound in targets.values()])[which]
        floor = _FLOOR * jnp.max(jnp.abs(mdp.reward)) / (1 - discount)
        return jnp.log(gap + 1e-3 * floor) - jnp.log(penalty + floor)

    def climb(x: Any, discount: Any, which: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state, best, best_x = carry
            height, slope = jax.value_and_grad(objective)(x, discount, which)
            best, best_x = jnp.maximum(height, best), jnp.where(height > best, x, best_x)
            # At a tie or a zero a derivative may not exist: stand still in that coordinate.
            change, state = optimiser.update(jnp.where(jnp.isfinite(slope), -slope, 0.0), state)
            return (optax.apply_updates(x, change), state, best, best_x), None

        carry = (x, optimiser.init(x), jnp.asarray(-jnp.inf, x.dtype), x)
        return jax.lax.scan(step, carry, None, length=STEPS)[0][3]

    count = [max(restarts // 8, 8) if name == CONTROL else restarts for name in targets]
    x = rng.standard_normal((sum(count), _DIMENSION))
    # Steps from a thousandth of a logit to several: close pairs and far ones.
    x[:, -1] = rng.uniform(np.log(1e-3), np.log(5.0), len(x))
    which, discount = np.repeat(np.arange(len(targets)), count), np.resize(DISCOUNTS, len(x))
    found = np.asarray(jax.jit(jax.vmap(climb))(x, discount, which))
    return {
        name: compare(*_build(found[which == i], discount[which == i]), penalties) for i, name in enumerate(targets)
    }
