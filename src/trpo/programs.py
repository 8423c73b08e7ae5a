"""Compiled programs: a bounded number of them in memory, and all of them on disk for the next process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge

KEPT = 4
"""Of how many values of its static arguments the programs of a function are kept in memory."""
BOUND = 256 * 2**20
"""Bytes that the programs on disk may take; those that were used longest ago are removed first."""
SUFFIX = ".program"


_bounded: list[Any] = []


def bounded(function: Callable[..., Any]) -> Any:
    """Return ``function`` with a memory of its last few results (``functools.lru_cache``)."""
    _bounded.append(functools.lru_cache(KEPT)(function))
    return _bounded[-1]


def forget() -> None:
    """Give up all compiled programs in memory, and what they were compiled for."""
    for function in _bounded:
        function.cache_clear()


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = _forked or xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def require_no_fork() -> None:
    """Raise RuntimeError in a process forked from one that has computed: it would wait for ever for JAX's threads."""
    if _forked:
        raise RuntimeError(
            "this process was forked from one in which JAX had computed, and lacks its threads: start processes with "
            'multiprocessing.get_context("spawn"), or fork before anything is computed'
        )


def compiled(function: Callable[..., Any], static: int = 1) -> Callable[..., Any]:
    """Return ``function`` compiled, its first ``static`` arguments fixed: hashable, equal only if they do the same.

    This differs from ``jax.jit(function, static_argnums=…)``: that keeps every argument that it ever saw, and what was
    compiled for it (30 MB and a thousand memory mappings for each environment in JAX), as long as the process lives.
    """

    @bounded
    def program(*fixed: Any) -> Callable[..., Any]:
        def bound(*traced: Any) -> Any:
            return function(*fixed, *traced)

        bound.__name__ = function.__name__  # names the program in profiles and on disk
        return jax.jit(bound)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return program(*arguments[:static])(*arguments[static:])

    return call


def cache_directory() -> Path | None:
    """Return where programs are kept on disk; None if nowhere.

    That is ``$TRPO_CACHE``, unless it is ``off``, or ``trpo`` in the user's directory for such files.
    """
    chosen = os.environ.get("TRPO_CACHE", "")
    if chosen.lower() == "off":
        return None
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # there is no home
        return None
    return base / "trpo"


def keep_programs() -> None:
    """Keep compiled programs on disk from now on, in :func:`cache_directory`.

    A cache of the user's own (``JAX_COMPILATION_CACHE_DIR``, ``jax_compilation_cache_dir``), or none
    (``jax_enable_compilation_cache``), is left as it is. Programs are the same bits from disk as from the compiler.
    """
    from jax._src import compilation_cache as cache

    own: Any = jax.config  # its settings are known to itself only
    directory = cache_directory() if own.jax_compilation_cache_dir is None else None
    with _lock:
        known = getattr(cache, "_cache", None)
        ours = isinstance(known, ProgramFiles)
        if directory is None and ours:
            cache.reset_cache()
        elif directory is not None and (known is None or (ours and known.directory != directory)):
            # The one private name of JAX that is used: its own cache of files leaves half a file where a process
            # is killed or the disk is full, warns of damaged ones at every start and never mends them, and cannot be
            # bounded without another package. If it is renamed one day, programs are compiled at every start again.
            cache._cache = ProgramFiles(directory)  # type: ignore[assignment]
    if directory is not None and _SHORTEST.upper() not in os.environ and getattr(jax.config, _SHORTEST) == 1.0:
        jax.config.update(_SHORTEST, 0.0)  # by default a second, but a start compiles dozens of shorter ones


_SHORTEST = "jax_persistent_cache_min_compile_time_secs"
_lock = threading.Lock()


class ProgramFiles:
    """Compiled programs by key, one file each, for any number of processes; whatever fails is as if nothing were kept.

    A file is a digest and what it is of: a damaged one is not read, but replaced. It is written under another name
    first, so that no other process sees a half of it, and its time of modification is when it was last used.
    """

    def __init__(self, directory: Path, bound: int = BOUND):
        self.directory = self._path = directory
        self.bound = bound
        self._room: int | None = None

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}-{_machine()}{SUFFIX}"

    def get(self, key: str) -> bytes | None:
        """Return the program of ``key``, None if there is no intact one."""
        file = self._file(key)
        try:
            content = file.read_bytes()
        except OSError:
            return None
        value = content[DIGEST:]
        intact = content[:DIGEST] == _digest(key, value)
        with contextlib.suppress(OSError):
            os.utime(file) if intact else file.unlink()
        return value if intact else None

    def put(self, key: str, value: bytes) -> None:
        """Keep the program of ``key``, and remove others if there are too many."""
        with contextlib.suppress(OSError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write here can run code as the user
            size = len(value) + DIGEST
            self._make_room(size)
            if size > self.bound:
                return
            handle, temporary = tempfile.mkstemp(SUFFIX, "tmp-", self.directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest(key, value) + value)
                os.replace(temporary, self._file(key))
            except OSError:
                os.unlink(temporary)

    def _make_room(self, size: int) -> None:
        if self._room is not None and self._room >= size:
            self._room -= size
            return
        entries = []
        for file in self.directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process was quicker
                known = file.stat()
                entries.append((known.st_mtime_ns, known.st_size, file))
        self._room = self.bound - size - sum(length for _, length, _ in entries)
        for _, length, file in sorted(entries):
            if self._room >= 0:
                break
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self._room += length


DIGEST = 32


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()


@functools.cache
def _machine() -> str:
    """Return a name for this kind of processor: a home may be shared with others that lack some instructions."""
    kind = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        kind += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(kind.encode()).hexdigest()[:8]
