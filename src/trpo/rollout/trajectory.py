"""What a rollout needs and what it hands to an update."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Bool, Float, PyTree, Shaped

from trpo.envs.spaces import Space
from trpo.types import Params

ArrayLike = Any
"""A NumPy array on the host, a JAX array on a device."""


class Seat(eqx.Module):
    """What a policy meets next, of N environments: it is kept between fragments, and saved."""

    observation: PyTree[Shaped[ArrayLike, "env ..."]]
    carry: Any
    """The policy's memory, ``()`` where it has none."""
    reset: Bool[ArrayLike, "env"]
    """Whether an episode begins with that observation."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A source on the host, as it is saved."""

    environments: Any
    """The simulators' state: a list, an entry for each, of data that JSON keeps with its arrays as plain data."""
    seat: Seat | dict[str, Any]
    """What the policy meets next; its arrays by name, as loaded."""
    id: str = ""
    """Of the environments; empty where that is not known."""


class Trajectory(eqx.Module):
    """Fragments of T steps from N environments, in time order; episodes may begin and end anywhere inside."""

    observation: PyTree[Shaped[ArrayLike, "time env ..."]]
    """What the policy met, raw (not normalised)."""
    action: PyTree[Shaped[ArrayLike, "time env ..."]]
    """As sampled: unclipped."""
    reward: Float[ArrayLike, "time env"]
    """Raw, undiscounted."""
    terminated: Bool[ArrayLike, "time env"]
    truncated: Bool[ArrayLike, "time env"]
    next_observation: PyTree[Shaped[ArrayLike, "time env ..."]]
    """The true successor, before any reset: the final observation where an episode ended."""
    valid: Bool[ArrayLike, "time env"]
    """False for an auto-reset step, whose action was ignored."""
    carry: Any
    """The policy's memory before the first step, ``()`` where it has none."""
    reset: Bool[ArrayLike, "env"]
    """Whether an episode begins with the first step."""

    def steps(self) -> dict[str, Any]:
        """Return what has an axis of time, by field."""
        return {name: x for name, x in vars(self).items() if name not in ("carry", "reset")}


class Actor(eqx.Module):
    """Everything that acting needs, frozen for one iteration."""

    params: Params
    normalisers: Any
    """A :class:`~trpo.running_statistics.Normaliser` for each leaf of an observation; None: it is shown as it is."""
    space: Space = eqx.field(static=True)
    """Of observations."""

    def see(self, observation: Any) -> Any:
        """Return what the policy is shown: the observation's numbers, normalised."""
        numbers = self.space.numbers(observation)
        if self.normalisers is None:
            return numbers
        return self.space.map(lambda leaf, normalise, x: normalise(x), self.normalisers, numbers)
