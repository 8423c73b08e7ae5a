"""Environments that misbehave in workers or when they are closed, by name: ``benchmarks.fault_envs:Sleeping-v0``."""

from __future__ import annotations

import multiprocessing
import signal
import time
from typing import Any

import gymnasium as gym

from trpo.envs.host.probes import Probe

STEPS = 60
"""After so many an environment misbehaves."""
LONG = 3600.0


class Sleeping(Probe):
    """In a worker it sleeps for an hour within a step; ``deaf``: and no request to end reaches its process."""

    def __init__(self, deaf: bool = False):
        super().__init__("endless")
        self._there, self._taken = multiprocessing.parent_process() is not None, 0
        if deaf and self._there:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)

    def step(self, action: Any) -> Any:
        """Take a step, or sleep."""
        self._taken += 1
        if self._there and self._taken > STEPS:
            time.sleep(LONG)
        return super().step(action)


class Unclosing(Probe):
    """Closing it takes an hour."""

    def __init__(self) -> None:
        super().__init__("endless")

    def close(self) -> None:
        """Sleep."""
        time.sleep(LONG)


gym.register("Sleeping-v0", Sleeping)
gym.register("Deaf-v0", lambda: Sleeping(deaf=True))
gym.register("Unclosing-v0", Unclosing)
