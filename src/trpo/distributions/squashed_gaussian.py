"""Gaussian squashed by tanh, for ``Box`` action spaces with bounds."""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trpo.distributions.diag_gaussian import DiagGaussian
from trpo.trees import namespace
from trpo.types import AnyArray

_NODES = np.linspace(-6.5, 6.5, 33)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
"""The trapezoidal rule for E[f(z)], z ~ N(0, 1): for an analytic f its error falls exponentially with the step."""


def log_slope(u: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Return log(1 − tanh²(u)) = log(d tanh(u) / du), without cancellation where tanh is nearly ±1."""
    return 2 * (math.log(2.0) - namespace(u).logaddexp(u, -u))


class SquashedGaussian(eqx.Module):
    """a = tanh(u) in (−1, 1)^d, u ~ N(mean, diag(exp(log_std))²).

    An action is kept as its u, since a of nearly ±1 has lost it. The density is that of a:
    log π(a) = log N(u) − Σ_i log(1 − tanh²(u_i)).

    KL and Fisher matrix are the Gaussian's: tanh is the same one-to-one map on both sides, so that log-ratios, of which
    they are expectations, are those of u. The entropy is E[−log N(u)] + Σ E[log(1 − tanh²(u_i))]; its second part, of
    which there is no closed form, is a fixed quadrature with an error below 1e-8 for σ ≤ 1, 1e-5 for σ ≤ 2, 1e-2 for
    σ ≤ 5. The mode is the median, u = mean: the density of a has its maximum at the bounds where σ is large.
    """

    mean: Float[AnyArray, "*batch d"]
    log_std: Float[AnyArray, "*batch d"]

    @property
    def base(self) -> DiagGaussian:
        """The distribution of u."""
        return DiagGaussian(self.mean, self.log_std)

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.base.noise(key, leading)

    def transform(self, noise: Float[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch d"]:
        return self.base.transform(noise)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch d"]:
        return self.base.sample(key)

    def mode(self) -> Float[AnyArray, "*batch d"]:
        return self.mean

    def log_prob(self, action: Float[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch"]:
        return self.base.log_prob(action) - log_slope(action).sum(axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        nodes, weights = (jnp.asarray(x, self.mean.dtype) for x in (_NODES, _WEIGHTS))
        u = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * nodes.reshape((1,) * self.mean.ndim + (-1,))
        return self.base.entropy() + jnp.sum(log_slope(u) @ weights, axis=-1)

    def kl_to(self, other: SquashedGaussian) -> Float[AnyArray, "*batch"]:
        return self.base.kl_to(other.base)

    def fisher_product(self, tangent: SquashedGaussian) -> SquashedGaussian:
        product = self.base.fisher_product(tangent.base)
        return SquashedGaussian(product.mean, product.log_std)
