"""What a claim's check returns: numbers and verdicts, ready for the table, the page and ``claims.json``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


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
        # NumPy's scalars would not survive JSON; NaN must never pass.
        object.__setattr__(self, "cases", int(self.cases))
        object.__setattr__(self, "worst", float(self.worst))
        object.__setattr__(self, "passed", bool(self.passed) and not math.isnan(self.worst))


def at_most(name: str, statement: str, cases: int, worst: float, limit: float, law: str) -> Check:
    """Return a check that passes if ``worst`` ≤ ``limit``."""
    return Check(name, statement, cases, worst, f"≤ {limit:g}", law, bool(worst <= limit))


def at_least(name: str, statement: str, cases: int, worst: float, limit: float, law: str) -> Check:
    """Return a check that passes if ``worst`` ≥ ``limit``."""
    return Check(name, statement, cases, worst, f"≥ {limit:g}", law, bool(worst >= limit))


def within(name: str, statement: str, cases: int, value: float, low: float, high: float, law: str) -> Check:
    """Return a check that passes if ``low`` ≤ ``value`` ≤ ``high``."""
    return Check(name, statement, cases, value, f"{low:g} … {high:g}", law, bool(low <= value <= high))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure that was drawn."""

    file: str
    """Its name in the directory of figures."""
    caption: str
    """What is to be seen in it, with units."""


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
