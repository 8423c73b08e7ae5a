"""What surrounds the claims: records, laws, pages, the command, and that the stored run says what the pages say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trpo.cli.main import main
from trpo.theory import records, run
from trpo.theory.pages.equations import EQUATIONS
from trpo.theory.pages.markdown import claims_page, equations_page
from trpo.theory.pages.text import number, paragraphs, source
from trpo.theory.shared import laws
from trpo.theory.shared.ensemble import SHAPES, ensemble

ROOT = Path(__file__).parents[1]
STORED = ROOT / "docs" / "theory"
every_claim = pytest.mark.parametrize("name", run.CLAIMS)


def exists(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / "tests" / file
    return path.exists() and bool(re.search(rf"def {function}\b", path.read_text(encoding="utf-8")))


# --- claims and equations --------------------------------------------------------------------------------------------


@every_claim
def test_a_claim_explains_itself_and_names_code_and_tests_that_exist(name: str) -> None:
    claim = run.module(name)
    assert claim.TITLE
    assert claim.__doc__
    kinds = [formula for formula, _ in paragraphs(claim.EXPLANATION)]
    assert kinds.count(False) >= 2
    assert True in kinds, "no formula"
    assert claim.CODE
    assert all(source(reference).text for reference in claim.CODE)
    assert claim.TESTS
    assert not [test for test in claim.TESTS if not exists(test)]


def test_every_claim_file_is_a_claim() -> None:
    folder = Path(str(run.module("fisher").__file__)).parent
    assert {path.stem for path in folder.glob("[!_]*.py")} == set(run.CLAIMS)


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.number)
def test_an_equation_names_code_and_tests_that_exist(equation: Any) -> None:
    assert all(source(reference).text for reference in equation.code)
    assert not [test for test in equation.tests if not exists(test)]
    assert equation.claim in run.CLAIMS


# --- the frame -------------------------------------------------------------------------------------------------------


def test_nan_never_passes() -> None:
    for check in (records.at_most, records.at_least):
        assert check("c", "s", 1, 1.0, 1.0, "").passed
        assert not check("c", "s", 1, float("nan"), 1.0, "").passed
    assert not records.within("c", "s", 1, float("nan"), 0, 1, "").passed
    assert not records.Check("c", "s", 1, float("nan"), "", "", True).passed
    assert not records.at_most("c", "s", 1, 1.1, 1.0, "").passed
    assert not records.at_least("c", "s", 1, 0.9, 1.0, "").passed
    assert not records.Outcome(()).passed
    good = records.at_most("c", "s", 1, 0.0, 1.0, "")
    bad = records.at_most("c", "s", 1, float("inf"), 1.0, "")
    assert records.Outcome((good,)).passed
    assert not records.Outcome((good, bad)).passed
    assert json.loads(json.dumps(records.Outcome((bad,)).to_json(), allow_nan=False))["checks"][0]["worst"] == "inf"


def test_the_slope_of_a_power_is_its_exponent() -> None:
    x = np.geomspace(1e-3, 1, 7)
    powers = np.array([0.5, 1, 2, 3])
    np.testing.assert_allclose(laws.slope(x, 5 * x ** powers[:, None]), powers)
    assert laws.rms(np.array([3.0, 4.0])) == pytest.approx(np.sqrt(12.5))
    assert laws.spread(np.array([1.0, 2.0, 3.0]), 1) == "median 2.0 (1.0 … 3.0)"


def test_the_ensemble_is_what_it_says() -> None:
    groups = ensemble(130)
    assert sum(group.size for group in groups) >= 130
    for group, (states, actions, branching) in zip(groups, SHAPES, strict=True):
        assert (group.mdp.states, group.mdp.actions) == (states, actions)
        assert np.all((group.mdp.transition > 0).sum(-1) == branching)
        assert group.mdp.discount.min() == pytest.approx(0.5)
        assert group.mdp.discount.max() == pytest.approx(0.99)
        assert np.all(group.logits[0] == 0)
        assert np.median(group.policy[-10:].max(-1)) > 0.98
        assert not np.allclose(group.policy, group.other_policy)
    np.testing.assert_array_equal(groups[0].logits, ensemble(130)[0].logits)
    assert not np.allclose(groups[0].logits, ensemble(130, seed=1)[0].logits)
    assert groups[0].take(np.array([2, 3])).size == 2


def test_prose() -> None:
    assert paragraphs("\nOne\ntwo.\n\n    a = b\n    c\n\nThree.\n") == [
        (False, "One two."),
        (True, "a = b\nc"),
        (False, "Three."),
    ]
    assert number(1.23456e-13) == "1.235e-13"
    assert number(0.0) == "0"
    assert number("inf") == "inf"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_that_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["theory", "--out", str(tmp_path / "deep" / "t"), "--mdps", "32", "--only", "fisher"]) == 0
    said = capsys.readouterr()
    assert "Fisher" in said.out
    assert "✓" in said.err
    out = tmp_path / "deep" / "t"
    report = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    (claim,) = report["claims"]
    assert report["passed"]
    assert claim["passed"]
    assert claim["cases"] >= 32
    for check in claim["checks"]:
        assert {"name", "statement", "cases", "worst", "limit", "law", "passed"} <= set(check)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<link" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png") == len(claim["pictures"]) >= 1
    assert "fisher_product" in page  # the code
    assert (out / "claims.md").read_text(encoding="utf-8") == claims_page(report)
    assert not list(out.glob(".*.partial"))


def test_a_claim_that_fails_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = records.Outcome((records.at_most("too large", "x ≤ 1", 3, 2.0, 1.0, "none"),))
    monkeypatch.setattr(run.module("fisher"), "run", lambda size, figures, seed: failing)
    assert main(["theory", "--out", str(tmp_path), "--only", "fisher"]) == 1
    said = capsys.readouterr()
    assert "claims that do not hold: 2 (fisher)" in said.err
    assert "✗" in said.out
    assert not json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))["passed"]
    assert "Claims that failed: 2." in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_claim_that_raises_is_a_claim_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(size: int, figures: Path, seed: int) -> None:
        raise FloatingPointError("0/0 [somewhere]")

    monkeypatch.setattr(run.module("fisher"), "run", broken)
    assert main(["theory", "--out", str(tmp_path), "--only", "fisher"]) == 1
    assert "FloatingPointError: 0/0 [somewhere]" in capsys.readouterr().out
    assert "FloatingPointError" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "fischer"], "unknown claim 'fischer'; claims are parameter_ball, fisher"),
        (["--mdps", "3"], "mdps=3: must be at least 16"),
        (["--seed", "-1"], "seed=-1"),
        (["--mdps", "many"], "mdps"),
        (["--out", "{file}"], "is a file; give a directory"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = [argument.replace("{file}", str(tmp_path / "file")) for argument in arguments]
    assert main(["theory", *(arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path / "o")])]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "o").exists()


# --- the stored run --------------------------------------------------------------------------------------------------


def test_the_pages_are_what_the_stored_run_says() -> None:
    report = json.loads((STORED / "claims.json").read_text(encoding="utf-8"))
    assert (STORED / "claims.md").read_text(encoding="utf-8") == claims_page(report)
    assert (STORED / "equations.md").read_text(encoding="utf-8") == equations_page()
    assert report["passed"]
    assert report["mdps"] >= 1000
    assert [claim["name"] for claim in report["claims"]] == list(run.CLAIMS)
    assert report["seconds"] < 120
    for claim in report["claims"]:
        assert claim["cases"] >= 1000
        assert claim["pictures"]
        assert all((STORED / "figures" / picture["file"]).exists() for picture in claim["pictures"])


def test_the_stored_run_names_no_machine() -> None:
    text = (STORED / "claims.json").read_text(encoding="utf-8")
    assert not [word for word in ("/tmp/", "/root/", "/home/", "/work/", "http") if word in text]


def test_indices_are_lowered_and_names_are_not() -> None:
    from trpo.theory.pages.page import _inline

    assert _inline("ρ_π̃(s) at θ_old, π_{i+1} < max_kl, `A_b` *or* x") == (
        "ρ<sub>π̃</sub>(s) at θ<sub>old</sub>, π<sub>i+1</sub> &lt; max_kl, <code>A_b</code> <em>or</em> x"
    )
