"""Trust-region Gauss–Newton."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from trpo.conjugate_gradient import conjugate_gradient
from trpo.trees import weighted_sum
from trpo.types import Params, Scalar
from trpo.value_fits.fit import ValueApply, ValueBatch, squared_loss


class GaussNewtonFit(eqx.Module):
    """Trust-region Gauss–Newton (Schulman et al. 2016, arXiv:1506.02438, section 5).

        minimise Σ w ½(V_φ − G)²   subject to   Σ w (V_φ − V_φold)² / (2σ²) ≤ ε,   σ² = Σ w (V_φold − G)²

    The Gauss–Newton matrix J ᵀ diag(w) J is the Fisher matrix of a Gaussian of unit variance around V, so the solve
    is the policy's: products from one linearisation, truncated conjugate gradient, exact step length. ``steps`` such
    steps are taken, each halved until the loss falls.
    """

    max_change: float | Scalar = 0.1
    """ε."""
    damping: float | Scalar = 1e-2
    steps: int = eqx.field(static=True, default=5)
    cg_iterations: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if self.steps < 1 or self.cg_iterations < 1:
            raise ValueError(f"value.steps={self.steps}, value.cg_iterations={self.cg_iterations}: must be ≥ 1")

    def init(self, params: Params) -> tuple[()]:
        return ()

    def minimise(
        self, apply: ValueApply, params: Params, optimiser: tuple[()], batch: ValueBatch, key: PRNGKeyArray
    ) -> tuple[Params, tuple[()]]:
        new, _ = jax.lax.scan(lambda p, _: (self._step(apply, p, batch), None), params, None, length=self.steps)
        return new, optimiser

    def _step(self, apply: ValueApply, params: Params, batch: ValueBatch) -> Params:
        value, jvp = jax.linearize(lambda p: batch.values(apply, p), params)
        transpose = jax.linear_transpose(jvp, params)
        error = batch.weight * (value - batch.target)
        (gradient,) = transpose(error)

        def product(vector: Params) -> Params:
            (curved,) = transpose(batch.weight * jvp(vector))
            return optax.tree.add_scale(curved, self.damping, vector)

        direction, _ = conjugate_gradient(product, optax.tree.scale(-1.0, gradient), self.cg_iterations)
        change = weighted_sum(batch.weight, jvp(direction) ** 2)
        variance = weighted_sum(batch.weight, (value - batch.target) ** 2)
        length = jnp.minimum(1.0, jnp.sqrt(2 * self.max_change * variance / jnp.where(change > 0, change, 1.0)))
        start = squared_loss(apply, params, batch)

        def worse(state: tuple[Scalar, Array]) -> Array:
            trial = squared_loss(apply, optax.tree.add_scale(params, state[0], direction), batch)
            return ~(trial <= start) & (state[1] < 8)

        length, halvings = jax.lax.while_loop(worse, lambda s: (s[0] / 2, s[1] + 1), (length, jnp.asarray(0)))
        return optax.tree.add_scale(params, jnp.where(halvings < 8, length, 0.0), direction)
