"""Product of independent categoricals, for ``MultiDiscrete`` action spaces."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo.distributions.categorical import Categorical
from trpo.trees import namespace
from trpo.types import AnyArray


class MultiCategorical(eqx.Module):
    """π(a) = Π_i Categorical(logits_i)(a_i), with the logits of all components concatenated.

    ``logits`` has shape ``[*batch, Σ sizes]``; actions are integers of shape ``[*batch, len(sizes)]``.
    KL and entropy are sums over components; the Fisher matrix is block diagonal.
    """

    logits: Float[AnyArray, "*batch total"]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def components(self) -> list[Categorical]:
        """Return the independent categoricals, in order."""
        ends = list(itertools.accumulate(self.sizes))
        return [Categorical(self.logits[..., end - size : end]) for size, end in zip(self.sizes, ends, strict=True)]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jax.random.gumbel(key, leading + self.logits.shape, self.logits.dtype)

    def transform(self, noise: Float[AnyArray, "*batch total"]) -> Int[AnyArray, "*batch d"]:
        return MultiCategorical(self.logits + noise, self.sizes).mode()

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch d"]:
        return self.transform(self.noise(key))

    def mode(self) -> Int[AnyArray, "*batch d"]:
        return namespace(self.logits).stack([c.mode() for c in self.components()], axis=-1)

    def log_prob(self, action: Int[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch"]:
        terms = [c.log_prob(action[..., i]) for i, c in enumerate(self.components())]
        return namespace(self.logits).sum(namespace(self.logits).stack(terms, axis=-1), axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        return jnp.sum(jnp.stack([c.entropy() for c in self.components()], axis=-1), axis=-1)

    def kl_to(self, other: MultiCategorical) -> Float[AnyArray, "*batch"]:
        pairs = zip(self.components(), other.components(), strict=True)
        return jnp.sum(jnp.stack([p.kl_to(q) for p, q in pairs], axis=-1), axis=-1)

    def fisher_product(self, tangent: MultiCategorical) -> MultiCategorical:
        pairs = zip(self.components(), tangent.components(), strict=True)
        return MultiCategorical(jnp.concatenate([p.fisher_product(u).logits for p, u in pairs], axis=-1), self.sizes)
