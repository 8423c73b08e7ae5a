"""What every table of the report says, cell by cell; the pages and the terminal only set it."""

from __future__ import annotations

from typing import Any, NamedTuple

CHECKS = ("check", "cases", "measured", "wanted", "error law", "")
SUMMARY = ("claim", "checks passed", "cases")
EQUATIONS = ("equation", "formula", "function", "test", "claim")


class Row(NamedTuple):
    """One check, under ``CHECKS``."""

    name: str
    statement: str
    cases: str
    worst: str
    limit: str
    law: str
    passed: bool


def shown(value: float | str) -> str:
    """Write a measured number in at most four digits."""
    return value if isinstance(value, str) else f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def rows(record: dict[str, Any]) -> list[Row]:
    """Return a claim's checks."""
    return [
        Row(**check | {"cases": f"{check['cases']:,}", "worst": shown(check["worst"])}) for check in record["checks"]
    ]


def heading(record: dict[str, Any]) -> str:
    """Return a claim's number and title."""
    return f"{record['number']}. {record['title']}"


def summary(record: dict[str, Any]) -> tuple[str, str, str]:
    """Return a claim's line under ``SUMMARY``: heading, how many checks passed, cases."""
    good = sum(check["passed"] for check in record["checks"])
    return heading(record), f"{good} of {len(record['checks'])}", f"{record['cases']:,}"
