"""The processes that train one run together, on one machine or many: how they meet, and how they speak to one another.

The engine is JAX's own multi-process runtime. With :mod:`trpo.training.layout` this is the only room that knows of
processes. All of them run the same code; what one meets alone (an environment's error, a full disk, Ctrl-C) it says in
:func:`together`, and then all do the same about it. A process that is lost is seen by the runtime: what it was asked
for fails in the others (:func:`is_loss`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from trpo.settings.config import HostsConfig
from trpo.spelling import in_words

IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
"""Without this XLA lets a CPU work on independent sums over processes in any order, while Gloo takes what comes next on
a connection for the next of them: in half of all runs one number was taken for another, or the process aborted."""
HEARTBEAT = 30
"""Seconds of silence after which a process counts as lost, if its machine does not say so at once."""
PATIENCE_OF_JAX = 60
"""Seconds that JAX would wait longer."""
FRAME = 1024
"""Bytes in which most messages fit, so that one exchange is enough."""


class HostFailure(RuntimeError):
    """Another process of the run cannot go on; the message says which, and why."""


def index() -> int:
    """Return which process this is, from 0."""
    return jax.process_index() if met() else 0


def count() -> int:
    """Return how many processes train together."""
    return jax.process_count() if met() else 1


def speaks() -> bool:
    """Return whether this is the process that writes and prints."""
    return index() == 0


_given_up = False
"""Whether others were waited for in vain."""


def met() -> bool:
    """Return whether several processes train together, however they met."""
    # In this order: with nobody to meet, JAX must not choose its devices because of this question.
    return not _given_up and jax.distributed.is_initialized() and jax.process_count() > 1


def require_alone(what: str) -> None:
    """Raise ValueError for what one process does alone, where several train together."""
    if met():
        raise ValueError(f"hosts: {what} trains in one process; {count()} have met (--no-hosts.auto trains alone)")


def given_up() -> bool:
    """Return whether others were waited for in vain."""
    return _given_up


def join(settings: HostsConfig) -> None:
    """Meet the other processes that ``settings`` tell of, or that a cluster has started; none: do nothing.

    Raises:
        ValueError: the coordinator does not answer, or this process has computed already.
    """
    way = settings.cluster()
    if not settings.coordinator and way is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    flags = os.environ.get("XLA_FLAGS", "")  # read when JAX begins to compute
    if IN_ORDER.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {IN_ORDER}".lstrip()
    how: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": 300}
    if settings.coordinator:
        how |= {"coordinator_address": settings.coordinator, "num_processes": settings.count}
        how |= {"process_id": settings.index, "cluster_detection_method": "deactivate"}
    else:
        how["cluster_detection_method"] = way
    _meet(how, settings.coordinator or f"those that {way} has started", settings.patience)
    with _without_greetings():
        exchange()


def _meet(how: dict[str, Any], where: str, patience: int) -> None:
    """Begin JAX's runtime; ValueError after ``patience`` seconds."""
    failed: list[BaseException] = []

    def meet() -> None:
        try:
            jax.distributed.initialize(**how)
        except BaseException as error:
            failed.append(error)

    # In a thread of its own, since JAX ends the process when its own patience is over.
    how["initialization_timeout"] = patience + PATIENCE_OF_JAX
    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive() or failed:
        global _given_up
        _given_up = True
        why = f" ({in_words(failed[0])})" if failed else ""
        raise ValueError(
            f"hosts: {where}: not all processes have met within {patience} s{why}; is each of them running, process 0 "
            "at that address, and can the others reach it? (--hosts.patience waits longer)"
        )


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Leave out what Gloo prints about its connections."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def leave() -> None:
    """Part from the others, once all are done; nobody then takes it for a loss."""
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def exchange(message: Any = None) -> list[Any]:
    """Return what every process says, plain data, in their order; all must call this at the same point."""
    if not met():
        return [message]
    said = json.dumps(message).encode()
    frames = _gather(said, FRAME)
    longest = max(size for size, _ in frames)
    if longest > FRAME:
        frames = _gather(said, 1 << (longest - 1).bit_length())
    return [json.loads(data) for _, data in frames]


def _gather(said: bytes, room: int) -> list[tuple[int, bytes]]:
    """Return the length of what each process says, and as much of it as there is room for."""
    from jax.experimental import multihost_utils

    mine = np.zeros(8 + room, np.uint8)
    mine[:8] = np.frombuffer(np.int64(len(said)).tobytes(), np.uint8)
    part = said[:room]
    mine[8 : 8 + len(part)] = np.frombuffer(part, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(mine))
    sizes = [int(row[:8].tobytes() and np.frombuffer(row[:8].tobytes(), np.int64)[0]) for row in rows]
    return [(size, row[8 : 8 + size].tobytes()) for size, row in zip(sizes, rows, strict=True)]


class Said:
    """What the processes said at the end of a block that they all went through."""

    def __init__(self) -> None:
        self.mine: Any = None
        """What this one says, plain data."""
        self.all: list[Any] = []
        """What each said, in their order, when the block is over."""


@contextlib.contextmanager
def together() -> Iterator[Said]:
    """Go through a block in which one process may fail; if one did, the block raises in all of them.

    Where it failed its own error is raised; in the others a :class:`HostFailure`, which names process and machine.
    Nothing in the block may wait for other processes.
    """
    said = Said()
    if not met():
        yield said
        said.all = [said.mine]
        return
    error: BaseException | None = None
    try:
        yield said
    except BaseException as raised:
        error = raised
    heard = exchange({"said": said.mine, "failed": None if error is None else _failure(error)})
    said.all = [one["said"] for one in heard]
    if error is not None:
        agree(error)
        raise error
    for i, one in enumerate(heard):
        if one["failed"] is not None:
            raise agree(_raised(i, **one["failed"]))


def _failure(error: BaseException) -> dict[str, Any]:
    number = getattr(error, "number", signal.SIGINT) if isinstance(error, KeyboardInterrupt) else 0
    return {
        "what": str(error) if isinstance(error, ValueError) else in_words(error),
        "interrupt": int(number),
        "mistake": isinstance(error, ValueError | OSError),
        "where": socket.gethostname(),
    }


class HostMistake(ValueError):
    """What another process was asked to do cannot be done; the message says which process, and why."""


def _raised(i: int, what: str, interrupt: int, mistake: bool, where: str) -> BaseException:
    if interrupt:
        error = KeyboardInterrupt(what)
        error.number = interrupt  # type: ignore[attr-defined]
        return error
    kind = HostMistake if mistake else HostFailure
    return kind(f"process {i} on {where}: {what}")


def agree(error: BaseException, agreed: bool = True) -> Any:
    """Mark an error as one that all processes raise at the same point, and return it."""
    with contextlib.suppress(AttributeError):
        error.agreed = agreed  # type: ignore[attr-defined]
    return error


def is_agreed(error: BaseException) -> bool:
    """Return whether all processes raise this: then they can go on to speak to one another."""
    return not met() or getattr(error, "agreed", False)


def is_loss(error: BaseException) -> bool:
    """Return whether an error is that of a process which did not answer."""
    kinds = jax.errors.JaxRuntimeError, ValueError  # the latter where an array's content is fetched
    return met() and isinstance(error, kinds) and any(word in str(error) for word in _LOST)


_LOST = ("Gloo ", "NCCL", "coordination service", "UNAVAILABLE:", "CoordinationService")
"""What the runtime's errors say when a process is lost."""


def loss_in_words(error: BaseException) -> str:
    """Say that a process was lost."""
    return f"{name()} has lost another, which was killed or whose machine does not answer ({in_words(error)[:200]})"


@functools.cache
def name() -> str:
    """Return which process this is, in words."""
    return f"process {index()} of {count()} on {socket.gethostname()}"
