"""Fitting the value function to λ-returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from trpo.running_statistics import RunningStatistics
from trpo.trees import all_finite, per_state, power_of_two, tree_where, weighted_sum
from trpo.types import Params, Scalar

ValueApply = Callable[..., Float[Array, "*batch"]]
"""(parameters, observation, *memory) ↦ V."""


class ValueBatch(eqx.Module):
    """Regression data ``[n, …]``, or ``[strata, n / strata, …]`` where parts of them are in different places.

    However many strata there are, minibatches are of the same rows. Of a value function with memory a row is a whole
    sequence: the axis that follows is time, but in the memory.
    """

    observation: PyTree[Shaped[Array, "..."]]
    """As the value function takes it."""
    target: Float[Array, "*n"]
    """λ-returns, in units of reward."""
    weight: Float[Array, "*n"]
    """≥ 0, summing to 1."""
    memory: tuple[Any, ...] = ()
    """The memory before the first step, and where episodes begin; nothing where there is no memory."""
    columns: int = eqx.field(static=True, default=0)
    """How rows are in one stratum alone: a stratum has so many of each group of ``strata · columns`` that follow one
    another there (environments at one time); 0: it has rows that follow one another."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of what minibatches are drawn from."""
        return self.weight.shape[: self.weight.ndim - bool(self.memory)]

    def values(self, apply: ValueApply, params: Params) -> Float[Array, "*n"]:
        """Return V of every state."""
        return apply(params, self.observation, *self.memory)


class ValueState(eqx.Module):
    """Parameters of the value function and everything its fit carries along."""

    params: Params
    optimiser: Any
    returns: RunningStatistics
    """Statistics of the targets seen so far."""

    @property
    def scale(self) -> Scalar:
        """The network's unit: the running standard deviation of returns.

        It is at least a tenth of their root mean square, so that (nearly) constant returns don't blow the unit up.
        It is 0 until a return other than 0 was seen: the unit of reward is not known then, and whatever the network
        says, V = 0.
        """
        std = self.returns.std
        scale = jnp.maximum(std, 0.1 * jnp.hypot(std, self.returns.mean))
        return jnp.where(self.returns.count > 0, scale, 0.0)


@runtime_checkable
class ValueFit(Protocol):
    """Minimises the squared error of V: a frozen record of hyperparameters whose floats are traced."""

    def init(self, params: Params) -> Any:
        """Return what is carried from one batch to the next."""

    def minimise(
        self, apply: ValueApply, params: Params, optimiser: Any, batch: ValueBatch, key: PRNGKeyArray
    ) -> tuple[Params, Any]:
        """Return fitted parameters, and what the next batch needs; targets are in the network's own unit."""


class ValueInfo(eqx.Module):
    """How a fit went."""

    loss: Float[Array, ""]
    """Weighted mean squared error after the fit, in units of the running return variance."""
    finite: Array
    """False if the fit was refused because data or result were not finite."""


def predict(apply: ValueApply, state: ValueState, observation: Any, normalise: bool = True) -> Float[Array, "*batch"]:
    """Return V(s) in units of reward: the network's output times the running deviation of returns."""
    return in_reward(state, apply(state.params, observation), normalise)


def in_reward(state: ValueState, value: Float[Array, "*batch"], normalise: bool) -> Float[Array, "*batch"]:
    """Return the network's output in units of reward."""
    return value * state.scale if normalise else value


def explained_variance(
    value: Float[Array, "*batch"], target: Float[Array, "*batch"], weight: Float[Array, "*batch"]
) -> Scalar:
    """Return 1 − Var[target − V] / Var[target]: 1 is perfect, 0 no better than a constant; 0 for constant targets."""

    def centred(x: Array) -> Array:
        return jnp.where(weight > 0, x - weighted_sum(weight, x), 0)

    unit = power_of_two(jnp.max(jnp.abs(centred(target))))
    total, error = (weighted_sum(weight, (centred(x) / unit) ** 2) for x in (target, target - value))
    return jnp.where(total > 0, 1.0 - error / jnp.where(total > 0, total, 1.0), 0.0)


def squared_loss(apply: ValueApply, params: Params, batch: ValueBatch) -> Scalar:
    """Return Σ w ½(V − G)²."""
    return weighted_sum(batch.weight, 0.5 * (batch.values(apply, params) - batch.target) ** 2)


def fit_value(
    method: ValueFit, apply: ValueApply, state: ValueState, batch: ValueBatch, key: PRNGKeyArray, normalise: bool = True
) -> tuple[ValueState, ValueInfo]:
    """Fit V to ``batch`` and return the new state; on non-finite data or result, the old state bit for bit.

    Targets are divided by the running standard deviation of returns (``normalise``), so one learning rate serves
    rewards of any scale; :func:`predict` multiplies it back.
    """
    present = (batch.weight > 0).astype(batch.weight.dtype)
    returns = state.returns.merge(batch.target, present) if normalise else state.returns
    after = ValueState(state.params, state.optimiser, returns)
    # The network's outputs mean V / scale, so V moves a little with the scale until this fit, on targets in the new
    # unit, catches up; the running deviation changes slowly.
    scale = jnp.where(after.scale > 0, after.scale, 1.0) if normalise else 1.0
    scaled = ValueBatch(
        jax.tree.map(lambda x: _where_present(batch.weight, x), batch.observation),
        jnp.where(batch.weight > 0, batch.target, 0) / scale,
        batch.weight,
        batch.memory,
        batch.columns,
    )
    params, optimiser = method.minimise(apply, state.params, state.optimiser, scaled, key)
    loss = 2 * squared_loss(apply, params, scaled)
    finite = all_finite((scaled.target, returns, params, loss))
    return tree_where(finite, ValueState(params, optimiser, returns), state), ValueInfo(loss, finite)


def _where_present(weight: Float[Array, "*n"], x: Array) -> Array:
    # Integers have no NaN, and a copy of images takes memory.
    return jnp.where(per_state(weight > 0, x), x, 0) if jnp.issubdtype(x.dtype, jnp.inexact) else x
