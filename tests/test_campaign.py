"""The campaign of injected faults (``benchmarks/faults.py``), a little of it, so that it works when it is needed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import run_process

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import fault_page, faults  # noqa: E402
from benchmarks.fault_checks import Broken, Canary, check_said, check_unbroken, ends, newest  # noqa: E402

ONE_OF_EACH = """
import json, os, sys
from pathlib import Path
from benchmarks import faults

place = Path(sys.argv[1])
programs = os.environ.get("TRPO_CACHE")
faults.prepare(place)
if programs:
    os.environ["TRPO_CACHE"] = programs
kinds = faults.kinds()
for name, numbers in json.loads(sys.argv[2]).items():
    (place / name).mkdir()
    for number in numbers:
        for fault, problem in kinds[name].inject(number, place / name):
            print(json.dumps([name, fault, problem]), flush=True)
"""
FEW = {"damaged checkpoints": range(0, 16, 2), "damaged configurations": range(0, 16, 2), "environments": [0, 4]}
"""None in JAX, which would have more to compile."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaign needs Linux")
def test_some_faults_of_the_campaign(tmp_path: Path) -> None:
    numbers = {name: list(some) for name, some in FEW.items()}
    done = run_process(
        [sys.executable, "-c", ONE_OF_EACH, str(tmp_path), json.dumps(numbers)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(found) == 18, done.stderr
    assert [outcome for outcome in found if outcome[2]] == []


def test_what_the_campaign_checks_can_fail(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    canary = Canary(tmp_path / "outside")
    canary.check()
    (tmp_path / "outside" / "victim").write_text("other")
    with pytest.raises(Broken, match="victim"):
        canary.check()
    with pytest.raises(Broken, match="traceback"):
        check_said(2, "Traceback (most recent call last):\n", {2})
    with pytest.raises(Broken, match="without a line"):
        check_said(2, "words", {2})
    with pytest.raises(Broken, match="says none"):
        check_said(2, "trpo: words", {2}, "cause")
    run = shutil.copytree(next(p for p in (ROOT / "tests/golden/runs").rglob("checkpoints")).parent, tmp_path / "run")
    check_unbroken(run)
    assert ends(run)[1]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for wrong in (lines[1:], [lines[0], *lines]):
        (run / "metrics.jsonl").write_text("".join(wrong))
        with pytest.raises(Broken, match="should be"):
            check_unbroken(run)
    state = newest(run) / "state.json"
    state.write_text(state.read_text() + " ")
    with pytest.raises(Broken, match="half a checkpoint"):
        newest(run)


def test_an_account_goes_on_and_is_written_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RESULTS", tmp_path)
    monkeypatch.setattr(fault_page, "RESULTS", tmp_path)
    monkeypatch.setattr(fault_page, "PAGE", tmp_path / "page.md")
    kind = faults.kinds()["disk"]
    account = faults.Account(kind, "abc", 3, kept=True)
    account.add(0, [("full", "")])
    account.add(1, [("full", "gone")])
    again = faults.Account(kind, "abc", 3, kept=True)
    assert (again.data["next"], again.data["injected"], again.data["survived"], again.complete) == (2, 2, 1, False)
    assert faults.Account(kind, "def", 3, kept=True).data["commit"] == "abc, def"
    fault_page.write_page()
    assert "| disk | 2 of 3 | 1 |" in (tmp_path / "page.md").read_text()
    again.data["lost"], again.data["survived"] = [], 2
    again.add(2, [("full", "")])
    fault_page.write_page()
    assert "| disk | 3 | all |" in (tmp_path / "page.md").read_text()
    names = ("host, KeyError in step", "host, an error of two lines in step", "host, nothing", "JAX, exits")
    names += ("JAX, reset raises", "workers, death in step", "host, a reward of text")
    assert fault_page.grouped("environments", {name: [2, 2] for name in names}) == {
        "JAX": {"raises": 4},
        "host": {"raises in step": 4, "answers wrongly": 4},
        "workers": {"death in step": 2},
    }
