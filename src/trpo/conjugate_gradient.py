"""Truncated conjugate gradient."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from trpo.trees import tree_where
from trpo.types import Params, Product, Scalar


class CGInfo(eqx.Module):
    """How a solve went."""

    iterations: Int[Array, ""]
    """Products that were used."""
    residual: Float[Array, ""]
    """‖b − A x‖ / ‖b‖ from the recurrence, and what rounding may have added to it; 0 where b = 0."""


_dot = partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)  # scalars decide the whole solve; no TF32 here


class _State(NamedTuple):
    x: Float[Array, "n"]
    residual: Float[Array, "n"]
    direction: Float[Array, "n"]
    residual_dot: Scalar
    least: Scalar
    """The least and the most pᵀA p / pᵀp so far: eigenvalues of A lie at or beyond them."""
    most: Scalar
    iterations: Array
    running: Array


def conjugate_gradient(
    product: Product, b: Params, iterations: int = 10, tolerance: float | Scalar = 1e-10
) -> tuple[Params, CGInfo]:
    """Solve A x ≈ b by at most ``iterations`` steps of conjugate gradient, from x₀ = 0.

    Iterate k minimises ½ xᵀA x − bᵀx over the Krylov space span{b, A b, …, A^{k−1} b}
    (Hestenes and Stiefel 1952; TRPO paper, appendix C). A must be symmetric positive semi-definite.

    Args:
        product: v ↦ A v on pytrees shaped like ``b``.
        b: right-hand side.
        iterations: the most products to spend. Reaching it is success: TRPO truncates on purpose.
        tolerance: stop when ‖r‖² ≤ tolerance · ‖b‖².

    Returns:
        ``(x, CGInfo)``. A zero ``b`` gives zero. Where the curvature pᵀA p is not finite, or zero or negative up to
        rounding (relative to the largest met), or the next x would be out of the type's range, the solve stops and
        keeps the last x, which is finite whenever ``b`` is.

    This differs from ``jax.scipy.sparse.linalg.cg`` in:

    1. no product is spent on x₀ = 0, and k iterations use exactly k products;
    2. b is scaled to unit size first, so the direction of x is invariant to the scale of b over the whole range
       of the floating-point type: there is no absolute tolerance and no epsilon in a denominator;
    3. it stops at non-positive curvature instead of stepping along it;
    4. it reports iterations and the relative residual.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: conjugate gradient needs at least 1 (TRPO's usual value is 10)")
    # One flat vector instead of a pytree: the handful of operations around each product are then as many kernels,
    # not as many for every leaf, which for small networks is a twentieth of the whole solve.
    flat, unravel = ravel_pytree(b)
    largest = jnp.max(jnp.abs(flat))
    usable = jnp.isfinite(largest) & (largest > 0)
    # Not beyond where its reciprocal is a normal number: compilers multiply by that, and round smaller ones to 0.
    floats = jnp.finfo(flat.dtype)
    scale = jnp.where(usable, jnp.clip(largest, floats.tiny, 1 / floats.tiny), 1.0)
    unit = flat / scale
    norm_squared = _dot(unit, unit)
    rounding = 8 * floats.eps

    def step(state: _State) -> _State:
        product_p, _ = ravel_pytree(product(unravel(state.direction)))
        curvature = _dot(state.direction, product_p)
        quotient = curvature / _dot(state.direction, state.direction)
        least, most = jnp.minimum(state.least, quotient), jnp.maximum(state.most, quotient)
        alpha = state.residual_dot / curvature
        x = state.x + alpha * state.direction
        residual = state.residual - alpha * product_p
        residual_dot = _dot(residual, residual)
        beta = residual_dot / state.residual_dot
        spent = state._replace(most=most, iterations=state.iterations + 1, running=jnp.asarray(False))
        further = spent._replace(
            x=x,
            least=least,
            residual=residual,
            direction=residual + beta * state.direction,
            residual_dot=residual_dot,
            running=residual_dot > tolerance * norm_squared,
        )
        # Below that the quotient is rounding: a step along what A sends to zero has no right length.
        sound = (least > 4 * rounding * most) & jnp.isfinite(quotient) & jnp.isfinite(residual_dot)
        sound &= jnp.isfinite(scale * jnp.max(jnp.abs(x)))
        return tree_where(sound, further, spent)

    final = jax.lax.while_loop(
        lambda state: state.running & (state.iterations < iterations),
        step,
        _State(
            x=jnp.zeros_like(unit),
            residual=unit,
            direction=unit,
            residual_dot=norm_squared,
            least=jnp.full_like(norm_squared, jnp.inf),
            most=jnp.zeros_like(norm_squared),
            iterations=jnp.asarray(0),
            running=usable,
        ),
    )
    safe_norm = jnp.where(norm_squared > 0, norm_squared, 1.0)
    lost = jnp.where(final.most < jnp.inf, rounding * final.most * jnp.sqrt(_dot(final.x, final.x)), 0.0)
    residual = jnp.sqrt(final.residual_dot / safe_norm + lost**2 / safe_norm)
    info = CGInfo(final.iterations, jnp.where(usable, residual, 0.0))
    return unravel(final.x * scale), info
