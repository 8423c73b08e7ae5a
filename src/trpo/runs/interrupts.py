"""Ctrl-C and termination signals: a run ends after the iteration under way."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Stop:
    """Set by the first Ctrl-C or termination signal; the run then ends after the iteration under way."""

    requested: bool = False


@contextlib.contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    stop = Stop()

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping after this iteration; once more to stop at once", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as ending:
        if threading.current_thread() is threading.main_thread():  # another may set no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                ending.callback(signal.signal, number, signal.signal(number, request))
        yield stop
