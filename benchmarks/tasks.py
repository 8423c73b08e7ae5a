"""Environments whose answers are known, and POPGym's with all of the state, for :mod:`benchmarks.beyond`.

    trpo train benchmarks.tasks:Valid-v0 [--env.kwargs masked=false]
    trpo train benchmarks.tasks:Mixed-v0
    trpo train benchmarks.tasks:Observed-v0 --env.kwargs task=popgym-RepeatPreviousEasy-v0

They are found where this repository is, as any module of one's own is.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

VALID = 4
"""Actions that are valid at a time."""


class Valid(gym.Env):
    """64 actions, of which four are valid, drawn anew at every step; the greatest valid one is worth 1, any other 0.

    The observation says which are valid, and so does ``info["action_mask"]`` where the environment is ``masked``. An
    action that is not valid is worth 0 too, and counted in ``info``. With the mask it is enough to prefer greater
    actions; without it, the four have to be read from the observation. An episode has 50 steps: a perfect policy
    gets 50, one that draws from the valid actions 12.5, one that draws from all 0.8.
    """

    observation_space = spaces.MultiBinary(64)
    action_space = spaces.Discrete(64)
    steps = 50

    def __init__(self, masked: bool = True) -> None:
        self.masked, self.time, self.refused = masked, 0, 0
        self.valid = np.zeros(64, np.int8)

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.valid = np.zeros(64, np.int8)
        self.valid[self.np_random.choice(64, VALID, replace=False)] = 1
        mask = {"action_mask": self.valid.copy()} if self.masked else {}
        return self.valid.copy(), {"refused": self.refused} | mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = self.refused = 0
        return self._seen()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == np.flatnonzero(self.valid)[-1])
        self.refused += int(not self.valid[action])
        self.time += 1
        seen, info = self._seen()
        return seen, reward, self.time == self.steps, False, info


class Mixed(gym.Env):
    """A choice of three and a number at once: at s the reward of (c, u) is b_c(s) − (u − t_c(s))².

    b = (s, −s, 1/4) and t = (s/2, −s/2, s). The best policy chooses c = argmax b_c(s) and u = t_c(s). The states of an
    episode are the hundred numbers −0.99, −0.97, …, 0.99, in random order, so its return is exactly OPTIMUM.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Dict({"choice": spaces.Discrete(3), "number": spaces.Box(-1, 1, (1,), np.float32)})
    states = np.arange(-99, 100, 2) / 100

    def __init__(self) -> None:
        self.time, self.order = 0, self.states

    def _seen(self) -> np.ndarray:
        return np.array([self.order[self.time]], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.order = 0, self.np_random.permutation(self.states)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        s, choice = self.order[self.time], int(action["choice"])
        worth, target = ((s, s / 2), (-s, -s / 2), (0.25, s))[choice]
        reward = worth - (float(np.reshape(action["number"], ())) - target) ** 2
        self.time += 1
        ended = self.time == len(self.states)
        self.time %= len(self.states)
        return self._seen(), float(reward), ended, False, {}


OPTIMUM = float(np.maximum(np.abs(Mixed.states), 0.25).sum())
"""The return of the best policy of :class:`Mixed`, 53.12."""


def observed(task: str) -> gym.Env:
    """Return a task of POPGym that shows its whole state."""
    import popgym
    from popgym.core.observability import Observability
    from popgym.wrappers import Markovian

    del popgym  # importing it registers the tasks
    return Markovian(gym.make(task, disable_env_checker=True), Observability.FULL)


gym.register("Valid-v0", Valid)
gym.register("Mixed-v0", Mixed)
gym.register("Observed-v0", observed)
