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
from trpo.envs.device import JaxEnv
from trpo.envs.device.returned import stepped
from trpo.envs.spaces import Box, Choice
from trpo.policies.protocol import PolicyFunction
from trpo.rollout.acting import act, noise_of
from trpo.rollout.device import DeviceRollout, DeviceSource
from trpo.rollout.episodes import EpisodeTotals
from trpo.rollout.trajectory import Actor, Trajectory
from trpo.settings.config import Config
from trpo.types import Scalar

ActIn = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""(observation, carry, reset, noise) ↦ (action, carry): π_old."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about a vine."""

    every: int
    length: int
    actions: int
    """K, branches of a root."""
    proposal: str
    """``all``, ``policy`` or ``uniform``."""
    kl: str
    targets: str
    monte_carlo: bool
    """Whether V is asked at the ends of branches alone."""

    @classmethod
    def of(cls, config: Config, space: Space) -> Plan | None:
        """Take it from a configuration; None for single-path rollouts.

        Raises:
            ValueError: no root, a single sampled action, or a proposal that these actions do not have.
        """
        if config.rollout != "vine":
            return None
        vine, proposal, k = config.vine, config.vine.proposal, config.vine.actions
        if vine.every > config.fragment:
            raise ValueError(
                f"vine.every={vine.every}: leaves no root in a fragment of {config.fragment} steps; use at most that"
            )
        if proposal == "auto":
            proposal = "all" if isinstance(space, Choice) and space.n <= k else "policy"
        if proposal == "all":
            if not isinstance(space, Choice):
                raise ValueError(f"vine.proposal='all': actions of {space} cannot be listed; use policy")
            k = space.n
        elif k < 2:
            raise ValueError(f"vine.actions={k}: one sampled action is compared with none; use at least 2, 8 is usual")
        if proposal == "uniform" and not _bounded(space):
            raise ValueError(f"vine.proposal='uniform': actions of {space} have no uniform distribution; use policy")
        return cls(vine.every, vine.length, k, proposal, vine.kl, vine.targets, vine.branch_lambda == 1)

    def branch_steps(self, count: int, fragment: int) -> int:
        """Return the most steps that the branches of one iteration take."""
        return count * (fragment // self.every) * self.actions * self.length


def _bounded(space: Space) -> bool:
    return isinstance(space, Choice) or (isinstance(space, Box) and space.rescale)


class Branches(eqx.Module):
    """What a vine adds to a trajectory, ``[strata, env, K]``."""

    time: Int[Array, "strata env"]
    """When each root was met."""
    action: PyTree[Shaped[Array, "strata env k ..."]]
    q: Float[Array, "strata env k"]
    """Q̂(s, a)."""
    steps: Int[Array, ""]


class Start(eqx.Module):
    """Where branches begin: environments' own states with what a policy meets in them, leaves ``[R, …]``."""

    env: Any
    observation: PyTree[Shaped[Array, "r ..."]]
    carry: Any
    reset: Bool[Array, "r"]


class Followed(eqx.Module):
    """What came of each action."""

    q: Float[Array, "r k"]
    """Q̂(s, a)."""
    steps: Int[Array, ""]
    """Simulator steps that it took: a branch ends with its episode."""


def vine_keys(key: PRNGKeyArray, iteration: Any) -> Key[Array, "4"]:
    """Return an iteration's keys for times of roots, first actions, noise of branches and their environments."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, iteration), 0x71E), 4)


def chosen_times(key: PRNGKeyArray, length: int, every: int, count: int) -> Int[Array, "strata env"]:
    """Draw the times of the roots: one of every ``every`` steps of each environment, uniformly and independently."""
    strata = length // every
    offset = jax.random.randint(key, (strata, count), 0, every)
    return jnp.arange(strata)[:, None] * every + offset


def follow(
    env: JaxEnv,
    actions: Space,
    act: ActIn,
    value: Callable[[Any], Array],
    start: Start,
    first: PyTree[Shaped[Array, "r k ..."]],
    noise: PyTree[Shaped[Array, "length r ..."]],
    keys: Key[Array, "r"],
    discount: float | Scalar,
    branch_lambda: float | Scalar,
) -> Followed:
    """Take each of K actions in each of R states, then follow the policy for the rest of ``length`` steps.

        Q̂(s, a) = G_0,   G_t = r_t + γ [(1 − λ) V(s_{t+1}) + λ G_{t+1}],   G at the branch's end = r + γ V

    with V = 0 after termination. The K branches of a root share the environment's key and the policy's noise at each
    step (common random numbers): what differs between them is what the action made of it.

    Args:
        env: the environment, one copy.
        actions: its action space, which converts the policy's actions.
        act: π_old, for any number of states at once.
        value: V of raw observations, in units of reward.
        start: the roots.
        first: the actions, as the policy means them.
        noise: the policy's standard noise of each step (the first step's goes unused) and root.
        keys: the environment's randomness, one key a root.
        discount: γ.
        branch_lambda: λ inside the branch; 1 is the paper's Monte Carlo sum.
    """
    length = jax.tree.leaves(noise)[0].shape[0]
    roots, k = jax.tree.leaves(first)[0].shape[:2]

    def spread(x: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, k, axis=0), x)

    first = jax.tree.map(lambda leaf: leaf.reshape(roots * k, *leaf.shape[2:]), first)
    begin = spread(start)
    dtype = jnp.result_type(float)

    def step(now: tuple, given: tuple[Array, Any]) -> tuple[tuple, None]:
        here, alive, factor, q, steps = now
        t, noise_t = given
        action, carry = act(here.observation, here.carry, here.reset, spread(noise_t))
        action = jax.tree.map(lambda a, b: jnp.where(t == 0, a.astype(b.dtype), b), first, action)
        key = spread(jax.vmap(lambda one: jax.random.fold_in(one, t))(keys))
        state, seen = jax.vmap(lambda *x: stepped(env, *x))(here.env, actions.to_env(action), key)
        closing = jnp.where(seen.terminated, 0.0, value(seen.observation))
        done = seen.terminated | seen.truncated
        share = jnp.where(done | (t == length - 1), 1.0, 1.0 - branch_lambda)
        q = q + jnp.where(alive, factor * (seen.reward + discount * share * closing), 0.0)
        steps = steps + jnp.sum(alive, dtype=jnp.int32)
        after = Start(state, seen.observation, carry, jnp.zeros_like(here.reset))
        here = jax.tree.map(lambda new, old: new.astype(old.dtype), after, here)
        return (here, alive & ~done, factor * discount * branch_lambda, q, steps), None

    nothing = jnp.zeros(roots * k, dtype)
    initial = (begin, jnp.ones(roots * k, bool), jnp.ones((), dtype), nothing, jnp.zeros((), jnp.int32))
    (_, _, _, q, steps), _ = jax.lax.scan(step, initial, (jnp.arange(length), noise))
    return Followed(q.reshape(roots, k), steps)


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
    rollout, trajectory, episodes, kept = source.collect_with(policy, actor, rollout, noise, keep=True)
    count = rollout.reset.shape[0]
    times_key, draw_key, noise_key, env_key = keys
    time = chosen_times(times_key, trajectory.reward.shape[0], plan.every, count)
    columns = jnp.arange(count)

    def at_roots(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[time, columns].reshape(-1, *leaf.shape[2:]), tree)

    env, carry, reset = at_roots(kept)
    start = Start(env, at_roots(trajectory.observation), carry, reset)
    step = partial(act, partial(policy, actor.params), actor)
    roots = time.size
    first = _first_actions(plan, policy, actor, source.spec.action, start, draw_key)
    followed = follow(
        source.env,
        source.spec.action,
        step,
        value,
        start,
        first,
        noise_of(policy, actor, roots, (plan.length,), noise_key),
        jax.random.split(env_key, roots),
        discount,
        branch_lambda,
    )

    def apart(leaf: Array) -> Array:
        return leaf.reshape(*time.shape, *leaf.shape[1:])

    action, q = jax.tree.map(apart, (first, followed.q))
    return rollout, trajectory, episodes, Branches(time, action, q, followed.steps)


def _first_actions(
    plan: Plan, policy: PolicyFunction, actor: Actor, space: Space, start: Start, key: PRNGKeyArray
) -> Any:
    """Return the actions that branches begin with, leaves ``[R, K, …]``."""
    roots = start.reset.shape[0]
    if plan.proposal != "policy":
        return listed_actions(plan, space, (roots,), key)
    distribution, _ = policy(actor.params, start.carry, (actor.see(start.observation), start.reset))
    action = jax.vmap(distribution.transform)(distribution.noise(key, (plan.actions,)))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), action)


def listed_actions(plan: Plan, space: Space, roots: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """Return first actions that need no policy, ``[*roots, K, …]``: all there are, or uniform ones."""
    shape = (*roots, plan.actions)
    if plan.proposal == "all":
        return jnp.broadcast_to(jnp.arange(plan.actions), shape)
    if isinstance(space, Choice):
        return jax.random.randint(key, shape, 0, space.n)
    assert isinstance(space, Box)
    return jax.random.uniform(key, (*shape, space.size), minval=-1.0, maxval=1.0)
