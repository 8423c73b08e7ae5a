"""Descriptions of spaces that survive in a file, and the one place where actions are clipped and converted."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np

ActionKind: TypeAlias = Literal["box", "discrete", "multi_binary", "multi_discrete"]

SUPPORTED = (
    "observations: Box of any shape, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these (flattened); "
    "actions: Box, Discrete, MultiDiscrete, MultiBinary"
)


class UnsupportedSpaceError(ValueError):
    """A space that no policy here can handle."""


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """An action space as plain data."""

    kind: ActionKind
    shape: tuple[int, ...]
    """Of the environment's own action."""
    dtype: str
    sizes: tuple[int, ...] = ()
    """Numbers of choices, for the discrete kinds."""
    start: tuple[int, ...] = ()
    """Smallest value of each choice."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    """Bounds of a Box, flattened; ±inf where there is none."""

    @property
    def size(self) -> int:
        """Dimensions of the policy's action vector."""
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """All that a policy must know of an environment; stored with it, so that loading needs no simulator."""

    id: str
    observation_size: int
    action: ActionSpec
    observation_shape: tuple[int, ...] | None = None
    """Of one observation (flattened, for a Dict or Tuple), if known: what tells one from a batch of one."""

    def to_json(self) -> dict[str, Any]:
        """Return strict JSON data: infinite bounds become None."""
        data = dataclasses.asdict(self)
        for bound in ("low", "high"):
            data["action"][bound] = [x if np.isfinite(x) else None for x in data["action"][bound]]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EnvSpec:
        """Read what :meth:`to_json` wrote."""
        action: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["action"].items()}
        action["low"] = tuple(-np.inf if x is None else x for x in action["low"])
        action["high"] = tuple(np.inf if x is None else x for x in action["high"])
        shape = data.get("observation_shape")
        return cls(data["id"], data["observation_size"], ActionSpec(**action), None if shape is None else tuple(shape))


def action_spec(space: gym.Space) -> ActionSpec:
    """Describe an action space; raise :class:`UnsupportedSpaceError` if there is no distribution for it."""
    shape = tuple(space.shape or ())
    dtype = str(space.dtype)
    match space:
        case gym.spaces.Box():
            low, high = (tuple(float(x) for x in np.ravel(bound)) for bound in (space.low, space.high))
            return ActionSpec("box", shape, dtype, low=low, high=high)
        case gym.spaces.Discrete():
            return ActionSpec("discrete", shape, dtype, sizes=(int(space.n),), start=(int(space.start),))
        case gym.spaces.MultiDiscrete():
            sizes, start = (tuple(int(x) for x in np.ravel(a)) for a in (space.nvec, space.start))
            return ActionSpec("multi_discrete", shape, dtype, sizes=sizes, start=start)
        case gym.spaces.MultiBinary():
            return ActionSpec("multi_binary", shape, dtype)
    raise UnsupportedSpaceError(f"action space {space} is not supported; supported are {SUPPORTED}")


def check_observation_space(space: gym.Space, part: str = "") -> None:
    """Raise :class:`UnsupportedSpaceError` naming the part of ``space`` that cannot be flattened to numbers."""
    where = f"observation space{f' at {part}' if part else ''}"
    match space:
        case gym.spaces.Dict():
            for key, child in space.spaces.items():
                check_observation_space(child, f"{part}[{key!r}]")
        case gym.spaces.Tuple():
            for i, child in enumerate(space.spaces):
                check_observation_space(child, f"{part}[{i}]")
        case gym.spaces.Box() | gym.spaces.Discrete() | gym.spaces.MultiDiscrete() | gym.spaces.MultiBinary():
            pass
        case _:
            raise UnsupportedSpaceError(f"{where}: {space} is not supported; supported are {SUPPORTED}")


@functools.lru_cache(maxsize=64)
def _box(spec: ActionSpec, rescale: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Return bounds and the map middle + half·a of a Box as rows ``[1, size]``, computed once for each space."""
    low, high = np.asarray(spec.low)[None], np.asarray(spec.high)[None]
    bounded = np.isfinite(low) & np.isfinite(high) & rescale
    top, bottom = np.where(bounded, high, 1.0), np.where(bounded, low, -1.0)
    return low, high, (top + bottom) / 2, (top - bottom) / 2, np.issubdtype(np.dtype(spec.dtype), np.integer)


def to_env_action(spec: ActionSpec, action: Any, rescale: bool) -> Any:
    """Convert policy actions ``[N, size]`` (or ``[N]`` for ``discrete``) to the environment's ``[N, *shape]``.

    For a Box the policy's own action stays unclipped in the data; only what the simulator receives is clipped.
    With ``rescale``, [−1, 1] is mapped onto the bounds of every dimension where both are finite, so that the initial
    σ means the same share of the range everywhere. A NaN becomes 0: the batch is refused anyway, and a simulator
    that is fed NaN may never recover.
    """
    if spec.kind == "discrete":
        return (action + spec.start[0]).astype(spec.dtype)
    shape = action.shape[:1] + spec.shape
    if spec.kind == "multi_discrete":
        return (action + np.asarray(spec.start)[None]).astype(spec.dtype).reshape(shape)
    if spec.kind == "multi_binary":
        return action.astype(spec.dtype).reshape(shape)
    low, high, middle, half, integral = _box(spec, rescale)
    xp = action.__array_namespace__()  # NumPy on the host, jax.numpy in a compiled rollout
    value = middle + half * action
    value = xp.minimum(xp.maximum(xp.where(xp.isnan(value), 0.0, value), low), high)
    if integral:
        value = xp.rint(value)
    return value.astype(spec.dtype).reshape(shape)
