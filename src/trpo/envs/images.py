"""Which parts of an observation are images, and which are normalised."""

from __future__ import annotations

import dataclasses

import numpy as np

from trpo.envs.spaces import Bits, Box, Leaf

LEAST = 5
"""The shortest side of an image; what is smaller is a board of a few numbers."""


@dataclasses.dataclass(frozen=True)
class Image:
    """How an array is an image."""

    height: int
    width: int
    channels: int
    first: bool
    """Whether channels come first, as in a stack of grey frames, or last."""
    unit: float
    """The number that is full intensity: pixels are divided by it, once, in the encoder."""


def layout_of(shape: tuple[int, ...], unit: float = 1.0) -> Image | None:
    """Return how an array of this shape would be an image; None if it cannot be one.

    Of three axes, the one that differs from two equal ones is the channels'; else the smaller of the outer two. Two
    axes are one channel.
    """
    match shape:
        case (height, width):
            image = Image(height, width, 1, False, unit)
        case (a, b, c) if a == b or (b != c and c <= a):
            image = Image(a, b, c, False, unit)
        case (a, b, c):
            image = Image(b, c, a, True, unit)
        case _:
            return None
    return image if min(image.height, image.width) >= LEAST and image.channels else None


def image_of(leaf: Leaf) -> Image | None:
    """Return how a leaf is an image, None if it is none.

    An image is an array of three axes that is of uint8, of truth values, or has the bounds 0 and 255, or 0 and 1; and
    one of two axes of uint8 with the bounds 0 and 255, a grey image.
    """
    if len(leaf.shape) not in (2, 3):
        return None
    grey, pixels = len(leaf.shape) == 2, np.dtype(leaf.dtype) == np.uint8
    if isinstance(leaf, Bits):
        return None if grey else layout_of(leaf.shape)
    if not isinstance(leaf, Box):
        return None
    bounds = (leaf.low, leaf.high)
    if bounds == (0, 255):
        return layout_of(leaf.shape, 255.0) if pixels or not grey else None
    if grey:
        return None
    if bounds == (0, 1):
        return layout_of(leaf.shape)
    most = float(np.max(leaf.high)) if leaf.size else 0.0
    return layout_of(leaf.shape, most if 0 < most < np.inf else 255.0) if pixels else None


def is_normalised(leaf: Leaf) -> bool:
    """Return whether a leaf has running statistics: floating-point numbers that are no image, and nothing else."""
    return isinstance(leaf, Box) and np.dtype(leaf.dtype).kind == "f" and image_of(leaf) is None
