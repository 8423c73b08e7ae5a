"""Convolutional networks for images."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trpo.envs.images import Image
from trpo.policies.trunks import orthogonal
from trpo.trees import per_element
from trpo.types import AnyArray

NATURE = ((8, 4, 32), (4, 2, 64), (3, 1, 64)), 512
"""Sides, strides and channels of three layers of kernels, and units of a dense one (Mnih et al. 2015)."""
SMALL = ((3, 1, 16),), 128
"""The same for images of a few cells (MinAtar: Young and Tian 2019, arXiv:1903.03176)."""
NATURE_SIDE = 36
"""The shortest side from which an image goes through the first of the two."""


def convolve(
    x: Float[Array, "n _height _width _inputs"], kernel: Float[AnyArray, "_side _side _inputs outputs"], stride: int
) -> Float[Array, "n _rows _columns outputs"]:
    """Return y = x ∗ k, without padding: y[n, i, j] = Σ_ab x[n, s i + a, s j + b] k[a, b], s being the stride.

    On a CPU this is a matrix product with the windows of x, which one linearisation keeps for all its Fisher products:
    the derivatives of XLA's own convolution by its kernel take ten times as long there when they are in a loop, as the
    products and the steps of a value fit are (``python -m benchmarks.convolutions``). Windows take side²/stride² times
    the memory of x.
    """
    if jax.default_backend() == "cpu":
        return windows(x, len(kernel), stride) @ kernel.reshape(-1, kernel.shape[-1])
    strides, layout = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=layout)


def windows(x: Float[Array, "n height width c"], side: int, stride: int) -> Float[Array, "n _rows _columns _window"]:
    """Return what each place of a kernel covers, as one axis in the order of the kernel's first three."""
    n, height, width, channels = x.shape
    rows, columns = (np.arange((size - side) // stride + 1) * stride for size in (height, width))
    within = np.arange(side)
    places = (rows[:, None, None, None] + within[:, None]) * width + columns[:, None, None] + within
    covered = x.reshape(n, height * width, channels)[:, places.reshape(len(rows), len(columns), side**2)]
    return covered.reshape(n, len(rows), len(columns), side**2 * channels)


class Convolutions(eqx.Module):
    """An image ↦ features by convolutions without padding and a dense layer, with ReLU after each.

    Pixels are divided by the image's unit before: here and nowhere else. The network is that of Mnih et al. (2015) for
    sides of 36 pixels and more, else one layer of 16 kernels of 3 × 3 and 128 units. Weights are orthogonal with gain
    √2.
    """

    kernels: tuple[Float[AnyArray, "_height _width _inputs _outputs"], ...]
    biases: tuple[Float[AnyArray, "_outputs"], ...]
    weight: Float[AnyArray, "_features size"]
    bias: Float[AnyArray, "size"]
    strides: tuple[int, ...] = eqx.field(static=True)
    image: Image = eqx.field(static=True)
    ndim: int = eqx.field(static=True)
    """Axes of one image: two, if it has no axis of channels."""

    @classmethod
    def of(cls, image: Image, ndim: int, key: PRNGKeyArray | None, dtype: Any = jnp.float32) -> Convolutions:
        """Make one with weights drawn from ``key``; None: with zeros that take no memory, to see shapes."""
        layers, units = NATURE if min(image.height, image.width) >= NATURE_SIDE else SMALL
        random = None if key is None else np.random.default_rng(np.asarray(jax.random.key_data(key)))

        def drawn(*shape: int) -> Any:
            if random is None:
                return np.broadcast_to(np.zeros((), dtype), shape)
            matrix = orthogonal(random, (math.prod(shape[:-1]), shape[-1]))
            return jnp.asarray(2**0.5 * matrix.reshape(shape), dtype)

        kernels, (height, width, channels) = [], (image.height, image.width, image.channels)
        for side, stride, outputs in layers:
            kernels.append(drawn(side, side, channels, outputs))
            height, width, channels = (height - side) // stride + 1, (width - side) // stride + 1, outputs
        biases = tuple(jnp.zeros(kernel.shape[-1], dtype) for kernel in kernels)
        weight, strides = drawn(height * width * channels, units), tuple(stride for _, stride, _ in layers)
        return cls(tuple(kernels), biases, weight, jnp.zeros(units, dtype), strides, image, ndim)

    @property
    def size(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Any) -> Any:
        leading, image, shape = x.shape[: x.ndim - self.ndim], self.image, x.shape[x.ndim - self.ndim :]
        # One axis of images, in which those of an environment are together: a batch divided by environment stays so.
        x = jnp.swapaxes(x, 0, 1) if len(leading) == 2 else jnp.asarray(x)
        x = x.reshape(-1, *shape, *(() if self.ndim == 3 else (1,)))
        x = x.astype(self.weight.dtype) / image.unit
        if image.first:
            x = jnp.moveaxis(x, 1, 3)
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            x = jax.nn.relu(convolve(x, kernel, stride) + per_element(bias, 4))
        x = jax.nn.relu(x.reshape(len(x), -1) @ self.weight + per_element(self.bias, 2))
        if len(leading) == 2:
            return jnp.swapaxes(x.reshape(*leading[::-1], self.size), 0, 1)
        return x.reshape(*leading, self.size)
