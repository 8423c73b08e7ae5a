"""The theory as Markdown, for the documentation: one page of claims and one of equations."""

from __future__ import annotations

from typing import Any

from trpo.theory.pages.equations import EQUATIONS
from trpo.theory.pages.text import number, paragraphs, source
from trpo.theory.run import CLAIMS, module

ROOT = "../.."
"""From docs/theory to the repository."""


def _prose(text: str) -> list[str]:
    lines = []
    for formula, block in paragraphs(text):
        lines += ["```text", block, "```", ""] if formula else [_plain(block), ""]
    return lines


def _plain(text: str) -> str:
    """Keep [π̃/π](a|s) from being taken for a link."""
    return text.replace("](", "]\\(")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _code(reference: str) -> str:
    return f"[`{reference.replace(':', '.')}`]({ROOT}/src/{source(reference).path})"


def _test(test: str) -> str:
    return f"[`{test}`]({ROOT}/tests/{test.partition('::')[0]})"


def _chapter(record: dict[str, Any]) -> list[str]:
    claim = module(record["name"])
    lines = [f"## {record['number']}. {record['title']}", "", *_prose(claim.EXPLANATION)]
    for picture in record["pictures"]:
        lines += [f"![{picture['caption']}](figures/{picture['file']})", "", f"*{picture['caption']}*", ""]
    lines += ["| check | cases | measured | wanted | error law | |", "|---|---|---|---|---|---|"]
    for check in record["checks"]:
        verdict = "✓" if check["passed"] else "**✗**"
        lines.append(
            f"| **{_cell(check['name'])}**: {_cell(check['statement'])} | {check['cases']:,} | "
            f"{number(check['worst'])} | {_cell(check['limit'])} | {_cell(check['law'])} | {verdict} |"
        )
    lines += ["", *(f"- {_plain(finding)}" for finding in record["findings"]), ""]
    lines += ["Code: " + " · ".join(map(_code, claim.CODE)) + "  "]
    return [*lines, "Tests: " + " · ".join(map(_test, claim.TESTS)), ""]


def claims_page(report: dict[str, Any]) -> str:
    """Return the page of a report as Markdown."""
    lines = [
        "# The claims, checked",
        "",
        f"Written by `trpo theory --out docs/theory` from {report['mdps']:,} random MDPs for each claim "
        f"(seed {report['seed']}); numbers are in [claims.json](claims.json). Read the [introduction](index.md) first.",
        "",
        "| | claim | checks passed | cases |",
        "|---|---|---|---|",
    ]
    for record in report["claims"]:
        good = sum(check["passed"] for check in record["checks"])
        title = f"{record['number']}. {record['title']}"
        lines.append(f"| {record['number']} | {title} | {good} of {len(record['checks'])} | {record['cases']:,} |")
    lines.append("")
    for record in report["claims"]:
        lines += _chapter(record)
    return "\n".join(lines).rstrip() + "\n"


def equations_page() -> str:
    """Return the table of the paper's equations as Markdown."""
    lines = [
        "# The paper's equations, in this library",
        "",
        "Numbers are those of [arXiv:1502.05477v5](https://arxiv.org/abs/1502.05477). Written by `trpo theory`.",
        "",
        "| equation | formula | function | test | claim |",
        "|---|---|---|---|---|",
    ]
    for e in EQUATIONS:
        code, tests = ("<br>".join(map(make, things)) for make, things in ((_code, e.code), (_test, e.tests)))
        lines.append(f"| {e.number} | {_cell(e.formula)} | {code} | {tests} | {CLAIMS.index(e.claim) + 1} |")
    return "\n".join(lines) + "\n"
