"""How processes that step side by side wait for each other.

Waking a process costs as much as a step of a simulator. So where there is a core for each process, they wait by looking
at a counter in shared memory, and sleep only if nothing comes for a while, as during an update.
"""

from __future__ import annotations

import platform
import time
from multiprocessing.connection import Connection
from typing import Any

from trpo.capacity import cores

ASKED, DONE, FAILED, ASLEEP = range(4)
"""Counters of a worker: steps asked for, steps done, whether one raised, whether it waits for a message."""
LINE = 8
"""Counters between one worker's and the next: 64 bytes, a cache line."""
PATIENCE = 2e-3
"""Seconds for which a worker looks before it sleeps."""
LOOKS = 200
"""Looks between two looks at the clock, about 10 microseconds."""


class Signals:
    """How one worker learns that it shall step, and says that it has."""

    def __init__(self, counters: Any, worker: int):
        self._counters, self._first = counters, worker * LINE

    def ask(self) -> bool:
        """Ask for a step; return whether the worker sleeps, and must be woken by a message (the parent)."""
        self._counters[self._first + ASKED] += 1
        return bool(self._counters[self._first + ASLEEP])

    def is_done(self) -> bool:
        """Return whether what was asked for is done (the parent)."""
        return bool(self._counters[self._first + DONE] == self._counters[self._first + ASKED])

    @property
    def failed(self) -> bool:
        """Whether the last step raised (the parent)."""
        return bool(self._counters[self._first + FAILED])

    def wait(self, pipe: Connection) -> bool:
        """Wait for a step to be asked for, or a message in the pipe; return whether it was a step (the worker)."""
        c, i = self._counters, self._first
        done = c[i + DONE]
        slept_after = time.perf_counter() + PATIENCE
        while True:
            for _ in range(LOOKS):
                if c[i + ASKED] != done:
                    return True
            if pipe.poll(0):
                return False
            if time.perf_counter() > slept_after:
                c[i + ASLEEP] = 1
                if c[i + ASKED] == done:
                    # A wake-up that was missed, since the parent looked a moment too early, costs this long once.
                    pipe.poll(0.005)
                c[i + ASLEEP] = 0

    def answer(self, failed: bool) -> None:
        """Say that the step is done (the worker)."""
        self._counters[self._first + FAILED] = failed
        self._counters[self._first + DONE] = self._counters[self._first + ASKED]


def can_look(workers: int) -> bool:
    """Return whether the processes can wait by looking: a core for each, and a machine that keeps writes in order."""
    return workers < cores() and platform.machine().lower() in ("x86_64", "amd64")
