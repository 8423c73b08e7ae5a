"""The probes of :mod:`trpo.envs.host.probes`, written in JAX: the same tasks, with the same right answers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo.envs import Box, Choice, EnvSpec
from trpo.envs.device.protocol import Step
from trpo.envs.host.probes import TIME_LIMIT, Probe
from trpo.envs.protocol import UnknownEnvironmentError


class _State(NamedTuple):
    value: Float[Array, ""]
    time: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class JaxProbe:
    """One of the probes, by the name that it has there."""

    name: str
    spec: EnvSpec
    cheap_reset: bool = True

    def reset(self, key: Any) -> tuple[_State, Array]:
        seeing = self.name in ("observation", "both", "continuous")
        value = jax.random.rademacher(key, (), float) if seeing else jnp.zeros(())
        return _State(value, jnp.zeros((), jnp.int32)), value[None]

    def step(self, state: _State, action: Any, key: Any) -> tuple[_State, Step]:
        value, time = state.value, state.time + 1
        yes, no = jnp.asarray(True), jnp.asarray(False)
        reward, terminated, truncated = jnp.ones(()), yes, no
        match self.name:
            case "observation":
                reward = value
            case "delayed":
                terminated = time == 2
                reward, value = jnp.where(terminated, 1.0, 0.0), jnp.ones(())
            case "action":
                reward = jnp.where(action == 1, 1.0, -1.0)
            case "both":
                reward = jnp.where((action == 1) == (value > 0), 1.0, -1.0)
            case "endless":
                terminated, truncated = no, time == TIME_LIMIT
            case "continuous":
                reward = -((action[0] - value / 2) ** 2)
        return _State(value, time), Step(value[None], reward, terminated, truncated)


@functools.cache
def make_probe(name: str) -> JaxProbe:
    """Make a probe by name; an unknown one raises, naming the nearest."""
    try:
        Probe(name)
    except ValueError as error:
        raise UnknownEnvironmentError(str(error).replace("probe:", "jax-probe:")) from error
    return JaxProbe(name, EnvSpec(f"jax-probe:{name}", Box((1,)), Box((1,)) if name == "continuous" else Choice(2)))
