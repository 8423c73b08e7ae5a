"""The theory as Markdown, for the documentation: one page of claims and one of equations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trpo.theory.claims import CLAIMS, text
from trpo.theory.pages import rows
from trpo.theory.pages.text import EQUATIONS, excerpt, paragraphs

ROOT = "../.."
"""From docs/theory to the repository."""


def _paragraphs(prose: str) -> list[str]:
    lines = []
    for formula, block in paragraphs(prose):
        lines += ["```text", block, "```", ""] if formula else [_plain(block), ""]
    return lines


def _plain(prose: str) -> str:
    """Keep [π̃/π](a|s) from being taken for a link."""
    return prose.replace("](", "]\\(")


def _cell(prose: str) -> str:
    return _plain(prose).replace("|", "\\|")


def _code(reference: str) -> str:
    return f"[`{reference.replace(':', '.')}`]({ROOT}/src/{excerpt(reference).path})"


def _test(test: str) -> str:
    return f"[`{test}`]({ROOT}/tests/{test.partition('::')[0]})"


def _table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    headings = tuple(headings)
    written = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (headings, *lines)]
    return [written[0], "|" + "---|" * len(headings), *written[1:]]


def _chapter(record: dict[str, Any]) -> list[str]:
    said = text(record["name"])
    lines = [f"## {rows.heading(record)}", "", *_paragraphs(said.explanation)]
    for picture in record["pictures"]:
        lines += [f"![{picture['caption']}](figures/{picture['file']})", "", f"*{picture['caption']}*", ""]
    cells = []
    for row in rows.rows(record):
        statement, mark = f"**{_cell(row.name)}**: {_cell(row.statement)}", "✓" if row.passed else "**✗**"
        cells.append((statement, *map(_cell, (row.cases, row.worst, row.limit, row.law)), mark))
    lines += _table(rows.CHECKS, cells)
    lines += ["", *(f"- {_plain(finding)}" for finding in record["findings"]), ""]
    lines += ["Code: " + " · ".join(map(_code, said.code)) + "  "]
    return [*lines, "Tests: " + " · ".join(map(_test, said.tests)), ""]


def claims_page(report: dict[str, Any]) -> str:
    """Return the page of a report as Markdown."""
    lines = [
        "# The claims, checked",
        "",
        f"Written by `trpo theory --out docs/theory` from {report['mdps']:,} random MDPs for each claim "
        f"(seed {report['seed']}); numbers are in [claims.json](claims.json). Read the [introduction](index.md) first.",
        "",
        *_table(("", *rows.SUMMARY), ((str(record["number"]), *rows.summary(record)) for record in report["claims"])),
        "",
    ]
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
    ]
    cells = []
    for e in EQUATIONS:
        code, tests = ("<br>".join(map(make, things)) for make, things in ((_code, e.code), (_test, e.tests)))
        cells.append((e.number, _cell(e.formula), code, tests, str(CLAIMS.index(e.claim) + 1)))
    return "\n".join(lines + _table(rows.EQUATIONS, cells)) + "\n"
