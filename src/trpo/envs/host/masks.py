"""Environments that tell which actions are allowed, in ``info`` or by a method: their masks join their observations."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from trpo.envs.host.returned import WrongAnswerError, begun, flag
from trpo.envs.masks import MASK, choices, flat_mask
from trpo.envs.spaces import Space

Told = Literal["", "observation", "action_masks", "info"]
"""Where an environment tells it: nowhere, in its observations, by the method of this name, or in ``info``."""


def told_by(env: Any, action: Space) -> Told:
    """Find out where an environment tells which actions are allowed; it may be reset for that."""
    space = getattr(env, "observation_space", None)
    if not choices(action) or not isinstance(space, gym.Space):
        return ""
    if isinstance(space, gym.spaces.Dict) and MASK in space.spaces:
        return "observation"
    if _method(env) is not None:
        return "action_masks"
    try:
        info = env.reset()[1]
    except KeyboardInterrupt:
        raise
    except BaseException:  # the reset that a run begins with will say what is wrong
        return ""
    return "info" if isinstance(info, dict) and MASK in info else ""


def _method(env: Any) -> Callable[[], Any] | None:
    """Return the method ``action_masks`` of an environment or of what it wraps, as sb3-contrib's convention has it."""
    try:
        method = env.get_wrapper_attr("action_masks")
    except AttributeError:
        return None
    return method if callable(method) else None


class MaskedEnv:
    """A ``gymnasium.Env`` whose observations have its masks, as a part of a Dict; everything else is the environment's.

    A Dict gets one more part; any other observation becomes the part ``observation`` of a Dict. Where an episode has
    ended nobody acts: there, all is said to be allowed, and the environment is not asked.
    """

    def __init__(self, env: Any, action: Space, told: Told):
        self.unmasked, self._action, self._told, self._method = env, action, told, _method(env)
        size, space = sum(choices(action)), env.observation_space
        self._all = np.ones(size, np.int8)
        self._is_dict = isinstance(space, gym.spaces.Dict)
        parts = space.spaces if self._is_dict else {"observation": space}
        self.observation_space = gym.spaces.Dict(collections.OrderedDict({**parts, MASK: gym.spaces.MultiBinary(size)}))

    def __getattr__(self, name: str) -> Any:
        if name == "unmasked":  # not made yet, or being copied
            raise AttributeError(name)
        return getattr(self.unmasked, name)

    def reset(self, **keywords: Any) -> Any:
        answer = self.unmasked.reset(**keywords)
        return self._seen(begun(answer), answer[1], ended=False), answer[1]

    def step(self, action: Any) -> Any:
        answer = self.unmasked.step(action)
        if not isinstance(answer, tuple | list) or len(answer) != 5:
            return answer  # whoever asked says what is wrong with it
        observation, reward, terminated, truncated, info = answer
        ended = flag(terminated, "terminated") or flag(truncated, "truncated")
        return self._seen(observation, info, ended), reward, terminated, truncated, info

    def mask_of(self, observation: Any, info: Any) -> np.ndarray:
        """Return the mask of a state in which somebody will act, as a vector."""
        try:
            return flat_mask(self._action, self._ask(observation, info))
        except ValueError as error:
            raise WrongAnswerError(str(error)) from error

    def _seen(self, observation: Any, info: Any, ended: bool) -> Any:
        mask = self._all if ended else self.mask_of(observation, info)
        if not self._is_dict:
            return {"observation": observation, MASK: mask}
        # What is no dict is refused by name where it is taken apart.
        return {**observation, MASK: mask} if isinstance(observation, dict) else observation

    def _ask(self, observation: Any, info: Any) -> Any:
        if self._told == "action_masks":
            assert self._method is not None
            return self._method()
        where = observation if self._told == "observation" else info
        if not isinstance(where, dict) or where.get(MASK) is None:
            raise WrongAnswerError(
                f"{self._told} has no {MASK!r}, which it had at first: tell it after every reset and step"
            )
        return where[MASK]


def with_masks(env: Any, action: Space, told: Told) -> Any:
    """Return an environment with its masks in its observations, as one vector each; itself where it has none."""
    if told == "observation" and not isinstance(env.observation_space[MASK], gym.spaces.Dict | gym.spaces.Tuple):
        return env
    return MaskedEnv(env, action, told) if told else env
