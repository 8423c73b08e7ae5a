"""Policies and value functions: an encoder, a trunk, and for a policy a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from trpo.distributions import Distribution
from trpo.envs.masks import MASK
from trpo.policies.encoders import Encoder, Flatten
from trpo.policies.heads import GaussianHead, Head
from trpo.policies.protocol import Observed
from trpo.policies.trunks import MLP, Recurrent
from trpo.running_statistics import Normaliser


def _start(trunk: Any, count: int) -> Any:
    return trunk.start(count) if isinstance(trunk, Recurrent) else ()


def _apply(trunk: Any, carry: Any, features: Any, reset: Any) -> tuple[Any, Any]:
    return trunk(carry, features, reset) if isinstance(trunk, Recurrent) else (trunk(features), carry)


class Policy(eqx.Module):
    """s ↦ head(trunk(encoder(s))): a :class:`~trpo.policies.protocol.PolicyFunction` with its parameters inside."""

    encoder: Encoder
    trunk: Any
    """A callable from features to outputs, or a :class:`~trpo.policies.trunks.Recurrent`."""
    head: Head
    masked: bool = eqx.field(static=True, default=False)
    """Whether observations tell which actions are allowed (:mod:`trpo.envs.masks`), which the head is then told."""

    def start(self, count: int) -> Any:
        return _start(self.trunk, count)

    def __call__(self, carry: Any, observed: Observed) -> tuple[Distribution, Any]:
        observation, reset = observed
        outputs, carry = _apply(self.trunk, carry, self.encoder(observation), reset)
        head: Any = self.head
        return head(outputs, observation[MASK]) if self.masked else head(outputs), carry


class ValueFunction(eqx.Module):
    """s ↦ V(s) in units of the running deviation of returns: a scalar for each leading index."""

    encoder: Encoder
    trunk: Any

    def start(self, count: int) -> Any:
        return _start(self.trunk, count)

    def __call__(self, carry: Any, observed: Observed) -> tuple[Any, Any]:
        observation, reset = observed
        outputs, carry = _apply(self.trunk, carry, self.encoder(observation), reset)
        return outputs[..., 0], carry


HostPass = Callable[[Any, Any], Any]
"""(observation, standard noise, or None for the mode) ↦ action, in NumPy."""


def host_pass(policy: Any, see: Callable[[Any], Any], normaliser: Any) -> HostPass | None:
    """Return a NumPy pass of a policy with an MLP, equal to its definition bit for bit; None for any other.

    Reading a module's attributes and making a distribution for every step takes four times as long as the arithmetic
    of a small network, so here both are done once. ``see`` turns an observation into what the policy is shown;
    ``normaliser`` is the part of it that is a plain array's, None where it is not.
    """
    # Exactly these classes: what another one, or a subclass, does is its own business.
    if type(policy) is not Policy or type(policy.trunk) is not MLP:
        return None
    encoder, head, tanh, masked = policy.encoder, policy.head, policy.trunk.activation == "tanh", policy.masked
    # Through the classes: binding a method of an Equinox module costs more than the arithmetic of a small batch.
    encode, distribution_of = type(encoder).__call__, type(head).__call__
    plain = type(encoder) is Flatten and encoder.ndim == 1 and encoder.whole
    layers = [(w, b[None]) for w, b in zip(policy.trunk.weights, policy.trunk.biases, strict=True)]
    hidden, (last_weight, last_bias) = layers[:-1], layers[-1]
    std = np.exp(head(last_bias).log_std) if type(head) is GaussianHead else None
    frozen = None
    if type(normaliser) is Normaliser:
        frozen = normaliser.mean[None], normaliser.scale[None], -normaliser.clip, normaliser.clip

    def act(observation: Any, noise: Any) -> Any:
        if frozen is None:
            x = see(observation)
        else:
            mean, scale, low, high = frozen
            x = (observation - mean) * scale
            np.maximum(x, low, out=x)
            np.minimum(x, high, out=x)
        mask = (x[MASK],) if masked else ()
        x = x if plain else encode(encoder, x)
        for weight, bias in hidden:
            x = x @ weight
            x += bias
            if tanh:
                np.tanh(x, out=x)
            else:
                np.maximum(x, 0, out=x)
        x = x @ last_weight
        x += last_bias
        if std is not None:
            return x if noise is None else x + std * noise
        distribution = distribution_of(head, x, *mask)
        kind = type(distribution)
        return kind.mode(distribution) if noise is None else kind.transform(distribution, noise)

    return act
