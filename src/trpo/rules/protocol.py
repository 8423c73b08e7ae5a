"""Outcomes of an update, the record of what it did, and the protocol that every rule follows."""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Protocol, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int

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


class Rule(Protocol[State]):
    """An update rule: a frozen record of hyperparameters whose floats are traced and whose integers are static.

    ``update`` is pure and takes no random key: the same batch gives the same bits.
    """

    enforces_max_kl: ClassVar[bool]
    """Whether an accepted update is certain to keep the mean KL at most ``max_kl``."""

    max_kl: Any
    """δ, the bound (or the target, for rules that don't enforce one) on the mean KL from the sampling policy."""

    def init(self, params: Params) -> State:
        """Return the state to start from."""
        ...

    def update(self, problem: LocalProblem, params: Params, state: State) -> tuple[Params, State, UpdateInfo]:
        """Return improved parameters, the next state, and what was done."""
        ...
