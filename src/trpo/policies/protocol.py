"""What a policy is to everything that uses one: a pure function with a memory that may be empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

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


def unroll(policy: PolicyFunction, params: Params, carry: Any, observed: Observed) -> tuple[Any, Any]:
    """Run a policy through a fragment ``[time, env, …]``: all at once without memory, step by step with one.

    Returns the distributions of all steps, and the memory after the last.
    """
    if not jax.tree.leaves(carry):
        return policy(params, carry, observed)

    def step(carry: Any, observed: Observed) -> tuple[Any, Any]:
        distribution, carry = policy(params, carry, observed)
        return carry, distribution

    carry, distributions = jax.lax.scan(step, carry, observed)
    return distributions, carry
