"""Single-path rollouts of host environments, fragments of which may be done by several processes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import EnvironmentFailure, HostEnv, RestartableEnv, SplitEnv, Transition
from trpo.envs.host.gymnasium import GymnasiumEnvs
from trpo.envs.images import image_of
from trpo.envs.masks import MASK, blocked, choices, none_left
from trpo.envs.plain import from_plain, to_plain
from trpo.policies.function import to_numpy
from trpo.rollout.acting import Act, HostPolicy, numpy_act
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.trajectory import Actor, Seat, Snapshot, Successors, Trajectory
from trpo.trees import from_named_arrays

BOOL, FLOAT = np.dtype(bool), np.dtype(np.float32)
TRIALS = 8
"""Random batches on which it is tried whether a policy may act for parts of one."""


def _steps(noise: Any) -> Iterator[Any]:
    """Yield the noise of one step after the other."""
    if isinstance(noise, np.ndarray):
        return iter(noise)
    leaves, structure = jax.tree.flatten(noise)
    return (jax.tree.unflatten(structure, rows) for rows in zip(*leaves, strict=True))


class _Rows:
    """Rows of a fragment, copied at once: environments handed in may show the same arrays every time."""

    def __init__(self, length: int):
        self._length = length
        self.columns: Any = None

    def put(self, t: int, row: Any) -> None:
        if self.columns is None:
            self.columns = jax.tree.map(lambda x: np.empty((self._length, *x.shape), x.dtype), row)
        if isinstance(row, np.ndarray):
            self.columns[t] = row
        else:
            jax.tree.map(lambda column, x: column.__setitem__(t, x), self.columns, row)


def run_fragment(
    envs: HostEnv,
    act: Act,
    seat: Seat,
    noise: Any,
    after: Callable[[Transition], Transition] | None = None,
    rows: int = 0,
    before: Callable[[int, Seat], None] | None = None,
) -> tuple[Trajectory, Seat]:
    """Act and step as often as ``noise`` has rows, from ``seat``; return what happened, and what the policy meets next.

    ``after`` sees each step and may change it; ``before`` sees what the policy meets at each time. With ``rows``,
    successors are kept once, with room for the ends of as many truncated episodes, or for twice as many and so on.
    """
    observation, carry, reset, memory = seat.observation, seat.carry, seat.reset, bool(jax.tree.leaves(seat.carry))
    length, masked = len(jax.tree.leaves(noise)[0]), envs.spec.masked
    finals: list[tuple[int, int, Any]] = []
    met, actions, following, told, *columns = (_Rows(length) for _ in range(8))
    for t, now in enumerate(_steps(noise)):
        if masked:
            require_allowed(envs, observation)
        if before is not None:
            before(t, Seat(observation, carry, reset))
        action, carry = act(observation, carry, reset, now)
        met.put(t, observation)
        step = step_all(envs, action)
        if after is not None:
            step = after(step)
        actions.put(t, action)
        if step.info is not None:
            told.put(t, step.info)
        if not rows:
            following.put(t, step.final_observation)
        elif t < length - 1:
            finals += [(t, i, at_index(step.final_observation, i)) for i in np.flatnonzero(step.truncated).tolist()]
        for column, row in zip(columns, (step.reward, step.terminated, step.truncated, step.valid), strict=True):
            column.put(t, row)
        observation = step.observation
        if memory:
            # The step after an auto-reset is where the episode really begins.
            reset = step.terminated | step.truncated | ~step.valid
    reward, terminated, truncated, valid = (column.columns for column in columns)
    # New arrays for every fragment: the previous one may still be read by a value fit under way.
    trajectory = Trajectory(
        observation=met.columns,
        action=actions.columns,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_observation=_successors(step.final_observation, finals, rows, length) if rows else following.columns,
        valid=valid,
        carry=seat.carry,
        reset=seat.reset,
        info=told.columns,
    )
    last = step.terminated | step.truncated | ~step.valid
    return trajectory, Seat(jax.tree.map(np.copy, observation), carry, last)


def at_index(tree: Any, i: int) -> Any:
    """Return a copy of one row of every leaf."""
    return jax.tree.map(lambda x: x[i].copy(), tree)


def _successors(last: Any, finals: list[tuple[int, int, Any]], rows: int, length: int) -> Successors:
    while rows < len(finals):
        rows *= 2
    step, env = np.full(rows, length, np.int32), np.zeros(rows, np.int32)
    final = jax.tree.map(lambda x: np.zeros((rows, *x.shape[1:]), x.dtype), last)
    for row, (t, i, seen) in enumerate(finals):
        step[row], env[row] = t, i
        jax.tree.map(lambda column, x: column.__setitem__(row, x), final, seen)  # noqa: B023
    return Successors(jax.tree.map(np.copy, last), final, step, env)


def step_all(envs: HostEnv, action: Any) -> Transition:
    """Step environments, and see that each tells one number, or one truth, for each field."""
    step, shape = envs.step(action), (envs.count,)
    if all(
        type(x) is np.ndarray and x.shape == shape and x.dtype is kind
        for x, kind in ((step.reward, FLOAT), (step.terminated, BOOL), (step.truncated, BOOL), (step.valid, BOOL))
    ):
        return step

    def mended(name: str, kinds: str, dtype: Any) -> np.ndarray:
        x = np.asarray(getattr(step, name))
        if x.size != envs.count or x.ndim == 0 or x.dtype.kind not in kinds:
            raise EnvironmentFailure(
                f"environment {envs.spec.id}: step returned {name} of shape {x.shape} and type {x.dtype}: must be an "
                f"array of shape {shape} of {np.dtype(dtype)}, one for each environment"
            )
        return x.reshape(shape).astype(dtype)

    ends = {name: mended(name, "biuf", bool) for name in ("terminated", "truncated", "valid")}
    return step._replace(reward=mended("reward", "biuf", np.float32), **ends)


def require_allowed(envs: HostEnv, observation: Any, going: Any = True) -> None:
    """Refuse states in which no action is allowed; environments that are not ``going`` may show what they like."""
    bad = blocked(choices(envs.spec.action), observation[MASK]) & going
    if bad.any():
        which = int(np.argmax(bad)) + getattr(envs, "first", 0)
        raise EnvironmentFailure(f"environment {envs.spec.id}: {none_left(f' of copy {which}')}")


def number_from(envs: HostEnv, first: int) -> None:
    """Let messages call these environments by their numbers among all, of which ``first`` is the first of these."""
    if first and isinstance(envs, SplitEnv):
        envs.call(GymnasiumEnvs.number_from, [(first + rows.start,) for rows in envs.shares])
    elif first and isinstance(envs, GymnasiumEnvs):
        envs.number_from(first)


def replaced(rows: Any, which: np.ndarray, new: Any) -> Any:
    """Return a copy of ``rows``, those that ``which`` selects replaced by ``new`` in every leaf."""
    copy = jax.tree.map(np.copy, rows)
    jax.tree.map(lambda old, part: old.__setitem__(which, part), copy, new)
    return copy


def act_and_step(envs: HostEnv, policy: tuple[Any, Actor], seat: Seat, noise: Any) -> tuple[Trajectory, Seat]:
    """Do a process's share of a fragment, with the ``parts`` of a :class:`HostPolicy`: what a worker is sent."""
    return run_fragment(envs, numpy_act(*policy), seat, noise)


def share_of(tree: Any, rows: slice, axis: int) -> Any:
    """Return the share of some environments, which are along ``axis``."""
    return jax.tree.map(lambda x: x[(slice(None),) * axis + (rows,)], tree)


class HostSource:
    """Steps environments with a policy, fragment after fragment; episodes cross fragment boundaries.

    ``start`` gives the memory at the start of so many episodes. It must be restarted before anything is collected. With
    ``stagger``, first episodes are truncated at times spread evenly over the time limit, environment i of
    N after (i + 1)/N of it, where the environments can be restarted one by one. Otherwise environments whose episodes
    all have the same length stay in step for ever: one batch is all beginnings of episodes, the next all ends. ``of``
    says of a part of all environments which is its first, and how many all are.
    """

    def __init__(
        self,
        envs: HostEnv,
        start: Callable[[int], Any] = lambda count: (),
        stagger: bool = False,
        of: tuple[int, int] | None = None,
    ):
        self.envs, self.spec, self.count, self._start = envs, envs.spec, envs.count, start
        self.episodes = EpisodeStatistics(envs.count, info=getattr(envs, "info", ()))
        self._cuts: np.ndarray | None = None
        if stagger and isinstance(envs, RestartableEnv) and envs.time_limit:
            first, total = of or (0, envs.count)
            self._cuts = np.maximum(1, (first + np.arange(1, envs.count + 1)) * envs.time_limit // total)
        self._apart: bool | None = None
        self._told = False
        """Whether episodes have ended, so that it is known what ``info`` has."""
        self._rows = envs.count if any(image_of(leaf) for _, leaf in self.spec.observation.leaves()) else 0
        """Of successors that are kept once; 0: large observations alone are worth it."""

    def restart(self, seeds: list[int]) -> None:
        memory = to_numpy(self._start(self.count))
        self.seat = Seat(self.envs.reset(seeds), memory, np.ones(self.count, bool))
        self.episodes.restart()

    def collect(self, policy: HostPolicy, noise: Any) -> Trajectory:
        """Run as many steps in every environment as ``noise`` has rows."""
        if self._cuts is not None and self.episodes.first.any():
            cut = partial(self._cut_first_episodes, self._cuts)
            trajectory, self.seat = run_fragment(self.envs, policy, self.seat, noise, cut, self._rows)
            return self._grown(dataclasses.replace(trajectory, info=None))
        shares = self._shares(policy)
        if shares is None:
            trajectory, self.seat = run_fragment(self.envs, policy, self.seat, noise, rows=self._rows)
            self._grown(trajectory)
        else:
            trajectory = self._collect_shares(shares, policy, noise)
        return self.account(trajectory)

    def account(self, trajectory: Trajectory) -> Trajectory:
        """Record what episodes a fragment has, and return it without what is for that account alone."""
        done = trajectory.terminated | trajectory.truncated
        self._account(trajectory.reward, done, trajectory.valid, trajectory.info)
        return dataclasses.replace(trajectory, info=None)

    def _account(self, reward: Any, done: np.ndarray, valid: Any, info: Any) -> None:
        """Record steps ``[time, env]``, and say once if the first episodes that ended had not what was asked for."""
        self.episodes.add(reward, done, valid, info)
        if info is not None and not self._told and done.any():
            self._told = True
            keys = getattr(self.envs, "info", ())
            if missing := [key for key, x in zip(keys, info[done].T, strict=True) if np.isnan(x).all()]:
                given = ", ".join(sorted(self.envs.given)) or "nothing"  # type: ignore[attr-defined]
                warnings.warn(
                    f"env.info {' '.join(missing)}: no number of that name is in info where an episode of "
                    f"{self.spec.id} has ended; it has {given}",
                    stacklevel=2,
                )

    def _grown(self, trajectory: Trajectory) -> Trajectory:
        """Keep as many rows from now on as were needed: every other number is another program."""
        if isinstance(trajectory.next_observation, Successors):
            self._rows = len(trajectory.next_observation.step)
        return trajectory

    def snapshot(self) -> Snapshot | None:
        environments = self.envs.snapshot()
        if not isinstance(self.envs, GymnasiumEnvs | SplitEnv):
            environments = to_plain(environments)  # copied: a simulator may hand out what it goes on to change
        return None if environments is None else Snapshot(environments, self.seat, self.spec.id)

    def restore(self, snapshot: Snapshot) -> None:
        self.envs.restore(from_plain(snapshot.environments))
        seat = snapshot.seat
        self.seat = to_numpy(from_named_arrays(self.seat, seat)) if isinstance(seat, dict) else seat

    def close(self) -> None:
        self.envs.close()

    def _collect_shares(self, shares: list[slice], policy: HostPolicy, noise: Any) -> Trajectory:
        """Have every process act for its own environments."""
        assert isinstance(self.envs, SplitEnv)
        arguments = [(policy.parts, share_of(self.seat, rows, 0), share_of(noise, rows, 1)) for rows in shares]
        trajectories, seats = zip(*self.envs.call(act_and_step, arguments), strict=True)
        return self.join(trajectories, seats)

    def join(self, trajectories: Sequence[Trajectory], seats: Sequence[Seat]) -> Trajectory:
        """Put the processes' shares together."""
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
        told = None if following.info is None else following.info[None]
        self._account(following.reward[None], done[None], following.valid[None], told)
        due = self.episodes.first & (self.episodes.running_length >= cuts)
        if not due.any():
            return following
        envs = self.envs
        assert isinstance(envs, RestartableEnv)
        self.episodes.forget(due)
        observation = replaced(following.observation, due, envs.restart(np.flatnonzero(due)))
        return following._replace(observation=observation, truncated=following.truncated | due)


def _same_apart(policy: HostPolicy, seat: Seat, shares: list[slice]) -> bool:
    """Return whether ``policy`` is in shares what it is for all, bit for bit, on random observations.

    Its distributions are compared: in most actions a difference in the last bit would be lost. Nothing is reset, since
    memory is empty then, and what is 0 is the same anywhere.
    """
    distribution, actor = policy.parts
    kept = jax.tree.map(np.zeros_like, seat.reset)
    random = np.random.default_rng(0)

    def drawn(x: np.ndarray) -> np.ndarray:
        return random.normal(size=x.shape).astype(x.dtype) if np.issubdtype(x.dtype, np.floating) else x

    for _ in range(TRIALS):
        inputs = jax.tree.map(drawn, seat.carry), (jax.tree.map(drawn, actor.see(seat.observation)), kept)
        whole = distribution(*inputs)
        parts = [distribution(*jax.tree.map(lambda x: x[rows], inputs)) for rows in shares]  # noqa: B023
        together = jax.tree.map(lambda *x: np.concatenate([np.atleast_1d(part) for part in x]), *parts)
        if not all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(together))):
            return False
    return True
