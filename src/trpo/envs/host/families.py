"""A worker and the processes that its environments start: none of them outlives the run, however that ends."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

GRACE = 2.0
"""Seconds for which environments may close when the run is over."""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What is meant for the parent, which then ends its workers itself."""


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back until the block is over, and from workers started in it until they :func:`lead`.

    A worker that is starting would die of them, and one that the parent has not noted yet would be left.
    """
    came: list[int] = []
    with contextlib.ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    signal.signal(number, lambda number, frame: came.append(number))
                    after.callback(signal.signal, number, handler)
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # it would start with the first worker, and then let signals through
            after.callback(
                signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            )
        yield
    for number in came:
        signal.raise_signal(number)


def lead() -> None:
    """Make this worker, and whatever it will start, a family that ends soon after the parent (the worker)."""
    let_pass()
    # The parent needs it to be a daemon, which ends with it in any case; but a daemon may start no processes.
    multiprocessing.current_process().daemon = False
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_follow, daemon=True).start()


def let_pass() -> None:
    """Let signals that are meant for the parent pass by (the worker)."""
    for number in SIGNALS:  # not SIG_IGN, with which programs that an environment starts would begin too
        signal.signal(number, lambda number, frame: None)
    if hasattr(signal, "pthread_sigmask"):
        # Held back meanwhile: one that comes before a fork has handlers of its own would be lost.
        hold = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
        os.register_at_fork(before=hold, after_in_parent=_release, after_in_child=_as_usual)
        _release()


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _as_usual() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release()


def _follow() -> None:
    """Wait for the parent's death, which the worker itself sees between two steps only."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    time.sleep(GRACE)
    end_own()


def end_own() -> None:
    """End this worker's family, itself included (the worker)."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def ask_to_close(pipe: Any) -> None:
    """Tell a worker to close, without waiting for one that does not read."""
    with contextlib.suppress(OSError):
        if hasattr(os, "set_blocking"):
            os.set_blocking(pipe.fileno(), False)
        pipe.send(("close", None))


def end(processes: Iterable[BaseProcess], until: float | None = None) -> None:
    """End workers, after some time in which to do so by themselves, and all that is left of their families."""
    processes, until = list(processes), time.monotonic() + GRACE if until is None else until
    try:
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):  # the last: no such call
                os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.kill()  # if it has not come so far as to lead a family
        for process in processes:
            process.join()


def end_left(processes: list[BaseProcess], parent: int) -> None:
    """End what was never closed, as at the interpreter's end, in the process that has begun it alone."""
    if os.getpid() == parent:
        end(processes)
