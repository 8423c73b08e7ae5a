"""Trunks: from features to a head's outputs.

Layers are written for batches against the array namespace, so one definition serves the compiled update, the
NumPy pass that steps host environments, and any leading axes without ``vmap``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trpo.trees import namespace, per_element
from trpo.types import AnyArray

Activation = Literal["tanh", "relu"]
Gain = float | Literal["auto"]
"""Of hidden layers' initial weights; auto: by the number of inputs."""


@jax.custom_jvp
def _tanh(x: Array) -> Array:
    """Tanh whose tangent is t (1 − y²): one factor to keep and to multiply by, where JAX's own rule has two.

    The factor is read in every Fisher product, so this shortens a whole update by several per cent.
    """
    return jnp.tanh(x)


@_tanh.defjvp
def _tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    y = _tanh(x)
    return y, t * (1 - y * y)


def _activate(kind: Activation, x: Any) -> Any:
    xp = namespace(x)
    if kind == "relu":
        return xp.maximum(x, 0)
    return np.tanh(x) if xp is np else _tanh(x)


@runtime_checkable
class Recurrent(Protocol):
    """A trunk with memory; one without is any callable from features ``[..., n]`` to outputs ``[..., m]``."""

    def start(self, count: int) -> Any:
        """Return the memory at the start of an episode, ``[count, …]``; it must not need parameters."""
        ...

    def __call__(self, carry: Any, x: Any, reset: Any) -> tuple[Any, Any]:
        """Return outputs and memory after one step ``[env, …]``; where ``reset``, memory starts anew before it."""
        ...


class MLP(eqx.Module):
    """x ↦ W_L φ(… φ(x W_1 + b_1) …) + b_L, with tanh or ReLU between layers.

    Weights are stored ``[in, out]`` and applied as ``x @ W``, so a batch is one matrix product.
    """

    weights: tuple[Float[AnyArray, "_inputs _outputs"], ...]
    biases: tuple[Float[AnyArray, "_outputs"], ...]
    activation: Activation = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        """Apply the layers to the last axis of ``x``."""
        # Read once: in NumPy, reading an attribute of a module costs as much as adding a bias.
        weights, biases, activation = self.weights, self.biases, self.activation
        last = len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = x @ weight + per_element(bias, x.ndim)
            if i < last:
                x = _activate(activation, x)
        return x


def orthogonal(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a uniformly random matrix with orthonormal rows or columns, whichever are fewer."""
    q, r = np.linalg.qr(random.normal(size=(max(shape), min(shape))))
    q = q * np.sign(np.diag(r))  # without it QR's own sign convention would bias the draw
    return q if shape[0] >= shape[1] else q.T


def mlp(
    key: PRNGKeyArray,
    sizes: tuple[int, ...],
    activation: Activation = "tanh",
    last_scale: float = 1.0,
    hidden_scale: Gain = 2**0.5,
    dtype: Any = jnp.float32,
) -> MLP:
    """Make an MLP with orthogonal weights and zero biases.

    Hidden layers have gain ``hidden_scale``, the last layer ``last_scale`` (Andrychowicz et al. 2021, arXiv:2006.05990:
    a policy's last layer scaled by 0.01 matters more than most choices). With gain g, inputs of unit variance enter
    the first layer's units with variance g², if there are at least as many inputs as units: √2 reaches into tanh's
    bends, 0.3 stays where tanh is nearly straight. With n < units inputs that variance is g² n / units. ``"auto"`` is
    √2 for n ≤ units and 0.2 for more, since trials on two tasks say that near linear is better there (docs/results.md).
    """
    if hidden_scale == "auto":
        hidden_scale = 2**0.5 if sizes[0] <= sizes[1] else 0.2
    gains = [hidden_scale] * (len(sizes) - 2) + [last_scale]
    # In NumPy: XLA takes seconds to compile a QR decomposition, which is used once.
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    weights = tuple(
        jnp.asarray(gain * orthogonal(random, shape), dtype)
        for gain, shape in zip(gains, itertools.pairwise(sizes), strict=True)
    )
    return MLP(weights, tuple(jnp.zeros(n, dtype) for n in sizes[1:]), activation)


TRUNKS: dict[str, Callable[..., Any]] = {"mlp": mlp}
"""What makes a trunk, by name: called as :func:`mlp` is."""
