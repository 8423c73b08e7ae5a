"""What the device rollout needs of an environment written in JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trpo.envs.spaces import Tree, without
from trpo.envs.spec import EnvSpec


class Step(NamedTuple):
    """What one environment tells after one step, before any reset."""

    observation: Tree
    """The true successor: the final observation where the episode ended."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    """The episode reached an absorbing state: its future is worth 0."""
    truncated: Bool[Array, ""]
    """The episode was cut (a time limit): its future is worth V(observation)."""


@runtime_checkable
class JaxEnv(Protocol):
    """ONE environment as two pure functions; the library batches them with ``vmap`` and starts new episodes itself.

    Instances must be hashable and equal only if they behave the same: they are static arguments of compiled functions,
    and any constant arrays that they hold are compiled in.
    """

    @property
    def spec(self) -> EnvSpec:
        """Its spaces, as plain data."""

    @property
    def cheap_reset(self) -> bool:
        """Whether drawing an initial state costs no more than a step.

        Then one is drawn at every step, in case it is needed. Else one is drawn for every environment and fragment, and
        an environment that ends several episodes within a fragment starts each of them from the same state.
        """

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Tree]:
        """Return the state (any pytree of arrays) and a new episode's first observation, of the spec's form."""

    def step(self, state: Any, action: Tree, key: PRNGKeyArray) -> tuple[Any, Step]:
        """Take an action of the environment's own kind (already rescaled, clipped and of its type)."""


@dataclasses.dataclass(frozen=True)
class Without:
    """An environment of whose observations some parts are left out; what is returned may still have them."""

    env: JaxEnv
    drop: tuple[str, ...]

    cheap_reset = property(lambda self: self.env.cheap_reset, doc="As the environment says.")
    reset = property(lambda self: self.env.reset, doc="The environment's.")
    step = property(lambda self: self.env.step, doc="The environment's.")

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """The environment's, with such an observation."""
        spec = self.env.spec
        return dataclasses.replace(spec, observation=without(spec.observation, self.drop))


@dataclasses.dataclass(frozen=True)
class Flattened:
    """An environment whose observations are made one vector, see :meth:`trpo.EnvSpec.flatten`."""

    env: JaxEnv

    spec = property(lambda self: self.env.spec.flattened(), doc="The environment's, with such an observation.")
    cheap_reset = property(lambda self: self.env.cheap_reset, doc="As the environment says.")

    def _flat(self, observation: Tree) -> Tree:
        return self.env.spec.flatten(jax.tree.map(jnp.asarray, observation))

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Tree]:
        state, observation = self.env.reset(key)
        return state, self._flat(observation)

    def step(self, state: Any, action: Tree, key: PRNGKeyArray) -> tuple[Any, Step]:
        state, seen = self.env.step(state, action, key)
        return state, seen._replace(observation=self._flat(seen.observation))
