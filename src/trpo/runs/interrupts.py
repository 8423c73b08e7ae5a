"""Ctrl-C and termination signals: a run ends after the iteration under way."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class RunInterrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint."""


@dataclasses.dataclass
class Stop:
    """Set by the first Ctrl-C or termination signal; the run then ends after the iteration under way."""

    requested: bool = False


@contextlib.contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping after this iteration; once more to stop at once", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
