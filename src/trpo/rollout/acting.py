"""A policy acting on the host.

It runs as plain NumPy on its own definition, with the noise of a whole fragment drawn beforehand: for a small network a
compiled call for every vector step costs as much as the simulator. Even so, reading a module's attributes and making a
distribution for every step takes four times as long as the arithmetic. So the usual policy, a Gaussian around an MLP,
has a pass of its own here, equal bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cloudpickle
import equinox as eqx
import jax
import numpy as np

from trpo.policies.function import to_numpy
from trpo.policies.heads import GaussianPolicy
from trpo.policies.networks import MLP
from trpo.problem import PolicyFunction
from trpo.rollout.trajectory import Actor
from trpo.running_statistics import Normaliser


def act(
    policy: Callable[[Any], Any], normaliser: Normaliser | None, observation: Any, noise: Any | None
) -> tuple[Any, Any]:
    """Return ``(action, distribution)``; the mode if ``noise`` is None. NumPy in, NumPy out."""
    distribution = policy(observation if normaliser is None else normaliser(observation))
    # Through the class: binding a method of an Equinox module costs more than the arithmetic of a small batch.
    kind = type(distribution)
    return (kind.mode(distribution) if noise is None else kind.transform(distribution, noise)), distribution


@partial(jax.jit, static_argnums=0)
def _compiled_act(policy: PolicyFunction, actor: Actor, observation: Any, noise: Any | None) -> tuple[Any, Any]:
    return act(partial(policy, actor.params), actor.normaliser, observation, noise)


@runtime_checkable
class FragmentPolicy(Protocol):
    """Acts through a fragment; of each step it keeps a record, from which all distributions are made at the end."""

    def act(self, observation: np.ndarray, noise: Any) -> tuple[np.ndarray, Any]:
        """Return actions, and the record of this step."""
        ...

    def distribution(self, records: list[Any]) -> Any:
        """Return the distributions of all steps, ``[time, env]``."""
        ...


class AnyPolicy:
    """A fragment's policy of any kind: the record is the distribution itself."""

    def __init__(self, act: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]):
        self.act = act

    def distribution(self, records: list[Any]) -> Any:
        """Return the distributions of all steps."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


class GaussianMLP:
    """A fragment's Gaussian policy with an MLP: the record is the mean."""

    def __init__(self, policy: GaussianPolicy, normaliser: Normaliser | None):
        self._policy, network = policy, policy.network
        self._normaliser = None
        if normaliser is not None:
            self._normaliser = (normaliser.mean[None], normaliser.scale[None], -normaliser.clip, normaliser.clip)
        layers = [(weight, bias[None]) for weight, bias in zip(network.weights, network.biases, strict=True)]
        self._hidden, self._last = layers[:-1], layers[-1]
        self._tanh, self._first = network.activation == "tanh", network.first
        self._std = np.exp(policy.around(self._last[1]).log_std)

    def act(self, observation: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what :func:`act` does, and the mean."""
        x: np.ndarray = observation
        if self._normaliser is not None:
            mean, scale, low, high = self._normaliser
            x = (x - mean) * scale
            np.maximum(x, low, out=x)
            np.minimum(x, high, out=x)
        if self._first is not None:
            x = x[..., : self._first]
        for weight, bias in self._hidden:
            x = x @ weight
            x += bias
            if self._tanh:
                np.tanh(x, out=x)
            else:
                np.maximum(x, 0, out=x)
        weight, bias = self._last
        x = x @ weight
        x += bias
        return x + self._std * noise, x

    def distribution(self, records: list[np.ndarray]) -> Any:
        """Return the distributions of all steps."""
        return self._policy.around(np.stack(records))


def fragment_policy(policy: Any, normaliser: Normaliser | None) -> FragmentPolicy:
    """Return the fastest pass for a policy that acts in NumPy."""
    # Exactly these classes: what another one, or a subclass, does is its own business.
    if type(policy) is GaussianPolicy and type(policy.network) is MLP:
        return GaussianMLP(policy, normaliser)
    return AnyPolicy(partial(act, policy, normaliser))


class HostPolicy:
    """Acts for a batch of observations: in NumPy where the policy's definition allows it, else compiled.

    A policy allows it if, given NumPy parameters, it returns NumPy arrays; those written against the array namespace
    of their inputs do (see :mod:`trpo.policies.networks`). Anything that insists on ``jax.numpy`` still works, at the
    price of a compiled call for every vector step.
    """

    def __init__(self, policy: PolicyFunction, actor: Actor, observation_size: int):
        self._policy = policy
        zeros = np.zeros((1, observation_size), np.float32)
        try:
            host = to_numpy(actor)
            action, distribution = act(partial(policy, host.params), host.normaliser, zeros, None)
            leaves = [action, *jax.tree.leaves(distribution)]
            self.in_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        except (TypeError, AttributeError, jax.errors.JAXTypeError):
            self.in_numpy = False
        self.load(actor)

    def load(self, actor: Actor) -> None:
        """Act with these parameters and statistics from now on."""
        self._actor = to_numpy(actor) if self.in_numpy else actor
        bind = getattr(self._policy, "bind", None)  # put the module together once, not at every step
        self._module = bind(self._actor.params) if bind else partial(self._policy, self._actor.params)

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
    def parts(self) -> tuple[Any, Normaliser | None]:
        """The first two arguments of :func:`act`."""
        return self._module, self._actor.normaliser

    @property
    def of_fragment(self) -> FragmentPolicy:
        """This policy, to act through a fragment in this process."""
        return fragment_policy(*self.parts) if self.in_numpy else AnyPolicy(self)

    def __call__(self, observation: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, Any]:
        """Return actions, and the distributions they come from, as NumPy arrays."""
        if self.in_numpy:
            return act(self._module, self._actor.normaliser, observation, noise)
        return jax.device_get(_compiled_act(self._policy, self._actor, observation, noise))


def noise_of(policy: PolicyFunction, actor: Actor, count: int, observation_size: int, length: int, key: Any) -> Any:
    """Draw the standard noise for ``length`` steps of ``count`` environments (jit-able)."""
    observation = jax.numpy.zeros((count, observation_size))
    shape = eqx.filter_eval_shape(policy, actor.params, observation)
    return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shape).noise(key, (length,))
