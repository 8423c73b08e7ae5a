"""Categorical distribution, for ``Discrete`` action spaces."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trpo.distributions._kl import relative_entropy_terms
from trpo.trees import namespace
from trpo.types import AnyArray


def log_softmax(logits: Float[AnyArray, "*batch k"]) -> Float[AnyArray, "*batch k"]:
    """Return logits − log Σ exp(logits) over the last axis, for NumPy and JAX arrays alike."""
    xp = namespace(logits)
    largest = xp.max(logits, axis=-1, keepdims=True)
    if not isinstance(largest, np.ndarray):
        # Its gradient cancels. Not taking it matters: a compiler may compute the logits once more, rounded differently,
        # to see which of them is the largest; then none is, and the gradient is 0/0.
        largest = jax.lax.stop_gradient(largest)
    shifted = logits - largest
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


class Categorical(eqx.Module):
    """π(a) = exp(logits_a) / Σ_b exp(logits_b).

    ``logits`` has shape ``[*batch, k]``; actions are integers in 0..k−1 of shape ``[*batch]``. Logits may be −inf
    (an impossible action) as long as one is finite.

    KL(p ‖ q) = Σ_a p_a (log p_a − log q_a); Fisher matrix in the logits: diag(p) − p pᵀ.
    """

    logits: Float[AnyArray, "*batch k"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jax.random.gumbel(key, leading + self.logits.shape, self.logits.dtype)

    def transform(self, noise: Float[AnyArray, "*batch k"]) -> Int[AnyArray, "*batch"]:
        return namespace(self.logits).argmax(self.logits + noise, axis=-1)  # the Gumbel-max construction

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        return self.transform(self.noise(key))

    def mode(self) -> Int[AnyArray, "*batch"]:
        return namespace(self.logits).argmax(self.logits, axis=-1)

    def log_prob(self, action: Int[AnyArray, "*batch"]) -> Float[AnyArray, "*batch"]:
        xp = namespace(self.logits)
        return xp.take_along_axis(log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[AnyArray, "*batch"]:
        log_p = log_softmax(self.logits)
        p = jnp.exp(log_p)
        return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)

    def kl_to(self, other: Categorical) -> Float[AnyArray, "*batch"]:
        return relative_entropy_terms(log_softmax(self.logits), log_softmax(other.logits)).sum(axis=-1)

    def fisher_product(self, tangent: Categorical) -> Categorical:
        p = jnp.exp(log_softmax(self.logits))
        # A constant in u changes nothing; without the likeliest action's u nothing cancels where its p is nearly 1.
        best = jnp.argmax(self.logits, axis=-1, keepdims=True)
        u = jnp.where(p > 0, tangent.logits - jnp.take_along_axis(tangent.logits, best, axis=-1), 0.0)
        return Categorical(p * (u - jnp.sum(p * u, axis=-1, keepdims=True)))
