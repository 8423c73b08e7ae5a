"""What a rollout hands to an update."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Bool, Float, Shaped

from trpo.types import Params

ArrayLike = Any
"""A NumPy array on the host, a JAX array on a device."""


class Trajectory(eqx.Module):
    """Fragments of T steps from N environments, in time order; episodes may begin and end anywhere inside."""

    observation: Float[ArrayLike, "time env features"]
    """What the policy saw, raw (not normalised)."""
    action: Shaped[ArrayLike, "time env ..."]
    """As sampled: unclipped."""
    log_prob: Float[ArrayLike, "time env"]
    """log π_old(action | observation), as computed by the pass that acted."""
    reward: Float[ArrayLike, "time env"]
    """Raw, undiscounted."""
    terminated: Bool[ArrayLike, "time env"]
    truncated: Bool[ArrayLike, "time env"]
    next_observation: Float[ArrayLike, "time env features"]
    """The true successor, before any reset: the final observation where an episode ended."""
    valid: Bool[ArrayLike, "time env"]
    """False for an auto-reset step, whose action was ignored."""


class Actor(eqx.Module):
    """Everything that acting needs, frozen for one iteration."""

    params: Params
    normaliser: Any
    """A :class:`~trpo.running_statistics.Normaliser`, or None."""
