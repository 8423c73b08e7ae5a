"""Every number in docs/results.md comes from a result file."""

import json
from pathlib import Path

import pytest

tables = pytest.importorskip("benchmarks.tables")


def test_the_page_is_what_the_result_files_say() -> None:
    assert tables.PAGE.read_text() == tables.page()


def test_the_readme_is_what_the_result_files_say() -> None:
    text = tables.README.read_text()
    assert tables.BEGIN in text
    assert tables.END in text
    assert text == tables.readme(text)


def test_every_accepted_iteration_kept_its_bound() -> None:
    records = [r for v in tables.learning("learning").values() for rs in v.values() for r in rs]
    assert len(records) >= 12
    for record in records:
        assert record["iterations_over_bound"] == 0
        assert record["largest_mean_kl"] <= record["config"]["rule"]["max_kl"]


def test_result_files_name_no_machine() -> None:
    for path in Path(tables.RESULTS).rglob("*.json"):
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
