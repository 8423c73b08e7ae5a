"""Adam on shuffled minibatches."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from trpo.trees import shuffled, single
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
        *strata, n = batch.rows
        of_each = math.prod(batch.weight.shape[len(batch.rows) :]) * math.prod(strata)
        size = min(max(1, self.minibatch // of_each) if self.minibatch else n, n)
        steps = n // size
        # Each stratum's rows come from it alone: strata on other devices stay there.
        take = jax.vmap(operator.getitem) if strata else operator.getitem

        def step(carry: tuple[Params, Any], rows: Array) -> tuple[tuple[Params, Any], None]:
            params, optimiser = carry
            part = jax.tree.map(lambda leaf: take(leaf, rows), batch) if steps > 1 else batch
            total = jnp.sum(part.weight)
            part = dataclasses.replace(part, weight=part.weight / jnp.where(total > 0, total, 1.0))
            gradient = jax.grad(lambda p: squared_loss(apply, p, part))(params)
            updates, optimiser = _ADAM.update(gradient, optimiser, params)
            return (optax.tree.add_scale(params, -self.learning_rate, updates), optimiser), None

        def rows_of_epoch(key: PRNGKeyArray) -> Array:
            return shuffled(key, n)[: steps * size].reshape(steps, size)

        def rows_of_strata(key: PRNGKeyArray) -> Array:
            return jax.vmap(rows_of_epoch, out_axes=1)(jax.random.split(key, strata[0]))

        if steps > 1:
            rows = jax.vmap(rows_of_strata if strata else rows_of_epoch)(jax.random.split(key, self.epochs))
            rows = rows.reshape(-1, *rows.shape[2:])
        else:
            rows = jnp.zeros((self.epochs, 0), jnp.int32)
        (params, optimiser), _ = jax.lax.scan(step, (params, optimiser), rows)
        return params, optimiser
