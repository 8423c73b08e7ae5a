"""Backtracking line search that enforces the trust region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from trpo.types import Params, Scalar


class Evaluation(eqx.Module):
    """A local problem's exact (not linearised) quantities at one θ."""

    surrogate: Float[Array, ""]
    """L(θ)."""
    mean_kl: Float[Array, ""]
    """D̄(θ) = E_s[KL(π_old ‖ π_θ)], in nats."""
    max_state_kl: Float[Array, ""]
    """max_s KL(π_old ‖ π_θ), in nats."""
    entropy: Float[Array, ""]
    """E_s[H(π_θ)], in nats."""


class SearchInfo(eqx.Module):
    """What a line search found (or, while it goes on, where it stands)."""

    accepted: Bool[Array, ""]
    backtracks: Int[Array, ""]
    """Trials that were rejected."""
    fraction: Float[Array, ""]
    """Accepted multiple of the full step; 0 where none was (of the next trial, while it goes on)."""
    evaluation: Evaluation
    """At the parameters that are returned."""
    first_mean_kl: Float[Array, ""]
    """D̄ at the full step: how good the quadratic model was."""
    finite: Bool[Array, ""]
    """Whether the last trial's surrogate, KL and parameters were finite."""


def line_search(
    evaluate: Callable[[Params], Evaluation],
    params: Params,
    step: Params,
    max_kl: float | Scalar,
    start: Evaluation,
    backtrack_ratio: float | Scalar = 0.8,
    max_backtracks: int | Int[Array, ""] = 10,
    use_measured_kl: bool = False,
) -> tuple[Params, SearchInfo]:
    """Return the first θ + ρ^j·step, j = 0, 1, …, with L(θ_j) > L(θ), D̄(θ_j) ≤ δ and everything finite.

    This is the paper's search (appendix C): start at the step that the quadratic model puts on the boundary of
    the trust region and shrink it exponentially until both the surrogate improves and the constraint holds.

    Args:
        evaluate: θ ↦ :class:`Evaluation`, exact.
        params: θ, returned bit for bit if no trial is accepted.
        step: the full step, in parameter space.
        max_kl: δ, in nats.
        start: ``evaluate(params)``, against which improvement is judged.
        backtrack_ratio: ρ, in (0, 1).
        max_backtracks: j runs to this number, so at most ``max_backtracks + 1`` trials are made: with −1 none.
        use_measured_kl: after a trial with D̄ > δ shrink by 0.98 √(δ / D̄) instead of ρ. The full step's KL
            is near δ, on either side; where it is just above, ρ = 0.8 gives a third of the trust region away.

    This differs from the searches of OpenAI Baselines (accepts 1.5 δ), modular_rl (no KL test) and mjrl (no
    improvement test) in testing exactly what the method promises, and in keeping θ when the test fails.
    """

    def shrink(mean_kl: Scalar) -> Scalar | float:
        """Return the factor to the next trial."""
        if not use_measured_kl:
            return backtrack_ratio
        # The KL is nearly quadratic along the step, so √(δ/D̄) lands near the boundary; aim a little inside.
        to_boundary = 0.98 * jnp.sqrt(max_kl / mean_kl)
        return jnp.where(mean_kl > max_kl, jnp.maximum(to_boundary, 0.1), backtrack_ratio)

    def attempt(state: tuple[Params, SearchInfo]) -> tuple[Params, SearchInfo]:
        _, last = state
        trial = optax.tree.add_scale(params, last.fraction, step)
        evaluation = evaluate(trial)
        finite = jnp.isfinite(evaluation.surrogate) & jnp.isfinite(evaluation.mean_kl)
        finite &= jnp.isfinite(optax.tree.norm(trial))
        improved = evaluation.surrogate > start.surrogate
        accepted = finite & improved & (evaluation.mean_kl <= max_kl)
        return trial, SearchInfo(
            accepted=accepted,
            backtracks=last.backtracks + ~accepted,
            fraction=jnp.where(accepted, last.fraction, last.fraction * shrink(evaluation.mean_kl)),
            evaluation=evaluation,
            first_mean_kl=jnp.where(last.backtracks == 0, evaluation.mean_kl, last.first_mean_kl),
            finite=finite,
        )

    one = jnp.ones_like(start.surrogate)
    no = jnp.asarray(False)
    trial, last = jax.lax.while_loop(
        lambda state: ~state[1].accepted & (state[1].backtracks <= max_backtracks),
        attempt,
        (params, SearchInfo(no, jnp.asarray(0), one, start, one, no)),
    )
    new, evaluation = optax.tree.where(last.accepted, (trial, last.evaluation), (params, start))
    fraction = jnp.where(last.accepted, last.fraction, 0.0)
    return new, dataclasses.replace(last, evaluation=evaluation, fraction=fraction)
