"""Types and small pytree helpers shared by every layer (L0: imports nothing of the package)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

if TYPE_CHECKING:
    AnyArray = Array
    Params = Any
else:
    AnyArray = Array | np.ndarray | np.generic
    """What formulas that also serve the host's NumPy pass accept; NumPy reduces a vector to an ``np.generic``."""

    Params = PyTree[Float[AnyArray, "..."]]
    """Parameters, or a vector in their space: any pytree of floating-point arrays."""

Scalar = Float[Array, ""]
Product = Callable[[Params], Params]
"""A linear map from parameter space to itself, such as v -> F v."""


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


def per_state(weight: Shaped[Array, "*batch"], leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Give ``weight`` trailing axes of length one, so that it multiplies ``leaf`` state by state."""
    return jnp.reshape(weight, weight.shape + (1,) * (leaf.ndim - weight.ndim))


def per_element(leaf: Shaped[AnyArray, "*element"], ndim: int) -> Shaped[AnyArray, "..."]:
    """Give ``leaf`` leading axes of length one up to ``ndim``, so that it combines with an array of that many axes."""
    return leaf.reshape((1,) * (ndim - leaf.ndim) + leaf.shape)
