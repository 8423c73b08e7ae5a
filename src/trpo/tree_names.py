"""Arrays of a pytree by name, and back: the form in which they are stored (L0)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
        ValueError: a name or a shape differs; the message says which.
    """
    expected = named_leaves(template)
    if arrays.keys() != expected.keys():
        odd = sorted(arrays.keys() ^ expected.keys())
        raise ValueError(f"differs in {', '.join(odd[:3])}")
    leaves = []
    for name, leaf in expected.items():
        array = arrays[name]
        shape = leaf.shape + array.shape[array.ndim - 1 :] if _is_key(leaf) else leaf.shape
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        if _is_key(leaf):
            leaves.append(jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf)))
        else:
            leaves.append(jnp.asarray(array, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
