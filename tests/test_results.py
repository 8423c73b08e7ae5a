"""Every number in docs/results.md comes from a result file."""

import json
from pathlib import Path

import numpy as np
import pytest

tables = pytest.importorskip("benchmarks.tables")


def test_the_page_is_what_the_result_files_say() -> None:
    assert tables.PAGE.read_text() == tables.page()


def test_the_page_of_rollouts_is_what_the_result_files_say() -> None:
    vines = pytest.importorskip("benchmarks.vine_tables")
    text = vines.PAGE.read_text()
    assert text.partition(vines.BEGIN)[2].partition(vines.END)[0] == f"\n{vines.section()}\n"
    assert len(text) - len(vines.section()) > 1000


def test_the_page_of_days_is_what_the_result_file_says() -> None:
    days = pytest.importorskip("benchmarks.days")
    text, found = days.PAGE.read_text(encoding="utf-8"), json.loads(days.RESULTS.read_text())["days"]
    assert found.keys() == days.DAYS.keys()
    assert all(days.section(day) in text for day in found.values())
    assert days.page(text, found) == text
    for day in found.values():
        for run in day["runs"].values():
            assert run["in a row"]
            assert run["largest mean_kl / max_kl"] <= 1


def test_the_readme_is_what_the_result_files_say() -> None:
    text = tables.README.read_text()
    assert tables.BEGIN in text
    assert tables.END in text
    assert text == tables.readme(text)


def test_every_score_in_the_readme_is_the_mean_of_its_result_files() -> None:
    """Read from the page, and computed anew: the last deterministic evaluation of every seed."""
    text = tables.README.read_text().partition(tables.BEGIN)[2].partition(tables.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "-v5 |" in line]
    stored = {path.name for path in (Path(tables.RESULTS) / "learning").glob("*-v5-1000000")}
    assert {f"{row[0]}-1000000" for row in rows} == stored
    for env, *cells, _ in rows:
        for variant, cell in zip(("one", "preset"), cells, strict=True):
            paths = list((Path(tables.RESULTS) / "learning" / f"{env}-1000000").glob(f"{variant}-s*.json"))
            if cell == "the same":
                assert not paths
                continue
            last = [np.mean(json.loads(path.read_text())["deterministic"]["returns"]) for path in paths]
            for shown, exact in zip(cell.split(" ± "), (np.mean(last), np.std(last, ddof=1)), strict=True):
                decimals = len(shown.partition(".")[2])
                assert decimals == (0 if abs(exact) >= 100 else 1), cell
                assert abs(float(shown) - exact) <= 0.5 * 10.0**-decimals * (1 + 1e-9), cell


def test_every_accepted_iteration_kept_its_bound() -> None:
    records = [r for v in tables.learning("learning").values() for rs in v.values() for r in rs]
    assert len(records) >= 12
    for record in records:
        assert record["iterations_over_bound"] == 0
        assert record["largest_mean_kl"] <= record["config"]["rule"]["max_kl"]


def test_result_files_name_no_machine() -> None:
    paths = list(Path(tables.RESULTS).rglob("*.json"))
    assert len(paths) > 100
    for path in paths:
        text = path.read_text()
        json.loads(text)
        for word in ("/tmp/", "/root/", "/home/", "http"):
            assert word not in text, path


def test_every_run_on_the_device_kept_its_bound() -> None:
    paths = [p for folder in ("learning", "physics") for p in (Path(tables.RESULTS) / "device" / folder).glob("*.json")]
    assert len(paths) >= 7
    for path in paths:
        report = json.loads(path.read_text())
        assert report["largest_kl_over_bound"] <= 1, path
        assert len(report["deterministic"]) == report["seeds"], path
