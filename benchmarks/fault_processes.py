"""The command line in processes of its own, that can be stopped, killed and watched.

Most are forked from a process that has imported the package but started none of JAX's threads: a new one spends seconds
on imports. Those whose start is what is tried are started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.fault_checks import Broken

PATIENCE = 240.0
"""Seconds after which a process counts as hung. On a quiet machine nothing here takes a tenth of it."""


class Process:
    """A process group with its output in a file."""

    def __init__(self, pid: int, output: Path):
        self.pid, self._output, self.code = pid, output, None

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, limit: float = PATIENCE) -> int:
        end = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > end:
                self.end()
                raise Broken(f"hung for {limit:.0f} s: {self.output[-400:]}")
            time.sleep(0.01)
        return self.code

    def until(self, happened: Callable[[], bool], limit: float = PATIENCE) -> bool:
        """Wait until something happened; False if the process ended before."""
        end = time.monotonic() + limit
        while not happened():
            if self.poll() is not None:
                return False
            if time.monotonic() > end:
                self.end()
                raise Broken(f"hung for {limit:.0f} s: {self.output[-400:]}")
            time.sleep(0.004)
        return True

    def send(self, number: int, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> None:
        """Kill all that is left of it."""
        self.send(signal.SIGKILL, group=True)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def orphans(self) -> list[int]:
        """Return processes of the group that are still there a moment after its end."""
        for _ in range(100):
            found = _group(self.pid)
            if not found:
                return []
            time.sleep(0.05)
        return found


def _group(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def fork(call: Callable[[], int], output: Path) -> Process:
    """Run ``call`` in a process of its own; what it returns is the exit code."""
    output.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of threads, of which there are none yet
        pid = os.fork()
    if pid:
        return Process(pid, output)
    code = 1
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (file, 1), (file, 2)):
            os.dup2(old, new)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules["__main__"] = types.ModuleType("__main__")  # workers need not import this one
        code = call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code if 0 <= code < 256 else 1)


def trpo(
    arguments: Sequence[object], place: Path, environment: Mapping[str, str] | None = None, before: Callable = int
) -> Process:
    """Start ``trpo ARGUMENTS`` in the directory ``place``, forked; ``before`` is called in it first."""

    def call() -> int:
        os.chdir(place)
        os.environ.update(environment or {})
        sys.path.insert(0, str(place))
        sys.argv = ["trpo", *map(str, arguments)]
        before()
        from trpo.cli.main import entry_point

        entry_point()
        return 0

    return fork(call, fresh(place))


def fresh_trpo(arguments: Sequence[object], place: Path) -> Process:
    """Start ``python -m trpo ARGUMENTS``, imports included."""
    output = fresh(place)
    with output.open("wb") as file:
        command = [sys.executable, "-m", "trpo", *map(str, arguments)]
        started = subprocess.Popen(
            command, cwd=place, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    started.returncode = 0  # it is waited for here, and not by subprocess
    return Process(started.pid, output)


def fresh(place: Path) -> Path:
    """Return a name for a new file of output."""
    log = place / ".output"
    log.mkdir(exist_ok=True)
    return log / f"{len(list(log.iterdir()))}.txt"
