"""``--hosts.local N``: a command that is run by N processes of this machine, which this one starts and watches.

They meet as on several machines. The first writes and prints; of another, what it says is shown only where it ended
them all. None of them outlives this process, nor another that was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from trpo.runs.interrupts import SIGNALS, leave, number_of
from trpo.spelling import in_words

WATCHED = "TRPO_WATCHED"
"""Set in the environment of a process that another watches: its standard input ends when that ends."""
LOST = 75
"""Exit code of a process that has lost another, which is somebody else's fault."""
GRACE = 5.0
"""Seconds for which the others may end by themselves after one has."""
LOOK = 0.05
"""Seconds between two looks at whether all are alive."""
LATE = 0.5
"""Seconds in which it shows which of several was the first to end."""


def run_locally(count: int, arguments: Sequence[str]) -> int:
    """Run ``trpo ARGUMENTS`` in ``count`` processes, and return the exit code."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as ending:
        came: list[int] = []
        for number in SIGNALS:
            ending.callback(signal.signal, number, signal.signal(number, lambda number, frame: came.append(number)))
        files = [ending.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        family = _Family([_start(arguments, where, count, i, files) for i in range(count)])
        ending.callback(family.end)
        family.watch(came)
        return family.explain(files)


def _start(arguments: Sequence[str], where: str, count: int, i: int, files: Sequence[IO[bytes]]) -> Any:
    """Start process ``i``, with a group of its own: what the terminal sends is passed on once."""
    hosts = ["--hosts.coordinator", where, "--hosts.count", str(count), "--hosts.index", str(i)]
    streams: dict[str, Any] = {} if i == 0 else {"stdout": files[i - 1], "stderr": files[i - 1]}
    return subprocess.Popen(
        [sys.executable, "-m", "trpo", *without_local(arguments), *hosts],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, WATCHED: "1"},
        **streams,
    )


def without_local(arguments: Sequence[str]) -> list[str]:
    """Return arguments without ``--hosts.local`` and its value."""
    kept, skip = [], False
    for argument in arguments:
        flag, sign, _ = argument.partition("=")
        if flag == "--hosts.local":
            skip = not sign
        elif skip:
            skip = False
        else:
            kept.append(argument)
    return kept


class _Family:
    """The processes that were started."""

    def __init__(self, processes: Sequence[Any]):
        self.processes, self.passed = list(processes), 0

    def watch(self, came: list[int]) -> None:
        """Wait until all have ended, and pass on the signals that come; where one fails, end the others."""
        while (codes := self._codes()).count(None) and not any(codes):
            time.sleep(LOOK)
            while came:
                self.pass_on(came.pop(0))
        if any(codes):
            until = time.monotonic() + (LATE if self._killed(codes) else GRACE)
            while self._codes().count(None) and time.monotonic() < until:
                time.sleep(LOOK)
            self.end()

    def _codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    @staticmethod
    def _killed(codes: Sequence[int | None]) -> bool:
        return any(code is not None and code < 0 for code in codes)

    def pass_on(self, number: int) -> None:
        """Tell the first, which tells the others when all can stop; a second time, tell all."""
        for process in self.processes[: None if self.passed else 1]:
            with contextlib.suppress(OSError):
                process.send_signal(number)
        self.passed = self.passed or number

    def end(self) -> None:
        """End all at once, with what they have started."""
        self.ended = getattr(self, "ended", None) or self._codes()
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def explain(self, files: Sequence[IO[bytes]]) -> int:
        """Say which process ended all, if it could not do so itself, and return the command's exit code."""
        codes = getattr(self, "ended", None) or self._codes()
        if not any(codes):
            return 0
        # In the order of who is to blame: one that was killed, one that failed by itself, one that has lost another.
        blame = [i for i, code in enumerate(codes) if code and code < 0 and code != -signal.SIGABRT]
        if blame:
            name = signal.Signals(-codes[blame[0]]).name  # type: ignore[operator]
            what = f"process {blame[0]} of {len(codes)} was killed by {name}, and the others were ended"
            return self._say(f"{what}; the last checkpoint is intact: go on with trpo resume RUN", 1)
        if codes[0] and codes[0] not in (LOST, -signal.SIGABRT):
            return int(codes[0])
        for i, code in enumerate(codes):
            if code and code not in (LOST, -signal.SIGABRT):
                return self._say(f"process {i} of {len(codes)} failed: {_last_line(files[i - 1])}", int(code))
        i = next(i for i, code in enumerate(codes) if code)
        return self._say(f"process {i} of {len(codes)} has lost the others, and all were ended", 1)

    def _say(self, text: str, code: int) -> int:
        print(f"trpo: {text}", file=sys.stderr, flush=True)
        return code


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("trpo: ") for line in lines if line.startswith("trpo: ")]
    return (ours or lines or ["it said nothing"])[-1]


_watched = False
"""Whether another process watches this one."""


def follow_watcher() -> None:
    """End with the process that watches this one, if one does."""
    global _watched
    _watched = bool(os.environ.pop(WATCHED, ""))
    if not _watched:
        return

    def follow() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def end_of_one(error: BaseException) -> int | None:
    """Return with what one of several processes exits, or exit at once; None: what ended it is still to be said.

    What all of them know is said by the first. One that fails alone says so, and does not wait for the others, which
    then lose it.
    """
    from trpo.training import hosts

    if hosts.given_up():  # JAX still waits, and would have a last word
        print(f"trpo: {error}", file=sys.stderr, flush=True)
        leave(2)
    if not hosts.met():
        return None
    if hosts.is_agreed(error):
        hosts.leave()
        return None if hosts.speaks() else _code(error)
    lost = hosts.is_loss(error) or hosts.is_loss(error.__cause__ or error)
    if not lost:
        print(f"trpo: {hosts.name()}: {in_words(error)}", file=sys.stderr, flush=True)
    elif not _watched and hosts.speaks():
        print(f"trpo: {in_words(error)}", file=sys.stderr, flush=True)
    leave(LOST if lost and _watched else 1)
    return 1


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + number_of(error)
    return 2 if isinstance(error, ValueError | OSError) else 1
