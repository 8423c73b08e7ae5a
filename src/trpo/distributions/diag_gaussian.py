"""Gaussian with a diagonal covariance, for ``Box`` action spaces."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trpo.trees import namespace
from trpo.types import AnyArray


class DiagGaussian(eqx.Module):
    """N(mean, diag(exp(log_std))²) over ``[*batch, d]``.

    KL(p ‖ q) = Σ_i [log σ_q − log σ_p + (σ_p² + (μ_p − μ_q)²) / (2σ_q²) − ½], summed over the d dimensions.
    Fisher matrix in (μ, log σ): diag(1/σ², 2).
    """

    mean: Float[AnyArray, "*batch d"]
    log_std: Float[AnyArray, "*batch d"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return jax.random.normal(key, leading + self.mean.shape, self.mean.dtype)

    def transform(self, noise: Float[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch d"]:
        return self.mean + namespace(self.mean).exp(self.log_std) * noise

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch d"]:
        return self.transform(self.noise(key))

    def mode(self) -> Float[AnyArray, "*batch d"]:
        return self.mean

    def log_prob(self, action: Float[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch"]:
        xp = namespace(self.mean)
        z = (action - self.mean) * xp.exp(-self.log_std)
        return -(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl_to(self, other: DiagGaussian) -> Float[AnyArray, "*batch"]:
        # ½(e^{2Δ} − 1 − 2Δ) with Δ = log σ_p − log σ_q is the variance part of the formula above,
        # written so that nearly equal σ keep their relative accuracy in float32.
        twice_gap = 2 * (self.log_std - other.log_std)
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * jnp.sum(jnp.expm1(twice_gap) - twice_gap + z * z, axis=-1)

    def fisher_product(self, tangent: DiagGaussian) -> DiagGaussian:
        return DiagGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)
