"""Outcomes of an update, the record of what it did, and the protocol that every rule follows."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from trpo.line_search import Evaluation
from trpo.problem import LocalProblem
from trpo.types import Params

State = TypeVar("State")


class Result(enum.IntEnum):
    """How an update ended. Anything but ``ACCEPTED`` kept the old parameters bit for bit."""

    ACCEPTED = 0
    NO_SIGNAL = 1
    NO_IMPROVEMENT = 2
    NONFINITE_GRADIENT = 3
    NONPOSITIVE_CURVATURE = 4
    NONFINITE_TRIAL = 5
    NONFINITE_BATCH = 6

    @property
    def reason(self) -> str:
        """The outcome in words: what happened, likely causes, cures."""
        return _REASONS[self]


_REASONS = {
    Result.ACCEPTED: "accepted: the surrogate improved and the mean KL is within its bound",
    Result.NO_SIGNAL: (
        "no signal: the gradient of the surrogate is exactly zero. Causes: (a) every advantage is equal, as with a "
        "constant reward; (b) the policy is saturated, so that log-probabilities no longer depend on its parameters"
    ),
    Result.NO_IMPROVEMENT: (
        "line search failed: no trial both improved the surrogate and kept the mean KL within its bound. Causes: "
        "(a) too few conjugate-gradient iterations or too little damping for this batch; (b) a max_kl near the "
        "rounding error of float32; (c) the bound of the iteration was already used by earlier updates of the batch. "
        "Harmless now and then; if frequent, raise damping or the batch size"
    ),
    Result.NONFINITE_GRADIENT: (
        "the gradient of the surrogate is NaN or infinite. Causes: (a) advantages or log-probabilities overflow; "
        "(b) the policy's parameters have diverged"
    ),
    Result.NONPOSITIVE_CURVATURE: (
        "the search direction has zero, negative or non-finite curvature, so no step length follows from it. Causes: "
        "(a) the distribution's fisher_product is wrong; (b) damping is 0 and the Fisher matrix is singular"
    ),
    Result.NONFINITE_TRIAL: (
        "line search failed: even the last trial gave a NaN or infinite surrogate, KL or parameter. Causes: "
        "(a) max_kl is far too large; (b) the policy is about to overflow"
    ),
    Result.NONFINITE_BATCH: (
        "an observation, reward or value of the batch is NaN or infinite; nothing was updated. Cause: usually the "
        "environment (an unstable simulation, a division in the reward)"
    ),
}


class UpdateInfo(eqx.Module):
    """What one update did, in exact (not linearised) numbers unless said otherwise."""

    result: Int[Array, ""]
    """A :class:`Result`."""
    surrogate_gain: Float[Array, ""]
    """L(θ') − L(θ), θ being where this update started."""
    predicted_gain: Float[Array, ""]
    """∇L(θ)ᵀ(θ' − θ): the linear model's forecast of the same."""
    mean_kl: Float[Array, ""]
    """D̄(θ') from the sampling policy, cumulative over the updates of a batch, in nats."""
    max_state_kl: Float[Array, ""]
    """max_s KL(π_old(·|s) ‖ π_θ'(·|s)), in nats."""
    gradient_norm: Float[Array, ""]
    step_norm: Float[Array, ""]
    """‖θ' − θ‖; 0 if rejected."""
    cg_iterations: Int[Array, ""]
    cg_residual: Float[Array, ""]
    """‖g − (F + λI) s‖ / ‖g‖."""
    backtracks: Int[Array, ""]
    """Trials that the line search rejected."""
    step_fraction: Float[Array, ""]
    """Accepted multiple of the full step; 0 if rejected."""
    entropy: Float[Array, ""]
    """E_s[H(π_θ')], in nats."""
    accepted_updates: Int[Array, ""]
    """1 or 0; of several updates of one batch, how many were accepted."""

    @classmethod
    def of(
        cls, result: Array, gradient: Params, step: Params, start: Evaluation, end: Evaluation, **own: Array
    ) -> UpdateInfo:
        """Describe one update from θ to θ + ``step``, which is zero if it was rejected.

        ``own`` is what the rule alone knows: anything about a linear solve or a line search, if it had one.
        """
        accepted = result == Result.ACCEPTED
        common = {
            "result": result,
            "surrogate_gain": end.surrogate - start.surrogate,
            "predicted_gain": optax.tree.vdot(gradient, step),
            "mean_kl": end.mean_kl,
            "max_state_kl": end.max_state_kl,
            "gradient_norm": optax.tree.norm(gradient),
            "step_norm": optax.tree.norm(step),
            "cg_iterations": jnp.asarray(0),
            "cg_residual": jnp.zeros_like(end.surrogate),
            "backtracks": jnp.asarray(0),
            "step_fraction": jnp.where(accepted, 1.0, 0.0),
            "entropy": end.entropy,
            "accepted_updates": accepted.astype(jnp.int32),
        }
        return cls(**(common | own))

    @classmethod
    def combined(cls, infos: Any, step: Params) -> UpdateInfo:
        """Describe updates that followed each other (``infos`` has them along its leading axis) as one, by ``step``.

        Accepted if any was, else for the reason of the first. Gains and work are sums, and what is measured from the
        sampling policy is the last update's.
        """
        accepted = infos.result == Result.ACCEPTED
        return dataclasses.replace(
            jax.tree.map(jnp.sum, infos),
            result=jnp.where(jnp.any(accepted), Result.ACCEPTED, infos.result[0]),
            mean_kl=infos.mean_kl[-1],
            max_state_kl=infos.max_state_kl[-1],
            gradient_norm=infos.gradient_norm[0],
            step_norm=optax.tree.norm(step),
            cg_residual=jnp.max(infos.cg_residual),
            step_fraction=jnp.mean(infos.step_fraction),
            entropy=infos.entropy[-1],
        )

    def refused(self) -> UpdateInfo:
        """Return what stands in this record's place if the batch was not finite: no update, and zeros."""
        nothing = jax.tree.map(jnp.zeros_like, self)
        return dataclasses.replace(nothing, result=jnp.full_like(self.result, Result.NONFINITE_BATCH))


@runtime_checkable
class Rule(Protocol[State]):
    """An update rule: a frozen record of hyperparameters whose floats are traced and whose integers are static.

    ``update`` is pure and takes no random key: the same batch gives the same bits.
    """

    @property
    def enforces_max_kl(self) -> bool:
        """Whether an accepted update is certain to keep the mean KL at most ``max_kl``."""

    @property
    def max_kl(self) -> Any:
        """δ, the bound (or the target, for rules that don't enforce one) on the mean KL from the sampling policy."""

    def init(self, params: Params) -> State:
        """Return the state to start from."""

    def update(self, problem: LocalProblem, params: Params, state: State) -> tuple[Params, State, UpdateInfo]:
        """Return improved parameters, the next state, and what was done."""
