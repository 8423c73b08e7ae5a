"""Single-path rollouts of JAX environments, inside the compiled iteration."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo.envs.device import JaxEnv, batch
from trpo.problem import PolicyFunction
from trpo.rollout.acting import act
from trpo.rollout.episodes import EpisodeTotals
from trpo.rollout.trajectory import Actor, Trajectory


class DeviceRollout(eqx.Module):
    """Environments between two fragments; episodes cross fragment boundaries."""

    envs: batch.BatchState
    running_return: Float[Array, "n"]
    """Undiscounted return so far of each episode under way."""
    running_length: Int[Array, "n"]


def begin(env: JaxEnv, key: Any, count: int) -> DeviceRollout:
    """Start an episode in each of ``count`` environments."""
    return DeviceRollout(batch.start(env, key, count), jnp.zeros(count), jnp.zeros(count, jnp.int32))


def restart(env: JaxEnv, rollout: DeviceRollout) -> DeviceRollout:
    """Begin new episodes everywhere, as after a non-finite batch."""
    state, observation = batch.fresh(env, rollout.envs)
    envs = batch.BatchState(state, observation, rollout.envs.key, rollout.envs.time + 1)
    return DeviceRollout(envs, jnp.zeros_like(rollout.running_return), jnp.zeros_like(rollout.running_length))


def collect(
    env: JaxEnv, policy: PolicyFunction, actor: Actor, rollout: DeviceRollout, noise: Any, rescale: bool
) -> tuple[DeviceRollout, Trajectory, EpisodeTotals]:
    """Run as many steps in every environment as ``noise`` has rows (see :func:`~trpo.rollout.acting.noise_of`)."""
    pool = None if env.cheap_reset else batch.fresh(env, rollout.envs)
    if pool is not None:  # its randomness is that of this time step, which must not serve twice
        rollout = eqx.tree_at(lambda r: r.envs.time, rollout, rollout.envs.time + 1)

    def one(carry: DeviceRollout, noise_t: Any) -> tuple[DeviceRollout, tuple]:
        envs = carry.envs
        action, distribution = act(partial(policy, actor.params), actor.normaliser, envs.observation, noise_t)
        log_prob = distribution.log_prob(action)
        initial = (lambda done: batch.fresh(env, envs)) if pool is None else (lambda done: pool)
        after, seen = batch.step(env, envs, action, rescale, initial)
        done = seen.terminated | seen.truncated
        total, length = carry.running_return + seen.reward, carry.running_length + 1
        following = DeviceRollout(after, jnp.where(done, 0.0, total), jnp.where(done, 0, length))
        row = (envs.observation, action, log_prob, *seen[1:4], seen.final_observation, seen.valid)
        counted = done & jnp.isfinite(total)
        totals = (done, counted, jnp.where(counted, total, 0.0), jnp.where(counted, length, 0))
        return following, (row, totals)

    rollout, (rows, totals) = jax.lax.scan(one, rollout, noise)
    ended, counted, returns, lengths = (jnp.sum(column) for column in totals)
    return rollout, Trajectory(*rows), EpisodeTotals(ended, counted, returns, lengths)
