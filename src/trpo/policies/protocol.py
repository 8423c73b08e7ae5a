"""What a policy is to everything that uses one: a pure function with a memory that may be empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from trpo.types import Params

Observed = tuple[Any, Any]
"""(what is observed, where an episode begins with it): arrays with the leading axes ``[env]``, or ``[time, env]``."""


PolicyLike = Callable[..., Any]
"""A policy of one's own: a callable pytree from observations to a distribution, or a module with memory whose call is
that of a :class:`PolicyFunction` without the parameters. A value function of one's own gives numbers instead."""


@runtime_checkable
class PolicyFunction(Protocol):
    """(parameters, carry, (observation, reset)) ↦ (distributions, carry), one for each observation.

    Equal instances behave the same: they are static arguments of compiled functions. A value function is the same with
    V in place of distributions.
    """

    def start(self, count: int) -> Any:
        """Return the memory (``carry``) at the start of ``count`` episodes; ``()`` where there is none."""
        ...

    def __call__(self, params: Params, carry: Any, observed: Observed) -> tuple[Any, Any]:
        """Take one step ``[env]``; without memory, as many leading axes as one likes."""
        ...


@dataclasses.dataclass(frozen=True)
class Memoryless:
    """A function of parameters and observation alone, as a :class:`PolicyFunction`."""

    function: Callable[[Params, Any], Any]

    def start(self, count: int) -> tuple[()]:
        return ()

    def __call__(self, params: Params, carry: tuple[()], observed: Observed) -> tuple[Any, tuple[()]]:
        return self.function(params, observed[0]), carry

    def bind(self, params: Params) -> Callable[[Any, Observed], tuple[Any, Any]]:
        """Return the function with its parameters put in once, for the many calls of a rollout."""
        put = getattr(self.function, "bind", None)
        bound = (lambda x: self.function(params, x)) if put is None else put(params)
        return lambda carry, observed: (bound(observed[0]), carry)


def bound(policy: PolicyFunction, params: Params) -> Any:
    """Return ``(carry, observed) ↦ (distribution, carry)``, put together once, not at every step."""
    bind = getattr(policy, "bind", None)
    return partial(policy, params) if bind is None else bind(params)


def unroll(policy: PolicyFunction, params: Params, carry: Any, observed: Observed) -> tuple[Any, Any]:
    """Run a policy through a fragment ``[time, env, …]``: all at once without memory, step by step with one.

    Returns the distributions of all steps, and the memory after each. A module that can do better than one step after
    the other has a method ``unroll(carry, observed)``.
    """
    if not jax.tree.leaves(carry):
        return policy(params, carry, observed)
    module = bound(policy, params)
    return module.unroll(carry, observed) if hasattr(module, "unroll") else stepwise(module, carry, *observed)


def stepwise(module: Callable[..., Any], carry: Any, x: Any, reset: Any) -> tuple[Any, Any]:
    """Return outputs and memory of ``module(carry, (x, reset))`` after each of its steps."""

    def step(carry: Any, observed: Observed) -> tuple[Any, Any]:
        output, carry = module(carry, observed)
        return carry, (output, carry)

    return jax.lax.scan(step, carry, (x, reset))[1]


def after_each(policy: PolicyFunction, params: Params, carries: Any, observation: Any) -> Any:
    """Return the distributions of what is observed next, from the memory after each step, ``[time, env, …]``.

    No episode begins there: this is a step's own successor.
    """
    if not jax.tree.leaves(carries):
        return policy(params, carries, (observation, None))[0]
    time, count = jax.tree.leaves(carries)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(time * count, *x.shape[2:]), (carries, observation))
    outputs, _ = policy(params, flat[0], (flat[1], jax.numpy.zeros(time * count, bool)))
    return jax.tree.map(lambda x: x.reshape(time, count, *x.shape[1:]), outputs)


def require_memory(name: str, carry: Any, expected: Any) -> None:
    """Raise ValueError unless ``carry`` has the structure and shapes of ``expected``, as a policy's ``start`` gives."""
    found, right = (
        str(jax.tree.map(np.shape, tree)) if jax.tree.leaves(tree) else "none" for tree in (carry, expected)
    )
    if found != right:
        raise ValueError(f"{name}: must be a memory of the shapes {right}, as start gives it; found {found}")
