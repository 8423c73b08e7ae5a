"""An environment in JAX in which one thing is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from trpo import Step
from trpo.envs import Box, Choice, EnvSpec

FAULTS: dict[str, tuple[str, ...]] = {
    "raises": ("motor on fire",),
    "exits": ("SystemExit", "exit"),
    "reset raises": ("motor on fire",),
    "a reward of text": ("reward",),
    "two rewards": ("reward",),
    "a complex reward": ("reward",),
    "an observation of another shape": ("observation",),
    "no observation": ("observation",),
    "a tuple of three": ("tuple",),
    "nothing": ("tuple",),
    "another state": ("state",),
    "a state of another type": ("state",),
    "reset returns no tuple": ("tuple",),
    "looks at a number": ("compiled", "trace"),
    "two ends": ("terminated",),
    "NaN observed": ("finite", "nan"),
    "reward NaN": (),
    "a callback raises": ("motor on fire", "callback"),
    "no step at all": ("step",),
}
"""What is wrong, and words of which the message has one; none where the run goes on."""


SPEC = EnvSpec("JaxFaulty", Box((2,)), Choice(2))


@dataclasses.dataclass(frozen=True)
class JaxFaulty:
    """Episodes of ten steps."""

    fault: str
    spec: EnvSpec = SPEC
    cheap_reset: bool = True

    def reset(self, key: Any) -> Any:
        if self.fault == "reset raises":
            raise RuntimeError("motor on fire")
        if self.fault == "reset returns no tuple":
            return jnp.zeros(2)
        return jnp.zeros((), jnp.int32), jnp.zeros(2)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        state, reward, seen, end = state + 1, jnp.asarray(action, float), jnp.zeros(2), state == 9
        false = jnp.zeros((), bool)
        match self.fault:
            case "raises":
                raise RuntimeError("motor\non fire".replace("\n", " "))
            case "exits":
                raise SystemExit("exit")
            case "looks at a number":
                seen = seen + (1 if reward > 0 else 0)
            case "a tuple of three":
                return state, Step(seen, reward, end, false), {}
            case "nothing":
                return None
            case "no step at all":
                return state, (seen, reward)
            case "another state":
                state = (state, state)
            case "a state of another type":
                state = state.astype(float)
            case "a callback raises":
                reward = jax.pure_callback(
                    _fail, jax.ShapeDtypeStruct((), jnp.float32), reward, vmap_method="sequential"
                )
        reward = {
            "a reward of text": "1",
            "two rewards": jnp.zeros(2),
            "a complex reward": 1j,
            "reward NaN": jnp.nan,
        }.get(self.fault, reward)
        wrong = {
            "an observation of another shape": jnp.zeros(3),
            "no observation": None,
            "NaN observed": seen + jnp.nan,
        }
        return state, Step(
            wrong.get(self.fault, seen), reward, jnp.zeros(2, bool) if self.fault == "two ends" else end, false
        )


def _fail(x: Any) -> Any:
    raise RuntimeError("motor on fire")
