"""One process at a time writes to a run's directory.

The lock is the operating system's, on a file ``.lock``: it is taken in one step and ends with the process, however that
ends. A file system without locks (some network file systems) has a file instead that names the process: one of a dead
process on the same machine is taken over, and one of another machine has to be deleted by hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import Any

from trpo.runs.disk import NO_FOLLOW, is_same, read_regular, refuse_link

LOCK, HOLDER = ".lock", ".lock-holder"
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
"""What says that another holds the lock; other errors say that the file system has none."""
_BEYOND = 2**30
"""The byte that Windows locks, so that others can read the text before it."""


class DirectoryLostError(OSError):
    """A run's directory was replaced by another while it trained, which is left alone."""


class RunLock:
    """The lock of a run's directory, held from the beginning; :meth:`release` or the process's end gives it up.

    Raises:
        ValueError: another process, or another run of this one, has it; the message names which.
    """

    def __init__(self, directory: Path):
        self.directory, self._file = directory, -1
        self._take()

    def _take(self) -> None:
        path = refuse_link(self.directory / LOCK)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0), 0o644)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise ValueError(f"{path} is not a regular file")
                if not _locked(file):
                    self._take_by_name()
                if is_same(path, os.fstat(file)):  # else its holder has just removed it
                    break
            except BlockingIOError as error:
                os.close(file)
                said = _holder(path)
                said = f"a process left behind by {said}" if _dead(said) else said
                raise ValueError(
                    f"{self.directory} is in use by {said}: wait until it has ended, or stop it"
                ) from error
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        self._file, self._place = file, os.stat(self.directory)
        os.ftruncate(file, 0)
        os.write(file, _me().encode())

    def _take_by_name(self) -> None:
        """Take the lock where the file system has none: by a file that one process alone can make."""
        path = self.directory / HOLDER
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(file, _me().encode())
                os.close(file)
                return
            if not _dead(said := _holder(path)):
                break
            path.unlink(missing_ok=True)
        raise ValueError(f"{self.directory} is in use by {said}; if that has ended, delete {path}")

    def renew(self) -> None:
        """Make the directory and take the lock again, if they were deleted or moved away.

        Raises:
            DirectoryLostError: there is another directory, or another's lock.
        """
        path = self.directory / LOCK
        try:
            here = os.stat(self.directory)
        except FileNotFoundError:
            self.directory.mkdir(parents=True)
        else:
            if not os.path.samestat(here, self._place):
                raise DirectoryLostError(f"{self.directory} was replaced by another directory while the run trained")
        if not is_same(path, os.fstat(self._file)):
            os.close(self._file)
            try:
                self._take()
            except ValueError as error:
                raise DirectoryLostError(f"{error}; it was deleted while this run trained") from error

    def release(self) -> None:
        """Give it up, and leave no file."""
        path = self.directory / LOCK
        with contextlib.suppress(OSError):
            if is_same(path, os.fstat(self._file)):  # removed while it is held: who opened it meanwhile looks again
                path.unlink()
        if _holder(self.directory / HOLDER) == _me():
            (self.directory / HOLDER).unlink(missing_ok=True)
        os.close(self._file)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()


def _locked(file: int) -> bool:
    """Lock an open file, until it is closed; False if the file system has no locks.

    Raises:
        BlockingIOError: another has it.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file, _BEYOND, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(error.errno, "locked") from error
        return False
    return True


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {_BEGAN}"


_BEGAN = time.strftime("%Y-%m-%d %H:%M:%S")


def _holder(path: Path) -> str:
    """Return what the holder of a lock has written about itself."""
    with contextlib.suppress(OSError, ValueError):
        if found := re.match(r"process \d+ on [\w.-]+ since [\d :-]+$", read_regular(path, 1000).decode()):
            return found[0]
    return "another process"


def _dead(said: str) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    pid, here = re.match(r"process (\d+)", said), f" on {socket.gethostname()} " in said
    if pid is None or not here or os.name == "nt":
        return False
    try:
        os.kill(int(pid[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
