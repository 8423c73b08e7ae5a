"""Gauss–Newton products with the Fisher matrix of a parametrised distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo.blocks import InBlocks
from trpo.distributions import Distribution
from trpo.trees import per_state
from trpo.types import Params, Product, Scalar


class Linearisation(eqx.Module):
    """The map θ ↦ distribution parameters at one θ, linearised once: value, J v and Jᵀ u.

    One primal pass serves the gradient, every Fisher product and the slopes along a step.
    """

    distribution: Any
    """π_θ(·|s) for all states, at the point of linearisation."""
    jvp: Callable[[Params], Any]
    """v ↦ J v: the tangent of the distribution's parameters, state by state."""
    transpose: Callable[[Any], Params]
    """u ↦ Jᵀ u, summed over states."""
    product: Callable[[Params, Any], Params] | None = None
    """(v, w) ↦ F v, where one pass does both; None: by the two."""

    def fisher_vp(self, vector: Params, weight: Float[Array, "*batch"]) -> Params:
        """Return F v = Σ_i w_i J_iᵀ M_i J_i v, M_i the closed-form Fisher matrix of the i-th distribution."""
        if self.product is not None:
            return self.product(vector, weight)
        cotangent = self.distribution.fisher_product(self.jvp(vector))
        return self.transpose(_weighted(cotangent, weight))

    def curvature(self, vector: Params, weight: Float[Array, "*batch"]) -> Scalar:
        """Return vᵀF v from one J v, without a transpose and without cancellation."""
        return self._curvature(self.jvp(vector), weight)

    def _curvature(self, tangent: Any, weight: Float[Array, "*batch"]) -> Scalar:
        return _inner(tangent, _weighted(self.distribution.fisher_product(tangent), weight))

    def along(
        self, function: Callable[[Any], Scalar], vector: Params, weight: Float[Array, "*batch"]
    ) -> tuple[Scalar, Scalar]:
        """Return :meth:`slope` and :meth:`curvature`, from one J v."""
        tangent = self.jvp(vector)
        return _inner(jax.grad(function)(self.distribution), tangent), self._curvature(tangent, weight)

    def pull_back(self, function: Callable[[Any], Scalar]) -> Params:
        """Return the gradient in θ of ``function(distribution)``, reusing the primal pass."""
        return self.transpose(jax.grad(function)(self.distribution))

    def slope(self, function: Callable[[Any], Scalar], vector: Params) -> Scalar:
        """Return the derivative of ``function(distribution)`` along ``vector``."""
        return _inner(jax.grad(function)(self.distribution), self.jvp(vector))


def _weighted(cotangent: Any, weight: Float[Array, "*batch"]) -> Any:
    def scale(leaf: Array) -> Array:
        w = per_state(weight, leaf)
        return jnp.where(w > 0, w * leaf, 0.0)

    return jax.tree.map(scale, cotangent)


def _inner(a: Any, b: Any) -> Scalar:
    return jnp.sum(jnp.stack([jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]))


def linearise(distributions: Callable[[Params], Distribution], params: Params) -> Linearisation:
    """Linearise ``distributions`` at ``params`` with a single primal pass.

    ``jax.linearize`` keeps what every J v needs (activations' derivatives); its transpose gives Jᵀ u. Nothing is
    differentiated twice, so recurrent and exotic networks need no double backward. In blocks nothing is kept: every
    J v and Jᵀ u computes the primal pass anew, block by block.
    """
    if isinstance(distributions, InBlocks):
        return _in_blocks(distributions, params)
    distribution, jvp = jax.linearize(distributions, params)
    transposed = jax.linear_transpose(jvp, params)
    return Linearisation(distribution, jvp, lambda cotangent: transposed(cotangent)[0])


def _in_blocks(blocks: InBlocks, params: Params) -> Linearisation:
    def of(x: Any) -> Callable[[Params], Any]:
        return lambda p: blocks.function(p, x)

    def jvp(vector: Params) -> Any:
        return blocks.join(jax.lax.map(lambda x: jax.jvp(of(x), (params,), (vector,))[1], blocks.inputs))

    def transpose(cotangent: Any) -> Params:
        return blocks.summed(lambda x, u: jax.vjp(of(x), params)[1](u)[0], params, cotangent)

    def product(vector: Params, weight: Float[Array, "*batch"]) -> Params:
        def add(x: Any, w: Array) -> Params:
            return linearise(of(x), params).fisher_vp(vector, w)

        return blocks.summed(add, params, weight)

    return Linearisation(blocks(params), jvp, transpose, product)


def fisher_vp(
    distributions: Callable[[Params], Distribution], params: Params, weight: Float[Array, "*batch"]
) -> Product:
    """Return the product v ↦ F v with the Fisher matrix of a batch of distributions.

        F = Σ_i w_i J_iᵀ M_i J_i = Σ_i w_i E[∇log π_i ∇log π_iᵀ] = ∇²_θ Σ_i w_i KL(π_i(θ_old) ‖ π_i(θ)) at θ = θ_old

    (TRPO paper, appendix C.1). F is symmetric and positive semi-definite by construction.

    Args:
        distributions: θ ↦ a batch of distributions, one for each state.
        params: θ_old.
        weight: one weight ≥ 0 for each state, shape ``[*batch]``; they should sum to 1. A state of weight 0
            adds nothing, as long as its distribution is finite (:func:`sampled_problem` sees to that).

    >>> import jax.numpy as jnp, trpo
    >>> product = trpo.fisher_vp(lambda logits: trpo.Categorical(logits[None]), jnp.zeros(2), jnp.ones(1))
    >>> product(jnp.array([1.0, 0.0]))
    Array([ 0.25, -0.25], dtype=float32)
    """
    linear = linearise(distributions, params)
    return lambda vector: linear.fisher_vp(vector, weight)
