"""Timing that survives a busy machine: contenders take turns, and only ratios within a round are compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

REST = 0.02
"""Seconds between turns: a thread pool that still spins would steal a core from the next contender."""


def pin(threads: int) -> int:
    """Confine this process and its children to ``threads`` CPUs; return how many they have.

    XLA takes as many threads as it sees CPUs, so this is what makes the threads equal. Call it before JAX computes.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS, Windows
        return os.cpu_count() or 1
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)
    return len(cpus)


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each contender once per round, in order: A B A B …; each call returns its own measurement."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            time.sleep(REST)
            measured[name].append(contender())
    return measured


def repeat(function: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def turn(seconds: list[float]) -> float:
    """Return one turn's measurement: the median without the first call, which wakes threads and fills caches."""
    return statistics.median(seconds[1:] or seconds)


def summary(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Summarise the ratios of two contenders, round by round."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of installed packages."""
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine, as far as it matters to a ratio."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(), "threads": threads}
