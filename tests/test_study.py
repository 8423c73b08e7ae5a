"""Studies: what their file says, runs that are interrupted and taken up again, and the formulas of their tables."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from trpo.cli.main import main
from trpo.report.study import write_tables
from trpo.runs.scores import overall, performance_profile, probability_of_improvement
from trpo.runs.study import Study, Task, part_of, perform, read_study
from trpo.runs.train import resume

SMALL = """
steps = 64
seeds = 2
episodes = 1
[tasks]
"probe:delayed" = { low = 0, high = 1 }
[settings.trpo]
fragment = 8
env.count = 4
policy.hidden = [4]
value.hidden = [4]
value.epochs = 1
[settings.natural-gradient]
fragment = 8
env.count = 4
policy.hidden = [4]
value.hidden = [4]
value.epochs = 1
rule.name = "natural-gradient"
rule.max-kl = 0.02
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_tasks_times_settings_times_seeds(tmp_path: Path) -> None:
    study = read_study(written(tmp_path / "s.toml", SMALL))
    names = [job.name for job in study.jobs()]
    assert names == [
        f"probe-delayed/{setting}/seed-{seed}" for seed in (0, 1) for setting in ("trpo", "natural-gradient")
    ]
    config = study.config(study.jobs()[-1])
    assert (config.steps, config.seed, config.rule.name, config.rule.max_kl) == (64, 1, "natural-gradient", 0.02)
    assert config.policy.hidden == (4,)


def test_shares_of_an_array_are_all_the_runs_once() -> None:
    jobs = Study((Task("a", 1), Task("b", 1)), {"x": {}, "y": {}}, (0, 1, 2)).jobs()
    shares = [part_of(f"{i}/5", jobs) for i in range(5)]
    assert sorted(itertools.chain(*shares), key=jobs.index) == jobs
    for wrong in ("5/5", "1", "a/b", "-1/2", "0/0"):
        with pytest.raises(ValueError, match="array="):
            part_of(wrong, jobs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps = 64", "stepz = 64"), "stepz='': must be one of episodes, seeds, settings, steps, tasks"),
        (("steps = 64", ""), "tasks.probe:delayed.steps=None: must be an integer"),
        (("seeds = 2", "seeds = [1, 1]"), "seeds=[1, 1]: must be a number of seeds"),
        (("seeds = 2", "seeds = true"), "seeds=True: must be"),
        (("episodes = 1", "episodes = 0"), "episodes=0: must be"),
        (("low = 0, high = 1", "low = 1, high = 1"), "must be with two different numbers low and high"),
        (("low = 0, high = 1", "high = 1"), "must be with two different numbers"),
        (("low = 0, high = 1", "lo = 0"), "tasks.probe:delayed.lo"),
        (("[settings.trpo]", "[settings.'a/b']"), "settings.a/b"),
        (("rule.max-kl = 0.02", "rule.max-kl = -1"), "max_kl=-1"),
        (("rule.max-kl = 0.02", "rule.max-k = 1"), "rule.max_k"),
        (("steps = 64", "steps ="), "s.toml"),
        (("probe:delayed", "Nope-v0"), "Nope-v0"),
    ],
)  # fmt: skip
def test_what_a_study_has_no_use_for_is_named(
    change: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "s.toml", SMALL.replace(*change))
    code = main(["study", str(file), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    if "Nope" in words:  # found out by the run that makes it, and said; the others would go on
        assert code == 1
    else:
        assert code == 2
        assert told.count("\n") == 1
        assert "s.toml" in told
    assert words in told


@pytest.mark.slow
def test_runs_go_on_where_they_were_interrupted_and_tables_say_what_came_out(tmp_path: Path) -> None:
    """One process is interrupted in its first run; the same command ends all, and trains nothing twice."""
    file, out = written(tmp_path / "s.toml", SMALL.replace("steps = 64", "steps = 40_000")), tmp_path / "out"
    command = [sys.executable, "-m", "trpo", "study", str(file), "--out", str(out), "--jobs", "2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = out / "probe-delayed" / "trpo" / "seed-0"
    with subprocess.Popen(command, env=os.environ, **streams) as child:  # type: ignore[call-overload]
        while child.poll() is None and not _size(first / "metrics.jsonl"):
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
    begun = len((first / "metrics.jsonl").read_text().splitlines())
    assert begun >= 1
    assert not (first / "result.json").exists()
    assert list((first / "checkpoints").iterdir())
    # What was begun with other settings is not taken for this study's.
    other = read_study(written(tmp_path / "other.toml", SMALL))
    with pytest.raises(ValueError, match="begun with other settings"):
        perform(other, other.jobs()[0], out)
    # The run goes on from there (its steps were changed by hand so that it ends soon), and is evaluated.
    resume(first, changes={"steps": 32 * (begun + 2)}, quiet=True)
    short = read_study(written(tmp_path / "short.toml", SMALL.replace("steps = 64", f"steps = {32 * (begun + 2)}")))
    perform(short, short.jobs()[0], out)
    assert len((first / "metrics.jsonl").read_text().splitlines()) == begun + 2
    assert json.loads((first / "result.json").read_text())["seed"] == 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_study_is_trained_and_its_tables_are_of_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path / "s.toml", SMALL), tmp_path / "out"
    with pytest.raises(ValueError, match="no run of this study has ended yet"):
        write_tables(read_study(file), out)
    assert main(["study", str(file), "--out", str(out), "--array", "0/2"]) == 0
    assert main(["study", str(file), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "4 runs, 2 of them done" in told.err
    with (out / "scores.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 4
    for row in rows:
        place = out / "probe-delayed" / row["setting"] / f"seed-{row['seed']}"
        found = json.loads((place / "result.json").read_text())
        assert float(row["deterministic"]) == found["deterministic"] == float(row["normalised"])
        assert len((place / "metrics.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in out.iterdir() if path.is_file()} >= {"table.md", "returns.png", "aggregate.png"}
    assert "| probe:delayed | 64 |" in (out / "table.md").read_text()


def test_interquartile_means_are_of_all_runs_together_and_intervals_of_each_tasks_own() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, np.nan]])
    found = overall(scores)
    known = np.sort(scores[np.isfinite(scores)])
    assert found.iqm == stats.trim_mean(known, 0.25)
    assert found.low <= found.iqm <= found.high
    # Stratified: runs of one task never stand for another's, so two tasks without spread have an interval of no width.
    certain = overall(np.array([[1.0, 1.0], [3.0, 3.0]]))
    assert certain.low == certain.high == 2.0


def test_a_profile_is_the_share_of_runs_above_each_level() -> None:
    scores = np.array([[0.0, 1.0], [2.0, np.nan]])
    found = performance_profile(scores, [-1.0, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.iqm, [1.0, 0.75, 0.75, 0.5, 0.0])
    assert np.all(found.low <= found.iqm)
    assert np.all(found.iqm <= found.high)


def test_the_probability_of_improvement_is_mann_and_whitneys() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0.5, 1, (3, 6)).round(1), random.normal(0, 1, (3, 5)).round(1)
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / 30 for x, y in zip(ours, theirs, strict=True)])
    found = probability_of_improvement(ours, theirs)
    np.testing.assert_allclose(found.iqm, expected)
    assert found.low < found.iqm < found.high
    assert probability_of_improvement(ours, ours).iqm == 0.5
