"""Small helpers on arrays and pytrees, and a pytree's arrays by name: the form in which they are stored."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from trpo.types import AnyArray, Scalar


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return every array of a pytree under its path, such as ``policy.network.weights[0]``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in leaves}


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Return :func:`named_leaves` as NumPy arrays, random keys as their integers."""
    leaves = {name: jax.random.key_data(x) if _is_key(x) else x for name, x in named_leaves(tree).items()}
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def from_named_arrays(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Put arrays into the structure of ``template``, as what :func:`named_arrays` took from such a tree.

    Raises:
        ValueError: a name, a shape or a type differs; the message says which.
    """
    require_same(template, arrays)
    leaves = []
    for name, leaf in named_leaves(template).items():
        kept = jnp.asarray(arrays[name])
        leaves.append(jax.random.wrap_key_data(kept, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else kept)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def require_same(template: Any, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless :func:`from_named_arrays` takes them; of ``template`` only shapes and types count."""
    expected = named_leaves(template)
    if arrays.keys() != expected.keys():
        odd = sorted(arrays.keys() ^ expected.keys())
        raise ValueError(f"differs in {', '.join(odd[:3])}")
    for name, leaf in expected.items():
        array, stored = arrays[name], jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if array.shape != stored.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {stored.shape}")
        if array.dtype != stored.dtype:  # a cast would lose digits silently
            raise ValueError(f"{name} is of type {array.dtype}, expected {stored.dtype}")


def namespace(x: Any) -> Any:
    """Return the array namespace of ``x``: ``numpy`` for NumPy arrays, ``jax.numpy`` for JAX arrays and tracers.

    Formulas written against it run unchanged in a compiled update and in the NumPy pass that steps host
    environments, so a network has one definition.
    """
    return x.__array_namespace__()


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether every floating-point element of ``tree`` is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.asarray(True)


def tree_where(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Select a whole pytree; the branch that is taken is returned bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def weighted_sum(weight: Float[Array, "*batch"], x: Float[Array, "*batch"]) -> Scalar:
    """Return Σ w x, in which an entry of weight 0 counts for nothing, whatever its content (NaN included)."""
    return jnp.sum(weight * jnp.where(weight > 0, x, 0))


def power_of_two(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the largest power of two ≤ |x| that is a normal number, as is its reciprocal; for 0 the smallest.

    Dividing by it rounds nothing: a unit in which numbers of any size can be squared.
    """
    tiny = jnp.finfo(x.dtype).tiny
    size = jnp.abs(x)
    return jnp.clip(jnp.ldexp(jnp.sign(size), jnp.frexp(size)[1] - 1), tiny, 1 / tiny)


def per_state(weight: Shaped[Array, "*batch"], leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Give ``weight`` trailing axes of length one, so that it multiplies ``leaf`` state by state."""
    return jnp.reshape(weight, weight.shape + (1,) * (leaf.ndim - weight.ndim))


def per_element(leaf: Shaped[AnyArray, "*element"], ndim: int) -> Shaped[AnyArray, "..."]:
    """Give ``leaf`` leading axes of length one up to ``ndim``, so that it combines with an array of that many axes."""
    return leaf.reshape((1,) * (ndim - leaf.ndim) + leaf.shape)


def number(x: Any) -> float | int | None:
    """Return a plain number, or None where it is not finite: strict JSON has no NaN."""
    value = np.asarray(x).item()
    return value if math.isfinite(value) else None


def single(value: Any) -> float:
    """Return a number in single precision, as a float: infinity or 0 where it is beyond its range."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value))


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
