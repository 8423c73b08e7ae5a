"""The live progress line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from trpo.training.record import INFO, Metrics

PLAIN_INTERVAL = 10.0
"""Seconds between lines where output is not a terminal."""
PLAIN_WIDTH = 60
"""Columns of those lines."""
BAR, BAR_SPACE, ROOM_FOR_BAR = 20, 26, 110
"""Columns of a bar, of it and its percentage, and of the narrowest terminal that has one."""


def _short(seconds: float) -> str:
    """Return a time in four characters or so: 42s, 12m, 1.4h, 2.1d."""
    if seconds < 3570:
        return f"{seconds:.0f}s" if seconds < 60 else f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.1f}h" if seconds < 86400 else f"{seconds / 86400:.1f}d"


def _count(x: float) -> str:
    """Return a number in four characters or so: 950, 60.4k, 1.25M."""
    if x < 999.5:
        return f"{x:.0f}"
    unit, sign = (1e3, "k") if x < 999.5e3 else (1e6, "M") if x < 999.5e6 else (1e9, "G")
    return f"{x / unit:.3g}{sign}"


def _score(x: float) -> str:
    """Return a return in six characters or so: 12.3, -1234, 0.00123."""
    if 10 <= abs(x) < 999.95:
        return f"{x:.1f}"
    return f"{x:.0f}" if 999 < abs(x) < 1e6 else f"{x:.3g}"


def _fitting(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join as many parts as fit, in their order; those with the lowest numbers come first to be chosen."""
    chosen: set[int] = set()
    line = ""
    for rank, text in sorted(parts):
        longer = " · ".join(part for other, part in parts if other in chosen | {rank})
        if text and (not line or len(longer) <= width):
            chosen.add(rank)
            line = longer
    return line


class Reporter:
    """Shows how a run is going: on a terminal one line that is redrawn in place, elsewhere a line now and then."""

    def __init__(self, total: int, quiet: bool = False):
        self._console, self.quiet = Console(stderr=True, quiet=quiet), quiet
        self._total = total
        self._first: tuple[float, int] | None = None
        """When the first iteration (compilation) was over, and its steps: the rate leaves it out."""
        self._printed = 0.0
        self._live: Progress | None = None
        if self._console.is_terminal and not quiet:
            line = TextColumn("{task.description}", markup=False)
            # The numbers come first: the bar is for terminals with room to spare.
            self._bar = self._console.width >= ROOM_FOR_BAR
            columns = (BarColumn(bar_width=BAR), TaskProgressColumn(), line) if self._bar else (line,)
            self._live = Progress(*columns, console=self._console, refresh_per_second=5)
            self._task = self._live.add_task("compiling (a few seconds, once)", total=total)
            self._live.start()

    def update(self, metrics: Metrics) -> None:
        steps, now = int(metrics["steps"] or 0), time.perf_counter()
        width = PLAIN_WIDTH if self._live is None else self._console.width - BAR_SPACE * self._bar
        line = self._line(metrics, steps, now, width)
        if self._live is not None:
            self._live.update(self._task, completed=steps, description=line)
        elif now - self._printed >= PLAIN_INTERVAL or steps >= self._total:
            self._printed = now
            self.say(line)

    def _line(self, m: Metrics, steps: int, now: float, width: int) -> str:
        began, first = self._first = self._first or (now, steps)
        rate = (steps - first) / (now - began) if steps > first else None
        reward = m["episode_return"]
        kl, bound = float(m["mean_kl"] or 0.0), m["max_kl"]
        what = "mean return" if m.get("runs") else "return"
        parts = [
            (0, f"{_count(steps)}/{_count(max(steps, self._total))} steps"),
            (1, f"{what} {_score(float(reward))}" if reward is not None else f"{what} –"),
            *(
                (2, f"{name.removeprefix(INFO)} {float(x):.3g}")
                for name, x in m.items()
                if name.startswith(INFO) and x is not None
            ),
            (3, f"KL {kl:.3g}" + (f"/{float(bound):.3g}" if bound is not None else "")),
            (5, f"{_count(rate)} steps/s" if rate else ""),
            (4, f"{_short(max(0, self._total - steps) / rate)} left" if rate else ""),
            (2, f"[{m['result']}]" if m["result"] != "accepted" else ""),
        ]
        return _fitting(parts, width)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=self._live is None)

    def close(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, SystemExit):  # the terminal is gone: Rich says so by SystemExit
                self._live.stop()


def joint_metrics(members: Sequence[Metrics]) -> Metrics:
    """Return what to show of several runs that train together, whose settings may differ.

    Steps are those of all, the return is the mean, and the KL is that of the run which is nearest to its own bound.
    """
    if len(members) == 1:
        return members[0]
    returns = [m["episode_return"] for m in members if m["episode_return"] is not None]
    refused = [str(m["result"]) for m in members if m["result"] != "accepted"]
    nearest = max(members, key=lambda m: float(m["mean_kl"] or 0.0) / float(m["max_kl"] or 1.0))
    return {
        "runs": len(members),
        "steps": sum(int(m["steps"] or 0) for m in members),
        "episode_return": sum(map(float, returns)) / len(returns) if returns else None,
        "mean_kl": nearest["mean_kl"],
        "max_kl": nearest["max_kl"],
        "result": f"{len(refused)} of {len(members)} {' '.join(sorted(set(refused)))}" if refused else "accepted",
    }
