"""A batch in blocks of states, so that what is computed of it takes the memory of one block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from trpo.types import Params


@dataclasses.dataclass(frozen=True)
class Split:
    """How the states of a batch are divided: into rows, or with ``whole`` into all the times of some environments.

    Blocks are of one size. What the last lacks are copies of the last row, or zeros; :meth:`join` leaves them out.
    """

    shape: tuple[int, ...]
    """Leading axes of the batch."""
    blocks: int
    size: int
    """Rows, or environments, that a block has of each stratum."""
    strata: int
    """Parts of the environments of which each block has equally many: one for each device."""
    whole: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], block: int, strata: int = 1, whole: bool = False) -> Split | None:
        """Return the split into blocks of about ``block`` states, None if the batch is not larger than one."""
        states, times = math.prod(shape), shape[0] if whole else 1
        if not 0 < block < states:
            return None
        strata = strata if shape[-1] % strata == 0 else 1
        rows = states // times // strata
        blocks = -(-rows // max(1, block // times // strata))
        return None if blocks == 1 else cls(shape, blocks, -(-rows // blocks), strata, whole)

    def split(self, leaf: Array, zeros: bool = False) -> Array:
        """Return ``[*shape, …]`` as ``[blocks, rows, …]``, or ``[blocks, time, env, …]``."""
        axes = len(self.shape)
        # By environment, where those are divided over devices: a row then stays where it is.
        leaf = jnp.swapaxes(leaf, 0, 1) if axes == 2 and (self.whole or self.strata > 1) else leaf
        parts = self.split_rows(leaf if self.whole else leaf.reshape(-1, *leaf.shape[axes:]), zeros)
        return jnp.swapaxes(parts, 1, 2) if self.whole else parts

    def split_rows(self, leaf: Array, zeros: bool = False) -> Array:
        """Return ``[rows, …]`` as ``[blocks, rows, …]``."""
        parts = leaf.reshape(self.strata, -1, *leaf.shape[1:])
        if missing := self.blocks * self.size - parts.shape[1]:
            more = jnp.repeat(parts[:, -1:], missing, 1)
            parts = jnp.concatenate([parts, jnp.zeros_like(more) if zeros else more], 1)
        parts = parts.reshape(self.strata, self.blocks, self.size, *leaf.shape[1:])
        return jnp.swapaxes(parts, 0, 1).reshape(self.blocks, -1, *leaf.shape[1:])

    def join(self, parts: Array) -> Array:
        """Return what :meth:`split` was given."""
        axes = len(self.shape)
        parts = jnp.swapaxes(parts, 1, 2) if self.whole else parts
        rest = parts.shape[2:]
        rows = jnp.swapaxes(parts.reshape(self.blocks, self.strata, self.size, *rest), 0, 1)
        present = math.prod(self.shape) // (self.shape[0] if self.whole else 1) // self.strata
        leaf = rows.reshape(self.strata, -1, *rest)[:, :present].reshape(-1, *rest)
        if axes == 2 and (self.whole or self.strata > 1):
            columns = leaf if self.whole else leaf.reshape(*self.shape[::-1], *rest)
            return jnp.swapaxes(columns, 0, 1)
        return leaf.reshape(*self.shape, *rest)


class InBlocks(eqx.Module):
    """θ ↦ f(θ, x) for every block x of a batch, put together; derivatives compute f anew, block by block."""

    function: Callable[[Params, Any], Any]
    """A pytree."""
    inputs: Any
    """With a leading axis of blocks."""
    split: Split = eqx.field(static=True)

    def __call__(self, params: Params) -> Any:
        """Return f of the whole batch."""
        anew = jax.checkpoint(lambda function, *given: function(*given))
        return self.join(jax.lax.map(lambda x: anew(self.function, params, x), self.inputs))

    def join(self, parts: Any) -> Any:
        """Return results of all blocks as those of the batch."""
        return jax.tree.map(self.split.join, parts)

    def summed(self, add: Callable[..., Params], like: Params, *rows: Any) -> Params:
        """Return Σ add(block, …) over blocks, with ``rows`` of the batch divided in the same way, 0 beyond them."""
        xs = self.inputs, *jax.tree.map(partial(self.split.split, zeros=True), rows)
        zero = jax.tree.map(jnp.zeros_like, like)

        def one(total: Params, block: Any) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, add(*block)), None

        return jax.lax.scan(one, zero, xs)[0]
