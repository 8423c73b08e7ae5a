"""Beta distribution, for ``Box`` action spaces with bounds."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from trpo.distributions.bernoulli import log_sigmoid
from trpo.trees import namespace
from trpo.types import AnyArray

CANDIDATES = 8
"""Tries of the sampler for each Gamma variable, each taken with probability ≥ 0.95: all fail once in 10¹⁰."""
_NODES, _WEIGHTS = ((x + 1) / 2 if i == 0 else x / 2 for i, x in enumerate(np.polynomial.legendre.leggauss(6)))
"""Gauss and Legendre's rule on [0, 1]."""


def _log_gamma_function(x: Any) -> Any:
    return scipy.special.gammaln(x).astype(x.dtype) if namespace(x) is np else gammaln(x)


def trigamma(x: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Return ψ'(x) for x > 0: ψ'(x) = 1/x² + ψ'(x + 1) until the asymptotic series holds to double precision."""
    total: Any = 0.0
    for _ in range(10):
        total, x = total + 1 / (x * x), x + 1
    y = 1 / (x * x)
    series = 1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * (5 / 66 - y * (691 / 2730 - y * 7 / 6)))))
    return total + (1 + (0.5 + series / x) / x) / x


class Beta(eqx.Module):
    """a = 2x − 1 in (−1, 1)^d, each x_i ~ Beta(α_i, β_i), α = exp(log_alpha), β = exp(log_beta).

    An action is kept as u with a = tanh(u), which is half the logit of x, since x of nearly 0 or 1 has lost it. The
    density is that of a: log π(a) = Σ_i [(α_i − 1) log x_i + (β_i − 1) log(1 − x_i) − log B(α_i, β_i) − log 2].

    KL(p ‖ q) = log B(q) − log B(p) + (α_p − α_q) ψ(α_p) + (β_p − β_q) ψ(β_p) − (α_p + β_p − α_q − β_q) ψ(α_p + β_p).
    The Fisher matrix in (α, β) is diag(ψ'(α), ψ'(β)) − ψ'(α + β); in the logarithms it is that between diag(α, β).
    The mode is at (α − 1) / (α + β − 2), or at the end where the density is largest if α or β is ≤ 1.
    """

    log_alpha: Float[AnyArray, "*batch d"]
    log_beta: Float[AnyArray, "*batch d"]

    def noise(self, key: PRNGKeyArray, leading: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Normal and exponential numbers: ``[..., d, 2, 2 CANDIDATES + 1]`` for the two Gamma variables."""
        normal, exponential = jax.random.split(key)
        shape, dtype = leading + self.log_alpha.shape + (2,), self.log_alpha.dtype
        tries = jax.random.normal(normal, (*shape, CANDIDATES), dtype)
        return jnp.concatenate([tries, jax.random.exponential(exponential, (*shape, CANDIDATES + 1), dtype)], -1)

    def transform(self, noise: Float[AnyArray, "*batch d 2 k"]) -> Float[AnyArray, "*batch d"]:
        """X / (X + Y) of two Gamma variables, by their logarithms.

        Each is the first accepted of Marsaglia and Tsang's candidates (2000, ACM TOMS 26(3)), and for α < 1 theirs for
        α + 1 times U^{1/α}.
        """
        xp = namespace(self.log_alpha)
        logs = xp.stack([self.log_alpha, self.log_beta], axis=-1)
        small = logs < 0
        shape = xp.exp(logs)
        d = xp.where(small, shape + 1, shape) - 1 / 3
        z, e = noise[..., :CANDIDATES], noise[..., CANDIDATES : 2 * CANDIDATES]
        root = 1 + z / xp.sqrt(9 * d)[..., None]
        possible = root > 0
        log_v = 3 * xp.log(xp.where(possible, root, 1.0))
        accepted = possible & (-e < 0.5 * z * z + d[..., None] * (1 - xp.exp(log_v) + log_v))
        first = accepted.argmax(axis=-1)[..., None]  # of no accepted one the first, which is as likely as 10⁻¹⁰
        log_x = xp.log(d) + xp.take_along_axis(log_v, first, axis=-1)[..., 0]
        log_x = log_x - xp.where(small, noise[..., -1] / shape, 0.0)
        return 0.5 * (log_x[..., 0] - log_x[..., 1])

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch d"]:
        return self.transform(self.noise(key))

    def mode(self) -> Float[AnyArray, "*batch d"]:
        xp = namespace(self.log_alpha)
        least = xp.finfo(self.log_alpha.dtype).tiny
        left, right = (xp.log(xp.maximum(xp.expm1(x), least)) for x in (self.log_alpha, self.log_beta))
        return 0.5 * (left - right)

    def log_prob(self, action: Float[AnyArray, "*batch d"]) -> Float[AnyArray, "*batch"]:
        xp = namespace(self.log_alpha)
        alpha, beta = xp.exp(self.log_alpha), xp.exp(self.log_beta)
        constant = _log_gamma_function(alpha) + _log_gamma_function(beta) - _log_gamma_function(alpha + beta)
        terms = (alpha - 1) * log_sigmoid(2 * action) + (beta - 1) * log_sigmoid(-2 * action)
        return (terms - constant - math.log(2.0)).sum(axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        a, b = jnp.exp(self.log_alpha), jnp.exp(self.log_beta)
        constant = gammaln(a) + gammaln(b) - gammaln(a + b)
        slopes = (a - 1) * digamma(a) + (b - 1) * digamma(b) - (a + b - 2) * digamma(a + b)
        return jnp.sum(constant - slopes + math.log(2.0), axis=-1)

    def kl_to(self, other: Beta) -> Float[AnyArray, "*batch"]:
        a, b = jnp.exp(self.log_alpha), jnp.exp(self.log_beta)
        gap_a, gap_b = other.log_alpha - self.log_alpha, other.log_beta - self.log_beta
        # The formula is the remainder of log B's expansion around p. Near p it is the integral of its second
        # derivative, ∫ (1 − t) Δᵀ F(p + tΔ) Δ dt, in which nothing cancels; six nodes give it to 1e-11.
        near = (jnp.abs(gap_a) < 0.5) & (jnp.abs(gap_b) < 0.5)
        da, db = (x * jnp.expm1(jnp.where(near, gap, 0.0)) for x, gap in ((a, gap_a), (b, gap_b)))
        close: Any = 0.0
        for t, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
            at_a, at_b = a + t * da, b + t * db
            curvature = da**2 * trigamma(at_a) + db**2 * trigamma(at_b) - (da + db) ** 2 * trigamma(at_a + at_b)
            close = close + weight * (1 - t) * curvature
        c, d = (jnp.where(near, x, jnp.exp(y)) for x, y in ((a, other.log_alpha), (b, other.log_beta)))
        far = gammaln(c) - gammaln(a) + gammaln(d) - gammaln(b) - gammaln(c + d) + gammaln(a + b)
        far = far + (a - c) * digamma(a) + (b - d) * digamma(b) - (a + b - c - d) * digamma(a + b)
        return jnp.sum(jnp.where(near, close, far), axis=-1)

    def fisher_product(self, tangent: Beta) -> Beta:
        a, b = jnp.exp(self.log_alpha), jnp.exp(self.log_beta)
        u, v = a * tangent.log_alpha, b * tangent.log_beta
        common = trigamma(a + b) * (u + v)
        return Beta(a * (trigamma(a) * u - common), b * (trigamma(b) * v - common))
