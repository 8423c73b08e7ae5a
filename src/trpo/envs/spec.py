"""All that a policy must know of an environment, as plain data that survives in a file."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from typing import Any

from trpo.envs.masks import MASK, choices
from trpo.envs.spaces import (
    Bits,
    Box,
    Choice,
    Choices,
    Dict,
    Leaf,
    Space,
    Tree,
    Tuple,
    UnsupportedSpaceError,
    by_name,
    changed,
    flat,
)

DTYPES = {f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)} - {"float8"} | {"bool"}
ELEMENTS = 2**28
"""The most elements of a space."""
DEEPEST = 16
"""The most spaces inside each other."""
_KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Box, Choice, Choices, Bits, Tuple)}
"""Spaces by what a file calls them: their class's name."""


def _to_json(value: Any) -> Any:
    match value:
        case Dict():
            return {"kind": "dict", "items": {name: _to_json(space) for name, space in value.items}}
        case Space():
            return {"kind": type(value).__name__.lower()} | {k: _to_json(v) for k, v in vars(value).items()}
        case tuple():
            return [_to_json(x) for x in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _from_json(value: Any, name: str = "") -> Any:
    match value:
        case {"kind": "dict", "items": parts}:
            return Dict(tuple((name, _from_json(part)) for name, part in parts.items()))
        case {"kind": kind}:
            return _KINDS[kind](**{name: _from_json(part, name) for name, part in value.items() if name != "kind"})
        case list():
            return tuple(_from_json(x, name) for x in value)
        case None:
            return {"low": -math.inf, "high": math.inf}[name]
    return value


def _check_space(space: Any, name: str, depth: int = 0) -> None:
    if isinstance(space, Dict | Tuple) and space.items and depth < DEEPEST:
        for key, part in space.items if isinstance(space, Dict) else enumerate(space.items):
            _check_space(part, f"{name}.{key}", depth + 1)
        return
    if not (isinstance(space, Leaf) and _whole(space.shape, 0, ELEMENTS) and math.prod(space.shape) <= ELEMENTS):
        raise ValueError(f"{name}={reprlib.repr(space)}: must be a space of up to {ELEMENTS:,} elements")
    if space.dtype not in DTYPES or not _sound(space):
        raise ValueError(f"{name}={reprlib.repr(space)}: its fields do not fit each other")


def _sound(space: Space) -> bool:
    match space:
        case Box():
            ends = [end if isinstance(end, tuple) else (end,) * space.size for end in (space.low, space.high)]
            numbers = all(type(x) in (int, float) and not math.isnan(x) for end in ends for x in end)
            return numbers and {len(end) for end in ends} == {space.size} and type(space.rescale) is bool
        case Choice():
            return _whole((space.n,), 1, ELEMENTS) and _whole((space.start,), -(2**64)) and space.shape == ()
        case Choices():
            whole = _whole(space.sizes, 1, ELEMENTS) and _whole(space.start, -(2**64))
            return whole and sum(space.sizes) <= ELEMENTS and len(space.sizes) == len(space.start) == space.size
    return isinstance(space, Bits)


def _whole(values: Any, least: int, most: int = 2**64) -> bool:
    return isinstance(values, tuple) and all(type(x) is int and least <= x <= most for x in values)


def _has_parts(space: Space) -> bool:
    if not isinstance(space, Dict | Tuple):
        return True
    return len(space.items) > 0 and all(_has_parts(part) for _, part in by_name(space))


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """All that a policy must know of an environment; stored with it, so that loading needs no simulator."""

    id: str
    observation: Space
    action: Space

    def __post_init__(self) -> None:
        for what, space in (("observation", self.observation), ("action", self.action)):
            sizes = [leaf.size for _, leaf in space.leaves()]
            # A part of an observation may be empty; a part of an action that is has no distribution.
            if not sum(sizes) or (what == "action" and not (all(sizes) and _has_parts(space))):
                raise UnsupportedSpaceError(
                    f"environment {self.id!r}: its {what} space {space} is empty: it must have at least one element"
                )

        if self.masked:
            object.__setattr__(self, "observation", self._with_mask())

    def _with_mask(self) -> Dict:
        """Return the observations with a mask that is bits, whatever the environment calls them."""
        size, parts = sum(choices(self.action)), self._parts
        mask = parts[MASK]
        if not isinstance(mask, Box | Bits) or mask.shape != (size,):
            raise UnsupportedSpaceError(
                f"environment {self.id!r}: the part {MASK!r} of its observations is {mask}: masks of its actions "
                f"{self.action} have shape ({size},); call it otherwise if it is none"
            )
        if not any(leaf.size for name, part in parts.items() if name != MASK for _, leaf in part.leaves()):
            raise UnsupportedSpaceError(f"environment {self.id!r}: its observations have nothing but {MASK!r}")
        return Dict(tuple({**parts, MASK: Bits(mask.shape, mask.dtype)}.items()))

    @property
    def _parts(self) -> dict[str, Space]:
        return dict(self.observation.items) if isinstance(self.observation, Dict) else {}

    @property
    def masked(self) -> bool:
        """Whether observations tell which actions are allowed, see :mod:`trpo.envs.masks`."""
        return MASK in self._parts and bool(choices(self.action))

    @property
    def features(self) -> Space:
        """All of an observation but its mask."""
        if not self.masked:
            return self.observation
        return Dict(tuple(part for part in self._parts.items() if part[0] != MASK))

    def seen(self, sees: str) -> Space:
        """Return the space that an encoder is made of: where ``sees`` names no parts, without the mask."""
        return self.observation if sees else self.features

    def flattened(self) -> EnvSpec:
        """Return the same with the numbers of an observation as one vector, see :meth:`flatten`."""
        numbers = Box((self.features.number_count,))
        masked = self.masked and Dict((("observation", numbers), (MASK, self._parts[MASK])))
        return dataclasses.replace(self, observation=masked or numbers)

    def flatten(self, observation: Tree) -> Tree:
        """Return the numbers of an observation as one vector, beside its mask where there is one."""
        numbers = flat(self.features, observation)
        return {"observation": numbers, MASK: observation[MASK]} if self.masked else numbers

    def with_options(self, rescale: bool, flatten: bool) -> EnvSpec:
        """Return the spaces behind a door with these options: boxes of actions rescaled, observations flattened."""

        def rescaled(leaf: Leaf) -> Leaf:
            return dataclasses.replace(leaf, rescale=rescale) if isinstance(leaf, Box) else leaf

        spec = self.flattened() if flatten else self
        return dataclasses.replace(spec, action=changed(self.action, rescaled))

    def to_json(self) -> dict[str, Any]:
        """Return strict JSON data; infinite bounds become None."""
        return {k: _to_json(v) for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EnvSpec:
        """Read what :meth:`to_json` wrote; ValueError unless its spaces are such as environments have."""
        spec = cls(data["id"], _from_json(data["observation"]), _from_json(data["action"]))
        for part in ("observation", "action"):
            _check_space(getattr(spec, part), f"spec.{part}")
        return spec
