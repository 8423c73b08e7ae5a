"""Product of independent distributions, for ``Dict`` and ``Tuple`` action spaces, and for actions with a form."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trpo.types import AnyArray


class Product(eqx.Module):
    """π(a) = Π_i π_i(a_i): independent parts, each a distribution of its own, possibly a product again.

    Actions are dicts of the parts' actions, or tuples where parts have no names. Log-probability, entropy and KL are
    sums over the parts; the Fisher matrix is block diagonal.

    >>> import jax.numpy as jnp, trpo
    >>> parts = {"gear": trpo.Categorical(jnp.zeros(3)), "steer": trpo.DiagGaussian(jnp.zeros(1), jnp.zeros(1))}
    >>> trpo.Product.of(parts).mode()
    {'gear': Array(0, dtype=int32), 'steer': Array([0.], dtype=float32)}
    """

    parts: tuple[Any, ...]
    names: tuple[str, ...] | None = eqx.field(static=True, default=None)

    @classmethod
    def of(cls, parts: Mapping[str, Any] | Sequence[Any]) -> Product:
        """Make one of a dict of distributions, which is put in the order of its names, or of a sequence."""
        if isinstance(parts, Mapping):
            return cls(tuple(parts[name] for name in sorted(parts)), tuple(sorted(parts)))
        return cls(tuple(parts))

    def _tree(self, parts: Sequence[Any]) -> Any:
        return tuple(parts) if self.names is None else dict(zip(self.names, parts, strict=True))

    def _sum(self, f: Callable[..., Any], *others: Sequence[Any]) -> Any:
        return functools.reduce(operator.add, map(f, self.parts, *others))

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> PyTree[Float[Array, "..."]]:
        return tuple([part.noise(jax.random.fold_in(key, i), leading) for i, part in enumerate(self.parts)])

    def transform(self, noise: PyTree[Float[AnyArray, "..."]]) -> PyTree[AnyArray]:
        return self._tree([part.transform(x) for part, x in zip(self.parts, noise, strict=True)])

    def sample(self, key: PRNGKeyArray) -> PyTree[Array]:
        return self.transform(self.noise(key))

    def mode(self) -> PyTree[AnyArray]:
        return self._tree([part.mode() for part in self.parts])

    def log_prob(self, action: PyTree[AnyArray]) -> Float[AnyArray, "*batch"]:
        of_parts = action if self.names is None else [action[name] for name in self.names]
        return self._sum(lambda part, a: part.log_prob(a), of_parts)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        return self._sum(lambda part: part.entropy())

    def kl_to(self, other: Product) -> Float[AnyArray, "*batch"]:
        return self._sum(lambda p, q: p.kl_to(q), other.parts)

    def fisher_product(self, tangent: Product) -> Product:
        pairs = zip(self.parts, tangent.parts, strict=True)
        return Product(tuple(part.fisher_product(u) for part, u in pairs), self.names)
