"""``trpo report``: what it says is what the files say, nothing is loaded from anywhere, and damage is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import trpo
from tests.test_plots import GAUSSIAN, record
from trpo.report import page
from trpo.report.diagnosis import diagnose
from trpo.report.page import report_runs
from trpo.rules.protocol import Result


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run without iterations."""
    out = tmp_path_factory.mktemp("runs") / "saved"
    trpo.make_agent("probe:continuous", trpo.Config(steps=4000, discount=0.9)).save(out)
    return out


def run_of(saved: Path, place: Path, records: list[dict[str, Any]], env: str = "Arm-v0", **settings: Any) -> Path:
    shutil.copytree(saved, place)
    config = json.loads((place / "config.json").read_text())
    config["spec"]["id"] = config["config"]["env"]["id"] = env
    config["config"] |= settings
    (place / "config.json").write_text(json.dumps(config))
    (place / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return place


def text_of(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    return unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style>.*?</style>|<svg.*?</svg>", "", html)))


def evaluation(i: int, mean: float, best: bool) -> dict[str, Any]:
    returns = [mean - 1, mean + 1]
    return {
        "iteration": i, "steps": 100 * i, "mean_return": mean, "std_return": 1.0, "returns": returns,
        "lengths": [4, 6], "max_steps": 9, "cut": 0, "best": best,
    }  # fmt: skip


def test_a_run(saved: Path, tmp_path: Path) -> None:
    results = {3: "no_improvement", 4: "no_improvement", 7: "nonfinite_batch"}
    records = [record(i, **GAUSSIAN | {"result": results.get(i, "accepted")}) for i in range(1, 31)]
    run = run_of(saved, tmp_path / "arm", records)
    found = [evaluation(10, 5.5, True), evaluation(20, 4.25, False) | {"info": {"is_<b>": 0.375}}]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    (run / "video.gif").write_bytes(b"GIF89a-small")
    (run / "changes").mkdir()
    (run / "changes" / "large.mp4").write_bytes(bytes(page.INLINE + 1))
    config = json.loads((run / "config.json").read_text())
    change = {"iteration": 5, "steps": 500, "setting": "rule.max_kl", "old": 0.01, "new": 0.02}
    (run / "config.json").write_text(json.dumps(config | {"changes": [change]}))
    html = report_runs([run], run / "report.html").read_text()
    text = text_of(run / "report.html")
    for words in (
        "27 of 30 iterations moved the policy", "no_improvement in iterations 3, 4", Result.NO_IMPROVEMENT.reason,
        "iteration 7", Result.NONFINITE_BATCH.reason, "5.5 ± 1.0", "4.5 to 6.5", "3,000 of 4,000", "Not finished",
    ):  # fmt: skip
        assert words in text
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall("<tr>.*?</tr>", html)]
    assert any("1,000" in row and "best" in row for row in rows)
    assert any("2,000" in row and "||2||0.375||last" in row for row in rows)
    assert "<th>is_&lt;b&gt;</th>" in html
    assert any("discount" in row and "0.9|" in row and "0.99" in row for row in rows)
    assert any(row.strip("|").startswith("500||rule.max_kl||0.01||0.02") for row in rows)
    assert "data:image/gif;base64,R0lGODlhLXNtYWxs" in html
    assert 'href="changes/large.mp4"' in html
    assert html.count("<svg") == 6
    for svg in re.findall(r"(?s)<svg.*?</svg>", html):
        ElementTree.fromstring(svg)
    assert "Return in Arm-v0" in html
    assert not re.search(r'(src|href)="(?!data:|#|changes/large)', html.replace('xlink:href="#', ""))
    assert not re.search(r"url\((?!#)|@import|<script|<link", html)


def test_names_are_text(saved: Path, tmp_path: Path) -> None:
    run = run_of(
        saved, tmp_path / "<img src=x>&", [record(i, **GAUSSIAN) for i in (1, 2)], env="<script>$1</script>-v0"
    )
    html = report_runs([run, saved], tmp_path / "r.html").read_text()
    assert "<script" not in html
    assert "<img" not in html
    assert "<script>$1</script>-v0" in text_of(tmp_path / "r.html")


def test_damage_is_told_and_the_rest_shown(saved: Path, tmp_path: Path) -> None:
    run = run_of(saved, tmp_path / "a", [record(i, **GAUSSIAN) for i in range(1, 4)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{broken}\n" + json.dumps(record(5, **GAUSSIAN)) + "\n" + '{"iterat')
    (run / "evaluations.jsonl").write_text("[]\n")
    (run / "config.json").write_text("{")
    text = text_of(report_runs([run], run / "report.html"))
    for words in ("metrics.jsonl, line 4", "evaluations.jsonl, line 1", "config.json is not JSON", "4 of 4 iterations"):
        assert words in text
    assert "<svg" in (run / "report.html").read_text()
    empty = run_of(saved, tmp_path / "empty", [])
    assert "has no iteration yet" in text_of(report_runs([empty], empty / "report.html"))
    odd = run_of(saved, tmp_path / "odd", [{"iteration": 1, "steps": "many", "result": 3.0, "mean_kl": True}])
    (odd / "evaluations.jsonl").write_text(json.dumps(evaluation(1, 1.0, True) | {"returns": 3, "cut": "x"}) + "\n")
    assert "Evaluations" in text_of(report_runs([odd], odd / "report.html"))


def test_runs_side_by_side(saved: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    runs = [{"name": f"s{i}", "changes": {}, "seed": i} for i in range(3)]
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "runs": runs}))
    for i, last in enumerate((10.0, 14.0)):
        run_of(saved, sweep / f"s{i}", [record(1, **GAUSSIAN | {"episode_return": last})], seed=i)
    other = run_of(saved, tmp_path / "other", [record(1, **GAUSSIAN)], env="Leg-v0", discount=0.5)
    text = text_of(report_runs([sweep, other], tmp_path / "r.html"))
    assert "12.0 ± 2.0" in text  # the mean of two seeds, and their deviation
    assert "s2 is not the directory of a run" in text
    html = (tmp_path / "r.html").read_text()
    assert "Return in Arm-v0" in html
    assert "Return in Leg-v0" in html
    heads = re.findall("<th>(.*?)</th>", html)
    assert heads.index("discount") < heads.index("seed") < heads.index("steps")


@pytest.mark.parametrize(
    ("changes", "name", "advice"),
    [
        ({"mean_kl": 0.002}, "KL against δ", "backtracks"),
        ({"surrogate_gain": 0.01, "predicted_gain": 0.06}, "Surrogate gain", "lower rule.max_kl"),
        ({"max_state_kl": 9.0}, "KL of single states", "lower rule.max_kl"),
        ({"explained_variance": -0.5}, "Explained variance", "worse than a constant"),
        ({"std": 0.02}, "Noise of the policy", "policy.min_std"),
    ],
)
def test_what_to_try_is_where_a_document_says_so(changes: dict[str, Any], name: str, advice: str) -> None:
    healthy = {"mean_kl": 0.009, "max_state_kl": 0.1, "surrogate_gain": 0.05, "predicted_gain": 0.06}
    fine = diagnose([record(i, **GAUSSIAN | healthy) for i in range(1, 9)])
    assert not [finding for finding in fine if finding.advice]
    found = {
        finding.name: finding for finding in diagnose([record(i, **GAUSSIAN | healthy | changes) for i in range(8)])
    }
    assert advice in found[name].advice
    file, _, heading = found[name].source.partition(", ")
    headings = re.findall(r"(?m)^##? (.*)$", (Path(__file__).parent.parent / "docs" / file).read_text())
    assert any(line.startswith(heading) for line in headings)
    assert [finding.name for finding in found.values() if finding.advice] == [name]


def test_the_command(saved: Path, tmp_path: Path, here: Any) -> None:
    run = run_of(saved, tmp_path / "arm", [record(i, **GAUSSIAN) for i in (1, 2)])
    done = here("report", run)
    assert (done.returncode, done.stdout) == (0, f"{run / 'report.html'}\n")
    for arguments, words in [
        ([], "report needs at least one run"),
        (["nowhere"], "nowhere is not the directory of a run"),
        ([run, "--out", "a.pdf"], "out='a.pdf': must end in .html"),
    ]:
        done = here("report", *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert words in done.stderr


def test_a_browser_shows_it(saved: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    run = run_of(saved, tmp_path / "arm", [record(i, **GAUSSIAN) for i in range(1, 31)])
    report_runs([run], run / "report.html")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}",
    ]  # fmt: skip
    command = [browser, *flags, "--dump-dom", (run / "report.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count("</svg>") == 6
    assert "30 of 30 iterations" in dom
