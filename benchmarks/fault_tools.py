"""Drivers of injected faults: start a command, signal it at a moment, and see how it ended and what it left.

Every command is a session of its own, so that whatever it has started is found, and ended, by the session's number,
also workers, which lead process groups of their own. Nothing here waits for ever. Linux alone: looks into ``/proc``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT = 180.0
"""Seconds after which a command that did not end counts as hung."""
SHARED = Path("/dev/shm")
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Started:
    """A command under way."""

    process: subprocess.Popen[bytes]
    out: list[bytes]
    err: list[bytes]
    readers: list[threading.Thread]
    shared: set[str]
    """Names of the shared memory that it had when it was signalled."""
    signalled: float = 0.0
    """When the last signal was sent."""

    @property
    def said(self) -> str:
        """What it has written to standard error until now."""
        return b"".join(self.err).decode(errors="replace")


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
            ("Traceback" in self.err or "Exception ignored" in self.err, "traceback"),
            (not self.err.strip(), "said nothing"),
            (says not in self.err, f"did not say {says!r}"),
            (bool(self.left), f"left processes {self.left}"),
            (bool(self.shared), f"left shared memory {self.shared}"),
        ]
        return "; ".join(text for is_so, text in faults if is_so)


def start(
    arguments: Sequence[Any], where: Path, program: Sequence[str] = ("-m", "trpo"), **environment: str
) -> Started:
    """Start ``python -m trpo ARGUMENTS``, or another Python program, in the directory ``where``."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=where,
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    started = Started(process, [], [], [], set())
    for stream, parts in ((process.stdout, started.out), (process.stderr, started.err)):
        assert stream is not None
        reader = threading.Thread(target=_read, args=(stream.fileno(), parts), daemon=True)
        reader.start()
        started.readers.append(reader)
    return started


def _read(descriptor: int, parts: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while part := os.read(descriptor, 65536):
            parts.append(part)


def wait_until(started: Started, happened: Callable[[], bool], limit: float = LIMIT) -> bool:
    """Wait until something has happened; return whether it did, before the command's end and the limit."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if happened():
            return True
        if started.process.poll() is not None:
            return happened()
        time.sleep(0.005)
    return False


def wait_for_line(started: Started, text: str, limit: float = LIMIT) -> bool:
    """Wait until it has said something on standard error."""
    return wait_until(started, lambda: text in started.said, limit)


def iterations(run: Path) -> int:
    """Return how many iterations a run has written."""
    with contextlib.suppress(OSError):
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def wait_for_iterations(started: Started, run: Path, count: int, limit: float = LIMIT) -> bool:
    """Wait until a run has written so many iterations."""
    return wait_until(started, lambda: iterations(run) >= count, limit)


def send(started: Started, number: int, group: bool = False, everything: bool = False) -> None:
    """Send a signal to the command, to its process group as a terminal does, or to all that it has started."""
    everyone = members(started.process.pid)
    for pid in everyone:
        started.shared |= shared_by(pid)
    pids = everyone if everything else [started.process.pid]
    started.signalled = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        if group:
            os.killpg(started.process.pid, number)
    for pid in () if group else pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def workers(started: Started) -> list[int]:
    """Return its worker processes: those that lead a process group of their own."""
    return [pid for pid in members(started.process.pid) if pid != started.process.pid and os.getpgid(pid) == pid]


def finish(started: Started, limit: float = LIMIT) -> Ending:
    """Wait for the end, and end by force whatever is left of it."""
    process, began = started.process, started.signalled or time.monotonic()
    code: int | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(limit)
    took = time.monotonic() - began
    left: dict[int, str] = {}
    until = time.monotonic() + 5.0  # workers see within two seconds that their parent was killed
    while code is not None and time.monotonic() < until:
        left = {pid: command_of(pid) for pid in members(process.pid)}
        if not left:
            break
        time.sleep(0.05)
    clear(started)
    for reader in started.readers:
        reader.join(5.0)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    shared = tuple(sorted(name for name in started.shared if (SHARED / name).exists()))
    return Ending(
        code, b"".join(started.out).decode(errors="replace"), started.said, took, tuple(left.values()), shared
    )


def clear(started: Started) -> None:
    """Kill whatever is left of a command."""
    for _ in range(10):
        for pid in members(started.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(1.0)
        if not members(started.process.pid):
            return


def members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


def command_of(pid: int) -> str:
    """Return a process's command line."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    return ""


def shared_by(pid: int) -> set[str]:
    """Return the names of the shared memory that a process uses; not what has no name any more."""
    with contextlib.suppress(OSError):
        places = (line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
        named = (place for place in places if place.startswith(f"{SHARED}/") and not place.endswith(" (deleted)"))
        return {place.removeprefix(f"{SHARED}/") for place in named}
    return set()
