"""Heads: from a trunk's outputs to a distribution over actions. A head is the one place that knows a kind of action."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from trpo.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    Product,
    SquashedGaussian,
)
from trpo.envs.bounds import meaning
from trpo.envs.spaces import TANH, Bits, Box, Choice, Choices, Dict, Leaf, Space, Tuple, UnsupportedSpaceError, by_name
from trpo.trees import namespace, per_element
from trpo.types import AnyArray


@runtime_checkable
class Head(Protocol):
    """A callable pytree from outputs ``[..., size]`` to distributions; its arrays are parameters of the policy.

    Where the environment tells which actions are allowed (:mod:`trpo.envs.masks`), it is called with a second argument:
    numbers ``[..., mask_size]``, not 0 where an action is.
    """

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


class SquashedHead(eqx.Module):
    """tanh of what a Gaussian's head gives, over all of a Box that has bounds; actions are ``{"tanh": u}``."""

    gaussian: GaussianHead | StateDependentGaussianHead

    @property
    def size(self) -> int:
        return self.gaussian.size

    def __call__(self, outputs: Any) -> Product:
        base = self.gaussian(outputs)
        return Product((SquashedGaussian(base.mean, base.log_std),), (TANH,))


class BetaHead(eqx.Module):
    """Beta(α, β) over all of a Box that has bounds: α and β are 1 + softplus(output + ``offset``).

    Both are above 1, where the density has one maximum (Chou, Maturana and Scherer 2017). Outputs are those of the d
    elements for α, then for β; actions are ``{"tanh": u}``.
    """

    dimensions: int = eqx.field(static=True)
    offset: float = eqx.field(static=True, default=0.0)

    @property
    def size(self) -> int:
        return 2 * self.dimensions

    def __call__(self, outputs: Any) -> Product:
        xp = namespace(outputs)
        logs = xp.log1p(xp.logaddexp(outputs + self.offset, xp.zeros_like(outputs)))
        return Product((Beta(logs[..., : self.dimensions], logs[..., self.dimensions :]),), (TANH,))


def masked(logits: Any, mask: Any) -> Any:
    """Return −inf in place of the logits of actions that are not allowed: exactly 0 of probability and of gradient."""
    return logits if mask is None else namespace(logits).where(mask > 0, logits, -math.inf)


class CategoricalHead(eqx.Module):
    """Categorical(outputs)."""

    size: int = eqx.field(static=True)

    @property
    def mask_size(self) -> int:
        return self.size

    def __call__(self, outputs: Any, mask: Any = None) -> Categorical:
        return Categorical(masked(outputs, mask))


class MultiCategoricalHead(eqx.Module):
    """Independent categoricals, their logits concatenated, and their masks likewise."""

    sizes: tuple[int, ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def mask_size(self) -> int:
        return self.size

    def __call__(self, outputs: Any, mask: Any = None) -> MultiCategorical:
        return MultiCategorical(masked(outputs, mask), self.sizes)


class BernoulliHead(eqx.Module):
    """Independent bits, outputs their logits."""

    size: int = eqx.field(static=True)

    def __call__(self, outputs: Any) -> Bernoulli:
        return Bernoulli(outputs)


class ProductHead(eqx.Module):
    """Independent parts, each with a head of its own: outputs and masks are divided among them, in their order."""

    parts: tuple[Any, ...]
    """One :class:`Head` for each part of an action."""
    names: tuple[str, ...] | None = eqx.field(static=True, default=None)
    """Of the parts, sorted; None where actions are tuples."""

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def mask_size(self) -> int:
        return sum(getattr(part, "mask_size", 0) for part in self.parts)

    def __call__(self, outputs: Any, mask: Any = None) -> Product:
        parts, begin, first = [], 0, 0
        for head in self.parts:
            own, begin = outputs[..., begin : begin + head.size], begin + head.size
            if mask is None or not (allowed := getattr(head, "mask_size", 0)):
                parts.append(head(own))
            else:
                parts.append(head(own, mask[..., first : first + allowed]))
                first += allowed
        return Product(tuple(parts), self.names)


def _of_box(leaf: Box, initial_std: float, min_std: float, state_dependent_std: bool, distribution: str) -> Head:
    if distribution != "auto" and not np.isfinite(meaning(leaf)[:2]).all():
        raise UnsupportedSpaceError(
            f"policy.distribution={distribution}: actions {leaf} have no bounds in some element; use auto"
        )
    if distribution == "beta":
        # σ² = 1 / (2c + 1) on [−1, 1] where α = β = c.
        above_one = max((1 / initial_std**2 - 1) / 2 - 1, math.log(2.0))
        return BetaHead(leaf.size, math.log(math.expm1(above_one)) if above_one < 30 else above_one)
    log_std = jnp.full((leaf.size,), math.log(initial_std - min_std), jnp.result_type(float))
    head = (StateDependentGaussianHead if state_dependent_std else GaussianHead)(log_std, min_std)
    return SquashedHead(head) if distribution == "squashed" else head


HEADS: dict[type[Leaf], Callable[..., Head]] = {
    Box: _of_box,
    Choice: lambda leaf, **_: CategoricalHead(leaf.n),
    Choices: lambda leaf, **_: MultiCategoricalHead(leaf.sizes),
    Bits: lambda leaf, **_: BernoulliHead(leaf.size),
}
"""What makes a head for a kind of action: called with the leaf and the settings for a Box by name."""


def make_head(space: Space, **of_box: Any) -> Head:
    """Make the head that an action space calls for; raise :class:`UnsupportedSpaceError` if there is none."""
    if isinstance(space, Dict | Tuple):
        names = tuple(sorted(dict(space.items))) if isinstance(space, Dict) else None
        return ProductHead(tuple(make_head(part, **of_box) for _, part in by_name(space)), names)
    if type(space) not in HEADS:
        known = ", ".join(kind.__name__ for kind in HEADS)
        raise UnsupportedSpaceError(f"no head for actions of a {type(space).__name__}; there are heads for {known}")
    return HEADS[type(space)](space, **of_box)  # type: ignore[index]
