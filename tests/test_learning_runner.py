"""The runner of learning experiments: hours of runs survive an interruption, and a result is never overwritten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

learning = pytest.importorskip("benchmarks.learning")


def job(out: Path, **changes: Any) -> Any:
    settings = {"policy": {"hidden": [8]}, "value": {"hidden": [8]}, "env": {"count": 4}}
    made = learning.Job("CartPole-v1:1024", "small", 3, settings, "none", 256, 2, "gymnasium", out)
    return dataclasses.replace(made, **changes)


def test_an_interrupted_run_goes_on_and_its_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, evaluated = learning._evaluate, []

    def third_is_interrupted(agent: Any, env: str, episodes: int, seed: int, full: bool = False) -> dict[str, Any]:
        evaluated.append(seed)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return evaluate(agent, env, episodes, seed, full)

    monkeypatch.setattr(learning, "_evaluate", third_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        learning.run(job(tmp_path))
    assert not job(tmp_path).path.exists()
    path = learning.run(job(tmp_path))
    assert evaluated == [0, 256, 512, 512, 768, 1024, 3, 3]  # the one at 512 again, nothing before it; the last twice
    record = json.loads(path.read_text())
    assert record["resumed"] == 1
    assert [e["steps"] for e in record["evaluations"]] == [0, 256, 512, 768, 1024]
    assert record["steps"] == 1024
    assert record["config"]["env"]["count"] == 4
    assert record["iterations_over_bound"] == 0
    assert 0 < record["largest_mean_kl"] <= record["config"]["rule"]["max_kl"]
    assert record["last_policy"].keys() == {"deterministic", "stochastic"}
    assert record["last_policy"] != {how: record[how] for how in record["last_policy"]}  # the average is another policy
    assert len(record["deterministic"]["returns"]) == len(record["stochastic"]["returns"]) == 2
    best = max(e["deterministic"]["mean_return"] for e in record["evaluations"])
    assert record["best"]["deterministic"] == best
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing of the way is left
    before = path.read_bytes()
    learning.run(job(tmp_path, changes={}))
    assert path.read_bytes() == before
    assert len(evaluated) == 8


def test_two_runners_share_the_work(tmp_path: Path) -> None:
    with learning.claimed(job(tmp_path)) as mine:
        assert mine
        with learning.claimed(job(tmp_path)) as also_mine:
            assert not also_mine
        learning.run(job(tmp_path))
        assert not job(tmp_path).path.exists()


def test_a_run_under_way_does_not_change_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_train", lambda job: None)
    learning.run(job(tmp_path))
    monkeypatch.undo()
    record = {"config": {"other": True}}
    (job(tmp_path).partial / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="other settings"):
        learning.run(job(tmp_path))


def test_the_command_line_makes_a_plan(tmp_path: Path) -> None:
    import argparse

    options = argparse.Namespace(
        tasks=None, suite="mujoco", variant=None, preset="auto", seeds=[0, 1], every=1, episodes=1, simulator="auto",
        out=tmp_path,
    )  # fmt: skip
    jobs = learning.plan(options)
    ones = [job for job in jobs if job.variant == "one"]
    assert len(ones) == 2 * 9
    assert {job.preset for job in ones} == {"mujoco"}
    special = {job.env for job in jobs if job.variant == "preset"}
    assert special < {job.env for job in ones}
    for one in ones:
        preset = dataclasses.replace(one, variant="preset", preset="auto")
        assert (learning.configure(one) != learning.configure(preset)) == (one.env in special)
    assert len({job.path for job in jobs}) == len(jobs)
    assert learning.nested(["rule.max_kl=0.02", "env.stagger=true", "value.hidden=[8,8]", "rule.name=penalty"]) == {
        "rule": {"max_kl": 0.02, "name": "penalty"},
        "env": {"stagger": True},
        "value": {"hidden": [8, 8]},
    }


def test_envpool_is_asked_for_only_where_it_has_the_task() -> None:
    pytest.importorskip("envpool")
    assert learning.training_id("Hopper-v5", "auto") == "envpool:Hopper-v5"
    assert learning.training_id("Hopper-v5", "gymnasium") == "Hopper-v5"
    assert learning.training_id("Nothing-v0", "auto") == "Nothing-v0"
    with pytest.raises(ValueError, match="does not have Nothing-v0"):
        learning.training_id("Nothing-v0", "envpool")
