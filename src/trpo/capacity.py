"""How many cores and how much memory there is; what would not fit in it is refused before anything is allocated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def machine_memory() -> int | None:
    """Return the bytes of memory that this process may have at most, None if the system does not tell.

    The least of what the machine has, what its control groups allow (a container's limit) and its own limits.
    """
    return min((*_physical(), *_limits_of_groups(), *_own_limits()), default=None)


def _physical() -> Iterator[int]:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits_of_groups() -> Iterator[int]:
    """Yield the limits of the control groups, of either version, that this process and its parents' are in."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base, file = (GROUPS / "memory", "memory.limit_in_bytes") if kinds else (GROUPS, "memory.max")
        group = PurePosixPath(place)
        for each in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # not visible from here, or "max"
                yield int((base / each.relative_to("/") / file).read_text())


def _own_limits() -> Iterator[int]:
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        yield from (limit for limit in limits if limit != resource.RLIM_INFINITY)


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def file_limit() -> int | None:
    """Return how many files this process may have open, None if there is no limit."""
    with contextlib.suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if limit == resource.RLIM_INFINITY else limit
    return None


def require_room(what: str, size: int, cure: str, room: int | None = None, where: str = "this machine") -> None:
    """Raise ValueError if ``size``, the bytes that ``what`` takes at the least, are more than there are.

    Only what cannot fit is refused: an estimate counts nothing that may not be there, and is compared with the whole of
    the ``room``, by default the machine's memory.
    """
    room = machine_memory() if room is None else room
    if room is not None and size > room:
        raise ValueError(f"{what} at least {gigabytes(size)} of memory, and {where} has {gigabytes(room)}: {cure}")


def gigabytes(size: int) -> str:
    """Return a number of bytes as text."""
    if size >= 2**50:
        return f"{size // 2**40:,} TiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
