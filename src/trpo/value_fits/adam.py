"""Adam on shuffled minibatches."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from trpo.trees import per_state, shuffled, single
from trpo.types import Params, Scalar
from trpo.value_fits.fit import ValueApply, ValueBatch, squared_loss

# One flat vector for all leaves: Adam's arithmetic is then a few large loops instead of many tiny ones.
_ADAM = optax.flatten(optax.scale_by_adam())


class AdamFit(eqx.Module):
    """Minimise Σ w ½(V − G)² by ``epochs`` passes of Adam over shuffled minibatches, compiled into one call.

    ``minibatch`` 0, or more than half the batch, means the whole batch at once; with memory it is of whole sequences
    that together have about as many states. Rows that don't fill a minibatch are
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
        if not isinstance(self.learning_rate, jax.core.Tracer) and not 0 < single(self.learning_rate) < math.inf:
            raise ValueError(f"value.learning_rate={self.learning_rate}: must be > 0 and finite; 1e-3 is usual")

    def init(self, params: Params) -> Any:
        return _ADAM.init(params)

    def minimise(
        self, apply: ValueApply, params: Params, optimiser: Any, batch: ValueBatch, key: PRNGKeyArray
    ) -> tuple[Params, Any]:
        n, of_each = math.prod(batch.rows), math.prod(batch.weight.shape[len(batch.rows) :])
        size = min(max(1, self.minibatch // of_each) if self.minibatch else n, n)
        steps = n // size

        def fit(places: Any) -> tuple[Params, Any]:
            def step(carry: tuple[Params, Any], place: Any) -> tuple[tuple[Params, Any], None]:
                params, optimiser = carry
                part = batch if place is None else place.taken(batch)
                total = jnp.sum(part.weight)
                part = dataclasses.replace(part, weight=part.weight / jnp.where(total > 0, total, 1.0))
                gradient = jax.grad(lambda p: squared_loss(apply, p, part))(params)
                updates, optimiser = _ADAM.update(gradient, optimiser, params)
                return (optax.tree.add_scale(params, -self.learning_rate, updates), optimiser), None

            (params_, optimiser_), _ = jax.lax.scan(step, (params, optimiser), places, self.epochs * steps)
            return params_, optimiser_

        if steps == 1:
            return fit(None)
        rows = jax.vmap(lambda key: shuffled(key, n)[: steps * size].reshape(steps, size))(
            jax.random.split(key, self.epochs)
        ).reshape(-1, size)
        if len(batch.rows) == 1:
            return fit(Rows(rows))
        return fit_strata(fit, batch, rows)


class Rows(eqx.Module):
    """The rows of a minibatch."""

    row: Int[Array, "*steps size"]

    def taken(self, batch: ValueBatch) -> ValueBatch:
        """Return the rows of a batch."""
        return jax.tree.map(lambda leaf: leaf[self.row], batch)


class RowsOfStrata(eqx.Module):
    """The rows of a minibatch that each stratum has, filled up with some that do not count."""

    row: Int[Array, "*steps strata room"]
    counts: Bool[Array, "*steps strata room"]

    def taken(self, batch: ValueBatch) -> ValueBatch:
        """Return the rows of a batch: each stratum's are taken from it alone, so that those elsewhere stay there."""
        part = jax.tree.map(lambda leaf: jax.vmap(operator.getitem)(leaf, self.row), batch)
        weight = jnp.where(per_state(self.counts, part.weight), part.weight, 0)
        return dataclasses.replace(part, weight=weight)


def fit_strata(
    fit: Callable[[RowsOfStrata], tuple[Params, Any]], batch: ValueBatch, rows: Int[Array, "steps size"]
) -> tuple[Params, Any]:
    """Fit with minibatches of the same ``rows`` as if there was one stratum, of which each stratum takes its own.

    A stratum has m = size / strata of them in the mean. There is room for m and five standard deviations, so that it
    does about its share of the work; should one of all the minibatches need more, there is room for a whole one.
    """
    (strata, n), size = batch.rows, rows.shape[1]
    columns = batch.columns or n
    group, within = rows // (strata * columns), rows % (strata * columns)
    stratum, row = within // columns, group * columns + within % columns
    own = jax.nn.one_hot(stratum, strata, dtype=jnp.int32)
    before = jnp.take_along_axis(jnp.cumsum(own, axis=1), stratum[..., None], axis=2)[..., 0] - 1

    def places(room: int) -> RowsOfStrata:
        def of(stratum: Array, before: Array, row: Array) -> tuple[Array, Array]:
            empty = jnp.zeros((strata, room), row.dtype)
            counts = jnp.zeros((strata, room), bool).at[stratum, before].set(True, mode="drop")
            return empty.at[stratum, before].set(row, mode="drop"), counts

        return RowsOfStrata(*jax.vmap(of)(stratum, before, row))

    mean = size / strata
    room = min(size, math.ceil(mean + 5 * math.sqrt(mean * (1 - 1 / strata))))
    if room == size:
        return fit(places(size))
    return jax.lax.cond(jnp.max(jnp.sum(own, axis=1)) <= room, lambda: fit(places(room)), lambda: fit(places(size)))
