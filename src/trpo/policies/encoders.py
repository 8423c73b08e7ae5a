"""Encoders: what a policy or value function is shown, as features ``[..., n]``."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from trpo.envs.images import Image, image_of, layout_of
from trpo.envs.spaces import Bits, Box, Choice, Choices, Leaf, Space, at, rows
from trpo.policies.convolutions import Convolutions
from trpo.trees import namespace

Path = tuple[str | int, ...]
Encoding = Literal["auto", "cnn", "flat"]
"""What images go through."""


@runtime_checkable
class Encoder(Protocol):
    """A callable pytree from what is shown of one leaf ``[..., *number_shape]`` to features ``[..., size]``."""

    @property
    def size(self) -> int:
        """Features."""
        ...

    def __call__(self, x: Any, /) -> Any:
        """Return the features."""
        ...


class Flatten(eqx.Module):
    """x ↦ its elements ``begin`` to ``end`` in one row; those of an image are divided by its unit."""

    ndim: int = eqx.field(static=True)
    """Axes of one x."""
    begin: int = eqx.field(static=True)
    end: int = eqx.field(static=True)
    whole: bool = eqx.field(static=True)
    """Whether that is all of them."""
    unit: float = eqx.field(static=True, default=1.0)

    @classmethod
    def of(cls, leaf: Leaf, begin: int, end: int, unit: float = 1.0) -> Flatten:
        """Make one for a leaf of a space."""
        shape = leaf.number_shape
        return cls(len(shape), begin, end, (begin, end) == (0, math.prod(shape)), unit)

    @property
    def size(self) -> int:
        return self.end - self.begin

    def __call__(self, x: Any) -> Any:
        if self.ndim != 1:
            x = rows(x, self.ndim)
        x = x if self.whole else x[..., self.begin : self.end]
        return x if self.unit == 1.0 else namespace(x).asarray(x, "float32") / self.unit


ENCODERS: dict[type[Leaf], Any] = {Box: Flatten.of, Bits: Flatten.of, Choice: Flatten.of, Choices: Flatten.of}
"""What makes an encoder for a kind of leaf that is no image: called with the leaf, the range of its elements that is
seen, and the unit of those."""


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


def make_encoder(
    space: Space,
    sees: str = "",
    encoding: Encoding = "auto",
    key: PRNGKeyArray | None = None,
    scaled: bool = True,
    dtype: Any = jnp.float32,
) -> Encoder:
    """Make the encoder of a space, in the order of its leaves.

    Args:
        space: of observations.
        sees: the parts that are seen, separated by spaces: a leaf by its path (``camera``, ``arm/joints``), with a
            range of its elements (``joints[:7]``); the range alone where the observation is one leaf (``:27``). All, if
            empty.
        encoding: ``auto`` makes convolutions for images (:func:`~trpo.envs.images.image_of`) that are seen whole,
            ``cnn`` for whatever may be one; with ``flat``, and for all else, elements are put in a row.
        key: draws the weights of convolutions; None leaves them zero, for those who ask for sizes.
        scaled: whether pixels are divided by their unit.
        dtype: of the weights.

    Raises:
        ValueError: there is no such part, or with ``cnn`` no image; the message names those there are.
    """
    leaves = {"/".join(map(str, path)): (path, leaf) for path, leaf in space.leaves()}
    chosen: dict[Path, Encoder] = {}
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
            image = None if encoding == "flat" or (first, last) != (0, size) else _image(leaf, encoding, scaled)
            if image is not None:
                drawn = None if key is None else jax.random.fold_in(key, list(leaves).index("/".join(map(str, path))))
                chosen[path] = Convolutions.of(image, len(leaf.shape), drawn, dtype)
                continue
            chosen[path] = ENCODERS[type(leaf)](leaf, first, last, _unit(leaf, scaled))
    if encoding == "cnn" and not any(type(encoder) is Convolutions for encoder in chosen.values()):
        raise ValueError(f"encoder='cnn': no part of {space} that is seen may be an image; use auto, or flat")
    paths = tuple(path for path, _ in space.leaves() if path in chosen)
    return chosen[()] if paths == ((),) else Join(paths, tuple(chosen[path] for path in paths))


def flattened(encoder: Encoder) -> list[tuple[Path, int]]:
    """Return which parts of an observation an encoder puts in a row, and how many of their elements."""
    parts = zip(encoder.paths, encoder.parts, strict=True) if isinstance(encoder, Join) else [((), encoder)]
    return [(path, part.size) for path, part in parts if isinstance(part, Flatten)]


def _image(leaf: Leaf, encoding: Encoding, scaled: bool) -> Image | None:
    image = image_of(leaf)
    if image is None and encoding == "cnn" and isinstance(leaf, Box | Bits) and len(leaf.shape) == 3:
        image = layout_of(leaf.shape)
    return image if image is None or scaled else dataclasses.replace(image, unit=1.0)


def _unit(leaf: Leaf, scaled: bool) -> float:
    image = image_of(leaf) if scaled else None
    return 1.0 if image is None else image.unit


def _parsed(word: str, sees: str) -> tuple[str, int | None, int | None]:
    """Return name and range of one word."""
    match = re.fullmatch(r"([^\[\]:]*)(?:\[(\d*):(\d*)\])?", f"[{word}]" if word.startswith(":") else word)
    if match is None:
        raise ValueError(f"sees={sees!r}: {word!r} must be NAME, NAME[BEGIN:END] or :END, such as joints[:7]")
    begin, end = (int(x) if x else None for x in match.groups()[1:])
    return match[1], begin, end
