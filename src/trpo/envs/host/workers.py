"""Environments in several processes, this one among them, exchanging data through shared memory.

By itself a worker imports neither JAX nor the rest of the package; a function that it is given to call may.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
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
from trpo.envs.host.signals import LINE, PATIENCE, Signals, can_look
from trpo.envs.protocol import EnvironmentFailure, Transition, UnknownEnvironmentError
from trpo.envs.spec import Bits, Box, EnvSpec, Leaf, Space, Tree, Tuple, UnsupportedSpaceError

SENT = (UnknownEnvironmentError, UnsupportedSpaceError, ValueError, EnvironmentFailure, Exception)
"""What a worker's error is reported as, the first that fits: a user's own class may not survive the journey."""


def _exchanged(spec: EnvSpec, action: np.ndarray) -> Tuple:
    """What a step exchanges: the policy's actions, and the fields of a :class:`Transition`."""
    flag, seen = Bits((), "bool"), spec.observation
    return Tuple((Box(action.shape[1:], str(action.dtype)), Tuple((seen, Box(()), flag, flag, seen, flag))))


def _bytes(leaf: Leaf, count: int) -> int:
    return -(-count * leaf.size * np.dtype(leaf.dtype).itemsize // 64) * 64  # every array on a cache line of its own


def _views(memory: SharedMemory, space: Space, count: int) -> Tree:
    offset = 0

    def view(leaf: Leaf) -> np.ndarray:
        nonlocal offset
        begin, offset = offset, offset + _bytes(leaf, count)
        return np.ndarray((count, *leaf.shape), leaf.dtype, buffer=memory.buf, offset=begin)

    return space.map(view)


def _write(views: Tree, rows: slice, parts: Tree) -> None:
    if isinstance(views, np.ndarray):
        views[rows] = parts
        return
    for key in views if isinstance(views, dict) else range(len(views)):
        _write(views[key], rows, parts[key])


def _copied(views: Tree) -> Tree:
    if isinstance(views, dict):
        return {name: _copied(view) for name, view in views.items()}
    return views.copy() if isinstance(views, np.ndarray) else tuple([_copied(view) for view in views])


def work(pipe: Connection, pickled: bytes, signals: Signals | None) -> None:
    """Serve one worker's environments until told to close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    memory: SharedMemory | None = None
    views: Tree = None
    stepping = False
    try:
        name, make, rows, *options = cloudpickle.loads(pickled)
        envs = GymnasiumEnvs(name, make, rows.stop - rows.start, *options)
        pipe.send(("ok", (envs.spec, envs.time_limit)))
        while True:
            stepping = signals is not None and signals.wait(pipe)
            message: tuple[str, Any] = ("step", None) if stepping else pipe.recv()
            command, argument = message
            answer = None
            if command == "attach":
                memory_name, *of_step = argument
                memory = SharedMemory(memory_name)
                views = _views(memory, *of_step)
            elif command == "step":
                _write(views[1], rows, envs.step(views[0][rows]))
            elif command == "call":
                function, arguments = cloudpickle.loads(argument)
                answer = function(envs, *arguments)
            else:
                break
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
        views = None
        if memory is not None:
            memory.close()


class WorkerEnvs:
    """N environments spread evenly over this process and K others; environment i is seeded and ordered as in one."""

    def __init__(
        self, name: str, make: MakeEnv, count: int, workers: int, rescale_actions: bool = True, flatten: bool = False
    ):
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
                pickled = cloudpickle.dumps((name, make, rows, rescale_actions, flatten))
                process = context.Process(target=work, args=(theirs, pickled, signals), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            if self._own.stop:
                self._envs = GymnasiumEnvs(name, make, self._own.stop, rescale_actions, flatten)
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

    @property
    def shares(self) -> list[slice]:
        """The environments of every process, this one's first (it may have none)."""
        return [self._own, *self._rows]

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for i, argument in enumerate(arguments[1:]):
            self._send(i, "call", cloudpickle.dumps((function, argument)))
        mine = [] if self._envs is None else [function(self._envs, *arguments[0])]
        return mine + self._collect()

    def _attach(self, action: np.ndarray) -> None:
        of_step = _exchanged(self.spec, action), self.count
        size = sum(_bytes(leaf, self.count) for _, leaf in of_step[0].leaves())
        self._memory = SharedMemory(create=True, size=size)
        self._views = _views(self._memory, *of_step)
        for i in range(len(self._pipes)):
            self._send(i, "attach", (self._memory.name, *of_step))
        self._collect()

    def _joined(self, parts: list[Tree]) -> Tree:
        return self.spec.observation.map(lambda leaf, *columns: np.concatenate(columns), *parts)

    def reset(self, seeds: list[int]) -> Tree:
        return self._joined(self.call(GymnasiumEnvs.reset, [(seeds[rows],) for rows in self.shares]))

    def restart(self, which: np.ndarray) -> Tree:
        parts = [which[(which >= rows.start) & (which < rows.stop)] - rows.start for rows in self.shares]
        return self._joined(self.call(GymnasiumEnvs.restart, [(part,) for part in parts]))

    def step(self, action: Tree) -> Transition:
        if self._memory is None:
            self._attach(action)
        self._views[0][...] = action
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._send(i, "step", None)
            else:
                signals.ask()
        if self._envs is not None:
            _write(self._views[1], self._own, self._envs.step(action[self._own]))
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._answer(i)
            else:
                self._await(i, signals)
        return Transition(*_copied(self._views[1]))

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
        if self._envs is not None and self._envs.snapshot() is None:
            return None  # theirs are the same: no need to wake the workers in every iteration
        parts = self.call(GymnasiumEnvs.snapshot, [()] * len(self.shares))
        return None if any(part is None for part in parts) else [state for part in parts for state in part]

    def restore(self, snapshot: Any) -> None:
        self.call(GymnasiumEnvs.restore, [(snapshot[rows],) for rows in self.shares])

    def close(self) -> None:
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
            self._views = None
            self._memory.close()
            self._memory.unlink()
            self._memory = None
        self._pipes, self._processes, self._signals = [], [], []
