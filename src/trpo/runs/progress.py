"""The live progress line."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from trpo.training.record import Metrics

PLAIN_INTERVAL = 10.0
"""Seconds between lines where output is not a terminal."""


def _short(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _count(x: float) -> str:
    """Return a number in four characters or so: 950, 60.4k, 1.25M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if x >= unit:
            return f"{x / unit:.3g}{name}"
    return f"{x:.0f}"


class _Rate:
    """Steps per second since the reporter began, the first iteration (compilation) left out."""

    def __init__(self, total: int):
        self.total = total
        self._first: tuple[float, int] | None = None

    def line(self, m: Metrics) -> str:
        now, steps = time.perf_counter(), int(m["steps"] or 0)
        if self._first is None:
            self._first = (now, steps)
        began, first = self._first
        rate = (steps - first) / (now - began) if steps > first else None
        reward = m["episode_return"]
        kl, bound = float(m["mean_kl"] or 0.0), m["max_kl"]
        parts = [
            f"{_count(steps)}/{_count(self.total)} steps",
            f"return {float(reward):.1f}" if reward is not None else "return –",
            f"KL {kl:.4f}" + (f"/{float(bound):g}" if bound is not None else " (no bound)"),
            f"{_count(rate)} steps/s" if rate else "compiling",
            f"{_short(max(0, self.total - steps) / rate)} left" if rate else "",
        ]
        if m["result"] != "accepted":
            parts.append(f"[{m['result']}]")
        return " · ".join(part for part in parts if part)


class Plain:
    """A line now and then, for files and pipes."""

    def __init__(self, console: Console, total: int):
        self._console, self._rate = console, _Rate(total)
        self._last = 0.0

    def update(self, metrics: Metrics) -> None:
        """Print a line if the last was long ago or the run is over."""
        line = self._rate.line(metrics)
        now = time.perf_counter()
        if now - self._last >= PLAIN_INTERVAL or int(metrics["steps"] or 0) >= self._rate.total:
            self._last = now
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """One line that is redrawn in place."""

    def __init__(self, console: Console, total: int):
        self._rate = _Rate(total)
        line = TextColumn("{task.description}", markup=False)
        # The numbers come first: the bar is for terminals with room to spare.
        columns = (BarColumn(bar_width=20), TaskProgressColumn(), line) if console.width >= 110 else (line,)
        self._progress = Progress(*columns, console=console, refresh_per_second=5)
        self._task = self._progress.add_task("compiling (a few seconds, once)", total=total)
        self._progress.start()

    def update(self, metrics: Metrics) -> None:
        """Redraw the line."""
        self._progress.update(self._task, completed=int(metrics["steps"] or 0), description=self._rate.line(metrics))

    def say(self, text: str) -> None:
        """Print it above the line."""
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Stop redrawing."""
        self._progress.stop()


def reporter(total: int, quiet: bool = False, console: Console | None = None) -> Plain | Live:
    """Return a live line on a terminal, plain lines elsewhere, nothing if ``quiet``."""
    console = console or Console(stderr=True, quiet=quiet)
    return Live(console, total) if console.is_terminal and not quiet else Plain(console, total)


def joint_metrics(members: Sequence[Metrics]) -> Metrics:
    """Return what to show of several runs that train together: steps of all, mean returns, the largest KL."""
    if len(members) == 1:
        return members[0]
    returns = [m["episode_return"] for m in members if m["episode_return"] is not None]
    refused = [m["result"] for m in members if m["result"] != "accepted"]
    return {
        **members[0],
        "steps": sum(int(m["steps"] or 0) for m in members),
        "episode_return": sum(map(float, returns)) / len(returns) if returns else None,
        "mean_kl": max(float(m["mean_kl"] or 0.0) for m in members),
        "result": f"{len(refused)} of {len(members)}: {refused[0]}" if refused else "accepted",
    }
