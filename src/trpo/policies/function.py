"""A module as a pure function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from trpo.policies.protocol import Memoryless, PolicyFunction
from trpo.types import Params


class _Constant:
    """An integer or boolean array of a module (a mask, a permutation), comparable so that jit can cache on it."""

    def __init__(self, value: np.ndarray):
        self.value = value

    def __hash__(self) -> int:
        return hash((self.value.shape, self.value.dtype.str, self.value.tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and hash(self) == hash(other) and np.array_equal(self.value, other.value)


class ModuleFunction(eqx.Module):
    """A module's call as a pure function ``f(params, *x)``; equal for equal structures, so jit caches on it."""

    static: Any = eqx.field(static=True)

    def __call__(self, params: Params, *x: Any) -> Any:
        """Call the module with ``params`` in place of its own."""
        return self.bind(params)(*x)

    def bind(self, params: Params) -> Any:
        """Return the module with ``params`` in place of its own."""
        constants = jax.tree.map(lambda x: x.value if isinstance(x, _Constant) else x, self.static)
        return eqx.combine(params, constants)

    def start(self, count: int) -> Any:
        """Return the module's memory at the start of ``count`` episodes, if it is one with memory."""
        return self.static.start(count)


def as_function(module: Any) -> tuple[ModuleFunction, Params]:
    """Split any callable pytree into ``(f, params)`` with ``f(params, *x) = module(*x)``.

    ``params`` holds every floating-point array of the module, each of which an update moves.

    >>> import jax, trpo
    >>> network, params = trpo.as_function(trpo.mlp(jax.random.key(0), (4, 8, 2)))
    >>> network(params, jax.numpy.zeros((3, 4))).shape
    (3, 2)
    """
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return ModuleFunction(jax.tree.map(lambda x: _Constant(np.asarray(x)) if eqx.is_array(x) else x, static)), params


def memoryless(function: Callable[..., Any]) -> PolicyFunction:
    """Adapt ``function(params, observation)``; what is a :class:`PolicyFunction` already is returned as it is."""
    known: Any = function
    return known if hasattr(getattr(function, "static", function), "start") else Memoryless(function)


def as_policy(module: Any) -> tuple[PolicyFunction, Params]:
    """Split a policy or value function: a module with memory, or any callable pytree of observations."""
    function, params = as_function(module)
    return memoryless(function), params


def to_numpy(tree: Any) -> Any:
    """Return the same tree of NumPy arrays, as the host's forward pass takes parameters."""
    return jax.tree.map(np.asarray, tree)
