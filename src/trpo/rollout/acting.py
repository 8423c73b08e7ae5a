"""A policy acting on the host.

It runs as plain NumPy on its own definition, with the noise of a whole fragment drawn beforehand: for a small network a
compiled call for every vector step costs as much as the simulator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import jax
import numpy as np

from trpo.envs.spaces import Box
from trpo.policies.function import to_numpy
from trpo.policies.networks import host_pass
from trpo.policies.protocol import PolicyFunction, bound
from trpo.programs import compiled
from trpo.rollout.trajectory import Actor

Act = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""(observation, carry, reset, standard noise, or None for the mode) ↦ (action, carry)."""


def act(policy: Any, actor: Actor, observation: Any, carry: Any, reset: Any, noise: Any) -> tuple[Any, Any]:
    """Take one step with ``policy(carry, (observation, reset))``, its parameters inside. NumPy in, NumPy out."""
    distribution, carry = policy(carry, (actor.see(observation), reset))
    # Through the class: binding a method of an Equinox module costs more than the arithmetic of a small batch.
    kind = type(distribution)
    return (kind.mode(distribution) if noise is None else kind.transform(distribution, noise)), carry


@compiled
def _compiled_act(policy: PolicyFunction, actor: Actor, *step: Any) -> tuple[Any, Any]:
    return act(partial(policy, actor.params), actor, *step)


def numpy_act(policy: Any, actor: Actor) -> Act:
    """Return the fastest pass for a policy that acts in NumPy."""
    plain = isinstance(actor.space, Box) and np.issubdtype(actor.space.dtype, np.floating)
    fast = host_pass(policy, actor.see, actor.normalisers if plain else None)
    return partial(act, policy, actor) if fast is None else fast


class HostPolicy:
    """Acts for a batch of observations: in NumPy where the policy's definition allows it, else compiled.

    A policy allows it if, given NumPy parameters, it returns NumPy arrays; those written against the array namespace
    of their inputs do (see :mod:`trpo.policies.trunks`). Anything that insists on ``jax.numpy`` still works, at the
    price of a compiled call for every vector step.
    """

    def __init__(self, policy: PolicyFunction, actor: Actor):
        self._policy = policy
        try:
            host, one = to_numpy(actor), to_numpy(policy.start(1))
            step = actor.space.zeros(1), one, np.ones(1, bool), None
            leaves = jax.tree.leaves(act(bound(policy, host.params), host, *step))
            self.in_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        except (TypeError, AttributeError, jax.errors.JAXTypeError):
            self.in_numpy = False
        self.load(actor)

    def load(self, actor: Actor) -> None:
        """Act with these parameters and statistics from now on."""
        self._actor = to_numpy(actor) if self.in_numpy else actor
        self._step: Act = numpy_act(*self.parts) if self.in_numpy else self._compiled

    def start(self, count: int) -> Any:
        """Return the memory at the start of ``count`` episodes."""
        return to_numpy(self._policy.start(count))

    @functools.cached_property
    def can_travel(self) -> bool:
        """Whether other processes can act too."""
        if not self.in_numpy:
            return False
        try:
            cloudpickle.dumps(self.parts)
        except Exception:
            return False
        return True

    @property
    def parts(self) -> tuple[Any, Actor]:
        """The first two arguments of :func:`act`."""
        return bound(self._policy, self._actor.params), self._actor

    def _compiled(self, *step: Any) -> tuple[Any, Any]:
        return jax.device_get(_compiled_act(self._policy, self._actor, *step))

    def __call__(self, observation: Any, carry: Any, reset: Any, noise: Any | None) -> tuple[Any, Any]:
        """Return actions and memory, as NumPy arrays."""
        return self._step(observation, carry, reset, noise)


def noise_of(policy: PolicyFunction, actor: Actor, count: int, leading: tuple[int, ...], key: Any) -> Any:
    """Draw the standard noise for ``leading`` steps of ``count`` environments (jit-able)."""

    def one(actor: Actor) -> Any:
        observed = actor.see(actor.space.map(lambda leaf: jax.numpy.zeros((count, *leaf.shape), leaf.dtype)))
        return policy(actor.params, policy.start(count), (observed, jax.numpy.ones(count, bool)))[0]

    shape = jax.eval_shape(one, actor)
    return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shape).noise(key, leading)
