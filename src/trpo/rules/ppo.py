"""Proximal policy optimisation: the clipped surrogate, climbed by Adam."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from trpo.objectives import clipped_surrogate
from trpo.problem import LocalProblem
from trpo.rules.protocol import Result, UpdateInfo
from trpo.rules.step import check, check_fields
from trpo.trees import all_finite, shuffled, tree_where
from trpo.types import Params, Scalar

_ADAM = optax.flatten(optax.scale_by_adam(eps=1e-5))


class PPOState(eqx.Module):
    """What the next update needs."""

    optimiser: Any
    """Adam's moments."""
    updates: Int[Array, ""]
    """Batches that it climbed on so far: they set the step size, and the order of the next batch's states."""


class PPO(eqx.Module):
    """θ ← θ + α Adam(∇L^CLIP(θ)), ``epochs`` passes over a batch in shuffled minibatches (Schulman et al. 2017).

    L^CLIP is :func:`~trpo.objectives.clipped_surrogate`; no bound on the KL is kept: ``clip`` is what holds a step
    back. Same data, networks, normalisation and value fit as the other rules, so that only the
    rule differs.

    This differs from CleanRL's PPO in: 1 advantages are standardised over the batch, not over each minibatch. 2 the
    value function is fitted by its own optimiser, with its own passes: the norm of the gradient is clipped for the
    policy alone. 3 observations are normalised by statistics that stay put for a batch. 4 only a non-finite result is
    refused, and then θ is kept.
    """

    enforces_max_kl: ClassVar[bool] = False

    max_kl: float | Scalar = 0.01
    """What the KL is shown beside; nothing keeps it."""
    clip: float | Scalar = 0.2
    """ε."""
    learning_rate: float | Scalar = 3e-4
    """α at the start."""
    decay_updates: float | Scalar = math.inf
    """α falls linearly to 0 over so many batches; inf: never."""
    max_gradient_norm: float | Scalar = 0.5
    """Longer gradients of a minibatch are shortened to this."""
    entropy_bonus: float | Scalar = 0.0
    """What a nat of entropy is worth, in standard deviations of advantage."""
    epochs: int = eqx.field(static=True, default=10)
    """Passes over a batch."""
    minibatch: int = eqx.field(static=True, default=64)
    """States of each; with memory whole environments that together have about as many."""

    def __check_init__(self) -> None:
        check_fields(self)
        check("clip", self.clip, 0, math.inf, "0.2 is usual")
        check("learning_rate", self.learning_rate, 0, math.inf, "3e-4 is usual")
        check("max_gradient_norm", self.max_gradient_norm, 0, math.inf, "0.5 is usual")
        check("entropy_bonus", self.entropy_bonus, 0, math.inf, "0 is usual, 0.01 on Atari", strict=False)
        check("epochs", self.epochs, 1, math.inf, "10 is usual", strict=False)
        check("minibatch", self.minibatch, 1, math.inf, "64 is usual", strict=False)

    def init(self, params: Params) -> PPOState:
        return PPOState(_ADAM.init(params), jnp.asarray(0, jnp.int32))

    def update(self, problem: LocalProblem, params: Params, state: PPOState) -> tuple[Params, PPOState, UpdateInfo]:
        if problem.rows is None:
            raise ValueError("rule ppo climbs on minibatches of single paths: rollout must be single-path")
        rows, order = problem.rows, self._order(problem, state.updates)
        rate = self.learning_rate * jnp.maximum(1 - state.updates / self.decay_updates, 0.0)

        def objective(theta: Params, picked: Array) -> Scalar:
            distributions, each = rows.part(picked)
            distribution = distributions(theta)
            bonus = jnp.sum(each["weight"] * distribution.entropy())
            return clipped_surrogate(distribution, **each, clip=self.clip) + self.entropy_bonus * bonus

        def climb(before: tuple[Params, Any], picked: Array) -> tuple[tuple[Params, Any], None]:
            theta, optimiser = before
            gradient = jax.grad(objective)(theta, picked)
            norm = optax.tree.norm(gradient)
            shorter = jnp.minimum(1.0, self.max_gradient_norm / jnp.where(norm > 0, norm, 1.0))
            gradient = jax.tree.map(lambda g: shorter * g, gradient)
            direction, optimiser = _ADAM.update(gradient, optimiser, theta)
            return (optax.tree.add_scale(theta, rate, direction), optimiser), None

        (new, optimiser), _ = jax.lax.scan(climb, (params, state.optimiser), order)
        model, end = problem.linearise(params), problem.evaluate(new)
        start, gradient = model.evaluation, model.gradient
        no_signal = (optax.tree.max(jax.tree.map(jnp.abs, gradient)) == 0) & (self.entropy_bonus == 0)
        finite = all_finite((new, optimiser, end.surrogate, end.mean_kl))
        result = jnp.where(finite, Result.ACCEPTED, Result.NONFINITE_TRIAL)
        result = jnp.where(no_signal, Result.NO_SIGNAL, result)
        result = jnp.where(all_finite(gradient), result, Result.NONFINITE_GRADIENT)
        taken = result == Result.ACCEPTED
        after = PPOState(optimiser, state.updates + 1)
        new, after, end = tree_where(taken, (new, after, end), (params, state, start))
        return new, after, UpdateInfo.of(result, gradient, optax.tree.sub(new, params), start, end)

    def _order(self, problem: LocalProblem, updates: Array) -> Int[Array, "steps part"]:
        """Return the rows of every minibatch; those that don't fill one are left out of a pass."""
        rows = problem.rows
        assert rows is not None
        n = rows.count
        size = min(n, max(1, self.minibatch // (rows.shape[0] if rows.whole else 1)))
        # A rule is given no key: the order is a function of how many batches came before.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), updates), self.epochs)
        order = jax.vmap(lambda key: shuffled(key, n)[: n // size * size])(keys)
        return order.reshape(-1, size)
