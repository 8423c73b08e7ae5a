"""Several environments in each of several processes, exchanging data through shared memory.

A worker imports neither JAX nor the rest of the package. One environment a process is slower than none, because
waking a process costs as much as a step; several a process share that cost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cloudpickle
import numpy as np

from trpo.envs.gymnasium_env import GymnasiumEnvs, MakeEnv, UnknownEnvironmentError
from trpo.envs.protocol import EnvironmentFailure, Transition
from trpo.envs.spaces import UnsupportedSpaceError

FIELDS = Transition._fields
SENT = (UnknownEnvironmentError, UnsupportedSpaceError, ValueError, EnvironmentFailure, Exception)
"""What a worker's error is reported as, the first that fits: a user's own class may not survive the journey."""


def _layout(spec: Any, count: int, action: np.ndarray) -> dict[str, tuple[tuple[int, ...], str]]:
    features = (count, spec.observation_size)
    return {
        "action": (action.shape, action.dtype.str),
        "observation": (features, "<f4"),
        "reward": ((count,), "<f4"),
        "terminated": ((count,), "|b1"),
        "truncated": ((count,), "|b1"),
        "final_observation": (features, "<f4"),
        "valid": ((count,), "|b1"),
    }


def _views(memory: SharedMemory, layout: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
    views, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        views[name] = np.ndarray(shape, dtype, buffer=memory.buf, offset=offset)
        offset += -(-views[name].nbytes // 64) * 64  # every array on a cache line of its own
    return views


def _size(layout: dict[str, tuple[tuple[int, ...], str]]) -> int:
    return max(64, sum(-(-int(np.prod(s)) * np.dtype(d).itemsize // 64) * 64 for s, d in layout.values()))


def work(pipe: Connection, pickled: bytes) -> None:
    """Serve one worker's environments until told to close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    memory: SharedMemory | None = None
    views: dict[str, np.ndarray] = {}
    first, last = 0, 0
    try:
        name, make, first, last, rescale = cloudpickle.loads(pickled)
        envs = GymnasiumEnvs(name, make, last - first, rescale)
        pipe.send(("ok", (envs.spec, envs.time_limit)))
        while True:
            command, argument = pipe.recv()
            answer: Any = None
            if command == "attach":
                memory_name, layout = argument
                memory = SharedMemory(memory_name)
                views = _views(memory, layout)
            elif command == "step":
                transition = envs.step(views["action"][first:last])
                for field in FIELDS:
                    views[field][first:last] = getattr(transition, field)
            elif command == "close":
                break
            else:
                answer = getattr(envs, command)(*argument)
            pipe.send(("ok", answer))
        envs.close()
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        kind = next(kind for kind in SENT if isinstance(error, kind))
        with contextlib.suppress(OSError):
            pipe.send(("error", (kind, f"{type(error).__name__}: {error}", str(error), traceback.format_exc())))
    finally:
        views.clear()
        if memory is not None:
            memory.close()


class WorkerEnvs:
    """N environments spread evenly over K processes; environment i is seeded and ordered as in one process."""

    def __init__(self, name: str, make: MakeEnv, count: int, workers: int, rescale_actions: bool = True):
        if workers > count:
            raise ValueError(f"env.workers={workers}: must be ≤ env.count={count}, several environments per process")
        self.count = count
        edges = np.linspace(0, count, workers + 1).round().astype(int)
        self._ranges = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        context = multiprocessing.get_context("spawn")  # forking a process that runs JAX's threads deadlocks
        self._pipes: list[Connection] = []
        self._processes = []
        self._memory: SharedMemory | None = None
        try:
            for first, last in self._ranges:
                ours, theirs = context.Pipe()
                pickled = cloudpickle.dumps((name, make, first, last, rescale_actions))
                process = context.Process(target=work, args=(theirs, pickled), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self.spec, self.time_limit = self._collect()[0]
        except BaseException:
            self.close()
            raise

    def _answer(self, i: int) -> Any:
        """Wait for what worker ``i`` was asked; raise what it raised."""
        try:
            status, answer = self._pipes[i].recv()
        except (EOFError, OSError) as error:
            raise self._death(i) from error
        if status == "error":
            kind, summary, message, trace = answer
            if kind is not Exception:
                raise kind(message)
            raise EnvironmentFailure(f"environment worker {i} failed: {summary}\n{trace}")
        return answer

    def _collect(self) -> list[Any]:
        return [self._answer(i) for i in range(len(self._pipes))]

    def _death(self, i: int) -> EnvironmentFailure:
        self._processes[i].join(timeout=1)  # its pipe closes a moment before its exit code is known
        code = self._processes[i].exitcode
        return EnvironmentFailure(
            f"environment worker {i} died (exit code {code}; a negative one is the signal that killed it)"
        )

    def _send(self, i: int, command: str, argument: Any) -> None:
        try:
            self._pipes[i].send((command, argument))
        except OSError as error:
            raise self._death(i) from error

    def _ask(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        for i, argument in enumerate(arguments):
            self._send(i, command, argument)
        return self._collect()

    def _attach(self, action: np.ndarray) -> None:
        layout = _layout(self.spec, self.count, action)
        self._memory = SharedMemory(create=True, size=_size(layout))
        self._views = _views(self._memory, layout)
        self._ask("attach", [(self._memory.name, layout)] * len(self._pipes))

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Start new episodes."""
        return np.concatenate(self._ask("reset", [(seeds[a:b],) for a, b in self._ranges]))

    def restart(self, which: np.ndarray) -> np.ndarray:
        """Start new episodes in some environments."""
        parts = [which[(which >= first) & (which < last)] - first for first, last in self._ranges]
        asked = [i for i, part in enumerate(parts) if len(part)]
        for i in asked:
            self._send(i, "restart", (parts[i],))
        return np.concatenate([self._answer(i) for i in asked])

    def step(self, action: np.ndarray) -> Transition:
        """Step every environment once, the processes side by side."""
        if self._memory is None:
            self._attach(action)
        self._views["action"][...] = action
        self._ask("step", [None] * len(self._pipes))
        return Transition(*(self._views[field].copy() for field in FIELDS))

    def snapshot(self) -> Any | None:
        """Return all environments' snapshots in order, or None if one has none."""
        parts = self._ask("snapshot", [()] * len(self._pipes))
        return None if any(part is None for part in parts) else [state for part in parts for state in part]

    def restore(self, snapshot: Any) -> None:
        """Put back what :meth:`snapshot` returned."""
        self._ask("restore", [(snapshot[a:b],) for a, b in self._ranges])

    def close(self) -> None:
        """End the processes and free the shared memory."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("close", None))
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        if self._memory is not None:
            self._views.clear()
            self._memory.close()
            self._memory.unlink()
            self._memory = None
        self._pipes, self._processes = [], []
