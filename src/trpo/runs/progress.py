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
    if x < 1e3:
        return f"{x:.0f}"
    return f"{x / 1e6:.3g}M" if x >= 1e6 else f"{x / 1e3:.3g}k"


class Reporter:
    """Shows how a run is going: on a terminal one line that is redrawn in place, elsewhere a line now and then."""

    def __init__(self, total: int, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet)
        self._total = total
        self._first: tuple[float, int] | None = None
        """When the first iteration (compilation) was over, and its steps: the rate leaves it out."""
        self._printed = 0.0
        self._live: Progress | None = None
        if self._console.is_terminal and not quiet:
            line = TextColumn("{task.description}", markup=False)
            # The numbers come first: the bar is for terminals with room to spare.
            columns = (BarColumn(bar_width=20), TaskProgressColumn(), line) if self._console.width >= 110 else (line,)
            self._live = Progress(*columns, console=self._console, refresh_per_second=5)
            self._task = self._live.add_task("compiling (a few seconds, once)", total=total)
            self._live.start()

    def update(self, metrics: Metrics) -> None:
        steps, now = int(metrics["steps"] or 0), time.perf_counter()
        line = self._line(metrics, steps, now)
        if self._live is not None:
            self._live.update(self._task, completed=steps, description=line)
        elif now - self._printed >= PLAIN_INTERVAL or steps >= self._total:
            self._printed = now
            self.say(line)

    def _line(self, m: Metrics, steps: int, now: float) -> str:
        began, first = self._first = self._first or (now, steps)
        rate = (steps - first) / (now - began) if steps > first else None
        reward = m["episode_return"]
        kl, bound = float(m["mean_kl"] or 0.0), m["max_kl"]
        parts = [
            f"{_count(steps)}/{_count(self._total)} steps",
            f"return {float(reward):.1f}" if reward is not None else "return –",
            f"KL {kl:.4f}" + (f"/{float(bound):g}" if bound is not None else " (no bound)"),
            f"{_count(rate)} steps/s" if rate else "compiling",
            f"{_short(max(0, self._total - steps) / rate)} left" if rate else "",
            f"[{m['result']}]" if m["result"] != "accepted" else "",
        ]
        return " · ".join(part for part in parts if part)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=self._live is None)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


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
