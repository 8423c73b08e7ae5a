"""What a claim's check returns: numbers and verdicts, ready for the table, the page and ``claims.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

Values = Shaped[np.ndarray, "cases *each"] | float | np.floating
Over = Shaped[np.ndarray, "rows *of_each"] | int | None


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement that could have turned out false, with the number that decides it."""

    name: str
    """A few words, unique within the claim."""
    statement: str
    """What holds, with its formula."""
    cases: int
    """How many cases (MDPs, policies, restarts) it was checked on."""
    worst: float
    """The worst case's number, in the terms of ``limit``."""
    limit: str
    """What ``worst`` is held against, such as "≤ 1e-12" or "≥ 2.9"."""
    law: str
    """How the error behaves, in measured numbers, such as "slope 3.00 (2.98 … 3.02) in log-log"."""
    passed: bool

    def __post_init__(self) -> None:
        # NaN must never pass.
        object.__setattr__(self, "passed", self.passed and not math.isnan(self.worst))


def at_most(name: str, statement: str, values: Values, limit: float, law: str, over: Over = None) -> Check:
    """Return a check that passes if every value is at most ``limit``.

    Args:
        name: a few words.
        statement: what holds.
        values: the measured numbers, a case in each row of the leading axis. (``.ravel()`` where every entry is one.)
        limit: what the largest is held against.
        law: how the error behaves.
        over: the cases of a statistic, where ``values`` is one number (a slope, a median) that was made of many, or
            has one row for several cases: an array with a row for each, or their number.
    """
    return _check(name, statement, values, np.max, (-math.inf, limit), f"≤ {limit:g}", law, over)


def at_least(name: str, statement: str, values: Values, limit: float, law: str, over: Over = None) -> Check:
    """Return a check that passes if every value is at least ``limit``; arguments as for :func:`at_most`."""
    return _check(name, statement, values, np.min, (limit, math.inf), f"≥ {limit:g}", law, over)


def within(name: str, statement: str, values: Values, low: float, high: float, law: str, over: Over = None) -> Check:
    """Return a check that passes if every value is in ``low`` … ``high``; the worst is furthest from the middle."""

    def furthest(values: np.ndarray) -> float:
        return values.flat[np.abs(values - (low + high) / 2).argmax()]

    return _check(name, statement, values, furthest, (low, high), f"{low:g} … {high:g}", law, over)


def _check(
    name: str,
    statement: str,
    values: Values,
    pick: Callable[[np.ndarray], float],
    bounds: tuple[float, float],
    limit: str,
    law: str,
    over: Over,
) -> Check:
    values = np.asarray(values)
    counted = values if over is None else over
    cases = counted if isinstance(counted, int) else len(counted)
    # Nothing measured is nothing shown.
    worst = float(pick(values)) if values.size else math.nan
    return Check(name, statement, cases, worst, limit, law, bool(bounds[0] <= worst <= bounds[1]))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure that was drawn."""

    file: str
    """Its name in the directory of figures."""
    numbers: dict[str, Any]
    """Those in its caption, which is in the claim's ``text.md``."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run of a claim measured."""

    checks: tuple[Check, ...]
    findings: tuple[str, ...] = ()
    """Measured facts that are no verdict, one sentence each."""
    pictures: tuple[Picture, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there was a check, and every one passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; infinities become strings, which JSON has no word for."""
        data = dataclasses.asdict(self)
        for check in data["checks"]:
            if not math.isfinite(check["worst"]):
                check["worst"] = str(check["worst"])
        return data
