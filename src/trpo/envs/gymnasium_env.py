"""Gymnasium environments, several in one process."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs.protocol import EnvironmentFailure, Transition
from trpo.envs.spaces import EnvSpec, action_spec, check_observation_space, to_env_action

MakeEnv = Callable[[], gym.Env]


class UnknownEnvironmentError(ValueError):
    """No environment of that name."""


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
        except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
            raise UnknownEnvironmentError(_unknown(self.env_id, error)) from error
        except gym.error.DependencyNotInstalled as error:
            raise UnknownEnvironmentError(f"environment {self.env_id!r} needs another package: {error}") from error


def _unknown(env_id: str, error: Exception) -> str:
    if ":" in env_id and isinstance(error, ModuleNotFoundError):
        return f"cannot import {env_id.split(':')[0]!r} for environment {env_id!r}: {error}"
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
    """N environments stepped one after the other in this process, with same-step auto-reset."""

    def __init__(self, name: str, make: MakeEnv, count: int, rescale_actions: bool = True):
        self.count = count
        self._rescale = rescale_actions
        self._envs = gym.vector.SyncVectorEnv(
            [lambda: make_one(make)] * count, copy=False, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
        )
        space = self._envs.single_observation_space
        self.spec = EnvSpec(name, int(np.prod(space.shape or ())), action_spec(self._envs.single_action_space))

    def _flat(self, observation: Any) -> np.ndarray:
        return np.array(observation, np.float32).reshape(self.count, -1)  # a copy: the vector env reuses its buffer

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Start new episodes."""
        observation, _ = self._envs.reset(seed=list(seeds))
        return self._flat(observation)

    def step(self, action: np.ndarray) -> Transition:
        """Step every environment once."""
        try:
            observation, reward, terminated, truncated, info = self._envs.step(
                to_env_action(self.spec.action, action, self._rescale)
            )
        except Exception as error:
            raise EnvironmentFailure(f"environment {self.spec.id} raised {type(error).__name__}: {error}") from error
        observation = self._flat(observation)
        final = observation
        done = terminated | truncated
        if done.any():
            final = observation.copy()
            for i in np.flatnonzero(done):
                final[i] = np.asarray(info["final_obs"][i], np.float32).ravel()
        return Transition(
            observation,
            np.asarray(reward, np.float32),
            terminated.copy(),
            truncated.copy(),
            final,
            np.ones(self.count, bool),
        )

    def snapshot(self) -> Any | None:
        """Return every environment's ``snapshot()`` (see the docs on environments), or None if one has none."""
        envs: list[Any] = list(self._envs.envs)
        if not all(hasattr(env, "snapshot") and hasattr(env, "restore") for env in envs):
            return None
        return [env.snapshot() for env in envs]

    def restore(self, snapshot: Any) -> None:
        """Put back what :meth:`snapshot` returned."""
        envs: list[Any] = list(self._envs.envs)
        for env, state in zip(envs, snapshot, strict=True):
            env.restore(state)

    def close(self) -> None:
        """Close every environment."""
        self._envs.close()
