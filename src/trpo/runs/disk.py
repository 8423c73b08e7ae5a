"""Files of a run: a power cut leaves the old or the new, and nothing outside the run's directory is touched.

A run's directory may come from somebody else. So links in it are not followed, what is read is a regular file of
bounded size, and what is written is made anew in a directory that only this process knows, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

TEMPORARY = ".tmp-"
"""Begins the name of what is not complete, or about to be removed."""
CHECKPOINTS, BEST = "checkpoints", "best"
"""Directories of checkpoints in that of a run."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe must not wait for its other end."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a name for a file or directory that takes the place of ``path`` when the block ends, and then is on disk.

    If the block raises, what it wrote is removed, and ``path`` is as it was. Directories above are made if need be.
    The name is in a new directory, so whoever writes to it follows no link and overwrites nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    room = path.with_name(f"{TEMPORARY}{path.name}")
    remove(room)  # what a crash has left
    room.mkdir()
    try:
        temporary = room / path.name
        yield temporary
        for written in (*temporary.glob("*"), temporary):
            _sync(written)
        if temporary.is_dir():
            remove(path)  # a directory is renamed to a free name only
        elif path.is_dir() and not is_link(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        temporary.replace(path)
    finally:
        remove(room)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a directory with what is in it; nothing there is fine."""
    if path.is_dir() and not is_link(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(run: Path) -> None:
    """Remove what a crash has left half written in a run's directory."""
    for directory in (run, *(run / name for name in (CHECKPOINTS, BEST) if not is_link(run / name))):
        for left in directory.glob(f"{TEMPORARY}*"):
            remove(left)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    directory = path.is_dir()
    if directory and os.name == "nt":
        return  # Windows opens no directories, and needs none of this
    descriptor = os.open(path, os.O_RDONLY if directory else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> None:
    """Write a whole file in place of ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def is_link(path: Path) -> bool:
    """Return whether a path leads elsewhere: a symbolic link, or a junction of Windows."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    junction = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == junction


def is_regular(path: Path) -> bool:
    """Return whether there is a regular file, no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def refuse_link(path: Path) -> Path:
    """Return ``path``; ValueError if it is a link, which may lead out of the run's directory."""
    if is_link(path):
        raise ValueError(f"{path} is a link: links inside a run's directory are not followed")
    return path


def directory_to_be(path: Path) -> Path:
    """Return ``path``, where there is a directory or nothing; FileExistsError or ValueError if something else is."""
    if os.path.lexists(refuse_link(path)) and not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return path


def open_regular(path: Path, limit: int) -> BufferedReader:
    """Open a regular file to read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link or no regular file (a pipe, a device), or has more than ``limit`` bytes.
    """
    if not stat.S_ISREG(refuse_link(path).lstat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    file = os.fdopen(os.open(path, _READ), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= limit:
        return file
    file.close()
    raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {limit:,} that are read")


def read_regular(path: Path, limit: int) -> bytes:
    """Return a file's content; see :func:`open_regular`."""
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def is_same(path: Path, found: os.stat_result) -> bool:
    """Return whether a path still leads to a file of which ``found`` is known."""
    try:
        return os.path.samestat(path.lstat(), found)
    except (FileNotFoundError, NotADirectoryError):
        return False
