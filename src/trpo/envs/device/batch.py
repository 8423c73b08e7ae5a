"""N copies of a JAX environment: batching, actions, time and new episodes (pure functions)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray, UInt32

from trpo.envs import Space, Transition, Tree
from trpo.envs.device.protocol import JaxEnv
from trpo.envs.device.returned import begun, stepped
from trpo.trees import per_state


class BatchState(eqx.Module):
    """N environments between two steps."""

    env: Any
    """The environments' own states, with a leading axis N."""
    observation: Tree
    """What the policy sees next."""
    key: Key[Array, "n"]
    """Constant; the randomness of step t is a function of it and t alone, however environments are spread."""
    time: UInt32[Array, "n"]
    """Steps that each environment has taken since the run began."""


def start(env: JaxEnv, key: PRNGKeyArray, count: int) -> BatchState:
    """Begin an episode in each of ``count`` environments; environment i's key comes from its index i."""
    return start_each(env, jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count)))


def start_each(env: JaxEnv, keys: Key[Array, "n"]) -> BatchState:
    """Begin an episode in one environment for each key."""
    state, observation = jax.vmap(lambda k: begun(env, jax.random.fold_in(k, 1)))(keys)
    # A state made from Python numbers has weak types, which would change after the first step.
    state, observation = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), (state, observation))
    return BatchState(state, observation, keys, jnp.ones(keys.shape, jnp.uint32))


def fresh(env: JaxEnv, batch: BatchState) -> tuple[Any, Tree]:
    """Draw an initial state and observation for each environment, from its key and time."""
    state, observation = jax.vmap(partial(begun, env))(_keys(batch, 1))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), (state, observation), (batch.env, batch.observation))


def fresh_if_any(env: JaxEnv, batch: BatchState, done: Array) -> tuple[Any, Tree]:
    """Draw initial states only if an episode has ended somewhere; the others are then of no use."""
    return jax.lax.cond(done.any(), lambda: fresh(env, batch), lambda: (batch.env, batch.observation))


def _keys(batch: BatchState, purpose: int) -> Key[Array, "n"]:
    return jax.vmap(lambda key, time: jax.random.fold_in(key, 2 * time + purpose))(batch.key, batch.time)


def step(
    env: JaxEnv,
    actions: Space,
    batch: BatchState,
    action: Tree,
    initial: Callable[[Array], tuple[Any, Tree]],
    info: tuple[str, ...] = (),
) -> tuple[BatchState, Transition]:
    """Apply the policy's raw actions ``[N, …]``, converted by ``actions``; go on from a new state where one ended.

    ``initial`` returns the states and observations to begin from, given where episodes have ended. ``info``
    are the keys that are read of what an environment tells besides.
    """
    following, seen = jax.vmap(partial(stepped, env, info))(batch.env, actions.to_env(action), _keys(batch, 0))
    done = seen.terminated | seen.truncated
    state, first = initial(done)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(per_state(done, new), new, old.astype(new.dtype))

    state, observation = jax.tree.map(choose, (state, first), (following, seen.observation))
    after = BatchState(state, observation, batch.key, batch.time + 1)
    # An environment may set both flags; the future of an absorbing state is worth 0 whatever the clock says.
    truncated = seen.truncated & ~seen.terminated
    valid = jnp.ones_like(done)
    arrays: Any = (after.observation, seen.reward, seen.terminated, truncated, seen.observation, valid, seen.info)
    return after, Transition(*arrays)
