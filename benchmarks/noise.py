"""An environment of noise, as large as Atari's screens: training in it is work, and stepping it is not."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SHAPE = (4, 84, 84)


class Noise(gymnasium.Env):
    """Four grey screens of noise; reward 1 for one action, 0 for the other; episodes of 100 steps."""

    observation_space = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    screens = np.random.default_rng(0).integers(0, 256, (64, *SHAPE), dtype=np.uint8)
    time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.time = 0
        return self.screens[0].copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Show the next screen."""
        self.time += 1
        return self.screens[self.time % 64].copy(), float(action == 0), self.time == 100, False, {}
