"""Vine rollouts of environments in JAX: branches from states of a trunk, with common random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, Shaped

from trpo.envs import Space
from trpo.envs.device.returned import stepped
from trpo.envs.masks import MASK
from trpo.envs.spaces import Box, Choice
from trpo.policies.protocol import PolicyFunction
from trpo.rollout.acting import act, noise_of
from trpo.rollout.device import DeviceRollout, DeviceSource
from trpo.rollout.episodes import EpisodeTotals
from trpo.rollout.trajectory import Actor, Trajectory
from trpo.trees import per_state
from trpo.types import Scalar
from trpo.vine import branch_returns

ActIn = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""(observation, carry, reset, noise) ↦ (action, carry): π_old."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about a vine."""

    space: Space
    """Of actions."""
    every: int
    """One of so many states is a root."""
    length: int
    """Steps of a branch, at most."""
    actions: int
    """K, branches of a root."""
    proposal: str
    """``all``, ``policy`` or ``uniform``."""
    masked: bool
    """Whether some of all the actions may be forbidden: these are not followed."""
    over_trunk: bool
    """Whether KL and Fisher products are over all states of the trunk."""
    fit_roots: bool
    """Whether the value function is fitted to the roots' values too."""
    monte_carlo: bool
    """Whether λ = 1 inside branches: V is asked at their ends alone."""

    def branch_steps(self, count: int, fragment: int) -> int:
        """Return the most steps that the branches of one iteration take."""
        return count * (fragment // self.every) * self.actions * self.length


class Branches(eqx.Module):
    """What a vine adds to a trajectory."""

    time: Int[Array, "strata env"]
    """When each root was met."""
    action: PyTree[Shaped[Array, "strata env k ..."]]
    """What each branch began with, as the policy means it."""
    q: Float[Array, "strata env k"]
    """Q̂(s, a)."""
    steps: Int[Array, ""]
    """Simulator steps that all branches took: a branch ends with its episode."""


class Start(eqx.Module):
    """Where branches begin: environments' own states with what a policy meets in them, leaves ``[R, …]``."""

    env: Any
    observation: PyTree[Shaped[Array, "r ..."]]
    carry: Any
    reset: Bool[Array, "r"]


def vine_keys(key: PRNGKeyArray, iteration: Any) -> Key[Array, "4"]:
    """Return an iteration's keys for times of roots, first actions, noise of branches and their environments."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, iteration), 0x71E), 4)


def chosen_times(key: PRNGKeyArray, length: int, every: int, count: int) -> Int[Array, "strata env"]:
    """Draw the times of the roots: one of every ``every`` steps of each environment, uniformly and independently."""
    strata = length // every
    offset = jax.random.randint(key, (strata, count), 0, every)
    return jnp.arange(strata)[:, None] * every + offset


def follow(
    source: DeviceSource,
    act: ActIn,
    value: Callable[[Any], Array],
    start: Start,
    first: PyTree[Shaped[Array, "r k ..."]],
    noise: PyTree[Shaped[Array, "length r ..."]],
    keys: Key[Array, "r"],
    discount: float | Scalar,
    branch_lambda: float | Scalar | None,
    allowed: Bool[Array, "r k"] | None = None,
) -> tuple[Float[Array, "r k"], Int[Array, ""]]:
    """Take each of K actions in each of R states, then follow the policy for the rest of ``length`` steps.

    The K branches of a root share the environment's key and the policy's noise at each step (common random numbers):
    what differs between them is what the action made of it.

    Args:
        source: the environment.
        act: π_old, for any number of states at once.
        value: V of raw observations, in units of reward.
        start: the roots.
        first: the actions, as the policy means them.
        noise: the policy's standard noise of each step (the first step's goes unused) and root.
        keys: the environment's randomness, one key a root.
        discount: γ.
        branch_lambda: λ inside the branch; None is 1, with V asked at the branches' ends alone.
        allowed: which of the actions may be taken, all if None. Q̂ of the others is 0.

    Returns:
        Q̂ (:func:`~trpo.vine.branch_returns`), and how many steps were taken.
    """
    env, to_env = source.env, source.spec.action.to_env
    length = jax.tree.leaves(noise)[0].shape[0]
    roots, k = jax.tree.leaves(first)[0].shape[:2]

    def spread(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, k, axis=0), tree)

    first = jax.tree.map(lambda leaf: leaf.reshape(roots * k, *leaf.shape[2:]), first)
    taken = jnp.ones(roots * k, bool) if allowed is None else allowed.ravel()

    def step(now: tuple, given: tuple[Array, Any]) -> tuple[tuple, tuple]:
        (here, alive, terminated), (t, noise_t) = now, given
        action, carry = act(here.observation, here.carry, here.reset, spread(noise_t))
        begins = (t == 0) & taken  # in place of a forbidden action the policy's own is taken, which counts for nothing
        action = jax.tree.map(lambda a, b: jnp.where(per_state(begins, b), a.astype(b.dtype), b), first, action)
        key = spread(jax.vmap(lambda one: jax.random.fold_in(one, t))(keys))
        state, seen = jax.vmap(partial(stepped, env))(here.env, to_env(action), key)
        after = Start(state, seen.observation, carry, jnp.zeros_like(here.reset))
        # A branch that has ended stays where it did, for V to be asked there.
        here = jax.tree.map(lambda new, old: jnp.where(per_state(alive, old), new.astype(old.dtype), old), after, here)
        met = seen.reward, alive, () if branch_lambda is None else value(here.observation)
        ends = seen.terminated | seen.truncated
        return (here, alive & ~ends, terminated | (alive & seen.terminated)), met

    begin = spread(start), taken, jnp.zeros(roots * k, bool)
    (here, _, terminated), (reward, alive, v) = jax.lax.scan(step, begin, (jnp.arange(length), noise))
    if branch_lambda is None:
        v, branch_lambda = value(here.observation)[None], 1.0
    q = branch_returns(reward, alive, terminated, v, discount, branch_lambda)
    return q.reshape(roots, k), jnp.sum(alive, dtype=jnp.int32)


def collect(
    source: DeviceSource,
    plan: Plan,
    policy: PolicyFunction,
    actor: Actor,
    value: Callable[[Any], Array],
    rollout: DeviceRollout,
    noise: Any,
    keys: Key[Array, "4"],
    discount: float | Scalar,
    branch_lambda: float | Scalar,
) -> tuple[DeviceRollout, Trajectory, EpisodeTotals, Branches]:
    """Run the trunk as :meth:`DeviceSource.collect` does, then the branches from a share of its states."""
    times_key, draw_key, noise_key, env_key = keys
    length, count = jax.tree.leaves(noise)[0].shape[0], rollout.reset.shape[0]
    time = chosen_times(times_key, length, plan.every, count)
    rollout, trajectory, episodes, kept = source.collect_with(policy, actor, rollout, noise, time)
    assert kept is not None
    at = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
    start = Start(at.envs.env, at.envs.observation, at.carry, at.reset)
    first = _first_actions(plan, policy, actor, start, draw_key)
    q, steps = follow(
        source,
        partial(act, partial(policy, actor.params), actor),
        value,
        start,
        first,
        noise_of(policy, actor, time.size, (plan.length,), noise_key),
        jax.random.split(env_key, time.size),
        discount,
        None if plan.monte_carlo else branch_lambda,
        start.observation[MASK] > 0 if plan.masked else None,
    )
    action, q = jax.tree.map(lambda leaf: leaf.reshape(*time.shape, *leaf.shape[1:]), (first, q))
    return rollout, trajectory, episodes, Branches(time, action, q, steps)


def _first_actions(plan: Plan, policy: PolicyFunction, actor: Actor, start: Start, key: PRNGKeyArray) -> Any:
    """Return the actions that branches begin with, leaves ``[R, K, …]``."""
    roots = start.reset.shape[0]
    if plan.proposal != "policy":
        return listed_actions(plan, (roots,), key)
    distribution, _ = policy(actor.params, start.carry, (actor.see(start.observation), start.reset))
    action = jax.vmap(distribution.transform)(distribution.noise(key, (plan.actions,)))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), action)


def listed_actions(plan: Plan, roots: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """Return first actions that need no policy, ``[*roots, K, …]``: all there are, or uniform ones."""
    space, shape = plan.space, (*roots, plan.actions)
    if plan.proposal == "all":
        return jnp.broadcast_to(jnp.arange(plan.actions), shape)
    if isinstance(space, Choice):
        return jax.random.randint(key, shape, 0, space.n)
    assert isinstance(space, Box)
    return jax.random.uniform(key, (*shape, space.size), minval=-1.0, maxval=1.0)
