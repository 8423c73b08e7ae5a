"""The policy and the value function that an environment calls for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trpo.envs.spaces import Box
from trpo.envs.spec import EnvSpec
from trpo.policies.encoders import make_encoder
from trpo.policies.heads import make_head
from trpo.policies.networks import Policy, ValueFunction
from trpo.policies.trunks import TRUNKS


def make_policy(spec: EnvSpec, config: Any, key: Any, scaled: bool = True) -> Policy:
    """Make a policy by its settings (:class:`~trpo.PolicyConfig`), in the default floating-point type.

    ``scaled``: whether images are shown as they are, and scaled by the encoder; False where they are normalised.
    """
    boxes = [leaf.size for _, leaf in spec.action.leaves() if isinstance(leaf, Box)]
    std = {"initial_std": config.initial_std, "min_std": config.std_bound(sum(boxes) or 1)}
    head = make_head(
        spec.action, **std, state_dependent_std=config.state_dependent_std, distribution=config.distribution
    )
    encoder, trunk = _network(spec, config, key, head.size, config.last_layer_scale, scaled)
    return Policy(encoder, trunk, head, spec.masked)


def make_value(spec: EnvSpec, config: Any, key: Any, scaled: bool = True) -> ValueFunction:
    """Make a value function by its settings (:class:`~trpo.ValueConfig`): networks of its own."""
    return ValueFunction(*_network(spec, config, key, 1, 1.0, scaled))


def _network(spec: EnvSpec, config: Any, key: Any, outputs: int, last_scale: float, scaled: bool) -> tuple[Any, Any]:
    dtype = jnp.result_type(float)
    encoder = make_encoder(
        spec.seen(config.sees), config.sees, config.encoder, jax.random.fold_in(key, 1), scaled, dtype
    )
    sizes = (encoder.size, *config.hidden, outputs)
    return encoder, TRUNKS["mlp"](key, sizes, config.activation, last_scale, config.hidden_layer_scale, dtype)
