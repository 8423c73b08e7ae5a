"""The command line in processes of its own, that can be signalled, killed and watched, and what they leave.

Most are forked from a process that has imported the package but started none of JAX's threads: a new one spends seconds
on imports. Those whose start is what is tried are started anew. Every one leads a session, by whose number whatever it
has started is found, and ended, also workers, which lead process groups of their own. Nothing here waits for ever.
Linux alone: looks into ``/proc``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
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
from typing import Any

from benchmarks.fault_checks import TRACE, Broken

PATIENCE = 240.0
"""Seconds after which a process counts as hung. On a quiet machine nothing here takes a tenth of it."""
SHARED = Path("/dev/shm")
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int | None
    """Exit code, negative for a signal that killed it; None: it hung, and was killed."""
    out: str
    err: str
    seconds: float
    """From the last signal to the end."""
    left: tuple[str, ...]
    """Processes that were still there a moment later, by their command lines."""
    shared: tuple[str, ...]
    """What it left in shared memory."""

    def wrong(self, *codes: int, says: str = "") -> str:
        """Return what is wrong with this end of a command that a signal ended; empty if nothing is."""
        faults = [
            (self.code is None, "hung"),
            (self.code is not None and self.code not in codes, f"exit code {self.code}"),
            (TRACE in self.err or "Exception ignored" in self.err, "traceback"),
            (not self.err.strip(), "said nothing"),
            (says not in self.err, f"did not say {says!r}"),
            (bool(self.left), f"left processes {self.left}"),
            (bool(self.shared), f"left shared memory {self.shared}"),
        ]
        return "; ".join(text for is_so, text in faults if is_so)


class Process:
    """A command under way, with what it says, and its results, in files."""

    def __init__(self, pid: int, said: Path, results: Path | None = None):
        self.pid, self._said, self._results = pid, said, results
        self.code: int | None = None
        self.shared: set[str] = set()
        """Names of the shared memory that it had when it was signalled."""
        self._signalled = time.monotonic()

    @property
    def output(self) -> str:
        """What it has said until now; also its results, unless they have a file of their own."""
        return self._said.read_text(errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, limit: float = PATIENCE) -> int:
        """Wait for its end."""
        self.until(lambda: False, limit)
        assert self.code is not None
        return self.code

    def until(self, happened: Callable[[], bool], limit: float = PATIENCE) -> bool:
        """Wait until something happened; False if the process ended before."""
        end = time.monotonic() + limit
        while not happened():
            if self.poll() is not None:
                return happened()
            if time.monotonic() > end:
                command = command_of(self.pid)
                self.end()
                raise Broken(f"hung for {limit:.0f} s: {command}: {self.output[-400:]}")
            time.sleep(0.005)
        return True

    def says(self, text: str) -> bool:
        """Wait until it has said something; False if it ended before."""
        return self.until(lambda: text in self.output)

    def send(self, number: int, group: bool = False, everything: bool = False) -> None:
        """Send a signal to it, to its process group as a terminal does, or to all that it has started."""
        everyone = self.members()
        for pid in everyone:
            self.shared |= _shared_by(pid)
        self._signalled = time.monotonic()
        for pid in everyone if everything else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(pid, number)

    def members(self) -> list[int]:
        """Return its living processes."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found.append(int(entry.name))
        return found

    def workers(self) -> list[int]:
        """Return its worker processes: those that lead a process group of their own."""
        return [pid for pid in self.members() if pid != self.pid and os.getpgid(pid) == pid]

    def orphans(self) -> list[str]:
        """Return the command lines of what is still there a moment after its end.

        Workers see within two seconds that their parent was killed; a busy machine takes longer.
        """
        found: list[int] = []
        for _ in range(200):
            if not (found := self.members()):
                return []
            time.sleep(0.05)
        return [command_of(pid) for pid in found]

    def finish(self, limit: float = PATIENCE) -> Ending:
        """Wait for the end, and end by force whatever is left of it."""
        code, left = None, []
        with contextlib.suppress(Broken):
            code = self.wait(limit)
        seconds = time.monotonic() - self._signalled
        if code is not None:
            left = self.orphans()
        self.end()
        shared = tuple(sorted(name for name in self.shared if (SHARED / name).exists()))
        results = "" if self._results is None else self._results.read_text(errors="replace")
        return Ending(code, results, self.output, seconds, tuple(left), shared)

    def end(self) -> None:
        """Kill all that is left of it."""
        for _ in range(10):
            for pid in (found := self.members()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                break
            time.sleep(0.02)
        if self.code is None:
            self.send(signal.SIGKILL)  # it may lead no session yet
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def command_of(pid: int) -> str:
    """Return a process's command line."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""


def _shared_by(pid: int) -> set[str]:
    """Return the names of the shared memory that a process uses; not what has no name any more."""
    with contextlib.suppress(OSError):
        places = (line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
        named = (place for place in places if place.startswith(f"{SHARED}/") and not place.endswith(" (deleted)"))
        return {place.removeprefix(f"{SHARED}/") for place in named}
    return set()


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


def start(
    arguments: Sequence[Any], place: Path, program: Sequence[str] = ("-m", "trpo"), **environment: str
) -> Process:
    """Start ``python -m trpo ARGUMENTS``, imports included, or another Python program, in the directory ``place``."""
    said, results = (fresh(place).with_suffix(suffix) for suffix in (".err", ".out"))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with said.open("wb") as err, results.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=place,
            env=os.environ | {"PYTHONPATH": path} | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    started.returncode = 0  # it is waited for here, and not by subprocess
    return Process(started.pid, said, results)


def fresh(place: Path) -> Path:
    """Return a name for a new file of output."""
    log = place / ".output"
    log.mkdir(exist_ok=True)
    return log / f"{len(list(log.iterdir()))}.txt"
