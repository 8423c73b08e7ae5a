"""The theory as one HTML page that needs nothing else: figures and styles are inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from trpo.theory.claims import CLAIMS, text
from trpo.theory.pages import rows
from trpo.theory.pages.text import EQUATIONS, NOTATION, excerpt, paragraphs, read

# A letter (with its bar or tilde), then an index: θ_old, ρ_π̃, Σ_s, π_{i+1}; names such as max_kl are left alone.
_INDEX = re.compile(r"(?<!\w)([A-Za-zΑ-Ωα-ω∇][\u0303\u0304]?)_(?:\{([^}]+)\}|([A-Za-zΑ-Ωα-ω0-9]+\u0303?))")


def _formula(formula: str) -> str:
    return _INDEX.sub(lambda m: f"{m[1]}<sub>{m[2] or m[3]}</sub>", escape(formula, quote=False))


def _inline(prose: str) -> str:
    """Escape text; `code` between backticks, *emphasis* between stars, indices lowered."""
    parts = re.split(r"`([^`]+)`", prose)
    plain = (re.sub(r"\*(\w[^*]*\w)\*", r"<em>\1</em>", _formula(part)) for part in parts[::2])
    code = (f"<code>{escape(part, quote=False)}</code>" for part in [*parts[1::2], ""])
    return "".join(part for pair in zip(plain, code, strict=True) for part in pair).removesuffix("<code></code>")


def _paragraphs(prose: str) -> str:
    return "\n".join(
        f'<div class="formula">{_formula(block)}</div>' if formula else f"<p>{_inline(block)}</p>"
        for formula, block in paragraphs(prose)
    )


def _mark(passed: bool) -> str:
    return '<span class="good">✓</span>' if passed else '<span class="bad">✗</span>'


def _picture(picture: dict[str, Any], figures: Path) -> str:
    data = base64.b64encode((figures / picture["file"]).read_bytes()).decode()
    caption = _inline(picture["caption"])
    alt = escape(picture["caption"])
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _number(number: str) -> str:
    return f'<td class="n">{number}</td>'


def _table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table of cells that are either ``<td>…</td>`` already or what belongs in it."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if head else ""}\n{body}</table></div>'


def _checks(record: dict[str, Any]) -> str:
    cells = []
    for row in rows.rows(record):
        numbers = map(_number, (row.cases, row.worst, escape(row.limit)))
        statement = f"<b>{_inline(row.name)}</b><br>{_inline(row.statement)}"
        cells.append((statement, *numbers, _inline(row.law), _mark(row.passed)))
    return _table(rows.CHECKS, cells)


def _code(reference: str) -> str:
    found = excerpt(reference)
    title = f"<code>{reference.replace(':', '.')}</code>"
    where = f'<span class="soft">{found.path}, lines {found.first}–{found.last}</span>'
    width = len(str(found.last))
    listing = "".join(
        f"{found.first + i:>{width}}  {line}" for i, line in enumerate(found.text.splitlines(keepends=True))
    )
    return (
        f"<details><summary>{title} {where}</summary><pre><code>{escape(listing, quote=False)}</code></pre></details>"
    )


def _chapter(record: dict[str, Any], figures: Path) -> str:
    said = text(record["name"])
    parts = [f'<h2 id="{record["name"]}">{escape(rows.heading(record))}</h2>', _paragraphs(said.explanation)]
    parts += [_picture(picture, figures) for picture in record["pictures"]]
    if record["error"]:
        parts.append(f'<p class="bad">This check did not finish: {escape(record["error"])}</p>')
    if record["checks"]:
        parts.append(_checks(record))
    if record["findings"]:
        parts.append("<ul>" + "".join(f"<li>{_inline(finding)}</li>" for finding in record["findings"]) + "</ul>")
    parts.append("<p><b>The code</b></p>" + "".join(map(_code, said.code)))
    parts.append("<p><b>The tests</b>: " + ", ".join(f"<code>tests/{test}</code>" for test in said.tests) + "</p>")
    return "\n".join(parts)


def _summary(report: dict[str, Any]) -> str:
    lines = []
    for record in report["claims"]:
        heading, *numbers = rows.summary(record)
        link = f'<a href="#{record["name"]}">{escape(heading)}</a>'
        lines.append((link, *map(_number, (*numbers, f"{record['seconds']:.0f} s")), _mark(record["passed"])))
    failed = [str(record["number"]) for record in report["claims"] if not record["passed"]]
    verdict = f"Claims that failed: {', '.join(failed)}." if failed else "Every claim that was checked held."
    box = "verdict failed" if failed else "verdict"
    return f'<p class="{box}">{verdict}</p>' + _table((*rows.SUMMARY, "time", ""), lines)


def _listed(names: Iterable[str]) -> str:
    return "<br>".join(f"<code>{name}</code>" for name in names)


def _equations() -> str:
    cells = []
    for e in EQUATIONS:
        link = f'<a href="#{e.claim}">{CLAIMS.index(e.claim) + 1}</a>'
        cells.append((_number(escape(e.number)), _formula(e.formula), _listed(e.code), _listed(e.tests), link))
    return _table(rows.EQUATIONS, cells)


def html_page(report: dict[str, Any], figures: Path) -> str:
    """Return the whole page: introduction, verdicts, a chapter for each claim, and the table of equations."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    chapters = "\n".join(_chapter(record, figures) for record in report["claims"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>From gradient descent to TRPO, checked</title>
<style>{read("page.css")}</style>
</head>
<body>
<h1>From gradient descent to TRPO, checked</h1>
{_paragraphs(read("introduction.md"))}
<p class="soft">trpo {report["trpo"]} ({versions}) · {report["mdps"]:,} random MDPs for each claim ·
seed {report["seed"]} · {report["seconds"]:.0f} s · numbers: <code>claims.json</code> ·
again: <code>trpo theory</code></p>
{_summary(report)}
<h2>Notation</h2>
{_table((), ((_number(_formula(symbol)), _inline(meaning)) for symbol, meaning in NOTATION.items()))}
{chapters}
<h2>The paper's equations</h2>
<p>Numbers are those of arXiv:1502.05477v5.</p>
{_equations()}
</body>
</html>
"""
