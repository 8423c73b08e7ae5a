"""Environments in several processes, this one among them, exchanging data through shared memory.

Waking a process costs as much as a step of a simulator. So where there is a core for each process, they wait for each
other by looking at a counter in shared memory, and sleep only if nothing comes for a while, as during an update. By
itself a worker imports neither JAX nor the rest of the package; a function that it is given to call may.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cloudpickle
import numpy as np

from trpo.envs.host.gymnasium import GymnasiumEnvs, MakeEnv
from trpo.envs.protocol import EnvironmentFailure, Transition, UnknownEnvironmentError
from trpo.envs.spec import UnsupportedSpaceError

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


ASKED, DONE, FAILED, ASLEEP = range(4)
"""Counters of a worker: steps asked for, steps done, whether one raised, whether it waits for its semaphore."""
LINE = 8
"""Counters between one worker's and the next: 64 bytes, a cache line."""
PATIENCE = 2e-3
"""Seconds for which a worker looks before it sleeps."""
LOOKS = 200
"""Looks between two looks at the clock, about 10 microseconds."""


class Signals:
    """How one worker learns that it shall step, and says that it has."""

    def __init__(self, counters: Any, worker: int, wake: Any):
        self._counters, self._first, self._wake = counters, worker * LINE, wake

    def ask(self) -> None:
        """Ask for a step (the parent)."""
        self._counters[self._first + ASKED] += 1
        self.wake()

    def wake(self) -> None:
        """Wake the worker if it sleeps (the parent)."""
        if self._counters[self._first + ASLEEP]:
            self._wake.release()

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
                    self._wake.acquire(True, 0.005)
                c[i + ASLEEP] = 0

    def answer(self, failed: bool) -> None:
        """Say that the step is done (the worker)."""
        self._counters[self._first + FAILED] = failed
        self._counters[self._first + DONE] = self._counters[self._first + ASKED]


def can_look(workers: int) -> bool:
    """Return whether the processes can wait by looking: a core for each, and a machine that keeps writes in order."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return workers < cores and platform.machine().lower() in ("x86_64", "amd64")


def work(pipe: Connection, pickled: bytes, signals: Signals | None) -> None:
    """Serve one worker's environments until told to close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    memory: SharedMemory | None = None
    views: dict[str, np.ndarray] = {}
    rows = slice(0)
    stepping = False
    try:
        name, make, rows, rescale = cloudpickle.loads(pickled)
        envs = GymnasiumEnvs(name, make, rows.stop - rows.start, rescale)
        pipe.send(("ok", (envs.spec, envs.time_limit)))
        while True:
            stepping = signals is not None and signals.wait(pipe)
            command: str = "step"
            argument: Any = None
            answer: Any = None
            if not stepping:
                command, argument = pipe.recv()
            if command == "attach":
                memory_name, layout = argument
                memory = SharedMemory(memory_name)
                views = _views(memory, layout)
            elif command == "step":
                for field, column in zip(FIELDS, envs.step(views["action"][rows]), strict=True):
                    views[field][rows] = column
            elif command == "close":
                break
            elif command == "call":
                function, arguments = cloudpickle.loads(argument)
                answer = function(envs, *arguments)
            else:
                answer = getattr(envs, command)(*argument)
            if signals is not None and stepping:
                signals.answer(failed=False)
            else:
                pipe.send(("ok", answer))
        envs.close()
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        kind = next(kind for kind in SENT if isinstance(error, kind))
        with contextlib.suppress(OSError):
            pipe.send(("error", (kind, f"{type(error).__name__}: {error}", str(error), traceback.format_exc())))
        if signals is not None and stepping:
            signals.answer(failed=True)
    finally:
        views.clear()
        if memory is not None:
            memory.close()


class WorkerEnvs:
    """N environments spread evenly over this process and K others; environment i is seeded and ordered as in one."""

    def __init__(self, name: str, make: MakeEnv, count: int, workers: int, rescale_actions: bool = True):
        if workers > count:
            raise ValueError(f"env.workers={workers}: must be ≤ env.count={count}, several environments per process")
        self.count = count
        shares = workers + (count > workers)
        edges = [0] * (workers + 1 - shares) + np.linspace(0, count, shares + 1).round().astype(int).tolist()
        self._own, *self._rows = map(slice, edges[:-1], edges[1:])
        """This process's environments, and those of each worker."""
        context = multiprocessing.get_context("spawn")  # forking a process that runs JAX's threads deadlocks
        counters = context.RawArray(ctypes.c_int64, workers * LINE)
        self._pipes: list[Connection] = []
        self._processes = []
        self._signals: list[Signals | None] = [None] * workers
        if can_look(workers):
            self._signals = [Signals(counters, worker, context.Semaphore(0)) for worker in range(workers)]
        self._memory: SharedMemory | None = None
        self._envs: GymnasiumEnvs | None = None
        try:
            for rows, signals in zip(self._rows, self._signals, strict=True):
                ours, theirs = context.Pipe()
                pickled = cloudpickle.dumps((name, make, rows, rescale_actions))
                process = context.Process(target=work, args=(theirs, pickled, signals), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            if self._own.stop:
                self._envs = GymnasiumEnvs(name, make, self._own.stop, rescale_actions)
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
        signals = self._signals[i]
        if signals is not None:
            signals.wake()

    def _ask(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Give every worker a command and wait for all."""
        for i, argument in enumerate(arguments):
            self._send(i, command, argument)
        return self._collect()

    def _each(self, command: str, own: tuple[Any, ...], others: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Give a command to every process that has environments, this one first."""
        for i, argument in enumerate(others):
            self._send(i, command, argument)
        mine = [] if self._envs is None else [getattr(self._envs, command)(*own)]
        return mine + self._collect()

    @property
    def shares(self) -> list[slice]:
        """The environments of every process, this one's first (it may have none)."""
        return [self._own, *self._rows]

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have every process call ``function(its environments, *arguments[i])``, in the order of :attr:`shares`.

        What comes back is a list with the results of those that have environments.
        """
        for i, argument in enumerate(arguments[1:]):
            self._send(i, "call", cloudpickle.dumps((function, argument)))
        mine = [] if self._envs is None else [function(self._envs, *arguments[0])]
        return mine + self._collect()

    def _attach(self, action: np.ndarray) -> None:
        layout = _layout(self.spec, self.count, action)
        self._memory = SharedMemory(create=True, size=_size(layout))
        self._views = _views(self._memory, layout)
        self._ask("attach", [(self._memory.name, layout)] * len(self._pipes))

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Start new episodes."""
        return np.concatenate(self._each("reset", (seeds[self._own],), [(seeds[rows],) for rows in self._rows]))

    def restart(self, which: np.ndarray) -> np.ndarray:
        """Start new episodes in some environments."""
        observations = []
        for i, rows in enumerate((self._own, *self._rows)):
            part = which[(which >= rows.start) & (which < rows.stop)] - rows.start
            if not len(part):
                continue
            if i == 0:
                assert self._envs is not None
                observations.append(self._envs.restart(part))
            else:
                self._send(i - 1, "restart", (part,))
                observations.append(self._answer(i - 1))
        return np.concatenate(observations)

    def step(self, action: np.ndarray) -> Transition:
        """Step every environment once, the processes side by side."""
        if self._memory is None:
            self._attach(action)
        self._views["action"][...] = action
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._send(i, "step", None)
            else:
                signals.ask()
        if self._envs is not None:
            for field, column in zip(FIELDS, self._envs.step(action[self._own]), strict=True):
                self._views[field][self._own] = column
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._answer(i)
            else:
                self._await(i, signals)
        return Transition(*(self._views[field].copy() for field in FIELDS))

    def _await(self, i: int, signals: Signals) -> None:
        """Wait until worker ``i`` has stepped; raise what it raised."""
        began = time.perf_counter()
        while not signals.is_done():
            waited = time.perf_counter() - began
            if waited > PATIENCE:
                if not self._processes[i].is_alive() and not signals.is_done():
                    raise self._death(i)
                time.sleep(min(waited / 10, 1e-3))  # a slow simulator: a tenth of its step is soon enough
        if signals.failed:
            self._answer(i)

    def snapshot(self) -> Any | None:
        """Return all environments' snapshots in order, or None if one has none."""
        if self._envs is not None and self._envs.snapshot() is None:
            return None  # theirs are the same: no need to wake the workers in every iteration
        parts = self._each("snapshot", (), [()] * len(self._pipes))
        return None if any(part is None for part in parts) else [state for part in parts for state in part]

    def restore(self, snapshot: Any) -> None:
        """Put back what :meth:`snapshot` returned."""
        self._each("restore", (snapshot[self._own],), [(snapshot[rows],) for rows in self._rows])

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
        if self._envs is not None:
            self._envs.close()
            self._envs = None
        if self._memory is not None:
            self._views.clear()
            self._memory.close()
            self._memory.unlink()
            self._memory = None
        self._pipes, self._processes, self._signals = [], [], []
