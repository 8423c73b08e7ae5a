"""Single-path rollouts of host environments, fragments of which may be done by several processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import HostEnv, RestartableEnv, SplitEnv, Transition
from trpo.rollout.acting import FragmentPolicy, HostPolicy, fragment_policy
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.trajectory import Trajectory

BLOCK = 4
"""Rows for which, in a multiple, a matrix product treats every row alike, so that they may be computed apart."""


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
