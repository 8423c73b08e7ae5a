"""Compiled programs: a bounded number of them in memory, and all of them on disk for the next process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

KEPT = 4
"""Of how many values of its static arguments the programs of a function are kept in memory."""
BOUND = 256 * 2**20
"""Bytes that the programs on disk may take when a process starts; those that were used longest ago go first."""
SUFFIX = "-cache"
"""Of the files that JAX writes."""


_bounded: list[Any] = []


def bounded(function: Callable[..., Any]) -> Any:
    """Return ``function`` with a memory of its last few results (``functools.lru_cache``)."""
    _bounded.append(functools.lru_cache(KEPT)(function))
    return _bounded[-1]


def forget() -> None:
    """Give up all compiled programs in memory, and what they were compiled for."""
    for function in _bounded:
        function.cache_clear()


_computes: int | None = None
"""The process in which this library began to compute, which its forks know too."""


def require_no_fork() -> None:
    """Raise RuntimeError in a process forked from one that has computed: it would wait for ever for JAX's threads."""
    global _computes
    _computes = os.getpid() if _computes is None else _computes
    if os.getpid() != _computes:
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
    """Let JAX keep compiled programs on disk from now on, in :func:`cache_directory`, a bounded amount of them.

    A cache of the user's own (``JAX_COMPILATION_CACHE_DIR``, ``jax_compilation_cache_dir``), or none
    (``jax_enable_compilation_cache``), is left as it is. Programs are the same bits from disk as from the compiler.
    What cannot be read or written is as if it were not kept.
    """
    global _ours
    config: Any = jax.config  # its settings are known to itself only
    with _lock:
        current = config.jax_compilation_cache_dir
        if current not in (None, _ours):
            return
        place = _prepared(cache_directory())
        if place != current:
            config.update("jax_compilation_cache_dir", place)
            compilation_cache.reset_cache()  # the first compilation had decided whether there is one
            _ours = place
        if place is None:
            return
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        if SHORTEST.upper() not in os.environ and getattr(config, SHORTEST) == 1.0:
            config.update(SHORTEST, 0.0)  # by default a second, but a start compiles dozens of shorter ones


SHORTEST = "jax_persistent_cache_min_compile_time_secs"
_ours: str | None = None
"""What is set by this library, and not by the user."""
_lock = threading.Lock()


def _prepared(directory: Path | None) -> str | None:
    """Make the place for this kind of processor, with room in it; None if it cannot be written."""
    if directory is None:
        return None
    place = directory / _machine()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write here can run code as the user
        make_room(directory)
    except OSError:
        return None
    return str(place) if os.access(place, os.W_OK) else None


def make_room(directory: Path) -> None:
    """Remove the programs used longest ago until all take no more than ``BOUND``, and what a crash left empty."""
    entries = []
    for file in directory.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process was quicker
            known = file.stat()
            entries.append((max(known.st_atime_ns, known.st_mtime_ns), known.st_size, file))
    excess = sum(size for _, size, _ in entries) - BOUND
    for _, size, file in sorted(entries):
        if excess > 0 or size == 0:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            excess -= size


@functools.cache
def _machine() -> str:
    """Return a name for this kind of processor: a home may be shared with others that lack some instructions."""
    kind = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        kind += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(kind.encode()).hexdigest()[:8]
