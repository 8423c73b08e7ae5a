"""Where the command line writes: results alone on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from trpo.runs.interrupts import begin_work


def prepare_streams() -> None:
    """Let no character that the terminal's encoding lacks end a command, and warnings be one line.

    A stream that is closed is opened again: else a file of a run got its number, and what is written to it. What goes
    to standard error is then lost; a result that nobody can be told is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)  # gets the lowest number that is free
        if getattr(sys, name) is None and number:
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]

    def one_line(message: Warning | str, category: type[Warning], *where: Any) -> str:
        return f"{category.__name__}: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line  # type: ignore[assignment]


@contextlib.contextmanager
def results_apart(for_good: bool) -> Iterator[None]:
    """Keep standard output for what is printed by the command itself.

    What C code or processes started here write to it goes to standard error; what Python code of others prints does
    under :func:`foreign`. ``for_good``: also after the end, when C writes out its buffers and exit functions run.
    """
    stdout, results, kept = sys.stdout, sys.stdout, -1
    with contextlib.suppress(OSError, AttributeError):  # closed, or not a file
        stdout.flush()
        descriptor = stdout.fileno()
        kept = os.dup(1)
        os.dup2(2, 1)
        if descriptor == 1:
            results = open(os.dup(kept), "w", encoding=stdout.encoding, errors="replace", buffering=1)  # noqa: SIM115
    try:
        with contextlib.redirect_stdout(results):
            yield
    finally:
        if results is not stdout:
            with contextlib.suppress(OSError):  # printing has reported it
                results.close()
        if kept >= 0:
            if not for_good:
                ctypes.CDLL(None).fflush(None)
                os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def foreign() -> Iterator[None]:
    """Send to standard error what others' code, such as an environment, prints."""
    begin_work()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def give_up_output() -> None:
    """Write no more: whoever read standard output or standard error is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
