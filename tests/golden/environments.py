"""Small environments with the kinds of spaces that the golden runs need.

All of them offer snapshots, which the wrapper that Gymnasium puts around a registered one hides.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

LIMIT = 12
BITS, CHOICES = 3, (3, 2)


class Matching(gym.Env):
    """Episodes of up to 12 steps; the reward says how well an action matches what the observation asks for."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space):
        self.observation_space, self.action_space = observation_space, action_space
        self._x = np.zeros(4, np.float32)
        self._goal = self._time = 0

    def _observation(self) -> Any:
        if isinstance(self.observation_space, gym.spaces.Dict):
            return {"goal": self._goal, "near": np.array([self._goal == 0, self._time > 6], np.int8), "x": self._x}
        return self._x

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._time = 0
        self._draw()
        return self._observation(), {}

    def _draw(self) -> None:
        self._x = (3 * self.np_random.normal(size=4) + 1).astype(np.float32)
        self._goal = int(self.np_random.integers(3))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self._time += 1
        match self.action_space:
            case gym.spaces.MultiDiscrete():
                reward = float(action[0] == int(self._x[0] > 1) + int(self._x[1] > 1)) + float(
                    action[1] == (self._x[2] > 0)
                )
            case gym.spaces.MultiBinary():
                reward = float(np.sum(action == (self._x[:BITS] > 1)))
            case gym.spaces.Discrete():
                reward = float(action == self._goal)
            case _:
                reward = -float(np.sum((np.asarray(action) - self._goal + 1) ** 2))
        self._draw()
        terminated = bool(self.np_random.random() < 0.05)
        return self._observation(), reward, terminated, self._time == LIMIT and not terminated, {}

    def snapshot(self) -> dict[str, Any]:
        return {
            "x": self._x.tolist(),
            "goal": self._goal,
            "time": self._time,
            "random": self.np_random.bit_generator.state,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._x = np.array(snapshot["x"], np.float32)
        self._goal, self._time = snapshot["goal"], snapshot["time"]
        self.np_random.bit_generator.state = snapshot["random"]


def _box(size: int = 4) -> gym.Space:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)


def _mixed() -> gym.Space:
    return gym.spaces.Dict({"goal": gym.spaces.Discrete(3), "near": gym.spaces.MultiBinary(2), "x": _box()})


gym.register("Choices-v0", lambda: Matching(_box(), gym.spaces.MultiDiscrete(CHOICES)))
gym.register("Bits-v0", lambda: Matching(_box(), gym.spaces.MultiBinary(BITS)))
gym.register("Mixed-v0", lambda: Matching(_mixed(), gym.spaces.Discrete(3, start=0)))
gym.register("Square-v0", lambda: Matching(_box(), gym.spaces.Box(-1.0, 2.0, (2, 2), np.float32)))
