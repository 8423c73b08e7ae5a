"""What surrounds the claims: records, laws, pages, the command, and that the stored run says what the pages say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trpo.cli.main import main
from trpo.theory import records
from trpo.theory.claims import CLAIMS, claim, text
from trpo.theory.pages.markdown import claims_page, equations_page
from trpo.theory.pages.rows import shown
from trpo.theory.pages.text import EQUATIONS, excerpt, paragraphs
from trpo.theory.shared import arrays, laws
from trpo.theory.shared.ensemble import SHAPES, ensemble

ROOT = Path(__file__).parents[1]
STORED = ROOT / "docs" / "theory"
every_claim = pytest.mark.parametrize("name", CLAIMS)


def exists(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / "tests" / file
    return path.exists() and bool(re.search(rf"def {function}\b", path.read_text(encoding="utf-8")))


# --- claims and equations --------------------------------------------------------------------------------------------


@every_claim
def test_a_claim_explains_itself_and_names_code_and_tests_that_exist(name: str) -> None:
    said = text(name)
    assert said.title
    assert claim(name).__doc__
    kinds = [formula for formula, _ in paragraphs(said.explanation)]
    assert kinds.count(False) >= 2
    assert True in kinds, "no formula"
    assert said.code
    assert all(excerpt(reference).text for reference in said.code)
    assert said.tests
    assert not [test for test in said.tests if not exists(test)]


def test_every_folder_is_a_claim_with_its_rooms() -> None:
    folder = Path(str(claim("fisher").__file__)).parents[1]
    assert {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("_")} == set(CLAIMS)
    for name in CLAIMS:
        rooms = {path.name for path in (folder / name).iterdir()}
        assert {"text.md", "claim.py", "measure.py", "checks.py", "figures.py"} <= rooms


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.number)
def test_an_equation_names_code_and_tests_that_exist(equation: Any) -> None:
    assert equation.code
    assert equation.tests
    assert all(excerpt(reference).text for reference in equation.code)
    assert not [test for test in equation.tests if not exists(test)]
    assert equation.claim in CLAIMS


# --- the frame -------------------------------------------------------------------------------------------------------


def test_nan_never_passes() -> None:
    nan = np.array([1.0, np.nan])
    for check in (records.at_most, records.at_least):
        assert check("c", "s", np.ones(2), 1.0, "").passed
        assert not check("c", "s", nan, 1.0, "").passed
    assert not records.within("c", "s", nan, 0, 1, "").passed
    assert not records.Check("c", "s", 1, float("nan"), "", "", True).passed
    assert not records.at_most("c", "s", np.array([1.0, 1.1]), 1.0, "").passed
    assert not records.at_least("c", "s", np.array([1.0, 0.9]), 1.0, "").passed
    assert not records.Outcome(()).passed
    good = records.at_most("c", "s", np.zeros(1), 1.0, "")
    bad = records.at_most("c", "s", np.array([np.inf]), 1.0, "")
    assert records.Outcome((good,)).passed
    assert not records.Outcome((good, bad)).passed
    assert json.loads(json.dumps(records.Outcome((bad,)).to_json(), allow_nan=False))["checks"][0]["worst"] == "inf"


def test_cases_and_worst_case_are_the_arrays_own() -> None:
    values = np.array([[1.0, 5.0], [2.0, -3.0], [0.0, 1.0]])
    most, least = records.at_most("c", "s", values, 5, ""), records.at_least("c", "s", values, -2, "")
    assert (most.cases, most.worst, most.passed, most.limit) == (3, 5.0, True, "≤ 5")
    assert (least.cases, least.worst, least.passed, least.limit) == (3, -3.0, False, "≥ -2")
    inside = records.within("c", "s", values, -1, 3, "")
    assert (inside.cases, inside.worst, inside.passed, inside.limit) == (3, 5.0, False, "-1 … 3")
    assert records.within("c", "s", 2.0, 1, 3, "", over=values).cases == 3
    assert records.at_most("c", "s", 2.0, 3, "", over=7).cases == 7
    with pytest.raises(TypeError):
        records.at_most("c", "s", 2.0, 3, "")
    nothing = records.at_most("c", "s", np.zeros(0), 1, "")
    assert nothing.cases == 0
    assert not nothing.passed


def test_the_slope_of_a_power_is_its_exponent() -> None:
    x = np.geomspace(1e-3, 1, 7)
    powers = np.array([0.5, 1, 2, 3])
    np.testing.assert_allclose(laws.slope(x, 5 * x ** powers[:, None]), powers)
    assert laws.rms(np.array([3.0, 4.0])) == pytest.approx(np.sqrt(12.5))
    assert laws.spread(np.array([1.0, 2.0, 3.0]), 1) == "median 2.0 (1.0 … 3.0)"
    assert laws.band(np.linspace(0, 1, 21)) == "0.05 … 0.95"
    assert laws.rounding(np.array([3e-16, 4e-16])) == "rounding: RMS 3.5e-16, largest 4.0e-16"


def test_arrays_of_cases() -> None:
    x, y = np.arange(3.0), np.arange(3.0, 5.0)
    joined = arrays.join([{"x": (x, x)}, {"x": (y, y)}])
    np.testing.assert_array_equal(joined["x"][1], np.arange(5.0))
    np.testing.assert_array_equal(arrays.stack([x, x + 1])[:, 1], x + 1)
    steps = np.array([0.4, 0.2, 0.1])
    np.testing.assert_allclose(arrays.limit(np.array([2 + steps, 3 - steps**2]), steps), [2, 3])
    roots = np.array([0.5, 2.0])
    low, high = arrays.bisect(lambda t: t**2 <= roots, np.zeros(2), np.full(2, 4.0))
    np.testing.assert_allclose(low, np.sqrt(roots))
    assert np.all(low <= high)


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
    assert shown(1.23456e-13) == "1.235e-13"
    assert shown(0.0) == "0"
    assert shown("inf") == "inf"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_that_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["theory", "--out", str(tmp_path / "deep" / "t"), "--mdps", "32", "--only", "fisher"]) == 0
    said = capsys.readouterr()
    assert "Fisher" in said.out
    assert "✓" in said.err
    out = tmp_path / "deep" / "t"
    report = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    (record,) = report["claims"]
    assert report["passed"]
    assert record["passed"]
    assert record["cases"] >= 32
    for check in record["checks"]:
        assert {"name", "statement", "cases", "worst", "limit", "law", "passed"} <= set(check)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<link" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png") == len(record["pictures"]) >= 1
    assert "fisher_product" in page  # the code
    assert (out / "claims.md").read_text(encoding="utf-8") == claims_page(report)
    assert not list(out.glob(".*.partial"))


def test_a_claim_that_fails_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = records.Outcome((records.at_most("too large", "x ≤ 1", np.array([1.0, 2.0]), 1.0, "none"),))
    monkeypatch.setattr(claim("fisher"), "run", lambda size, figures, seed: failing)
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

    monkeypatch.setattr(claim("fisher"), "run", broken)
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
    assert [record["name"] for record in report["claims"]] == list(CLAIMS)
    assert report["seconds"] < 120
    for record in report["claims"]:
        assert record["cases"] >= 1000
        assert record["pictures"]
        assert all((STORED / "figures" / picture["file"]).exists() for picture in record["pictures"])
        said = text(record["name"])
        assert [picture["file"] for picture in record["pictures"]] == list(said.captions)
        assert (record["code"], record["tests"]) == (said.code, said.tests)


def test_the_stored_run_names_no_machine() -> None:
    text = (STORED / "claims.json").read_text(encoding="utf-8")
    assert not [word for word in ("/tmp/", "/root/", "/home/", "/work/", "http") if word in text]


def test_indices_are_lowered_and_names_are_not() -> None:
    from trpo.theory.pages.page import _inline

    assert _inline("ρ_π̃(s) at θ_old, π_{i+1} < max_kl, `A_b` *or* x") == (
        "ρ<sub>π̃</sub>(s) at θ<sub>old</sub>, π<sub>i+1</sub> &lt; max_kl, <code>A_b</code> <em>or</em> x"
    )
