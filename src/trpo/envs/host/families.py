"""A worker and the processes that its environments start: none of them outlives the run, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

GRACE = 2.0
"""Seconds for which environments may close when the run is over."""


def lead() -> None:
    """Make this worker, and whatever it will start, a family that ends soon after the parent (the worker)."""
    # The parent needs it to be a daemon, which ends with it in any case; but a daemon may start no processes.
    multiprocessing.current_process().daemon = False
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_follow, daemon=True).start()


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


def end(processes: Iterable[BaseProcess]) -> None:
    """End workers, after some time in which to do so by themselves, and all that is left of their families."""
    processes, until = list(processes), time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):  # the last: no such call
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.kill()  # if it has not come so far as to lead a family
        process.join()


def end_left(processes: list[BaseProcess], parent: int) -> None:
    """End what was never closed, as at the interpreter's end, in the process that has begun it alone."""
    if os.getpid() == parent:
        end(processes)
