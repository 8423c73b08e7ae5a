"""Runs stored by an earlier version: they load, evaluate and resume as they did then.

To the last bit on the machine that wrote them (``python -m tests.golden old``); elsewhere to rounding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import trpo
from tests.golden.__main__ import HERE, differences, summary
from trpo.runs.files import read_config

RUNS = sorted(path for path in (HERE / "runs").iterdir() if path.is_dir())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_of_the_first_format_evaluates_and_resumes(run: Path, tmp_path: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    assert json.loads((run / "config.json").read_text())["format"] == 1
    found = trpo.load(run).evaluate(episodes=3)
    np.testing.assert_allclose(found.returns, expected["evaluated"]["returns"], rtol=1e-2)
    assert list(found.lengths) == expected["evaluated"]["lengths"]
    copy = shutil.copytree(run, tmp_path / "run")
    trpo.resume(copy, steps=1024, quiet=True)
    resumed = summary(copy)
    assert [m["steps"] for m in resumed["metrics"]] == [m["steps"] for m in expected["resumed"]["metrics"]]
    # The first iteration after the checkpoint: the same batch, so the same step.
    first = len(resumed["metrics"]) // 2
    for name in ("mean_kl", "surrogate_gain", "explained_variance", "entropy", "episode_return"):
        here, there = (m[first][name] for m in (resumed["metrics"], expected["resumed"]["metrics"]))
        assert here == pytest.approx(there, rel=1e-2, abs=1e-4)
    assert read_config(copy)["format"] == 2
    assert trpo.load(copy).learner.value.params.trunk.weights[0].shape[1] == 8


def test_differences_are_found() -> None:
    old = {"a": [1.0, None], "b": {"c": 2}}
    assert differences(old, {"a": [1.0, None], "b": {"c": 2}}) == []
    assert differences(old, {"a": [1.1, None], "b": {"c": 2}}) == [("/a[0]", pytest.approx(0.1 / 1.1))]
    assert differences(old, {"a": [1.0, 3], "b": {}}) == [("/a[1]", np.inf), ("/b/c", np.inf)]
