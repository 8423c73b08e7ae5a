"""What the tests of several rooms ask of results: their bits, and their metrics without timings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TIMINGS = {"seconds", "steps_per_second", "collect_seconds"}


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in TIMINGS}


def bits(tree: Any) -> list[tuple[Any, bytes]]:
    """Every leaf's type and content; of a random key, its data."""
    leaves = (jax.random.key_data(x) if _is_key(x) else np.asarray(x) for x in jax.tree.leaves(tree))
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def same_bits(a: Any, b: Any) -> bool:
    return bits(a) == bits(b)


def assert_same_bits(a: Any, b: Any) -> None:
    for i, (x, y) in enumerate(zip(bits(a), bits(b), strict=True)):
        assert x == y, f"leaf {i} differs"
