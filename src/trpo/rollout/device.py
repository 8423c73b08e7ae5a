"""Single-path rollouts of environments in JAX, inside the compiled iteration."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo.envs.device import JaxEnv, batch
from trpo.envs.spec import EnvSpec
from trpo.policies.protocol import PolicyFunction
from trpo.rollout.acting import act
from trpo.rollout.episodes import EpisodeTotals
from trpo.rollout.trajectory import Actor, Trajectory
from trpo.trees import per_state


class DeviceRollout(eqx.Module):
    """Environments between two fragments; episodes cross fragment boundaries."""

    envs: batch.BatchState
    running_return: Float[Array, "n"]
    """Undiscounted return so far of each episode under way."""
    running_length: Int[Array, "n"]
    carry: Any
    """The policy's memory."""
    reset: Bool[Array, "n"]
    """Whether an episode begins with the next observation."""


@dataclasses.dataclass(frozen=True)
class DeviceSource:
    """Environments in JAX as a source: pure functions of a :class:`DeviceRollout`."""

    env: JaxEnv
    spec: EnvSpec
    """The environment's, with the options of a run."""

    def begin(self, key: Any, count: int, carry: Any) -> DeviceRollout:
        """Start an episode in each of ``count`` environments."""
        envs = batch.start(self.env, key, count)
        return DeviceRollout(envs, jnp.zeros(count), jnp.zeros(count, jnp.int32), carry, jnp.ones(count, bool))

    def restart(self, rollout: DeviceRollout) -> DeviceRollout:
        """Begin new episodes everywhere, as after a non-finite batch."""
        state, observation = batch.fresh(self.env, rollout.envs)
        return DeviceRollout(
            envs=batch.BatchState(state, observation, rollout.envs.key, rollout.envs.time + 1),
            running_return=jnp.zeros_like(rollout.running_return),
            running_length=jnp.zeros_like(rollout.running_length),
            carry=rollout.carry,
            reset=jnp.ones_like(rollout.reset),
        )

    def collect(
        self, policy: PolicyFunction, actor: Actor, rollout: DeviceRollout, noise: Any
    ) -> tuple[DeviceRollout, Trajectory, EpisodeTotals]:
        """Run as many steps in every environment as ``noise`` has rows (see :func:`~trpo.rollout.acting.noise_of`)."""
        return self.collect_with(policy, actor, rollout, noise)[:3]

    def collect_with(
        self,
        policy: PolicyFunction,
        actor: Actor,
        rollout: DeviceRollout,
        noise: Any,
        times: Int[Array, "strata n"] | None = None,
    ) -> tuple[DeviceRollout, Trajectory, EpisodeTotals, DeviceRollout | None]:
        """Do the same; return also what there was before the steps at ``times``, leaves ``[strata, N, …]``."""
        env, spaces = self.env, self.spec.action
        pool = None if env.cheap_reset else batch.fresh(env, rollout.envs)
        if pool is not None:  # its randomness is that of this time step, which must not serve twice
            rollout = eqx.tree_at(lambda r: r.envs.time, rollout, rollout.envs.time + 1)

        def one(now: tuple, given: tuple[Array, Any]) -> tuple[tuple, Any]:
            (before, kept), (t, noise_t) = now, given
            kept = kept if times is None else jax.tree.map(partial(_keep, times, t), kept, before)
            envs = before.envs
            step = envs.observation, before.carry, before.reset, noise_t
            action, carry = act(partial(policy, actor.params), actor, *step)
            initial = (lambda done: batch.fresh(env, envs)) if pool is None else (lambda done: pool)
            after, seen = batch.step(env, spaces, envs, action, initial)
            done = seen.terminated | seen.truncated
            total, length = before.running_return + seen.reward, before.running_length + 1
            following = DeviceRollout(after, jnp.where(done, 0.0, total), jnp.where(done, 0, length), carry, done)
            counted = done & jnp.isfinite(total)
            ended = EpisodeTotals(done, counted, jnp.where(counted, total, 0.0), jnp.where(counted, length, 0))
            return (following, kept), (envs.observation, action, seen, ended)

        carry, reset = rollout.carry, rollout.reset
        kept = None
        if times is not None:
            kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(times), *x.shape)), rollout)
        length = jax.tree.leaves(noise)[0].shape[0]
        (rollout, kept), (met, action, seen, ended) = jax.lax.scan(one, (rollout, kept), (jnp.arange(length), noise))
        trajectory = Trajectory(
            observation=met,
            action=action,
            reward=seen.reward,
            terminated=seen.terminated,
            truncated=seen.truncated,
            next_observation=seen.final_observation,
            valid=seen.valid,
            carry=carry,
            reset=reset,
        )
        return rollout, trajectory, jax.tree.map(jnp.sum, ended), kept


def _keep(times: Int[Array, "strata n"], t: Array, kept: Array, now: Array) -> Array:
    """Put ``now`` where its time is in ``kept`` ``[strata, N, …]``; no time is in two strata."""
    row = jnp.argmax(jnp.any(times == t, axis=1))
    return kept.at[row].set(jnp.where(per_state(times[row] == t, now), now, kept[row]))
