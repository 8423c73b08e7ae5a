"""Speak to the peers' workers: other Python environments, other processes, JSON lines."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("sb3_contrib", "tianshou")
INSTALL = (
    'python -m venv .venv-peers && .venv-peers/bin/pip install torch==2.13.0 sb3-contrib tianshou "gymnasium[mujoco]"'
)
_UPDATES = Path(__file__).with_name("peer_worker.py")
TRAINING, BEYOND = (Path(__file__).with_name(f"peer_{name}.py") for name in ("training", "beyond"))


def installed(python: Path) -> bool:
    """Return whether the peers' interpreter is there; if not, say how to make it."""
    if not python.exists():
        print(f"No interpreter at {python}: the peers are left out. To compare with them, run\n\n    {INSTALL}\n")
    return python.exists()


class _Worker:
    """A script in a library's own interpreter."""

    def __init__(self, python: Path, script: Path, library: str, argument: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.library = library
        self.versions: dict[str, str] = {}
        self._process = subprocess.Popen(
            [str(python), str(script), library, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the {self.library} worker stopped (exit code {self._process.wait()}); see its message above"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


class Peer(_Worker):
    """A library ready to time its update on one batch."""

    def __init__(self, python: Path, library: str, threads: int) -> None:
        super().__init__(python, _UPDATES, library, str(threads), threads)

    def load(self, path: Path, **hyperparameters: float) -> None:
        """Hand over a case."""
        self.versions = self._ask(do="load", path=str(path), **hyperparameters)["versions"]

    def time(self, repeats: int) -> list[float]:
        """Return the seconds of each of ``repeats`` updates."""
        return self._ask(do="time", repeats=repeats)["seconds"]

    def result(self, directory: Path) -> dict[str, np.ndarray]:
        """Return the parameters after its last update."""
        path = directory / f"{self.library}.npz"
        self._ask(do="save", path=str(path))
        return dict(np.load(path))


class TrainingPeer(_Worker):
    """A library ready to train on a task."""

    def __init__(self, python: Path, library: str, settings: dict[str, Any], script: Path = TRAINING) -> None:
        super().__init__(python, script, library, json.dumps(settings), settings["threads"])
        self.versions = self._read()["versions"]

    def train(self, iterations: int) -> float:
        """Train on; return seconds per step."""
        reply = self._ask(do="train", iterations=iterations)
        return reply["seconds"] / reply["steps"]

    def value_fit(self, updates: int) -> float:
        """Return the median seconds that the value fit adds to an update."""
        reply = self._ask(do="value", updates=updates)
        return statistics.median(a - b for a, b in zip(reply["with"], reply["without"], strict=True))

    def evaluate(self, episodes: int) -> list[float]:
        """Return deterministic returns of whole episodes, raw rewards."""
        return self._ask(do="evaluate", episodes=episodes)["returns"]

    def memory(self) -> int:
        """Return its peak resident memory, in bytes."""
        return self._ask(do="memory")["bytes"]
