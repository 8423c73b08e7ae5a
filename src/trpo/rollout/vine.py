"""Vine rollouts of environments in JAX: branches from states of a trunk, with common random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, Shaped

from trpo.envs import Space
from trpo.envs.device import JaxEnv
from trpo.envs.device.returned import stepped
from trpo.types import Scalar

ActIn = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""(observation, carry, reset, noise) ↦ (action, carry): π_old."""


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
