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
=========================  =====================================================================================

All of them offer ``snapshot()`` and ``restore()``, so a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from trpo.spelling import nearest

TIME_LIMIT = 10
NAMES = ("constant", "observation", "delayed", "action", "both", "endless", "continuous")


class Probe(gym.Env):
    """One of the probe environments; see the module's docstring."""

    def __init__(self, name: str):
        if name not in NAMES:
            raise ValueError(f"unknown probe {name!r}; {nearest(name, NAMES, NAMES, prefix='probe:', cutoff=0.3)}")
        self.name = name
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = (
            gym.spaces.Box(-np.inf, np.inf, (1,), np.float32) if name == "continuous" else gym.spaces.Discrete(2)
        )
        self._state = 0.0
        self._time = 0

    def _observation(self) -> np.ndarray:
        return np.array([self._state], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        seeing = self.name in ("observation", "both", "continuous")
        self._state = float(self.np_random.choice([-1.0, 1.0])) if seeing else 0.0
        self._time = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        state = self._state
        match self.name:
            case "constant":
                reward, terminated, truncated = 1.0, True, False
            case "observation":
                reward, terminated, truncated = state, True, False
            case "delayed":
                reward, terminated, truncated = float(self._time == 2), self._time == 2, False
                self._state = 1.0
            case "action":
                reward, terminated, truncated = 2.0 * int(action) - 1.0, True, False
            case "both":
                reward, terminated, truncated = (1.0 if (int(action) == 1) == (state > 0) else -1.0), True, False
            case "endless":
                reward, terminated, truncated = 1.0, False, self._time == TIME_LIMIT
            case _:
                reward, terminated, truncated = -float((action[0] - state / 2) ** 2), True, False
        return self._observation(), reward, terminated, truncated, {}

    def snapshot(self) -> dict[str, Any]:
        """Return state, clock and random generator as JSON-able data."""
        return {"state": self._state, "time": self._time, "random": self.np_random.bit_generator.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Put a snapshot back."""
        self._state, self._time = float(snapshot["state"]), int(snapshot["time"])
        self.np_random.bit_generator.state = snapshot["random"]
