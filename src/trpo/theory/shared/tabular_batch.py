"""Batches of a finite MDP for the library's sampled problem: states are integers, the policy is a table of logits."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo.distributions import Categorical
from trpo.problem import Batch


def table_policy(logits: Float[Array, "s a"], state: Int[Array, "*batch"]) -> Categorical:
    """Return π_θ(·|s) of soft-max logits for any array of states."""
    return Categorical(logits[state])


def enumerated_batch(weight: Float[Array, " s"], policy: Float[Array, "s a"], advantage: Float[Array, "s a"]) -> Batch:
    """Return the batch that lists every (s, a) once, with weight w(s) π(a|s): the expectation over samples, exactly."""
    states, actions = policy.shape
    pairs = weight[:, None] * policy
    return Batch(
        observation=jnp.repeat(jnp.arange(states), actions),
        action=jnp.tile(jnp.arange(actions), states),
        advantage=advantage.ravel(),
        weight=pairs.ravel(),
    )
