"""The theory as one HTML page that needs nothing else: figures and styles are inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from trpo.theory.claims import CLAIMS, claim, text
from trpo.theory.pages import rows
from trpo.theory.pages.equations import EQUATIONS
from trpo.theory.pages.text import INTRODUCTION, NOTATION, paragraphs, source

_STYLE = """
:root { --ink: #1a1c1f; --soft: #5b626b; --line: #dde1e6; --paper: #fff; --panel: #f6f7f9; --blue: #0b5fa5;
        --good: #1b7f4d; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; color: var(--ink); background: var(--paper);
       font: 17px/1.6 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 3.5rem 0 .8rem; padding-top: 1rem;
     border-top: 1px solid var(--line); }
p { max-width: 44rem; }
a { color: var(--blue); }
sub { font-size: .72em; line-height: 0; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--panel); padding: .1em .3em;
       border-radius: 3px; }
.formula { font: 1.08rem/1.7 "STIX Two Math", "Cambria Math", Georgia, serif; white-space: pre-wrap; margin: 1rem 0;
           padding: .7rem 1.1rem; border-left: 3px solid var(--blue); background: var(--panel); max-width: 46rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; line-height: 1.45; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem .45rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 700; }
.soft { color: var(--soft); }
.verdict { padding: .8rem 1.1rem; background: var(--panel); border-left: 3px solid var(--good); }
.verdict.failed { border-color: var(--bad); }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--panel); padding: .8rem 1rem; font-size: .8rem; line-height: 1.5; }
pre code { background: none; padding: 0; }
@media print { details { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


# A letter (with its bar or tilde), then an index: θ_old, ρ_π̃, Σ_s, π_{i+1}; names such as max_kl are left alone.
_INDEX = re.compile(r"(?<!\w)([A-Za-zΑ-Ωα-ω∇][\u0303\u0304]?)_(?:\{([^}]+)\}|([A-Za-zΑ-Ωα-ω0-9]+\u0303?))")


def _formula(text: str) -> str:
    return _INDEX.sub(lambda m: f"{m[1]}<sub>{m[2] or m[3]}</sub>", escape(text, quote=False))


def _inline(text: str) -> str:
    """Escape text; `code` between backticks, *emphasis* between stars, indices lowered."""
    parts = re.split(r"`([^`]+)`", text)
    prose = (re.sub(r"\*(\w[^*]*\w)\*", r"<em>\1</em>", _formula(part)) for part in parts[::2])
    code = (f"<code>{escape(part, quote=False)}</code>" for part in [*parts[1::2], ""])
    return "".join(text for pair in zip(prose, code, strict=True) for text in pair).removesuffix("<code></code>")


def _prose(text: str) -> str:
    return "\n".join(
        f'<div class="formula">{_formula(block)}</div>' if formula else f"<p>{_inline(block)}</p>"
        for formula, block in paragraphs(text)
    )


def _mark(passed: bool) -> str:
    return '<span class="good">✓</span>' if passed else '<span class="bad">✗</span>'


def _picture(picture: dict[str, Any], figures: Path) -> str:
    data = base64.b64encode((figures / picture["file"]).read_bytes()).decode()
    caption = _inline(picture["caption"])
    alt = escape(picture["caption"])
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _number(text: str) -> str:
    return f'<td class="n">{text}</td>'


def _table(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table of cells that are either ``<td>…</td>`` already or what belongs in it."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if head else ""}\n{body}</table></div>'


def _checks(record: dict[str, Any]) -> str:
    return _table(
        rows.CHECKS,
        (
            (
                f"<b>{_inline(row.name)}</b><br>{_inline(row.statement)}",
                *map(_number, (row.cases, row.measured, escape(row.wanted))),
                _inline(row.law),
                _mark(row.passed),
            )
            for row in rows.rows(record)
        ),
    )


def _code(reference: str) -> str:
    found = source(reference)
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
    module = claim(record["name"])
    parts = [f'<h2 id="{record["name"]}">{escape(rows.heading(record))}</h2>', _prose(text(record["name"])[1])]
    parts += [_picture(picture, figures) for picture in record["pictures"]]
    if record["error"]:
        parts.append(f'<p class="bad">This check did not finish: {escape(record["error"])}</p>')
    if record["checks"]:
        parts.append(_checks(record))
    if record["findings"]:
        parts.append("<ul>" + "".join(f"<li>{_inline(finding)}</li>" for finding in record["findings"]) + "</ul>")
    parts.append("<p><b>The code</b></p>" + "".join(map(_code, module.CODE)))
    parts.append("<p><b>The tests</b>: " + ", ".join(f"<code>tests/{test}</code>" for test in module.TESTS) + "</p>")
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


def _listed(names: tuple[str, ...]) -> str:
    return "<br>".join(f"<code>{name}</code>" for name in names)


def _equations() -> str:
    return _table(
        rows.EQUATIONS,
        (
            (
                _number(escape(e.number)),
                _formula(e.formula),
                _listed(e.code),
                _listed(e.tests),
                f'<a href="#{e.claim}">{CLAIMS.index(e.claim) + 1}</a>',
            )
            for e in EQUATIONS
        ),
    )


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
<style>{_STYLE}</style>
</head>
<body>
<h1>From gradient descent to TRPO, checked</h1>
{_prose(INTRODUCTION)}
<p class="soft">trpo {report["trpo"]} ({versions}) · {report["mdps"]:,} random MDPs for each claim ·
seed {report["seed"]} · {report["seconds"]:.0f} s · numbers: <code>claims.json</code> ·
again: <code>trpo theory</code></p>
{_summary(report)}
<h2>Notation</h2>
{_table((), ((_number(_formula(symbol)), _inline(meaning)) for symbol, meaning in NOTATION))}
{chapters}
<h2>The paper's equations</h2>
<p>Numbers are those of arXiv:1502.05477v5.</p>
{_equations()}
</body>
</html>
"""
