"""What the tests of several rooms need: processes that end, results' bits, and metrics without timings."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TIMINGS = {"seconds", "steps_per_second", "collect_seconds"}


def flags_for_devices(count: int) -> str:
    """XLA's flags, as they are in this process, for one that divides its processor into ``count`` devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


_started: list[subprocess.Popen[str]] = []


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process with a group of its own, which is ended after the test with all that it has started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(command, start_new_session=True, **{**pipes, **options})
    _started.append(process)
    return process


def run_process(command: Sequence[str], timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said; after ``timeout`` seconds it and its children are ended."""
    process = start_process(command, **options)
    try:
        said = process.communicate(timeout=timeout)
    finally:
        end_processes([process])
    return subprocess.CompletedProcess(command, process.returncode, *said)


def end_processes(processes: Sequence[subprocess.Popen[str]] | None = None) -> None:
    """End ``processes``, by default all that were started, and everything that they have started."""
    for process in list(_started) if processes is None else processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _started.remove(process)


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in TIMINGS}


def bits(tree: Any) -> list[tuple[Any, bytes]]:
    """Every leaf's type and content; of a random key, its data."""
    leaves = (jax.random.key_data(x) if _is_key(x) else np.asarray(x) for x in jax.tree.leaves(tree))
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def same_bits(a: Any, b: Any) -> bool:
    return bits(a) == bits(b)


def assert_same_bits(a: Any, b: Any) -> None:
    for i, (x, y) in enumerate(zip(bits(a), bits(b), strict=True)):
        assert x == y, f"leaf {i} differs"
