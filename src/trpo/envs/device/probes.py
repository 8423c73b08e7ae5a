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
from trpo.envs.host.probes import SEEING, Probe, outcome, shown
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
        value = jax.random.rademacher(key, (), float) if self.name in SEEING else jnp.zeros(())
        return _State(value, jnp.zeros((), jnp.int32)), value[None]

    def step(self, state: _State, action: Any, key: Any) -> tuple[_State, Step]:
        time = state.time + 1
        value, reward, *ends = outcome(jnp, self.name, state.value, time, action)
        value, reward = jnp.asarray(value, float), jnp.asarray(reward, float)
        seen = shown(jnp, self.name, value, time)
        return _State(value, time), Step(seen[None], reward, *map(jnp.asarray, ends))


@functools.cache
def make_probe(name: str) -> JaxProbe:
    """Make a probe by name; an unknown one raises, naming the nearest."""
    try:
        Probe(name)
    except ValueError as error:
        raise UnknownEnvironmentError(str(error).replace("probe:", "jax-probe:")) from error
    return JaxProbe(name, EnvSpec(f"jax-probe:{name}", Box((1,)), Box((1,)) if name == "continuous" else Choice(2)))
