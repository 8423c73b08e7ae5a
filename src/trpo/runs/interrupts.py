"""Ctrl-C and other signals that ask a process to end: what they do at each moment.

In a program of others a run ends after the iteration under way, and a second signal interrupts it at once. A process
of the command line (:func:`heed_signals`) also ends soon after it was interrupted, whatever it is waiting for.
This module loads nothing that takes time, dataclasses included.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 2.5
"""Seconds in which a process puts itself in order when it shall end at once."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends what is under way; Python raises a plain KeyboardInterrupt for Ctrl-C alone.

    With a message it comes from a run that was saved, as the message says.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = ""):
        super().__init__(message or _in_words(number))
        self.number, self.saved = number, bool(message)
        self.agreed = False
        """Whether all processes that train together were told (:mod:`trpo.training.hosts`)."""


def _in_words(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"


def number_of(error: BaseException) -> int:
    """Return the signal that an interruption came from."""
    return int(getattr(error, "number", signal.SIGINT))


class _Command:
    """A process that is the command line's alone."""

    def __init__(self) -> None:
        self.works = False
        """Whether it has begun what must be put in order at the end; until then it is only loading code."""
        self.ending = 0
        """The signal that ends it."""
        self.line = ""
        """What to tell the user then."""
        self.code: int | None = None
        """With what it exits, once the command is over."""


_command: _Command | None = None


def heed_signals() -> None:
    """From now on this process is the command line's: a signal ends it, with one line and 128 + the signal's number."""
    global _command
    if _command is not None:
        return
    _command = _Command()
    for number in _heeded():
        signal.signal(number, _interrupt)
    atexit.register(_ignore)  # first to be registered is last to be called

    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:  # one that was raised where nothing can be: the process ends all the same
        if not isinstance(unraisable.exc_value, Interrupted):
            usual(unraisable)

    sys.unraisablehook = hook


def _heeded() -> list[int]:
    """Return the signals that are handled here: not a hang-up that is ignored, as under nohup, or is another's."""
    ours: tuple[Any, ...] = (signal.SIG_DFL, _interrupt)
    found = {number: signal.getsignal(number) for number in SIGNALS}
    rarely = getattr(signal, "SIGHUP", None)
    return [n for n, handler in found.items() if handler is not None and (n != rarely or handler in ours)]


def _interrupt(number: int, frame: Any) -> None:
    assert _command is not None
    if _command.code is not None:  # all is done or said, and Python takes itself apart
        os._exit(_command.code or 128 + number)
    if not _command.works and not _command.ending:
        # Raised while modules are loaded, an exception is often caught, or printed where nobody can catch it.
        _say(f"trpo: {_in_words(number)}")
        os._exit(128 + number)
    end_at_once(number)


def _ignore() -> None:
    for number in _heeded():
        signal.signal(number, signal.SIG_IGN)


def begin_work() -> None:
    """Note that the command has something to put in order: from now on a signal raises :class:`Interrupted`."""
    if _command is not None:
        _command.works = True


def end_at_once(number: int) -> None:
    """Raise :class:`Interrupted`; a process of the command line ends soon even if that is caught."""
    if _command is not None and _command.ending:
        return
    end_soon(number)
    raise Interrupted(number)


def end_soon(number: int, line: str = "") -> None:
    """See that a process of the command line ends within :data:`PATIENCE`; ``line`` is for the user if it must."""
    if _command is None:
        return
    _command.line = line or _command.line or _in_words(number)
    if not _command.ending:
        _command.ending = number
        _thread.start_new_thread(_give_up, (_command,))  # takes no lock: a signal may have come while it was held


def _give_up(command: _Command) -> None:
    time.sleep(PATIENCE)
    if command.code is None:
        _say(f"trpo: {command.line}")
    leave(command.code or 128 + command.ending)


def interruption() -> Interrupted | None:
    """Return what ends this process of the command line, if anything does: whatever is raised meanwhile follows."""
    return None if _command is None or not _command.ending else Interrupted(_command.ending, _command.line)


def over(code: int) -> int:
    """Note that the command is over, and return with what to exit; one that was interrupted exits here."""
    if _command is None:
        return code
    if _command.ending:
        if code != 128 + _command.ending:  # it was caught somewhere
            _say(f"trpo: {_command.line}")
        # Computations may be under way, and Python's end is no moment to meet them.
        leave(128 + _command.ending)
    _command.code = code
    return code


def leave(code: int) -> None:
    """Exit at once, with the processes that were started here, and without the interpreter's end."""
    import multiprocessing

    for process in multiprocessing.active_children():
        for kill in (getattr(os, "killpg", os.kill), os.kill):  # a worker leads a group of its own
            with contextlib.suppress(OSError):
                kill(process.pid or 0, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _say(text: str) -> None:
    """Write a line, from a signal handler too: Python's streams may be in the middle of one."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="replace"))


class Stop:
    """How a run is asked to stop."""

    def __init__(self) -> None:
        self.number = 0
        """The first signal that came."""
        self.iterating = False
        """Whether an iteration was finished, so that a first signal may wait for the end of the next."""
        self.raised = False
        """Whether one was raised, of which any later error is a consequence."""
        self.several = False
        """Whether several processes train together: they stop together, also before their first iteration."""
        self._saving = 0.0

    def check(self, number: int = 0) -> None:
        """Raise :class:`Interrupted` if a signal came, here or, ``number``, in another process."""
        if number or self.number:
            error = Interrupted(number or self.number)
            error.agreed = True
            raise error

    def saving(self) -> None:
        """Note that the last iteration is being saved: for a while nothing interrupts that."""
        self._saving = time.monotonic() + PATIENCE

    def handle(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        first, self.number = not self.number, self.number or number
        if time.monotonic() < self._saving:
            return
        if not first or not (self.iterating or self.several):
            self.raised = True
            end_at_once(self.number)
            return
        text = "stopping after this iteration; once more to stop at once"
        try:
            print(f"\n{text}", file=sys.stderr, flush=True)
        except (RuntimeError, OSError, ValueError):  # in the middle of a line; the terminal is gone; closed
            _say(text)


@contextlib.contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Turn the first signal during iterations into a request; a second one, or one before, interrupts at once."""
    stop = Stop()
    with contextlib.ExitStack() as ending:
        if threading.current_thread() is threading.main_thread():  # another may set no handlers
            for number in _heeded():
                ending.callback(signal.signal, number, signal.signal(number, stop.handle))
        yield stop
