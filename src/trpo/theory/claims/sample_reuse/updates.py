"""Batches of finite MDPs, and several updates on one batch by the library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.problem import Batch, LocalProblem, sampled_problem
from trpo.rules import TRPO, Repeated
from trpo.theory.claims.sample_reuse.oracle import Facts
from trpo.theory.shared.ensemble import Group
from trpo.trees import tree_where

UPDATES = (1, 2, 4, 8)
"""K, the updates that one batch serves."""
MOST = UPDATES[-1]
BEGINS = np.cumsum((0, *UPDATES))
"""Where the K updates of each K begin in the schedule; the last entry is where the re-anchored ones do."""
ENDS = BEGINS[1:] - 1
"""The last update of each K, within a cumulative δ."""
ANCHORED = BEGINS[-1] + np.array(UPDATES) - 1
"""The K-th re-anchored update."""


def draw_batch(facts: Facts, samples: int, rng: np.random.Generator) -> Batch:
    """Draw ``samples`` pairs s ~ d_π, a ~ π with noisy advantages, or take the expectation if 0.

    A batch's L and D̄ depend on it only through how often each (s, a) occurs and the mean of its advantages, so the
    batch lists each (s, a) once with its frequency as weight: batches of every size have one shape.
    """
    joint = facts.weight[..., None] * facts.policy
    n, states, actions = joint.shape
    weight, advantage = joint, facts.advantage
    if samples > 0:
        joint = joint / joint.sum(axis=(-2, -1), keepdims=True)
        count = rng.multinomial(samples, joint.reshape(n, -1)).reshape(joint.shape)
        noise = facts.deviation * rng.standard_normal(joint.shape) / np.sqrt(np.maximum(count, 1))
        weight, advantage = count / samples, advantage + noise
    state = np.broadcast_to(np.arange(states)[:, None], joint.shape)
    action = np.broadcast_to(np.arange(actions), joint.shape)
    return Batch(*map(jnp.asarray, (state, action, advantage, weight)))


def features(group: Group, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return φ(s, a) of the table, and of policies that share S·A/3 parameters; ``[n, S, A, S·A]`` both.

    The shared ones are padded by zeros, so that one compiled program serves both.
    """
    n, states, actions = group.logits.shape
    total = states * actions
    shared = rng.standard_normal((n, states, actions, total))
    shared[..., max(2, total // 3) :] = 0.0
    table = np.eye(total).reshape(states, actions, total)
    return {"table": np.broadcast_to(table, shared.shape), "shared": shared}


class Schedule(NamedTuple):
    """What every update of one scan does: first all K cumulative updates for each K, then the re-anchored ones."""

    restart: Any
    """Whether it begins at θ_old."""
    fraction: Any
    """Its bound on the mean KL, in units of δ."""
    anchored: Any
    """Whether the KL is measured from the present policy, not from the sampling one."""


def schedule() -> Schedule:
    """Return k/K of δ from the sampling policy for K = 1, 2, 4, 8, then δ from the present policy eight times."""
    rows = [(k == 0, (k + 1) / count, False) for count in UPDATES for k in range(count)]
    rows += [(k == 0, 1.0, True) for k in range(MOST)]
    return Schedule(*(np.asarray(column) for column in zip(*rows, strict=True)))


def rule(max_kl: Any, parameters: int) -> TRPO:
    """Return the rule under test: a nearly undamped solve to the end, and steps of any norm."""
    return TRPO(max_kl, 1e-9, parameters, cg_tolerance=1e-14, max_step_norm=1e6, use_measured_kl=True)


def local_problem(features: jax.Array, base: jax.Array, batch: Batch) -> LocalProblem:
    """Return the sampled problem of the policy with logits base(s, a) + φ(s, a)ᵀθ around θ = 0."""

    def policy(theta: jax.Array, state: jax.Array) -> Categorical:
        # The batch lists every (s, a) in order, so looking up a row's state is repeating each state's logits.
        logits = base + features @ theta
        return Categorical(jnp.broadcast_to(logits[:, None, :], (*state.shape, logits.shape[-1])))

    return sampled_problem(policy, jnp.zeros(features.shape[-1]), batch)


def _compiled(one: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    """Map (features, base logits, batch, …) ↦ θ over MDPs: a function of facts, features, batch and the rest."""
    every = jax.jit(jax.vmap(one))
    return lambda facts, features, batch, *rest: np.asarray(
        every(*map(jnp.asarray, (features, facts.group.logits)), batch, *map(jnp.asarray, rest))
    )


def compiled() -> Callable[..., np.ndarray]:
    """Return (facts, features, batch, δ ``[n]``) ↦ θ after every update of the schedule, ``[n, updates, S·A]``."""
    plan = jax.tree.map(jnp.asarray, schedule())

    def one(features: jax.Array, base: jax.Array, batch: Batch, max_kl: jax.Array) -> jax.Array:
        problem = local_problem(features, base, batch)
        theta_old = jnp.zeros(features.shape[-1])

        def update(theta: jax.Array, row: Schedule) -> tuple[jax.Array, jax.Array]:
            theta = jnp.where(row.restart, theta_old, theta)
            anchor = tree_where(row.anchored, problem.distributions(theta), problem.old)
            present = dataclasses.replace(problem, old=anchor)
            theta, _, _ = rule(max_kl * row.fraction, features.shape[-1]).update(present, theta, ())
            return theta, theta

        return jax.lax.scan(update, theta_old, plan)[1]

    return _compiled(one)


def learner_updates(max_kl: float, count: int) -> Callable[..., np.ndarray]:
    """Return (facts, features, batch) ↦ θ after ``count`` updates by what the learner calls, ``[n, S·A]``."""

    def one(features: jax.Array, base: jax.Array, batch: Batch) -> jax.Array:
        theta = jnp.zeros(features.shape[-1])
        return Repeated(rule(max_kl, theta.size), count).update(local_problem(features, base, batch), theta, ())[0]

    return _compiled(one)
