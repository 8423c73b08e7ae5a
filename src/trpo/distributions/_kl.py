"""The KL divergence between discrete distributions, without cancellation."""

from __future__ import annotations

from jaxtyping import Float

from trpo.trees import namespace
from trpo.types import AnyArray


def relative_entropy_terms(log_p: Float[AnyArray, "*n"], log_q: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Return terms that are each ≥ 0 and sum to Σ p (log p − log q).

    Since Σp = Σq = 1, the sum equals Σ p (e^Δ − 1 − Δ) with Δ = log q − log p. Near p = q this keeps the
    relative accuracy that the textbook form loses to cancellation: a KL of 1e-6 in float32 is otherwise noise.
    Outcomes with p = 0 contribute q, as they must for the sum to hold.
    """
    xp = namespace(log_p)
    p, q = xp.exp(log_p), xp.exp(log_q)
    possible = p > 0
    gap = xp.where(possible, log_q, 0.0) - xp.where(possible, log_p, 0.0)
    near = xp.abs(gap) < 1
    small = xp.where(near, gap, 0.0)  # the inner `where` keeps gradients of the untaken branch finite
    terms = xp.where(near, p * (xp.expm1(small) - small), q - p - p * gap)
    return xp.where(possible, terms, q)
