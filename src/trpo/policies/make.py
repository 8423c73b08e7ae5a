"""The policy and the value function that an environment calls for."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from trpo.envs.spec import EnvSpec
from trpo.policies.encoders import make_encoder
from trpo.policies.heads import make_head
from trpo.policies.networks import Policy, ValueFunction
from trpo.policies.recurrent import TRUNKS


def make_policy(spec: EnvSpec, config: Any, key: Any) -> Policy:
    """Make a policy by its settings (:class:`~trpo.PolicyConfig`), in the default floating-point type."""
    elements = sum(leaf.size for _, leaf in spec.action.leaves())
    std = {"initial_std": config.initial_std, "min_std": config.std_bound(elements)}
    head = make_head(spec.action, **std, state_dependent_std=config.state_dependent_std)
    encoder, trunk = _network(spec, config, key, head.size, config.last_layer_scale)
    return Policy(encoder, trunk, head)


def make_value(spec: EnvSpec, config: Any, key: Any) -> ValueFunction:
    """Make a value function by its settings (:class:`~trpo.ValueConfig`): networks of its own."""
    return ValueFunction(*_network(spec, config, key, 1, 1.0))


def _network(spec: EnvSpec, config: Any, key: Any, outputs: int, last_scale: float) -> tuple[Any, Any]:
    encoder = make_encoder(spec.observation, config.sees)
    sizes, dtype = (encoder.size, *config.hidden, outputs), jnp.result_type(float)
    scales = last_scale, config.hidden_layer_scale
    return encoder, TRUNKS[config.trunk](key, sizes, config.activation, *scales, dtype, config.memory)
