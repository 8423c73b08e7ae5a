"""Gymnasium environments, several in one process."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs.protocol import EnvironmentFailure, Transition, UnknownEnvironmentError
from trpo.envs.spec import EnvSpec, action_spec, check_observation_space, to_env_action

MakeEnv = Callable[[], gym.Env]


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Hide the deprecation warnings that MuJoCo prints while it compiles the models of Gymnasium's environments.

    They concern those models' authors, come once for every environment, and cannot be acted on by a user.
    Everything else that MuJoCo has to say is passed on as a Python warning.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    previous = mujoco.get_mju_user_warning()

    def report(message: str) -> None:
        if "deprecated" not in message:
            gym.logger.warn(message)

    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def env_maker(env: str | MakeEnv, **kwargs: Any) -> MakeEnv:
    """Return a function that makes one environment from a Gymnasium id or from a user's own such function."""
    if callable(env):
        return env
    return RegisteredEnv(env, kwargs)


class RegisteredEnv:
    """Makes a Gymnasium environment by id; a class, so that it can be sent to another process."""

    def __init__(self, env_id: str, kwargs: dict[str, Any]):
        self.env_id = env_id
        self.kwargs = kwargs

    def __call__(self) -> gym.Env:
        """Make it."""
        try:
            return gym.make(self.env_id, disable_env_checker=True, **self.kwargs)
        except ImportError as error:
            raise UnknownEnvironmentError(f"environment {self.env_id!r} cannot be imported: {error}") from error
        except gym.error.DependencyNotInstalled as error:
            raise UnknownEnvironmentError(f"environment {self.env_id!r} needs another package: {error}") from error
        except gym.error.Error as error:  # unregistered, malformed, or a version that is gone
            if self.env_id.split(":")[-1] in gym.registry:
                raise
            raise UnknownEnvironmentError(_unknown(self.env_id)) from error


def _unknown(env_id: str) -> str:
    known = list(gym.registry)
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "see `gymnasium.pprint_registry()` for the names"
    return f"unknown environment {env_id!r}; {hint}"


def make_one(make: MakeEnv) -> gym.Env:
    """Make one environment whose observation is a Box, quietly; name the part of a space that is not supported."""
    with quiet_mujoco():
        env = make()
    if not isinstance(env, gym.Env):
        raise ValueError(f"the environment function returned {type(env).__name__}, not a gymnasium.Env")
    check_observation_space(env.observation_space)
    if not isinstance(env.observation_space, gym.spaces.Box):
        env = gym.wrappers.FlattenObservation(env)
    return env


class GymnasiumEnvs:
    """N environments stepped one after the other in this process, with same-step auto-reset.

    This differs from ``gymnasium.vector.SyncVectorEnv`` in: 1. an observation is copied before the environment is
    touched again, so that one which hands out the same array every time still has a true final observation; 2. ``info``
    is ignored, so its shapes and types may vary.
    """

    def __init__(self, name: str, make: MakeEnv, count: int, rescale_actions: bool = True):
        self.count = count
        self._rescale = rescale_actions
        self._envs: list[gym.Env] = []
        try:
            self._envs.extend(make_one(make) for _ in range(count))
            space = self._envs[0].observation_space
            shape = tuple(space.shape or ())
            self._ravel = len(shape) != 1
            self.spec = EnvSpec(name, math.prod(shape), action_spec(self._envs[0].action_space), shape)
            registered = self._envs[0].spec
            self.time_limit = None if registered is None else registered.max_episode_steps
        except BaseException:
            self.close()
            raise

    def _flat(self, observation: Any) -> np.ndarray:
        return np.asarray(observation, np.float32).reshape(self.spec.observation_size)

    def _failure(self, error: Exception) -> EnvironmentFailure:
        return EnvironmentFailure(f"environment {self.spec.id} raised {type(error).__name__}: {error}")

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Start new episodes."""
        observation = np.empty((self.count, self.spec.observation_size), np.float32)
        try:
            for i, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
                observation[i] = self._flat(env.reset(seed=seed)[0])
        except Exception as error:
            raise self._failure(error) from error
        return observation

    def restart(self, which: np.ndarray) -> np.ndarray:
        """Start new episodes in some environments."""
        try:
            return np.stack([self._flat(self._envs[i].reset()[0]).copy() for i in which])
        except Exception as error:
            raise self._failure(error) from error

    def step(self, action: np.ndarray) -> Transition:
        """Step every environment once."""
        converted = to_env_action(self.spec.action, action, self._rescale)
        # Lists, turned into arrays at once: writing single numbers into arrays costs more than a cheap simulator.
        seen: list[Any] = []
        reward: list[Any] = []
        terminated: list[bool] = []
        truncated: list[bool] = []
        first: dict[int, np.ndarray] = {}
        try:
            for i, env in enumerate(self._envs):
                after, gained, ended, cut, _ = env.step(converted[i])
                if ended or cut:
                    after = self._flat(after).copy()
                    first[i] = self._flat(env.reset()[0]).copy()
                seen.append(after)
                reward.append(gained)
                terminated.append(ended)
                truncated.append(cut)
            final = np.array([np.ravel(x) for x in seen] if self._ravel else seen, np.float32)
            final = final.reshape(self.count, self.spec.observation_size)
        except Exception as error:
            raise self._failure(error) from error
        observation = final
        if first:
            observation = final.copy()
            for i, row in first.items():
                observation[i] = row
        return Transition(
            observation,
            np.array(reward, np.float32),
            np.array(terminated, bool),
            np.array(truncated, bool),
            final,
            np.ones(self.count, bool),
        )

    def snapshot(self) -> Any | None:
        """Return every environment's ``snapshot()`` (see the docs on environments), or None if one has none."""
        envs: list[Any] = self._envs
        if not all(hasattr(env, "snapshot") and hasattr(env, "restore") for env in envs):
            return None
        return [env.snapshot() for env in envs]

    def restore(self, snapshot: Any) -> None:
        """Put back what :meth:`snapshot` returned."""
        envs: list[Any] = self._envs
        for env, state in zip(envs, snapshot, strict=True):
            env.restore(state)

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()
        self._envs = []
