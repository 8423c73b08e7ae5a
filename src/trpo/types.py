"""Types shared by every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float, PyTree

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
