"""What a vine changes about an iteration: its plan, the roots, and what the value function is fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from trpo.distributions import Distribution
from trpo.envs.spaces import Box, Choice, Space
from trpo.envs.spec import EnvSpec
from trpo.policies.protocol import PolicyFunction
from trpo.rollout.vine import Branches, Plan
from trpo.settings.config import Config
from trpo.value_fits import ValueBatch
from trpo.vine import Roots, drawn_from, roots_in, state_values

Rows = Callable[[Any], Any]


def plan_of(config: Config, spec: EnvSpec, value: PolicyFunction) -> Plan | None:
    """Return the plan of a configuration; None for single-path rollouts.

    Raises:
        ValueError: no root, a single sampled action, a proposal that these actions do not have, a value function with
            memory.
    """
    if config.rollout != "vine":
        return None
    vine, space, k = config.vine, spec.action, config.vine.actions
    if vine.every > config.fragment:
        raise ValueError(
            f"vine.every={vine.every}: leaves no root in a fragment of {config.fragment} steps; use at most that"
        )
    if config.env.stagger:
        raise ValueError("env.stagger=True: rollout='vine' does not use it; leave it at False")
    if jax.tree.leaves(value.start(1)):
        raise ValueError("rollout='vine': branches need a value function without memory; the policy may have one")
    proposal = vine.proposal
    if proposal == "auto":
        proposal = "all" if isinstance(space, Choice) and space.n <= k else "policy"
    if proposal == "all":
        if not isinstance(space, Choice):
            raise ValueError(f"vine.proposal='all': actions of {space} cannot be listed; use policy")
        k = space.n
    elif k < 2:
        raise ValueError(f"vine.actions={k}: one sampled action is compared with none; use at least 2, 8 is usual")
    if proposal == "uniform" and spec.masked:
        raise ValueError(f"vine.proposal='uniform': environment {spec.id!r} forbids actions; use all or policy")
    if proposal == "uniform" and not _is_bounded(space):
        raise ValueError(f"vine.proposal='uniform': actions of {space} have no uniform distribution; use policy")
    return Plan(
        space=space,
        every=vine.every,
        length=vine.length,
        actions=k,
        proposal=proposal,
        masked=spec.masked and proposal == "all",
        over_trunk=vine.kl == "trunk",
        fit_roots=vine.targets == "both",
        monte_carlo=vine.branch_lambda == 1,
    )


def _is_bounded(space: Space) -> bool:
    if not isinstance(space, Box):
        return isinstance(space, Choice)
    return space.rescale and bool(np.isfinite(np.asarray((np.min(space.low), np.max(space.high)), float)).all())


def roots_of(plan: Plan, branches: Branches, seen: PyTree, weight: Float[Array, "time env"]) -> Roots:
    """Return the roots of a vine, with what the policy saw there; ``weight`` is that of the trunk's steps."""
    place = branches.time, jnp.broadcast_to(jnp.arange(branches.time.shape[1]), branches.time.shape)
    at_roots = weight[place]
    return Roots(
        observation=jax.tree.map(lambda leaf: leaf[place], seen),
        action=branches.action,
        q=branches.q,
        weight=at_roots / jnp.maximum(jnp.sum(at_roots), jnp.finfo(weight.dtype).tiny),
        # A uniform proposal's density is a constant, and only differences of log q matter.
        proposal_log_prob=jnp.zeros_like(branches.q) if plan.proposal == "uniform" else None,
        place=place,
        complete=plan.proposal == "all",
    )


def with_roots(data: ValueBatch, plan: Plan, roots: Roots, old: Distribution, rows: Rows) -> ValueBatch:
    """Return a value function's data with the roots' values under π_old beside it, each weighing as a step does.

    ``old`` are the distributions of the local problem, ``rows`` brings what has axes of time and environment into the
    form that ``data`` has.
    """
    at = roots_in(old, roots, plan.over_trunk)
    target = state_values(at, drawn_from(at, roots))
    # Their weights sum to 1, as those of the data do: of so many steps so many are roots.
    share = jnp.count_nonzero(roots.weight) / jnp.maximum(jnp.count_nonzero(data.weight), 1)
    more = ValueBatch(*jax.tree.map(rows, (roots.observation, target, share * roots.weight)))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=data.weight.ndim - 1), data, more)
    return dataclasses.replace(both, weight=both.weight / jnp.sum(both.weight))
