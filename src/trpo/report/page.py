"""Runs as one HTML file that needs nothing else: settings, curves, evaluations, videos, and what the metrics say."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from trpo._version import __version__
from trpo.report.diagnosis import Finding, diagnose
from trpo.report.figure import colour_of, new_figure, to_svg
from trpo.report.plots import RunCurves, env_name, labels_of, panels_of
from trpo.runs.disk import is_link, is_regular, read_regular, replacing
from trpo.runs.evaluating import EVALUATIONS, read_evaluations
from trpo.runs.files import CONFIG, METRICS, read_config
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import is_sweep, read_sweep
from trpo.settings.config import Config
from trpo.spelling import in_words

INLINE = 5 * 2**20
"""Bytes up to which a video is put into the file; larger ones are named, with a link."""
VIDEOS = 2
"""The latest, that are shown."""
KINDS = {".mp4": "video/mp4", ".gif": "image/gif"}
PANEL = (4.7, 3.1)
"""Inches of a figure."""


@dataclasses.dataclass
class _RunFacts:
    """All that is told of one run, and what of it could not be read."""

    label: str
    place: Path
    problems: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.data: dict[str, Any] = self._read(CONFIG, lambda: read_config(self.place)) or {}
        self.records: list[dict[str, Any]] = self._read(METRICS, lambda: read_metrics(self.place)) or []
        self.evaluations = self._read(EVALUATIONS, lambda: read_evaluations(self.place)) or []
        if not self.records and not any(METRICS in problem for problem in self.problems):
            self.problems.append(f"{METRICS} has no iteration yet")
        self.env = env_name(self.place)
        self.settings = _flat(self.data.get("config") or {})

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = None
            try:
                found = read()
            except (ValueError, OSError) as error:
                self.problems.append(in_words(error) if isinstance(error, OSError) else str(error))
        self.problems += [str(warning.message) for warning in said]
        return found

    @property
    def without_seed(self) -> str:
        """What runs with the same settings have in common."""
        return json.dumps({k: v for k, v in self.settings.items() if k != "seed"}, sort_keys=True, default=str)

    @property
    def last(self) -> dict[str, Any]:
        """The latest metrics."""
        return self.records[-1] if self.records else {}

    @property
    def best(self) -> dict[str, Any]:
        """The best evaluation."""
        return next((record for record in reversed(self.evaluations) if record["best"]), {})


def report_runs(runs: Sequence[Path], out: Path) -> Path:
    """Write a report of ``runs`` into one HTML file, which loads nothing from anywhere.

    Args:
        runs: directories of runs, finished or not, or of sweeps, whose runs they stand for.
        out: the file to write; its directory is made if need be.

    Returns:
        ``out``.

    Raises:
        ValueError: no run was given, one is no directory of a run, or ``out`` is no .html.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out={str(out)!r}: must end in .html")
    if not runs:
        raise ValueError("no run to report: give one run directory or more")
    for run in runs:
        if not is_sweep(Path(run)) and not any(os.path.lexists(Path(run) / name) for name in (CONFIG, METRICS)):
            raise ValueError(f"{run} is not the directory of a run: it has neither {CONFIG} nor {METRICS}")
    places = list(dict.fromkeys(member for run in runs for member in _members(Path(run).resolve())))
    facts = [_RunFacts(*each) for each in zip(labels_of(places), places, strict=True)]
    parts = [_overview(facts)] if len(facts) > 1 else []
    parts += [_figures(facts)] if len(facts) > 1 else []
    parts += [_section(run, out, alone=len(facts) == 1) for run in facts]
    title = facts[0].label if len(facts) == 1 else f"{len(facts)} runs"
    envs = ", ".join(dict.fromkeys(run.env for run in facts))
    page = _template().substitute(
        title=escape(f"{title} · {envs}"), heading=escape(title), env=escape(envs), version=escape(__version__),
        body="\n".join(parts),
    )  # fmt: skip
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return out


def _template() -> Template:
    return Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _members(run: Path) -> list[Path]:
    return [run / variant.name for variant in read_sweep(run)] if is_sweep(run) else [run]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name; arguments of environments are one."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group = isinstance(value, dict) and name != "kwargs"
        found |= _flat(value, f"{prefix}{name}.") if group else {prefix + name: value}
    return found


# ---------------------------------------------------------------- pieces of HTML


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table of cells that are HTML already."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{lines}</tbody></table></div>'


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _number(x: Any, form: str = ",.1f") -> str:
    return format(x, form) if isinstance(x, int | float) and math.isfinite(x) else "–"


def _numbers(values: Any) -> list[float]:
    return [x for x in values if isinstance(x, int | float)] if isinstance(values, list) else []


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


# ---------------------------------------------------------------- several runs


def _overview(facts: Sequence[_RunFacts]) -> str:
    varied = sorted(
        {n for run in facts for n in run.settings if len({str(r.settings.get(n)) for r in facts}) > 1} - {"env.id"}
    )
    rows = [
        [
            f'<a href="#{_anchor(run)}">{escape(run.label)}</a>', escape(run.env),
            *(_shown(run.settings.get(name)) for name in varied),
            _number(run.last.get("steps"), ",.0f"), _number(run.last.get("episode_return")),
            _number(run.best.get("mean_return")),
        ]
        for run in facts
    ]  # fmt: skip
    head = ["run", "environment", *map(escape, varied), "steps", "return", "best evaluation"]
    return f"<section><h2>Runs</h2>{_table(head, rows)}{_seeds(facts)}</section>"


def _seeds(facts: Sequence[_RunFacts]) -> str:
    """Return means over runs that differ in their seed alone."""
    groups: dict[tuple[str, str], list[_RunFacts]] = {}
    for run in facts:
        groups.setdefault((run.env, run.without_seed), []).append(run)
    rows = []
    for (env, _), members in groups.items():
        returns = [x for run in members if isinstance(x := run.last.get("episode_return"), int | float)]
        if len(returns) > 1:
            mean = sum(returns) / len(returns)
            spread = (sum((x - mean) ** 2 for x in returns) / len(returns)) ** 0.5
            names = ", ".join(run.label for run in members)
            rows.append([escape(names), escape(env), str(len(returns)), f"{mean:,.1f} ± {spread:,.1f}"])
    if not rows:
        return ""
    head = ["same settings, other seeds", "environment", "seeds", "last return, mean ± deviation"]
    return f"<h3>Over seeds</h3>{_table(head, rows)}"


def _figures(facts: Sequence[_RunFacts]) -> str:
    drawn: list[RunCurves] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged lines: they are told where a run's problems are
        with contextlib.suppress(ValueError, OSError):
            known = [run for run in facts if run.records]
            drawn = [
                RunCurves(run.label, colour_of(i, len(known)), run.place, run.evaluations)
                for i, run in enumerate(known)
            ]
    if not drawn:
        return ""
    legend = ""
    if len(drawn) > 1:
        keys = [f'<span style="--key:{_hex(run.colour)}">{escape(run.label)}</span>' for run in drawn]
        legend = f'<p class="legend">{" ".join(keys)}</p>'
    figures = []
    for number, (draw, members) in enumerate(panels_of(drawn, named=True)):
        figure = new_figure(*PANEL)
        axes = figure.subplots()
        draw(axes, members)
        if not len(axes.get_yticks()):  # there is nothing to see
            continue
        axes.set_xlabel("environment steps", fontsize=9)
        figures.append(f"<figure>{to_svg(figure, f'{len(facts)}-{facts[0].label}-{number}')}</figure>")
    notes = "thin: every iteration, thick: running median · dots: evaluations · ×: update refused"
    content = f'{legend}<div class="figures">{"".join(figures)}</div><p class="note">{notes}</p>'
    return f"<section><h2>Curves</h2>{content}</section>"


def _hex(colour: Any) -> str:
    from matplotlib.colors import to_hex

    return str(to_hex(colour))


# ---------------------------------------------------------------- one run


def _anchor(run: _RunFacts) -> str:
    return escape(f"run-{quote(run.label, safe='')}")


def _section(run: _RunFacts, out: Path, alone: bool) -> str:
    parts = [_state(run), _problems(run), _diagnosis(diagnose(run.records, run.evaluations))]
    parts += [_figures([run])] if alone else []
    parts += [_evaluations(run), _videos(run, out), _settings(run)]
    head = "" if alone else f"<h2>{escape(run.label)} · {escape(run.env)}</h2>"
    return f'<section id="{_anchor(run)}" class="run">{head}{"".join(parts)}</section>'


def _state(run: _RunFacts) -> str:
    last, total = run.last, run.settings.get("steps")
    steps = last.get("steps")
    unfinished = isinstance(total, int) and isinstance(steps, int) and steps < total
    tiles = [
        ("steps", _number(steps, ",.0f") + (f" of {total:,}" if unfinished else "")),
        ("return", _number(last.get("episode_return"))),
        ("best evaluation", _number(run.best.get("mean_return"))),
        ("episodes", _number(last.get("episodes"), ",.0f")),
        ("seconds", _number(last.get("seconds"), ",.0f")),
    ]
    told = "".join(f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in tiles if value != "–")
    more = '<p class="note">Not finished: in progress, or stopped before.</p>' if unfinished else ""
    return f'<div class="tiles">{told}</div><p class="note">{escape(str(run.place))}</p>{more}'


def _problems(run: _RunFacts) -> str:
    lines = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
    return f'<div class="problems"><h3>What could not be read</h3><ul>{lines}</ul></div>' if lines else ""


def _diagnosis(findings: Sequence[Finding]) -> str:
    rows = []
    for finding in sorted(findings, key=lambda finding: not finding.advice):
        source = f" <cite>{escape(finding.source)}</cite>" if finding.source else ""
        advice = f'<p class="try">{escape(finding.advice)}{source}</p>' if finding.advice else ""
        mark = '<span class="look">look</span>' if finding.advice else '<span class="fine">fine</span>'
        rows.append([f"{mark}", f"<b>{escape(finding.name)}</b>", f"{escape(finding.text)}{advice}"])
    return f"<h3>Diagnosis</h3>{_table([], rows, 'diagnosis')}" if rows else ""


def _evaluations(run: _RunFacts) -> str:
    if not run.evaluations:
        return ""
    best = run.best
    told = [record["info"] if isinstance(record.get("info"), dict) else {} for record in run.evaluations]
    keys = list(dict.fromkeys(key for info in told for key in info))
    rows = []
    for record, info in zip(run.evaluations, told, strict=True):
        returns, lengths = (_numbers(record.get(name)) for name in ("returns", "lengths"))
        marks = ["best"] * (record is best) + ["last"] * (record is run.evaluations[-1])
        rows.append([
            _number(record["steps"], ",.0f"), f"{_number(record['mean_return'])} ± {_number(record['std_return'])}",
            f"{_number(min(returns, default=None))} to {_number(max(returns, default=None))}",
            _number(sum(lengths) / len(lengths) if lengths else None, ",.0f"), str(len(returns)),
            *(_number(info.get(key), ".3g") for key in keys), " · ".join(marks),
        ])  # fmt: skip
    head = ["steps", "return", "lowest to highest", "length", "episodes", *map(escape, keys), ""]
    return f"<h3>Evaluations</h3>{_table(head, rows, 'numbers')}"


def _videos(run: _RunFacts, out: Path) -> str:
    shown = [_video(path, out) for path in _latest(run.place)]
    return f'<h3>Videos</h3><div class="videos">{"".join(shown)}</div>' if shown else ""


def _latest(place: Path) -> list[Path]:
    def files() -> Iterator[Path]:
        for directory in (place, *(path for path in place.iterdir() if path.is_dir() and not is_link(path))):
            yield from (path for path in directory.iterdir() if path.suffix.lower() in KINDS and is_regular(path))

    with contextlib.suppress(OSError):
        return sorted(files(), key=lambda path: path.stat().st_mtime, reverse=True)[:VIDEOS]
    return []


def _video(path: Path, out: Path) -> str:
    kind, name = KINDS[path.suffix.lower()], escape(path.name)
    try:
        size = path.stat().st_size
        content = read_regular(path, INLINE) if size <= INLINE else b""
    except (OSError, ValueError) as error:
        return f"<figure><figcaption>{name}: {escape(in_words(error))}</figcaption></figure>"
    if not content:
        link = escape(quote(os.path.relpath(path, out.resolve().parent)))
        caption = f'<a href="{link}">{name}</a> ({size / 2**20:.0f} MiB, not in this file)'
        return f"<figure><figcaption>{caption}</figcaption></figure>"
    data = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    tag = f'<video controls muted loop playsinline preload="auto" src="{data}#t=0.01"></video>'
    if kind == "image/gif":
        tag = f'<img src="{data}" alt="{name}">'
    return f"<figure>{tag}<figcaption>{name}</figcaption></figure>"


def _settings(run: _RunFacts) -> str:
    if not run.settings:
        return ""
    usual = _flat(json.loads(json.dumps(Config().to_json())))
    own = {name: value for name, value in run.settings.items() if usual.get(name, value) != value or name == "env.id"}
    rows = [
        [escape(name), _shown(value), "" if name == "env.id" else _shown(usual.get(name))]
        for name, value in own.items()
    ]
    rest = [[escape(name), _shown(value)] for name, value in run.settings.items() if name not in own]
    changes = [
        [_number(c["steps"], ",.0f"), escape(str(c["setting"])), _shown(c["old"]), _shown(c["new"])]
        for c in run.data.get("changes") or []
    ]
    parts = [f"<h3>Settings</h3>{_table(['other than the default', 'here', 'default'], rows)}"]
    if changes:
        parts.append(f"<h3>Settings that changed</h3>{_table(['from step', 'setting', 'before', 'after'], changes)}")
    parts.append(_details(f"{len(rest)} settings as they are by default", _table(["setting", "value"], rest)))
    made = [name for name, own in (run.data.get("custom") or {}).items() if own]
    parts += [f'<p class="note">Of its own: {escape(", ".join(made))}.</p>'] if made else []
    return "".join(parts)
