"""Environments in several processes, this one among them, exchanging data through shared memory.

By itself a worker imports neither JAX nor the rest of the package; a function that it is given to call may.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from trpo.envs.host.exchange import copied, exchanged, rows_of, size_of, views_of, write_rows
from trpo.envs.host.families import GRACE, ask_to_close, end, end_left, end_own, lead, signals_held
from trpo.envs.host.gymnasium import GymnasiumEnvs, MakeEnv
from trpo.envs.host.returned import described
from trpo.envs.host.signals import LINE, PATIENCE, Signals, can_look
from trpo.envs.meeting import require_alike
from trpo.envs.protocol import EnvironmentFailure, Transition, UnknownEnvironmentError, UnusableEnvironmentError
from trpo.envs.spaces import Tree, UnsupportedSpaceError

SENT = (
    UnknownEnvironmentError,
    UnusableEnvironmentError,
    UnsupportedSpaceError,
    ValueError,
    EnvironmentFailure,
    BaseException,
)
"""What a worker's error is reported as, the first that fits: a user's own class may not survive the journey."""

LOOK = 0.2
"""Seconds between two looks at whether a worker that says nothing is alive."""

UNGUARDED = (
    '; before it had made its environments: if your script starts training outside of `if __name__ == "__main__":`, '
    "put it there, since a worker imports the script anew"
)


class WorkerTraceback(Exception):
    """The traceback of a worker's error, as text: the cause of what is raised here."""


def _pickled(name: str, make: MakeEnv, *options: Any) -> bytes:
    try:
        return cloudpickle.dumps((name, make, *options))
    except Exception as error:
        raise ValueError(
            f"environment {name!r} cannot be sent to a worker ({described(error)}): pass a function that makes it from "
            "plain data, or set env.workers=0"
        ) from error


def work(pipe: Connection, pickled: bytes, signals: Signals | None) -> None:
    """Serve one worker's environments until told to close."""
    lead()
    memory: SharedMemory | None = None
    views: Tree = None
    stepping = orphaned = False
    envs = None
    try:
        name, make, rows, *options = cloudpickle.loads(pickled)
        envs = GymnasiumEnvs(name, make, rows.stop - rows.start, *options)
        envs.first = rows.start
        pipe.send(("ok", (envs.spec, envs.time_limit)))
        while True:
            stepping = signals is not None and signals.wait(pipe)
            message: tuple[str, Any] = ("step", None) if stepping else pipe.recv()
            command, argument = message
            answer = None
            if command == "wake":
                continue
            if command == "attach":
                memory_name, *of_step = argument
                memory = SharedMemory(memory_name)
                views = views_of(memory, *of_step)
            elif command == "step":
                write_rows(views[1], rows, envs.step(rows_of(views[0], rows)))
            elif command == "call":
                function, arguments = cloudpickle.loads(argument)
                answer = function(envs, *arguments)
            else:
                break
            if signals is not None and stepping:
                signals.answer(failed=False)
            else:
                pipe.send(("ok", answer))
    except (EOFError, BrokenPipeError):
        orphaned = True
    except BaseException as error:
        kind = next(kind for kind in SENT if isinstance(error, kind))
        with contextlib.suppress(OSError):
            pipe.send(("error", (kind, described(error), str(error), traceback.format_exc())))
        if signals is not None and stepping:
            signals.answer(failed=True)
    finally:
        views = None
        if memory is not None:
            memory.close()
        if envs is not None:
            envs.close()
        if orphaned:
            end_own()


class WorkerEnvs:
    """N environments spread evenly over this process and K others; environment i is seeded and ordered as in one."""

    def __init__(
        self,
        name: str,
        make: MakeEnv,
        count: int,
        workers: int,
        rescale_actions: bool = True,
        flatten: bool = False,
        drop: Sequence[str] = (),
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
        self._processes: list[Any] = []
        self._begun = False
        # Called at the interpreter's end too, and then before multiprocessing, which would wait for what does not end.
        self._end_left = weakref.finalize(self, end_left, self._processes, os.getpid())
        atexit.register(self._end_left)
        self._signals: list[Signals | None] = [None] * workers
        if can_look(workers):
            self._signals = [Signals(counters, worker) for worker in range(workers)]
        self._memory: SharedMemory | None = None
        self._envs: GymnasiumEnvs | None = None
        try:
            for rows, signals in zip(self._rows, self._signals, strict=True):
                ours, theirs = context.Pipe()
                pickled = _pickled(name, make, rows, rescale_actions, flatten, drop)
                process = context.Process(target=work, args=(theirs, pickled, signals), daemon=True)
                with signals_held():
                    process.start()
                    theirs.close()
                    self._pipes.append(ours)
                    self._processes.append(process)
            if self._own.stop:
                self._envs = GymnasiumEnvs(name, make, self._own.stop, rescale_actions, flatten, drop)
            (self.spec, self.time_limit), *others = self._collect()
            require_alike(self.spec, [spec for spec, _ in others] + [envs.spec for envs in [self._envs] if envs])
            self._begun = True
        except UnknownEnvironmentError as error:
            self.close()
            if name not in gym.registry:
                raise
            raise UnknownEnvironmentError(
                f"environment {name!r} is registered in this process, but not in its workers, which import your "
                'modules anew, without what stands under `if __name__ == "__main__":`: register it at the top of a '
                "module, name it module:Id, or pass a function that makes it (or set env.workers=0)"
            ) from error
        except BaseException:
            self.close()
            raise

    def _answer(self, i: int) -> Any:
        """Wait for what worker ``i`` was asked; raise what it raised."""
        pipe, process = self._pipes[i], self._processes[i]
        try:
            # Its end of the pipe may be held open by a process that an environment has started.
            while not pipe.poll(LOOK):
                if not process.is_alive() and not pipe.poll(0):
                    raise self._death(i)
            status, answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._death(i) from error
        if status == "error":
            kind, summary, message, trace = answer
            if kind is not BaseException:
                raise kind(message) from WorkerTraceback(f"in worker {i}\n{trace}")
            raise EnvironmentFailure(f"environment worker {i} failed: {summary}") from WorkerTraceback(trace)
        return answer

    def _collect(self) -> list[Any]:
        return [self._answer(i) for i in range(len(self._pipes))]

    def _death(self, i: int) -> EnvironmentFailure:
        self._processes[i].join(timeout=1)  # its pipe closes a moment before its exit code is known
        code = self._processes[i].exitcode
        return EnvironmentFailure(
            f"environment worker {i} died (exit code {code}; a negative one is the signal that killed it)"
            f"{'' if self._begun else UNGUARDED}"
        )

    def _send(self, i: int, command: str, argument: Any) -> None:
        try:
            self._pipes[i].send((command, argument))
        except OSError as error:
            raise self._death(i) from error

    @property
    def shares(self) -> list[slice]:
        """The environments of every process, this one's first (it may have none)."""
        return [self._own, *self._rows]

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for i, argument in enumerate(arguments[1:]):
            self._send(i, "call", cloudpickle.dumps((function, argument)))
        mine = [] if self._envs is None else [function(self._envs, *arguments[0])]
        return mine + self._collect()

    def _attach(self, action: Tree) -> None:
        of_step = exchanged(self.spec, action), self.count
        size = sum(size_of(leaf, self.count) for _, leaf in of_step[0].leaves())
        self._memory = SharedMemory(create=True, size=size)
        try:
            self._views = views_of(self._memory, *of_step)
            for i in range(len(self._pipes)):
                self._send(i, "attach", (self._memory.name, *of_step))
            self._collect()
        finally:
            self._memory.unlink()  # all have it: nothing is left of it when they end, however they do

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
        write_rows(self._views[0], slice(None), action)
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._send(i, "step", None)
            elif signals.ask():
                self._send(i, "wake", None)
        if self._envs is not None:
            write_rows(self._views[1], self._own, self._envs.step(rows_of(action, self._own)))
        for i, signals in enumerate(self._signals):
            if signals is None:
                self._answer(i)
            else:
                self._await(i, signals)
        return Transition(*copied(self._views[1]))

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
        until = time.monotonic() + GRACE
        for pipe in self._pipes:
            ask_to_close(pipe)
        try:
            if self._envs is not None:
                self._envs.close()
        finally:
            end(self._processes, until)
            self._envs = None
            for pipe in self._pipes:
                pipe.close()
            if self._memory is not None:
                self._views = None
                self._memory.close()
                self._memory = None
            self._processes.clear()
            self._pipes, self._signals = [], []
            self._end_left.detach()
            atexit.unregister(self._end_left)
