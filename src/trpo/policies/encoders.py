"""Encoders: what a policy or value function is shown, as features ``[..., n]``."""

from __future__ import annotations

import math
import re
from typing import Any, Protocol, runtime_checkable

import equinox as eqx

from trpo.envs.spaces import Bits, Box, Choice, Choices, Leaf, Space, at, rows
from trpo.trees import namespace

Path = tuple[str | int, ...]


@runtime_checkable
class Encoder(Protocol):
    """A callable pytree from the numbers of one leaf ``[..., *number_shape]`` to features ``[..., size]``."""

    @property
    def size(self) -> int:
        """Features."""
        ...

    def __call__(self, x: Any, /) -> Any:
        """Return the features."""
        ...


class Flatten(eqx.Module):
    """x ↦ its elements ``begin`` to ``end`` in one row."""

    ndim: int = eqx.field(static=True)
    """Axes of one x."""
    begin: int = eqx.field(static=True)
    end: int = eqx.field(static=True)
    whole: bool = eqx.field(static=True)
    """Whether that is all of them."""

    @classmethod
    def of(cls, leaf: Leaf, begin: int, end: int) -> Flatten:
        """Make one for a leaf of a space."""
        shape = leaf.number_shape
        return cls(len(shape), begin, end, (begin, end) == (0, math.prod(shape)))

    @property
    def size(self) -> int:
        return self.end - self.begin

    def __call__(self, x: Any) -> Any:
        if self.ndim != 1:
            x = rows(x, self.ndim)
        return x if self.whole else x[..., self.begin : self.end]


ENCODERS: dict[type[Leaf], Any] = {Box: Flatten.of, Bits: Flatten.of, Choice: Flatten.of, Choices: Flatten.of}
"""What makes an encoder for a kind of leaf: called with the leaf and the range of its elements that is seen."""


class Join(eqx.Module):
    """The features of several leaves, one after the other."""

    paths: tuple[Path, ...] = eqx.field(static=True)
    parts: tuple[Any, ...]
    """One :class:`Encoder` for each path."""

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def __call__(self, observation: Any) -> Any:
        seen = [part(at(observation, path)) for path, part in zip(self.paths, self.parts, strict=True)]
        return seen[0] if len(seen) == 1 else namespace(seen[0]).concatenate(seen, axis=-1)


def make_encoder(space: Space, sees: str = "") -> Encoder:
    """Make the encoder of a space, in the order of its leaves.

    ``sees`` names the parts that are seen, separated by spaces: a leaf by its path (``camera``, ``arm/joints``), with a
    range of its elements (``joints[:7]``), or several; the range alone where the observation is one leaf (``:27``, or
    ``:1 2:3``). All, if empty.

    Raises:
        ValueError: there is no such part; the message names those there are.
    """
    leaves = {"/".join(map(str, path)): (path, leaf) for path, leaf in space.leaves()}
    chosen: dict[tuple[Path, int, int], Encoder] = {}
    order = {path: i for i, (path, _) in enumerate(leaves.values())}
    for word in sees.split() or [""]:
        name, begin, end = _parsed(word, sees)
        found = [part for key, part in leaves.items() if name in ("", key) or key.startswith(f"{name}/")]
        if not found or (word and not name and len(leaves) > 1):
            has = ", ".join(filter(None, leaves)) or "only elements, such as :27"
            raise ValueError(f"sees={sees!r}: an observation has no part {word!r}; it has {has}")
        for path, leaf in found:
            size = math.prod(leaf.number_shape)
            if not (word or size):
                continue  # a part without elements has nothing to see
            first, last = begin or 0, size if end is None else end
            if not 0 <= first < last <= size:
                raise ValueError(f"sees={sees!r}: {word!r} is not within the {size} elements of that part")
            chosen[path, first, last] = ENCODERS[type(leaf)](leaf, first, last)
    keys = sorted(chosen, key=lambda key: (order[key[0]], *key[1:]))
    paths, parts = tuple(path for path, *_ in keys), tuple(chosen[key] for key in keys)
    return parts[0] if paths == ((),) else Join(paths, parts)


def _parsed(word: str, sees: str) -> tuple[str, int | None, int | None]:
    """Return name and range of one word."""
    match = re.fullmatch(r"([^\[\]:]*)(?:\[(\d*):(\d*)\])?", f"[{word}]" if re.fullmatch(r"\d*:\d*", word) else word)
    if match is None:
        raise ValueError(f"sees={sees!r}: {word!r} must be NAME, NAME[BEGIN:END] or :END, such as joints[:7]")
    begin, end = (int(x) if x else None for x in match.groups()[1:])
    return match[1], begin, end
