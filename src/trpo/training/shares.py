"""The environments on hosts, each process's share of them: what is handed in, counted and gathered.

With one process all of this is what it would be without it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from trpo.envs.plain import from_plain, to_plain
from trpo.rollout import Snapshot, Source, Trajectory
from trpo.rollout.episodes import Ended
from trpo.rollout.trajectory import Successors
from trpo.rollout.vine_host import Outcome
from trpo.training import hosts
from trpo.training.layout import Layout
from trpo.training.state import TrainingState
from trpo.trees import named_arrays

RUNNING = ("running_return", "running_length", "first")
"""What the account of episodes has of each environment."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """What the processes have collected in an iteration."""

    trajectory: Trajectory
    """Of this process's environments."""
    steps: int
    """Of all, those that count."""
    rows: int
    """The most rows of :class:`~trpo.rollout.trajectory.Successors` that one of them has."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """How ``count`` environments are divided over the processes of a layout, in the order of their indices."""

    layout: Layout
    count: int

    @property
    def rows(self) -> slice:
        """Those of this process."""
        return self.layout.share(self.count)

    @property
    def _alone(self) -> bool:
        return self.layout.processes == 1

    def require(self, count: int) -> None:
        """Raise ValueError unless a source of ``count`` environments is one share."""
        if count != (each := self.rows.stop - self.rows.start):
            several = "" if self._alone else f", and {each} of them are this process's"
            raise ValueError(f"env.count={self.count}{several}, but {count} environments were handed in")

    def account(self, trajectory: Trajectory, source: Source) -> Any:
        """Return what the other processes must know of this one's fragment."""
        following = trajectory.next_observation
        rows = len(following.step) if isinstance(following, Successors) else 0
        return [int(trajectory.valid.sum()), rows, source.episodes.ended]

    def count_all(self, said: list[Any], trajectory: Trajectory, source: Source) -> Collected:
        """Count the episodes that have ended, of all processes in order of time, and return what there is."""
        if not self._alone:
            each = self.count // self.layout.processes
            ended = [
                Ended(step, env + each * i, *told) for i, (_, _, own) in enumerate(said) for step, env, *told in own
            ]
            source.episodes.count_ended(sorted(ended, key=lambda episode: episode[:2]))
        return Collected(trajectory, sum(steps for steps, _, _ in said), max(rows for _, rows, _ in said))

    def hand_in(self, found: Collected) -> Trajectory:
        """Return the trajectory of all environments."""
        trajectory, layout = found.trajectory, self.layout
        if self._alone:
            return trajectory
        following = trajectory.next_observation
        steps = layout.hand_in(trajectory.steps(), axis=1)
        if isinstance(following, Successors):
            steps["next_observation"] = layout.hand_in(self._numbered(following, found.rows))
        return Trajectory(**steps, **layout.hand_in({"carry": trajectory.carry, "reset": trajectory.reset}))

    def _numbered(self, following: Successors, rows: int) -> Successors:
        """Return successors with so many rows, and the numbers that their environments have among all."""
        more = rows - len(following.step)

        def filled(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[-1:], more, axis=0)])

        final, env = jax.tree.map(filled, (following.final, following.env + np.int32(self.rows.start)))
        # Beyond the last step: such a row is of no use.
        unused = np.full(more, np.iinfo(np.int32).max, np.int32)
        return Successors(following.last, final, np.concatenate([following.step, unused]), env)

    def hand_in_outcome(self, met: Outcome) -> Outcome:
        """Return what the branches of all environments met."""
        if self._alone:
            return met
        first = self.layout.hand_in({"action": met.action, "terminated": met.terminated}, axis=1)
        later = {"reward": met.reward, "alive": met.alive, "following": met.following}
        return Outcome(**first, **self.layout.hand_in(later, axis=2))

    def own(self, state: TrainingState) -> TrainingState:
        """Return a state with what it has of this process's environments."""
        if self._alone:
            return state
        return dataclasses.replace(state, episodes=self._own_episodes(state), source=self._own_source(state.source))

    def _own_episodes(self, state: TrainingState) -> Any:
        if state.episodes is None or len(state.episodes.get(RUNNING[0], ())) != self.count:
            return state.episodes
        return state.episodes | {name: state.episodes[name][self.rows] for name in RUNNING}

    def _own_source(self, source: Any) -> Any:
        if not isinstance(source, Snapshot) or not isinstance(source.environments, list):
            return source
        seat = source.seat if isinstance(source.seat, dict) else named_arrays(source.seat)
        if len(source.environments) != self.count:
            return source
        return Snapshot(source.environments[self.rows], {k: x[self.rows] for k, x in seat.items()}, source.id)

    def whole(self, state: TrainingState) -> TrainingState:
        """Return a state of this process's share with what it has of all environments; all processes must ask."""
        if self._alone:
            return state
        source, episodes = state.source, state.episodes or {}
        carry = jax.tree.map(np.asarray, state.learner.value_carry)
        said = {"running": {name: episodes[name] for name in RUNNING}, "carry": to_plain(named_arrays(carry))}
        if isinstance(source, Snapshot) and isinstance(source.environments, list):
            seat = source.seat if isinstance(source.seat, dict) else named_arrays(source.seat)
            here = {"environments": to_plain(source.environments), "seat": to_plain(seat)}
            try:
                json.dumps(here)
                said |= here
            except (TypeError, ValueError, RecursionError):  # what a user's snapshot() returned is not JSON
                pass
        heard = hosts.exchange(said)
        episodes = episodes | {name: [x for one in heard for x in one["running"][name]] for name in RUNNING}
        leaves = [from_plain(one["carry"]) for one in heard]
        together = {name: np.concatenate([one[name] for one in leaves]) for name in leaves[0]}
        carry = jax.tree.unflatten(jax.tree.structure(carry), together.values())
        if isinstance(source, Snapshot) and all("seat" in one for one in heard):
            seats = [from_plain(one["seat"]) for one in heard]
            seat = {name: np.concatenate([one[name] for one in seats]) for name in seats[0]}
            source = Snapshot([one for each in heard for one in each["environments"]], seat, source.id)
        else:
            source = None
        learner = dataclasses.replace(state.learner, value_carry=carry)
        return dataclasses.replace(state, learner=learner, episodes=episodes, source=source)
