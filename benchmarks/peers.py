"""Speak to the peers' workers: other Python environments, other processes, JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("sb3_contrib", "tianshou")
INSTALL = (
    'python -m venv .venv-peers && .venv-peers/bin/pip install torch==2.13.0 sb3-contrib tianshou "gymnasium[mujoco]"'
)
_WORKER = Path(__file__).with_name("peer_worker.py")


class Peer:
    """A library in its own interpreter, ready to time its update."""

    def __init__(self, python: Path, library: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.library = library
        self.versions: dict[str, str] = {}
        self._process = subprocess.Popen(
            [str(python), str(_WORKER), library, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the {self.library} worker stopped (exit code {self._process.wait()}); see its message above"
            )
        return json.loads(line)

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

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
