"""Product of independent Bernoulli variables, for ``MultiBinary`` action spaces."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo.distributions._kl import relative_entropy_terms
from trpo.trees import namespace
from trpo.types import AnyArray


def log_sigmoid(x: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Return log(1 / (1 + e^−x)) without overflow, for NumPy and JAX arrays alike."""
    return -namespace(x).logaddexp(-x, 0.0)  # not by min and |x|: their kinks give the gradient at 0 wrongly


class Bernoulli(eqx.Module):
    """π(a) = Π_i p_i^{a_i} (1 − p_i)^{1 − a_i}, p = sigmoid(logits).

    ``logits`` and actions have shape ``[*batch, d]``; actions are 0 or 1.
    KL and entropy are sums over the d bits; the Fisher matrix in the logits is diag(p (1 − p)).
    """

    logits: Float[AnyArray, "*batch d"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jax.random.logistic(key, leading + self.logits.shape, self.logits.dtype)

    def transform(self, noise: Float[AnyArray, "*batch d"]) -> Int[AnyArray, "*batch d"]:
        return (self.logits + noise > 0).astype("int32")

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch d"]:
        return self.transform(self.noise(key))

    def mode(self) -> Int[AnyArray, "*batch d"]:
        return (self.logits > 0).astype("int32")

    def log_prob(self, action: Int[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch"]:
        return log_sigmoid(namespace(self.logits).where(action > 0, self.logits, -self.logits)).sum(axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        p = jax.nn.sigmoid(self.logits)
        return -jnp.sum(p * log_sigmoid(self.logits) + (1 - p) * log_sigmoid(-self.logits), axis=-1)

    def kl_to(self, other: Bernoulli) -> Float[AnyArray, "*batch"]:
        ones = relative_entropy_terms(log_sigmoid(self.logits), log_sigmoid(other.logits))
        zeros = relative_entropy_terms(log_sigmoid(-self.logits), log_sigmoid(-other.logits))
        return jnp.sum(ones + zeros, axis=-1)

    def fisher_product(self, tangent: Bernoulli) -> Bernoulli:
        return Bernoulli(jax.nn.sigmoid(self.logits) * jax.nn.sigmoid(-self.logits) * tangent.logits)
