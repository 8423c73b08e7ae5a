"""Single-path rollouts of host environments, fragments of which may be done by several processes (L6)."""

from __future__ import annotations

import collections
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np

from trpo.envs import HostEnv, RestartableEnv, SplitEnv, Transition
from trpo.problem import PolicyFunction
from trpo.rollout.host_policy import FragmentPolicy, HostPolicy, fragment_policy
from trpo.rollout.trajectory import Actor, Trajectory

RECENT = 100
"""Episodes over which return and length are averaged."""
BLOCK = 4
"""Rows for which, in a multiple, a matrix product treats every row alike, so that they may be computed apart."""


class EpisodeStatistics:
    """Returns and lengths of episodes, from raw rewards, across fragments."""

    def __init__(self, count: int):
        self.running_return = np.zeros(count, np.float64)
        self.running_length = np.zeros(count, np.int64)
        self.returns: collections.deque[float] = collections.deque(maxlen=RECENT)
        self.lengths: collections.deque[int] = collections.deque(maxlen=RECENT)
        self.episodes = 0
        self.first = np.ones(count, bool)
        """Whether an environment is still in its first episode."""

    def add(self, reward: np.ndarray, done: np.ndarray, valid: np.ndarray) -> None:
        """Record some vector steps, arrays ``[time, env]``."""
        counted = np.where(valid, reward, 0.0)
        begin = 0
        for end in (np.flatnonzero(done.any(1)) + 1).tolist():
            self._go_on(counted[begin:end], valid[begin:end])
            self._end(done[end - 1])
            begin = end
        self._go_on(counted[begin:], valid[begin:])

    def _go_on(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Record steps between ends of episodes."""
        # A running sum, not ``sum``: it adds in the order of time, so what is added at once does not matter.
        self.running_return = np.cumsum(np.concatenate([self.running_return[None], reward]), 0, np.float64)[-1]
        self.running_length += valid.sum(0)

    def _end(self, done: np.ndarray) -> None:
        """Close the books of the episodes that ended."""
        # An episode with a NaN reward has no return; counted in, it would hide the next hundred.
        for i in np.flatnonzero(done & np.isfinite(self.running_return)):
            self.returns.append(float(self.running_return[i]))
            self.lengths.append(int(self.running_length[i]))
        self.episodes += int(done.sum())
        self.running_return[done] = 0.0
        self.running_length[done] = 0
        self.first[done] = False

    def forget(self, which: np.ndarray) -> None:
        """Forget the episodes under way in some environments, which count as their first."""
        self.running_return[which] = 0.0
        self.running_length[which] = 0
        self.first[which] = False

    def restart(self) -> None:
        """Forget episodes under way: their environments were reset."""
        self.running_return[:] = 0.0
        self.running_length[:] = 0
        self.first[:] = True

    def to_json(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {
            "running_return": self.running_return.tolist(),
            "running_length": self.running_length.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "episodes": self.episodes,
            "first": self.first.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpisodeStatistics:
        """Read what :meth:`to_json` wrote."""
        self = cls(len(data["running_return"]))
        self.running_return[:] = data["running_return"]
        self.running_length[:] = data["running_length"]
        self.returns.extend(data["returns"])
        self.lengths.extend(data["lengths"])
        self.episodes = data["episodes"]
        self.first[:] = data.get("first", False)  # older checkpoints don't have it
        return self


def run_fragment(
    envs: HostEnv,
    policy: FragmentPolicy,
    observation: np.ndarray,
    noise: np.ndarray,
    after: Callable[[Transition], Transition] | None = None,
) -> tuple[Trajectory, np.ndarray]:
    """Act and step ``noise.shape[0]`` times from ``observation``; return what happened, and the last observation.

    ``after`` sees each step and may change it.
    """
    rows: list[tuple[Any, ...]] = []
    records: list[Any] = []
    for now in noise:
        action, record = policy.act(observation, now)
        following = envs.step(action)
        if after is not None:
            following = after(following)
        rows.append((observation, action, *following[1:]))
        records.append(record)
        observation = following[0]
    # New arrays for every fragment: the previous one may still be read by a value fit under way.
    observations, actions, *rest = (np.stack(column) for column in zip(*rows, strict=True))
    log_prob = np.asarray(policy.distribution(records).log_prob(actions))
    return Trajectory(observations, actions, log_prob, *rest), observation


def act_and_step(
    envs: HostEnv, policy: tuple[Any, Any], observation: np.ndarray, noise: np.ndarray
) -> tuple[Trajectory, np.ndarray]:
    """Do a process's share of a fragment, with the ``parts`` of a :class:`HostPolicy`: what a worker is sent."""
    return run_fragment(envs, fragment_policy(*policy), observation, noise)


class HostRollout:
    """Steps environments with a policy, fragment after fragment; episodes cross fragment boundaries.

    With ``stagger``, first episodes are truncated at times spread evenly over the time limit, environment i of N after
    (i + 1)/N of it, where the environments can be restarted one by one. Otherwise environments whose episodes all
    have the same length stay in step for ever: one batch is all beginnings of episodes, the next all ends.
    """

    def __init__(self, envs: HostEnv, seeds: list[int], stagger: bool = False):
        self.envs = envs
        self.statistics = EpisodeStatistics(envs.count)
        self._cuts: np.ndarray | None = None
        if stagger and isinstance(envs, RestartableEnv) and envs.time_limit:
            self._cuts = np.maximum(1, np.arange(1, envs.count + 1) * envs.time_limit // envs.count)
        self.observation = envs.reset(seeds)

    def restart(self, seeds: list[int]) -> None:
        """Begin new episodes everywhere, as after a crash or a non-finite batch."""
        self.observation = self.envs.reset(seeds)
        self.statistics.restart()

    def collect(self, policy: HostPolicy, noise: np.ndarray) -> Trajectory:
        """Run ``noise.shape[0]`` steps in every environment."""
        if self._cuts is not None and self.statistics.first.any():
            cut = partial(self._cut_first_episodes, self._cuts)
            trajectory, self.observation = run_fragment(self.envs, policy.of_fragment, self.observation, noise, cut)
            return trajectory
        shares = self._shares(policy)
        if shares is None:
            trajectory, self.observation = run_fragment(self.envs, policy.of_fragment, self.observation, noise)
        else:
            trajectory = self._collect_shares(shares, policy, noise)
        self.statistics.add(trajectory.reward, trajectory.terminated | trajectory.truncated, trajectory.valid)
        return trajectory

    def _collect_shares(self, shares: list[slice], policy: HostPolicy, noise: np.ndarray) -> Trajectory:
        """Have every process act for its own environments."""
        assert isinstance(self.envs, SplitEnv)
        arguments = [(policy.parts, self.observation[rows], noise[:, rows]) for rows in shares]
        trajectories, observations = zip(*self.envs.call(act_and_step, arguments), strict=True)
        trajectory = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *trajectories)
        self.observation = np.concatenate(observations)
        return trajectory

    def _shares(self, policy: HostPolicy) -> list[slice] | None:
        """Return which environments each process can act for by itself with no bit changed; None: none can."""
        if not isinstance(self.envs, SplitEnv) or not policy.can_travel:
            return None
        shares = self.envs.shares
        return None if any((rows.stop - rows.start) % BLOCK for rows in shares) else shares

    def _cut_first_episodes(self, cuts: np.ndarray, following: Transition) -> Transition:
        """Record a step; truncate the first episodes that are as long as they may be.

        What follows them is valued as anything else that follows a truncated episode.
        """
        done = following.terminated | following.truncated
        self.statistics.add(following.reward[None], done[None], following.valid[None])
        due = self.statistics.first & (self.statistics.running_length >= cuts)
        if not due.any():
            return following
        envs = self.envs
        assert isinstance(envs, RestartableEnv)
        self.statistics.forget(due)
        observation = following.observation.copy()
        observation[due] = envs.restart(np.flatnonzero(due))
        return following._replace(observation=observation, truncated=following.truncated | due)


def noise_of(policy: PolicyFunction, actor: Actor, count: int, observation_size: int, length: int, key: Any) -> Any:
    """Draw the standard noise for ``length`` steps of ``count`` environments (jit-able)."""
    observation = jax.numpy.zeros((count, observation_size))
    shape = eqx.filter_eval_shape(policy, actor.params, observation)
    return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shape).noise(key, (length,))
