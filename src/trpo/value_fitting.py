"""Fitting the value function to λ-returns (L4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo.linear_solve import conjugate_gradient
from trpo.running_statistics import RunningStatistics
from trpo.types import Params, Scalar, all_finite, tree_where, weighted_sum

ValueApply = Callable[[Params, Any], Float[Array, "*batch"]]


class ValueBatch(eqx.Module):
    """Regression data ``[n, …]``, or ``[strata, n / strata, …]`` where minibatches draw equally from strata."""

    observation: Float[Array, "*n features"]
    """As the value function takes it."""
    target: Float[Array, "*n"]
    """λ-returns, in units of reward."""
    weight: Float[Array, "*n"]
    """≥ 0, summing to 1."""


class ValueState(eqx.Module):
    """Parameters of the value function and everything its fit carries along."""

    params: Params
    optimiser: Any
    returns: RunningStatistics
    """Statistics of the targets seen so far."""

    @property
    def scale(self) -> Scalar:
        """The network's unit: the running standard deviation of returns, 1 before any was seen.

        It is at least a tenth of their root mean square, so that (nearly) constant returns don't blow the unit up.
        """
        std = jnp.sqrt(self.returns.variance)
        scale = jnp.maximum(std, 0.1 * jnp.sqrt(std**2 + self.returns.mean**2))
        return jnp.where((self.returns.count > 0) & (scale > 0), scale, 1.0)


class ValueInfo(eqx.Module):
    """How a fit went."""

    loss: Float[Array, ""]
    """Weighted mean squared error after the fit, in units of the running return variance."""
    finite: Array
    """False if the fit was refused because data or result were not finite."""


def predict(apply: ValueApply, state: ValueState, observation: Any, normalise: bool = True) -> Float[Array, "*batch"]:
    """Return V(s) in units of reward: the network's output times the running deviation of returns."""
    value = apply(state.params, observation)
    return value * state.scale if normalise else value


def explained_variance(
    value: Float[Array, "*batch"], target: Float[Array, "*batch"], weight: Float[Array, "*batch"]
) -> Scalar:
    """Return 1 − Var[target − V] / Var[target]: 1 is perfect, 0 no better than a constant; 0 for constant targets."""

    def variance(x: Array) -> Scalar:
        return weighted_sum(weight, (x - weighted_sum(weight, x)) ** 2)

    total = variance(target)
    return jnp.where(total > 0, 1.0 - variance(target - value) / jnp.where(total > 0, total, 1.0), 0.0)


def _loss(apply: ValueApply, params: Params, batch: ValueBatch) -> Scalar:
    return weighted_sum(batch.weight, 0.5 * (apply(params, batch.observation) - batch.target) ** 2)


class AdamFit(eqx.Module):
    """Minimise Σ w ½(V − G)² by ``epochs`` passes of Adam over shuffled minibatches, compiled into one call.

    ``minibatch`` 0, or more than half the batch, means the whole batch at once. Rows that don't fill a minibatch are
    left out of that pass; each pass shuffles anew. The optimiser's moments carry over from one batch to the next.
    """

    learning_rate: float | Scalar = 1e-3
    epochs: int = eqx.field(static=True, default=10)
    minibatch: int = eqx.field(static=True, default=128)

    def __check_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"value.epochs={self.epochs}: must be ≥ 1; 10 is usual")
        if self.minibatch < 0:
            raise ValueError(f"value.minibatch={self.minibatch}: must be ≥ 0; 0 uses the whole batch, 128 is usual")
        if not isinstance(self.learning_rate, jax.core.Tracer) and not float(self.learning_rate) > 0:
            raise ValueError(f"value.learning_rate={self.learning_rate}: must be > 0; 1e-3 is usual")

    def init(self, params: Params) -> Any:
        """Return Adam's moments for ``params``."""
        return _adam().init(params)

    def minimise(
        self, apply: ValueApply, params: Params, optimiser: Any, batch: ValueBatch, key: PRNGKeyArray
    ) -> tuple[Params, Any]:
        """Run the fit on targets in the network's own unit."""
        *strata, n = batch.target.shape
        size = min(max(1, self.minibatch // math.prod(strata)) if self.minibatch else n, n)
        steps = n // size
        transform = _adam()

        def take(part: ValueBatch, rows: Array) -> ValueBatch:
            return jax.tree.map(lambda leaf: leaf[rows], part)

        # Each stratum's rows come from it alone: strata on other devices stay there.
        take = jax.vmap(take) if strata else take

        def step(carry: tuple[Params, Any], rows: Array) -> tuple[tuple[Params, Any], None]:
            params, optimiser = carry
            part = take(batch, rows) if steps > 1 else batch
            total = jnp.sum(part.weight)
            weight = part.weight / jnp.where(total > 0, total, 1.0)
            part = ValueBatch(part.observation, part.target, weight)
            gradient = jax.grad(lambda p: _loss(apply, p, part))(params)
            updates, optimiser = transform.update(gradient, optimiser, params)
            return (optax.tree.add_scale(params, -self.learning_rate, updates), optimiser), None

        def rows_of_epoch(key: PRNGKeyArray) -> Array:
            if not strata:
                return shuffled(key, n)[: steps * size].reshape(steps, size)
            keys = jax.random.split(key, strata[0])
            rows = jax.vmap(lambda k: shuffled(k, n)[: steps * size].reshape(steps, size))(keys)
            return jnp.moveaxis(rows, 0, 1)

        if steps > 1:
            rows = jax.vmap(rows_of_epoch)(jax.random.split(key, self.epochs))
            rows = rows.reshape(-1, *rows.shape[2:])
        else:
            rows = jnp.zeros((self.epochs, 0), jnp.int32)
        (params, optimiser), _ = jax.lax.scan(step, (params, optimiser), rows)
        return params, optimiser


def shuffled(key: PRNGKeyArray, n: int) -> Int[Array, "n"]:
    """Return 0, …, n − 1 in random order.

    For n ≤ 2^16 it sorts 32-bit words of random high bits above the index, which on a CPU takes a seventh of the time
    of ``jax.random.permutation`` (with that, a third of a whole fit). Two indices that drew the same random bits, of
    which there are about n³ / 2^33 pairs (one for n = 2048), come next to each other in ascending order.
    """
    bits = max(1, (n - 1).bit_length())
    if bits > 16:
        return jax.random.permutation(key, n)
    index = jnp.arange(n, dtype=jnp.uint32)
    words = jnp.sort((jax.random.bits(key, (n,), jnp.uint32) << bits) | index)
    return (words & jnp.uint32(2**bits - 1)).astype(jnp.int32)


def _adam() -> optax.GradientTransformation:
    # One flat vector for all leaves: Adam's arithmetic is then a few large loops instead of many tiny ones.
    return optax.flatten(optax.scale_by_adam())


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
        """The fit carries nothing from batch to batch."""
        return ()

    def minimise(
        self, apply: ValueApply, params: Params, optimiser: tuple[()], batch: ValueBatch, key: PRNGKeyArray
    ) -> tuple[Params, tuple[()]]:
        """Run the fit on targets in the network's own unit; ``key`` is not used."""
        new, _ = jax.lax.scan(lambda p, _: (self._step(apply, p, batch), None), params, None, length=self.steps)
        return new, optimiser

    def _step(self, apply: ValueApply, params: Params, batch: ValueBatch) -> Params:
        value, jvp = jax.linearize(lambda p: apply(p, batch.observation), params)
        transpose = jax.linear_transpose(jvp, params)
        error = batch.weight * (value - batch.target)
        (gradient,) = transpose(error)

        def product(vector: Params) -> Params:
            (curved,) = transpose(batch.weight * jvp(vector))
            return optax.tree.add_scale(curved, self.damping, vector)

        direction, _ = conjugate_gradient(product, optax.tree.scale(-1.0, gradient), self.cg_iterations)
        change = weighted_sum(batch.weight, jvp(direction) ** 2)
        variance = weighted_sum(batch.weight, (value - batch.target) ** 2)
        limit = jnp.sqrt(2 * self.max_change * variance / jnp.where(change > 0, change, 1.0))
        length = jnp.minimum(1.0, limit)
        start = _loss(apply, params, batch)

        def halve(state: tuple[Scalar, Array]) -> tuple[Scalar, Array]:
            return state[0] / 2, state[1] + 1

        def worse(state: tuple[Scalar, Array]) -> Array:
            trial = _loss(apply, optax.tree.add_scale(params, state[0], direction), batch)
            return ~(trial <= start) & (state[1] < 8)

        length, halvings = jax.lax.while_loop(worse, halve, (length, jnp.asarray(0)))
        return optax.tree.add_scale(params, jnp.where(halvings < 8, length, 0.0), direction)


def fit_value(
    method: AdamFit | GaussNewtonFit,
    apply: ValueApply,
    state: ValueState,
    batch: ValueBatch,
    key: PRNGKeyArray,
    normalise: bool = True,
) -> tuple[ValueState, ValueInfo]:
    """Fit V to ``batch`` and return the new state; on non-finite data or result, the old state bit for bit.

    Targets are divided by the running standard deviation of returns (``normalise``), so one learning rate serves
    rewards of any scale; :func:`predict` multiplies it back.
    """
    present = (batch.weight > 0).astype(batch.weight.dtype)
    returns = state.returns.merge(batch.target, present) if normalise else state.returns
    after = ValueState(state.params, state.optimiser, returns)
    # The network's outputs mean V / scale, so V moves a little with the scale until this fit, on targets in the new
    # unit, catches up; the running deviation changes slowly.
    scaled = ValueBatch(
        jnp.where((batch.weight > 0)[..., None], batch.observation, 0),
        jnp.where(batch.weight > 0, batch.target, 0) / (after.scale if normalise else 1.0),
        batch.weight,
    )
    params, optimiser = method.minimise(apply, state.params, state.optimiser, scaled, key)
    loss = 2 * _loss(apply, params, scaled)
    finite = all_finite((scaled.target, returns, params, loss))
    new = ValueState(params, optimiser, returns)
    return tree_where(finite, new, state), ValueInfo(loss, finite)
