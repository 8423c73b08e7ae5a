"""Closing environments, whose code may raise or never come back when there is a result to keep."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from trpo.envs.host.families import GRACE
from trpo.envs.host.returned import described


class _TooLate(BaseException):
    """It took too long: not an Exception, which an environment may catch."""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def close_all(envs: Iterable[Any], name: str, tell: Callable[[str], None] = _warn) -> None:
    """Close environments, all of them within :data:`~trpo.envs.host.families.GRACE`; what fails is said, no more."""
    until = time.monotonic() + GRACE
    for env in envs:
        try:
            with _at_most(max(0.1, until - time.monotonic())):
                env.close()
        except KeyboardInterrupt:
            raise
        except _TooLate:
            tell(f"environment {name} did not close within {GRACE:.0f} s, and was left")
        except BaseException as error:
            tell(f"environment {name} raised {described(error)} when it was closed")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise in a block that takes longer: in the main thread alone, and not in C code that does not come back.

    By a signal that is ignored otherwise, sent to this process itself: an alarm may be in use. Not by closing in
    another thread, which windows and OpenGL do not allow.
    """
    number, main = getattr(signal, "SIGURG", None), threading.main_thread()
    if number is None or threading.current_thread() is not main or signal.getsignal(number) is None:
        yield
        return
    done = threading.Event()

    def late(*_: Any) -> None:
        if not done.is_set():
            raise _TooLate

    def watch() -> None:
        while not done.wait(seconds):
            signal.pthread_kill(main.ident or 0, number)

    before = signal.signal(number, late)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # or its signal could come when it has no handler
        signal.signal(number, before)
