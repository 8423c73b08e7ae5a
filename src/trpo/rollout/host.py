"""Single-path rollouts of host environments (L6).

The policy runs as plain NumPy on its own definition, with the noise of a whole fragment drawn beforehand: for a small
network a compiled call for every vector step costs as much as the simulator.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import equinox as eqx
import jax
import numpy as np

from trpo.envs import HostEnv, RestartableEnv, SplitEnv, Transition
from trpo.networks import to_numpy
from trpo.problem import PolicyFunction
from trpo.rollout.trajectory import Actor, Trajectory
from trpo.running_statistics import Normaliser

RECENT = 100
"""Episodes over which return and length are averaged."""
BLOCK = 4
"""Rows for which, in a multiple, a matrix product treats every row alike, so that they may be computed apart."""


def act(
    policy: Callable[[Any], Any], normaliser: Normaliser | None, observation: Any, noise: Any | None
) -> tuple[Any, Any]:
    """Return ``(action, distribution)``; the mode if ``noise`` is None. NumPy in, NumPy out."""
    distribution = policy(observation if normaliser is None else normaliser(observation))
    # Through the class: binding a method of an Equinox module costs more than the arithmetic of a small batch.
    kind = type(distribution)
    return (kind.mode(distribution) if noise is None else kind.transform(distribution, noise)), distribution


@partial(jax.jit, static_argnums=0)
def _compiled_act(policy: PolicyFunction, actor: Actor, observation: Any, noise: Any | None) -> tuple[Any, Any]:
    return act(partial(policy, actor.params), actor.normaliser, observation, noise)


class HostPolicy:
    """Acts for a batch of observations: in NumPy where the policy's definition allows it, else compiled.

    A policy allows it if, given NumPy parameters, it returns NumPy arrays; those written against the array namespace
    of their inputs do (see :mod:`trpo.networks`). Anything that insists on ``jax.numpy`` still works, at the price of
    a compiled call for every vector step.
    """

    def __init__(self, policy: PolicyFunction, actor: Actor, observation_size: int):
        self._policy = policy
        zeros = np.zeros((1, observation_size), np.float32)
        try:
            host = to_numpy(actor)
            action, distribution = act(partial(policy, host.params), host.normaliser, zeros, None)
            leaves = [action, *jax.tree.leaves(distribution)]
            self.in_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        except (TypeError, AttributeError, jax.errors.JAXTypeError):
            self.in_numpy = False
        self.load(actor)

    def load(self, actor: Actor) -> None:
        """Act with these parameters and statistics from now on."""
        self._actor = to_numpy(actor) if self.in_numpy else actor
        bind = getattr(self._policy, "bind", None)  # put the module together once, not at every step
        self._module = bind(self._actor.params) if bind else partial(self._policy, self._actor.params)

    @functools.cached_property
    def can_travel(self) -> bool:
        """Whether other processes can act too."""
        if not self.in_numpy:
            return False
        try:
            cloudpickle.dumps(self.parts)
        except Exception:
            return False
        return True

    @property
    def parts(self) -> tuple[Any, Normaliser | None]:
        """The first two arguments of :func:`act`."""
        return self._module, self._actor.normaliser

    def __call__(self, observation: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, Any]:
        """Return actions, and the distributions they come from, as NumPy arrays."""
        if self.in_numpy:
            return act(self._module, self._actor.normaliser, observation, noise)
        return jax.device_get(_compiled_act(self._policy, self._actor, observation, noise))


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
        """Record one vector step."""
        self.running_return += np.where(valid, reward, 0.0)
        self.running_length += valid
        if done.any():
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
    policy: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]],
    observation: np.ndarray,
    noise: np.ndarray,
    after: Callable[[Transition], Transition] | None = None,
) -> tuple[Trajectory, np.ndarray]:
    """Act and step ``noise.shape[0]`` times from ``observation``; return what happened, and the last observation.

    ``after`` sees each step and may change it.
    """
    rows: list[tuple[Any, ...]] = []
    distributions: list[Any] = []
    for now in noise:
        action, distribution = policy(observation, now)
        following = envs.step(action)
        if after is not None:
            following = after(following)
        rows.append((observation, action, *following[1:4], following.final_observation, following.valid))
        distributions.append(distribution)
        observation = following.observation
    # New arrays for every fragment: the previous one may still be read by a value fit under way.
    observations, actions, rewards, terminated, truncated, final, valid = (
        np.stack(column) for column in zip(*rows, strict=True)
    )
    whole = jax.tree.map(lambda *leaves: np.stack(leaves), *distributions)
    log_prob = np.asarray(whole.log_prob(actions))
    return Trajectory(observations, actions, log_prob, rewards, terminated, truncated, final, valid), observation


def act_and_step(
    envs: HostEnv, policy: tuple[Any, Normaliser | None], observation: np.ndarray, noise: np.ndarray
) -> tuple[Trajectory, np.ndarray]:
    """Do a process's share of a fragment, with the ``parts`` of a :class:`HostPolicy`: what a worker is sent."""
    return run_fragment(envs, partial(act, *policy), observation, noise)


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
        shares = self._shares(policy)
        if shares is None:
            trajectory, self.observation = run_fragment(self.envs, policy, self.observation, noise, self._note)
            return trajectory
        assert isinstance(self.envs, SplitEnv)
        arguments = [(policy.parts, self.observation[rows], noise[:, rows]) for rows in shares]
        trajectories, observations = zip(*self.envs.call(act_and_step, arguments), strict=True)
        trajectory = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *trajectories)
        self.observation = np.concatenate(observations)
        done = trajectory.terminated | trajectory.truncated
        for step in zip(trajectory.reward, done, trajectory.valid, strict=True):
            self.statistics.add(*step)
        return trajectory

    def _shares(self, policy: HostPolicy) -> list[slice] | None:
        """Return which environments each process can act for by itself with no bit changed; None: none can."""
        if not isinstance(self.envs, SplitEnv) or not policy.can_travel:
            return None
        if self._cuts is not None and self.statistics.first.any():
            return None
        shares = self.envs.shares
        return None if any((rows.stop - rows.start) % BLOCK for rows in shares) else shares

    def _note(self, following: Transition) -> Transition:
        """Record a step of all environments; return it, with first episodes cut where they are due."""
        self.statistics.add(following.reward, following.terminated | following.truncated, following.valid)
        if self._cuts is not None and self.statistics.first.any():
            return self._cut_first_episodes(self._cuts, following)
        return following

    def _cut_first_episodes(self, cuts: np.ndarray, following: Transition) -> Transition:
        """Truncate the first episodes that are as long as they may be; their successors are valued as any other's."""
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
