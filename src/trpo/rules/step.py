"""What the rules share: the damped natural-gradient direction and the step to the trust region's boundary."""

from __future__ import annotations

import math
import numbers
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trpo.conjugate_gradient import CGInfo, conjugate_gradient
from trpo.line_search import SearchInfo
from trpo.problem import LocalModel
from trpo.rules.protocol import Result
from trpo.trees import all_finite, single
from trpo.types import Params, Scalar

_ALLOWED = {
    # What several rules have in common: least and most, whether both are excluded, and the cure.
    "max_kl": (0, math.inf, True, "0.01 is usual"),
    "damping": (0, math.inf, False, "0.1 is usual, 0 solves the undamped system"),
    "cg_iterations": (1, math.inf, False, "10 is usual"),
    "cg_tolerance": (0, 1, False, "1e-10 never stops early in practice"),
    "max_step_norm": (0, math.inf, True, "10 is far above ordinary steps"),
    "backtrack_ratio": (0, 1, True, "0.8 is usual"),
    "max_backtracks": (0, math.inf, False, "10 is usual"),
}


class Direction(eqx.Module):
    """s ≈ (F + λI)⁻¹ g with its exact undamped curvature."""

    vector: Params
    gradient_norm: Float[Array, ""]
    slope: Float[Array, ""]
    """∇D̄(θ)ᵀs: zero at the sampling policy."""
    curvature: Float[Array, ""]
    """sᵀF s."""
    cg: CGInfo
    result: Array
    """A :class:`Result`: ``ACCEPTED`` if the direction can be used."""

    @property
    def usable(self) -> Array:
        """Whether to step along it."""
        return self.result == Result.ACCEPTED

    def tries(self, most: int) -> Array:
        """Return the limit on backtracking along it: −1, not even one trial, if it can't be used."""
        return jnp.where(self.usable, most, -1)


def natural_direction(
    model: LocalModel, gradient: Params, damping: Scalar | float, iterations: int, tolerance: Scalar | float
) -> Direction:
    """Solve (F + λI) s = g by truncated conjugate gradient and measure the KL along s."""
    # s may be any positive multiple of the solution, since the trust region sets its length: solving for g / max|g|
    # keeps sᵀF s in range for advantages of any scale.
    largest = optax.tree.max(jax.tree.map(jnp.abs, gradient))
    unit = jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1.0), gradient)

    def damped(vector: Params) -> Params:
        return optax.tree.add_scale(model.fisher_vp(vector), damping, vector)

    vector, cg = conjugate_gradient(damped, unit, iterations, tolerance)
    slope, curvature = model.kl_along(vector)
    sound = (curvature > 0) & jnp.isfinite(curvature) & jnp.isfinite(slope) & all_finite(vector)
    result = jnp.where(sound, Result.ACCEPTED, Result.NONPOSITIVE_CURVATURE)
    result = jnp.where(largest > 0, result, Result.NO_SIGNAL)
    result = jnp.where(all_finite(gradient), result, Result.NONFINITE_GRADIENT)
    return Direction(vector, optax.tree.norm(unit) * largest, slope, curvature, cg, result)


def step_along(direction: Direction, length: Scalar, max_step_norm: Scalar | float) -> Params:
    """Return ``length`` · s, reduced if need be to a norm of ``max_step_norm``; zero if s can't be used.

    The Fisher matrix of a saturated policy nearly vanishes, and then the KL admits steps of any length: harmless on
    this batch, but what they lead to (weights in the thousands) is not, once observations or their normalisation move.
    Ordinary steps have a norm of about 0.1 and never meet this limit.
    """
    norm = optax.tree.norm(direction.vector)
    length = jnp.minimum(length, max_step_norm / jnp.where(norm > 0, norm, 1.0))
    return jax.tree.map(lambda leaf: jnp.where(direction.usable, length * leaf, 0.0), direction.vector)


def step_length(direction: Direction, mean_kl: Scalar, max_kl: Scalar | float) -> Scalar:
    """Return the largest β with D̄(θ) + β ∇D̄ᵀs + ½ β² sᵀF s ≤ δ; 0 if θ is already outside.

    At the sampling policy D̄ and ∇D̄ vanish and this is the paper's β = √(2δ / sᵀF s) (appendix C). The curvature is
    that of the *undamped* F: with damping inside it the step would fall short of δ. At later updates of a batch the
    other two terms account for the KL that was used already.
    """
    room = jnp.maximum(max_kl - mean_kl, 0.0)
    root = jnp.sqrt(direction.slope**2 + 2 * direction.curvature * room)
    # The positive root, in the form that does not cancel for either sign of the slope.
    backwards = (root - direction.slope) / direction.curvature
    forwards = 2 * room / jnp.where(root + direction.slope > 0, root + direction.slope, 1.0)
    return jnp.where(direction.slope > 0, forwards, backwards)


def outcome(direction: Direction, search: SearchInfo) -> Array:
    """Return the :class:`Result` of a line search along s."""
    failed = jnp.where(search.finite, Result.NO_IMPROVEMENT, Result.NONFINITE_TRIAL)
    return jnp.where(direction.usable, jnp.where(search.accepted, Result.ACCEPTED, failed), direction.result)


def account(direction: Direction, search: SearchInfo | None = None) -> dict[str, Array]:
    """Return what :class:`UpdateInfo` says of the solve for s, and of the line search if there was one."""
    cg = direction.cg
    solve = {"gradient_norm": direction.gradient_norm, "cg_iterations": cg.iterations, "cg_residual": cg.residual}
    return solve if search is None else solve | {"backtracks": search.backtracks, "step_fraction": search.fraction}


def check_fields(rule: Any, **cures: str) -> None:
    """Check those fields of a rule that stand in the table; ``cures`` are better ones than the table's."""
    for name, (low, high, strict, cure) in _ALLOWED.items():
        if hasattr(rule, name):
            check(name, getattr(rule, name), low, high, cures.get(name, cure), strict=strict)


def check(name: str, value: Any, low: float, high: float, cure: str, *, strict: bool = True) -> None:
    """Raise ``ValueError`` unless ``low`` < ``value`` < ``high`` (or ≤ with ``strict=False``); tracers pass.

    It must also be finite in single precision, and above ``low`` there where it is here.
    """
    if not isinstance(value, numbers.Real):
        return
    x = single(value)
    if not (low < x < high if strict else low <= x <= high) or math.isinf(x):
        left, right = "(" if strict else "[", ")" if strict or math.isinf(high) else "]"
        upper = "∞" if math.isinf(high) else f"{high:g}"
        raise ValueError(f"{name}={value}: must be in {left}{low:g}, {upper}{right}; {cure}")
