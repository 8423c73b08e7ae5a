"""Tiny environments whose right answers are known, to find which part of an agent is broken.

Each isolates one faculty; if ``probe:constant`` fails, look at the value fit, and so on down the list.

=========================  =====================================================================================
``probe:constant``         one step, reward 1: V = 1
``probe:observation``      one step, reward = observation ∈ {−1, 1}: V(s) = s
``probe:delayed``          two steps, reward 1 at the end: V(first) = γ, V(second) = 1
``probe:action``           one step, action ∈ {0, 1}, reward ±1 by the action: π(1) → 1, V → 1
``probe:both``             one step, reward 1 if the action matches the observation's sign, else −1: V → 1
``probe:endless``          reward 1 for ever, cut by a time limit of 10 steps: V = 1 / (1 − γ)
``probe:continuous``       one step, Box action, reward −(a − s/2)²: π's mean → s/2, V(s) → −σ²
``probe:memory``           four steps, s ∈ {−1, 1} shown at the first alone: reward ±1 by the last action, as in both
=========================  =====================================================================================

All of them offer ``snapshot()`` and ``restore()``, so a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs.protocol import UnknownEnvironmentError
from trpo.spelling import nearest

TIME_LIMIT = 10
NAMES = ("constant", "observation", "delayed", "action", "both", "endless", "continuous", "memory")
SEEING = ("observation", "both", "continuous", "memory")
"""Those whose first observation is −1 or 1 by chance."""
MEMORY_STEPS = 4


def outcome(xp: Any, name: str, value: Any, time: Any, action: Any) -> tuple[Any, Any, Any, Any]:
    """Return what follows step ``time``: the state, reward, terminated, truncated; ``xp`` is NumPy or JAX's."""
    reward, terminated, truncated = 1.0, True, False
    match name:
        case "observation":
            reward = value
        case "delayed":
            terminated = time == 2
            reward, value = xp.where(terminated, 1.0, 0.0), 1.0
        case "action":
            reward = xp.where(action == 1, 1.0, -1.0)
        case "both":
            reward = xp.where((action == 1) == (value > 0), 1.0, -1.0)
        case "endless":
            terminated, truncated = False, time == TIME_LIMIT
        case "continuous":
            reward = -((action[0] - value / 2) ** 2)
        case "memory":
            terminated = time == MEMORY_STEPS
            reward = xp.where(terminated, xp.where((action == 1) == (value > 0), 1.0, -1.0), 0.0)
    return value, reward, terminated, truncated


def shown(xp: Any, name: str, value: Any, time: Any) -> Any:
    """Return what is observed of a state ``time`` steps after the beginning."""
    return xp.where(time == 0, value, 0.0) if name == "memory" else value


class Probe(gym.Env):
    """One of the probe environments; see the module's docstring."""

    def __init__(self, name: str):
        if name not in NAMES:
            raise UnknownEnvironmentError(
                f"unknown probe {name!r}; {nearest(name, NAMES, NAMES, prefix='probe:', cutoff=0.3)}"
            )
        self.name = name
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = (
            gym.spaces.Box(-np.inf, np.inf, (1,), np.float32) if name == "continuous" else gym.spaces.Discrete(2)
        )
        self._state = 0.0
        self._time = 0

    def _observation(self) -> np.ndarray:
        return np.array([shown(np, self.name, self._state, self._time)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._state = float(self.np_random.choice([-1.0, 1.0])) if self.name in SEEING else 0.0
        self._time = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        self._state, reward, *ends = outcome(np, self.name, self._state, self._time, action)
        return self._observation(), float(reward), *ends, {}

    def snapshot(self) -> dict[str, Any]:
        return {"state": self._state, "time": self._time, "random": self.np_random.bit_generator.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._state, self._time = float(snapshot["state"]), int(snapshot["time"])
        self.np_random.bit_generator.state = snapshot["random"]
