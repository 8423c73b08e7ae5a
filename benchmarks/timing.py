"""Timing that survives a busy machine: contenders take turns, and only ratios within a round are compared."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REST = 0.05
"""Seconds between turns: a thread pool that still spins would steal a core from the next contender."""

BUSY = 0.2
"""Share of the CPUs in other hands above which a run is called disturbed."""


def pin(threads: int) -> int:
    """Confine this process and its children to ``threads`` CPUs; return how many they have.

    XLA takes as many threads as it sees CPUs, so this is what makes the threads equal. Call it before JAX computes.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS, Windows
        return os.cpu_count() or 1
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)
    return len(cpus)


class Background:
    """How busy others keep the machine, looked at between turns while all contenders sleep.

    It matters because contenders suffer unequally: PyTorch's OpenMP threads spin at barriers, so that one stolen core
    can slow them a hundredfold, while XLA's thread pool only loses that core. Such a run flatters us.
    """

    def __init__(self) -> None:
        self.loads: list[float] = []

    def rest(self) -> None:
        """Sleep between turns and note the load of the others."""
        before = _cpu_seconds()
        time.sleep(REST)
        after = _cpu_seconds()
        if before is not None and after is not None and after[1] > before[1]:
            self.loads.append((after[0] - before[0]) / (after[1] - before[1]))

    def report(self) -> dict[str, float] | None:
        """Summarise the load as a share of all CPUs; None where the system does not tell."""
        return summary(self.loads) | {"mean": statistics.fmean(self.loads)} if self.loads else None

    def warning(self) -> str:
        """Return what to say about it, empty if the machine was quiet."""
        load = statistics.fmean(self.loads) if self.loads else 0.0
        if load <= BUSY:
            return ""
        return (
            f"DISTURBED: others used {load:.0%} of the CPUs between turns. OpenMP contenders suffer most from that, so "
            "these ratios flatter us; repeat on an idle machine."
        )


def _cpu_seconds() -> tuple[float, float] | None:
    """Return busy and total CPU time of the whole machine so far, in ticks (Linux only)."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return None
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, background: Background | None = None
) -> dict[str, list[float]]:
    """Call each contender once per round, in order: A B A B …; each call returns its own measurement."""
    background = background or Background()
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            background.rest()
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
    """Summarise the ratios of two contenders' times round by round, and give the ratio of their best turns.

    The best turns are the least disturbed ones, so the two should agree; a target counts as met if both meet it.
    """
    rounds = summary([a / b for a, b in zip(numerator, denominator, strict=True)])
    return rounds | {"of_bests": min(numerator) / min(denominator)}


def met(ratio: Mapping[str, float], target: float) -> bool:
    """Return whether a ratio reaches its target, by its median and by the best turns."""
    return min(ratio["median"], ratio["of_bests"]) >= target


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of installed packages."""
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine, as far as it matters to a ratio."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(), "threads": threads}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result) + "\n")
    temporary.replace(path)
