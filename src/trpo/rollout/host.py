"""Single-path rollouts of host environments, fragments of which may be done by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import HostEnv, RestartableEnv, SplitEnv, Transition
from trpo.policies.function import to_numpy
from trpo.rollout.acting import Act, HostPolicy, numpy_act
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.trajectory import Actor, Seat, Snapshot, Trajectory
from trpo.trees import from_named_arrays, from_plain, to_plain

TRIALS = 8
"""Random batches on which it is tried whether a policy may act for parts of one."""


def _steps(noise: Any) -> Iterator[Any]:
    """Yield the noise of one step after the other."""
    if isinstance(noise, np.ndarray):
        return iter(noise)
    leaves, structure = jax.tree.flatten(noise)
    return (jax.tree.unflatten(structure, rows) for rows in zip(*leaves, strict=True))


def _stack(rows: list[Any]) -> Any:
    return np.stack(rows) if isinstance(rows[0], np.ndarray) else jax.tree.map(lambda *x: np.stack(x), *rows)


def run_fragment(
    envs: HostEnv, act: Act, seat: Seat, noise: Any, after: Callable[[Transition], Transition] | None = None
) -> tuple[Trajectory, Seat]:
    """Act and step as often as ``noise`` has rows, from ``seat``; return what happened, and what the policy meets next.

    ``after`` sees each step and may change it.
    """
    observation, carry, reset, memory = seat.observation, seat.carry, seat.reset, bool(jax.tree.leaves(seat.carry))
    met: list[Any] = []
    actions: list[Any] = []
    steps: list[Transition] = []
    for now in _steps(noise):
        action, carry = act(observation, carry, reset, now)
        step = envs.step(action)
        if after is not None:
            step = after(step)
        met.append(observation)
        actions.append(action)
        steps.append(step)
        observation = step.observation
        if memory:
            # The step after an auto-reset is where the episode really begins.
            reset = step.terminated | step.truncated | ~step.valid
    last = steps[-1]
    # New arrays for every fragment: the previous one may still be read by a value fit under way.
    trajectory = Trajectory(
        observation=_stack(met),
        action=_stack(actions),
        reward=np.stack([step.reward for step in steps]),
        terminated=np.stack([step.terminated for step in steps]),
        truncated=np.stack([step.truncated for step in steps]),
        next_observation=_stack([step.final_observation for step in steps]),
        valid=np.stack([step.valid for step in steps]),
        carry=seat.carry,
        reset=seat.reset,
    )
    return trajectory, Seat(observation, carry, last.terminated | last.truncated | ~last.valid)


def act_and_step(envs: HostEnv, policy: tuple[Any, Actor], seat: Seat, noise: Any) -> tuple[Trajectory, Seat]:
    """Do a process's share of a fragment, with the ``parts`` of a :class:`HostPolicy`: what a worker is sent."""
    return run_fragment(envs, numpy_act(*policy), seat, noise)


class HostSource:
    """Steps environments with a policy, fragment after fragment; episodes cross fragment boundaries.

    ``start`` gives the memory at the start of so many episodes. It must be restarted before anything is collected. With
    ``stagger``, first episodes are truncated at times spread evenly over the time limit, environment i of
    N after (i + 1)/N of it, where the environments can be restarted one by one. Otherwise environments whose episodes
    all have the same length stay in step for ever: one batch is all beginnings of episodes, the next all ends.
    """

    def __init__(self, envs: HostEnv, start: Callable[[int], Any] = lambda count: (), stagger: bool = False):
        self.envs, self.spec, self.count, self._start = envs, envs.spec, envs.count, start
        self.episodes = EpisodeStatistics(envs.count)
        self._cuts: np.ndarray | None = None
        if stagger and isinstance(envs, RestartableEnv) and envs.time_limit:
            self._cuts = np.maximum(1, np.arange(1, envs.count + 1) * envs.time_limit // envs.count)
        self._apart: bool | None = None

    def restart(self, seeds: list[int]) -> None:
        memory = to_numpy(self._start(self.count))
        self.seat = Seat(self.envs.reset(seeds), memory, np.ones(self.count, bool))
        self.episodes.restart()

    def collect(self, policy: HostPolicy, noise: Any) -> Trajectory:
        """Run as many steps in every environment as ``noise`` has rows."""
        if self._cuts is not None and self.episodes.first.any():
            cut = partial(self._cut_first_episodes, self._cuts)
            trajectory, self.seat = run_fragment(self.envs, policy, self.seat, noise, cut)
            return trajectory
        shares = self._shares(policy)
        if shares is None:
            trajectory, self.seat = run_fragment(self.envs, policy, self.seat, noise)
        else:
            trajectory = self._collect_shares(shares, policy, noise)
        self.episodes.add(trajectory.reward, trajectory.terminated | trajectory.truncated, trajectory.valid)
        return trajectory

    def snapshot(self) -> Snapshot | None:
        environments = self.envs.snapshot()
        # Copied: a simulator may hand out what it goes on to change.
        return None if environments is None else Snapshot(to_plain(environments), self.seat, self.spec.id)

    def restore(self, snapshot: Snapshot) -> None:
        self.envs.restore(from_plain(snapshot.environments))
        seat = snapshot.seat
        self.seat = to_numpy(from_named_arrays(self.seat, seat)) if isinstance(seat, dict) else seat

    def close(self) -> None:
        self.envs.close()

    def _collect_shares(self, shares: list[slice], policy: HostPolicy, noise: Any) -> Trajectory:
        """Have every process act for its own environments."""
        assert isinstance(self.envs, SplitEnv)
        arguments = [
            (policy.parts, jax.tree.map(lambda x: x[rows], self.seat), jax.tree.map(lambda x: x[:, rows], noise))  # noqa: B023
            for rows in shares
        ]
        trajectories, seats = zip(*self.envs.call(act_and_step, arguments), strict=True)
        before, self.seat = self.seat, jax.tree.map(lambda *x: np.concatenate(x), *seats)
        together = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.steps() for t in trajectories))
        return Trajectory(**together, carry=before.carry, reset=before.reset)

    def _shares(self, policy: HostPolicy) -> list[slice] | None:
        """Return which environments each process can act for by itself with no bit changed; None: none can.

        A matrix product may treat a row differently in a larger or smaller batch, which depends on the machine: so it
        is tried, once.
        """
        if not isinstance(self.envs, SplitEnv) or not policy.can_travel:
            return None
        shares = self.envs.shares
        if self._apart is None:
            self._apart = _same_apart(policy, self.seat, [s for s in shares if s.stop > s.start])
        return shares if self._apart else None

    def _cut_first_episodes(self, cuts: np.ndarray, following: Transition) -> Transition:
        """Record a step; truncate the first episodes that are as long as they may be.

        What follows them is valued as anything else that follows a truncated episode.
        """
        done = following.terminated | following.truncated
        self.episodes.add(following.reward[None], done[None], following.valid[None])
        due = self.episodes.first & (self.episodes.running_length >= cuts)
        if not due.any():
            return following
        envs = self.envs
        assert isinstance(envs, RestartableEnv)
        self.episodes.forget(due)
        first = envs.restart(np.flatnonzero(due))
        observation = jax.tree.map(np.copy, following.observation)
        jax.tree.map(lambda old, new: old.__setitem__(due, new), observation, first)
        return following._replace(observation=observation, truncated=following.truncated | due)


def _same_apart(policy: HostPolicy, seat: Seat, shares: list[slice]) -> bool:
    """Return whether ``policy`` is in shares what it is for all, bit for bit, on random observations.

    Its distributions are compared: in most actions a difference in the last bit would be lost.
    """
    distribution, actor = policy.parts
    random = np.random.default_rng(0)

    def drawn(x: np.ndarray) -> np.ndarray:
        return random.normal(size=x.shape).astype(x.dtype) if np.issubdtype(x.dtype, np.floating) else x

    for _ in range(TRIALS):
        inputs = jax.tree.map(drawn, seat.carry), (jax.tree.map(drawn, actor.see(seat.observation)), seat.reset)
        whole = distribution(*inputs)
        parts = [distribution(*jax.tree.map(lambda x: x[rows], inputs)) for rows in shares]  # noqa: B023
        together = jax.tree.map(lambda *x: np.concatenate([np.atleast_1d(part) for part in x]), *parts)
        if not all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(together))):
            return False
    return True
