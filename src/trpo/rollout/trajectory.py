"""What a rollout needs and what it hands to an update."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from trpo.envs.images import image_of
from trpo.envs.spaces import Leaf, Space
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


class Successors(eqx.Module):
    """True successors that are not the next row of a trajectory: what large observations need to keep beside it.

    After a step that ended no episode comes the next row; after a terminated one, nothing of worth.
    """

    last: PyTree[Shaped[ArrayLike, "env ..."]]
    """After the last step."""
    final: PyTree[Shaped[ArrayLike, "rows ..."]]
    """After truncated steps, in as many rows as may be needed."""
    step: Int[ArrayLike, "rows"]
    """Of each row; the number of steps where the row is of no use."""
    env: Int[ArrayLike, "rows"]


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
    next_observation: Any
    """The true successor, before any reset: the final observation where an episode ended; a tree of arrays
    ``[time, env, …]``, or :class:`Successors`."""
    valid: Bool[ArrayLike, "time env"]
    """False for an auto-reset step, whose action was ignored."""
    carry: Any
    """The policy's memory before the first step, ``()`` where it has none."""
    reset: Bool[ArrayLike, "env"]
    """Whether an episode begins with the first step."""

    def steps(self) -> dict[str, Any]:
        """Return what has an axis of time, by field."""
        apart = ("carry", "reset", *(["next_observation"] if isinstance(self.next_observation, Successors) else []))
        return {name: x for name, x in vars(self).items() if name not in apart}


class Actor(eqx.Module):
    """Everything that acting needs, frozen for one iteration."""

    params: Params
    normalisers: Any
    """A :class:`~trpo.running_statistics.Normaliser` for each leaf of an observation, None for those that have no
    statistics; None: none has."""
    space: Space = eqx.field(static=True)
    """Of observations."""

    def see(self, observation: Any) -> Any:
        """Return what the policy is shown: images as they are, else numbers, normalised where there is a normaliser."""
        if self.normalisers is None:
            return self.space.map(_shown, observation)

        def shown(leaf: Leaf, normalise: Any, x: Any) -> Any:
            return _shown(leaf, x) if normalise is None else normalise(leaf.to_numbers(x))

        return self.space.map(shown, self.normalisers, observation)


def _shown(leaf: Leaf, x: Any) -> Any:
    return x if image_of(leaf) else leaf.to_numbers(x)
