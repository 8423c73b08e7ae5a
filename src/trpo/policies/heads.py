"""Heads: from a trunk's outputs to a distribution over actions. A head is the one place that knows a kind of action."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from trpo.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical
from trpo.envs.spaces import Bits, Box, Choice, Choices, Leaf, Space, UnsupportedSpaceError
from trpo.trees import namespace, per_element
from trpo.types import AnyArray


@runtime_checkable
class Head(Protocol):
    """A callable pytree from outputs ``[..., size]`` to distributions; its arrays are parameters of the policy."""

    @property
    def size(self) -> int:
        """Outputs that it takes."""
        ...

    def __call__(self, outputs: Any, /) -> Distribution:
        """Return the distribution for each row of outputs."""
        ...


def above(min_std: float, log_std: Any) -> Any:
    """Return log(min_std + exp(log_std)): the logarithm of a σ that cannot fall below ``min_std``."""
    xp = namespace(log_std)
    return xp.log(min_std + xp.exp(log_std)) if min_std > 0 else log_std


class GaussianHead(eqx.Module):
    """N(outputs, diag(σ)²), σ = min_std + exp(log_std), the same in every state.

    With ``min_std`` 0 it is that of the TRPO paper's appendix D.
    """

    log_std: Float[AnyArray, "d"]
    min_std: float = eqx.field(static=True, default=0.0)

    @property
    def size(self) -> int:
        return self.log_std.shape[0]

    def __call__(self, outputs: Any) -> DiagGaussian:
        log_std = self.log_std
        return DiagGaussian(outputs, namespace(log_std).broadcast_to(above(self.min_std, log_std), outputs.shape))


class StateDependentGaussianHead(eqx.Module):
    """N(μ, diag(σ)²), σ = min_std + exp(log_std + offset): outputs are the d means, then the d offsets."""

    log_std: Float[AnyArray, "d"]
    min_std: float = eqx.field(static=True, default=0.0)

    @property
    def size(self) -> int:
        return 2 * self.log_std.shape[0]

    def __call__(self, outputs: Any) -> DiagGaussian:
        d = self.log_std.shape[0]
        log_std = outputs[..., d:] + per_element(self.log_std, outputs.ndim)
        return DiagGaussian(outputs[..., :d], above(self.min_std, log_std))


class CategoricalHead(eqx.Module):
    """Categorical(outputs)."""

    size: int = eqx.field(static=True)

    def __call__(self, outputs: Any) -> Categorical:
        return Categorical(outputs)


class MultiCategoricalHead(eqx.Module):
    """Independent categoricals, their logits concatenated."""

    sizes: tuple[int, ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def __call__(self, outputs: Any) -> MultiCategorical:
        return MultiCategorical(outputs, self.sizes)


class BernoulliHead(eqx.Module):
    """Independent bits, outputs their logits."""

    size: int = eqx.field(static=True)

    def __call__(self, outputs: Any) -> Bernoulli:
        return Bernoulli(outputs)


def _gaussian(leaf: Box, initial_std: float, min_std: float, state_dependent_std: bool) -> Head:
    log_std = jnp.full((leaf.size,), math.log(initial_std - min_std), jnp.result_type(float))
    return (StateDependentGaussianHead if state_dependent_std else GaussianHead)(log_std, min_std)


HEADS: dict[type[Leaf], Callable[..., Head]] = {
    Box: _gaussian,
    Choice: lambda leaf, **_: CategoricalHead(leaf.n),
    Choices: lambda leaf, **_: MultiCategoricalHead(leaf.sizes),
    Bits: lambda leaf, **_: BernoulliHead(leaf.size),
}
"""What makes a head for a kind of action: called with the leaf and a Gaussian's settings by name."""


def make_head(space: Space, **gaussian: Any) -> Head:
    """Make the head that an action space calls for; raise :class:`UnsupportedSpaceError` if there is none."""
    if type(space) not in HEADS:
        known = ", ".join(kind.__name__ for kind in HEADS)
        raise UnsupportedSpaceError(f"no head for actions of a {type(space).__name__}; there are heads for {known}")
    return HEADS[type(space)](space, **gaussian)  # type: ignore[index]
