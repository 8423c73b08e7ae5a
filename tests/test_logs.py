"""Where metrics and pictures of a run go: TensorBoard in groups, CSV, Weights & Biases, videos."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import runpy
import sys
import types
from pathlib import Path

import pytest
from helpers import assert_same_bits

import trpo
from trpo.cli.main import main
from trpo.report import filming
from trpo.runs.sinks import read_metrics

BATCH = 32


def config(iterations=2, **settings):
    env = trpo.EnvConfig("CartPole-v1", count=4)
    return trpo.Config(steps=iterations * BATCH, fragment=8, env=env, **settings)


def train(out=None, iterations=2, **settings):
    return trpo.train("CartPole-v1", config=config(iterations, **settings), out=out, quiet=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, train(out)


# ---------------------------------------------------------------- TensorBoard


def events(run):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for file in sorted(run.glob("events*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tags_are_in_groups_and_have_the_metrics(plain):
    run, _ = plain
    seen = {}
    for event in events(run):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                seen.setdefault(value.tag, []).append((event.step, value.simple_value))
    records = read_metrics(run)
    names = {
        "rollout/episodes": "episodes", "policy/mean_kl": "mean_kl", "policy/entropy": "entropy",
        "value/explained_variance": "explained_variance", "time/iteration": "iteration",
    }  # fmt: skip
    for tag, name in names.items():
        assert seen[tag] == [(r["steps"], pytest.approx(r[name])) for r in records if r[name] is not None]
    assert {tag.partition("/")[0] for tag in seen} == {"rollout", "policy", "value", "time"}


def test_hyperparameters_are_recorded(plain):
    from tensorboardX.proto import plugin_hparams_pb2

    run, _ = plain
    told = {}
    for event in events(run):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = plugin_hparams_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for name, x in data.session_start_info.hparams.items():
                    told[name] = x
    assert told["rule.max_kl"].number_value == 0.01
    assert told["normalise_observations"].bool_value is True
    assert told["policy.hidden"].string_value == "(64, 64)"


# ---------------------------------------------------------------- CSV


def test_csv_has_what_metrics_have_also_after_a_resume(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--env.count", "4", "--fragment", "8", "--preset", "none", "--quiet"]
    assert main(["train", "CartPole-v1", "--steps", "64", "--log.csv", "--out", str(run), *flags]) == 0
    (run / "metrics.csv").write_text("damaged\n")
    with pytest.warns(UserWarning, match="is_success"):
        trpo.resume(run, steps=96, changes={"env.info": ["is_success"]}, quiet=True)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    records = read_metrics(run)
    assert len(rows) == len(records) == 3
    for row, record in zip(rows, records, strict=True):
        assert {k: v for k, v in row.items() if v} == {k: str(v) for k, v in record.items() if v is not None}


# ---------------------------------------------------------------- Weights & Biases


@pytest.fixture
def recorded(monkeypatch):
    """A stand-in for the package, that notes what it is told."""
    runs = []

    class Run:
        def __init__(self, **how):
            self.how, self.logged, self.metrics, self.finished = how, [], [], 0
            runs.append(self)

        def define_metric(self, *name, **how):
            self.metrics.append((name, how))

        def log(self, values):
            self.logged.append(values)

        def finish(self):
            self.finished += 1

    fake = types.SimpleNamespace(init=lambda **how: Run(**how), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return runs


def test_weights_and_biases_is_told_what_tensorboard_is(recorded, plain, tmp_path):
    evaluated = trpo.EvaluateConfig(every=BATCH, episodes=1, max_steps=5)
    agent = train(tmp_path / "run", log=trpo.LogConfig(wandb="mine"), evaluate=evaluated)
    assert_same_bits(agent.learner, plain[1].learner)
    (run,) = recorded
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert (run.how["project"], run.how["id"], run.how["name"]) == ("mine", identity, "run")
    assert run.how["config"]["rule.max_kl"] == 0.01
    records = read_metrics(tmp_path / "run")
    kls = [(told["steps"], told["policy/mean_kl"]) for told in run.logged if "policy/mean_kl" in told]
    assert kls == [(record["steps"], record["mean_kl"]) for record in records]
    assert [told["steps"] for told in run.logged if "evaluation/mean_return" in told] == [32, 64]
    assert (("*",), {"step_metric": "steps"}) in run.metrics
    assert run.finished == 1
    assert run.how["settings"] == {"silent": True}
    trpo.resume(tmp_path / "run", steps=96)
    assert recorded[1].how["id"] == identity
    assert recorded[1].how["resume"] == "allow"
    assert "settings" not in recorded[1].how


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", "CartPole-v1", "--log.wandb", "mine", "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "pip install 'trpo[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "run", log=trpo.LogConfig(wandb="mine"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


# ---------------------------------------------------------------- videos


def test_a_video_every_so_many_steps_changes_no_bit(plain, tmp_path, monkeypatch):
    filmed = []

    def record(agent, out, **how):
        filmed.append((out.name, how["episodes"], how["max_steps"]))

    monkeypatch.setattr(filming, "check_drawn", lambda agent: None)
    monkeypatch.setattr(filming, "record", record)
    agent = train(tmp_path / "run", video=trpo.VideoConfig(every=BATCH, max_steps=7))
    assert_same_bits(agent.learner, plain[1].learner)
    suffix = os.path.splitext(filmed[0][0])[1]
    assert filmed == [(f"{steps:010d}{suffix}", 1, 7) for steps in (32, 64)]


def test_videos_are_files(tmp_path):
    pytest.importorskip("pygame")
    train(tmp_path / "run", 1, video=trpo.VideoConfig(every=BATCH, max_steps=3))
    (file,) = (tmp_path / "run" / "videos").iterdir()
    assert file.stem == "0000000032"
    assert file.stat().st_size > 100


def test_what_cannot_be_drawn_is_said_at_once_and_what_fails_later_ends_no_run(tmp_path, monkeypatch, capsys):
    for env, said in (("probe:both", "offers no images"), ("jax-probe:both", "environments in JAX are not drawn")):
        assert main(["train", env, "--video.every", "32", "--out", str(tmp_path / "run"), "--quiet"]) == 2
        line = capsys.readouterr().err
        assert "video.every=32: environment" in line
        assert said in line
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"video.every=32: videos go to the run's directory: pass out=…"):
        train(video=trpo.VideoConfig(every=32))

    def fail(*arguments, **how):
        raise trpo.EnvironmentFailure("no light")

    monkeypatch.setattr(filming, "check_drawn", lambda agent: None)
    monkeypatch.setattr(filming, "record", fail)
    with pytest.warns(UserWarning, match=r"no video at 32 steps: no light"):
        train(tmp_path / "run", 1, video=trpo.VideoConfig(every=32))


@pytest.mark.parametrize("wrong", [{"every": -1}, {"episodes": 0}, {"max_steps": 0}])
def test_settings_of_videos_are_checked(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"video.{name}="):
        trpo.VideoConfig(**wrong)
    with pytest.raises(ValueError, match=f"video.{name}="):
        dataclasses.replace(trpo.FilmEvery(every=1), **wrong)


# ---------------------------------------------------------------- days of people who come from elsewhere


def example(name, monkeypatch, *arguments):
    file = Path(__file__).parent.parent / "examples" / name
    monkeypatch.setattr(sys, "argv", [str(file), *map(str, arguments)])
    runpy.run_path(str(file), run_name="__main__")


def test_a_migrants_day(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    example("from_sb3.py", monkeypatch, "--steps", 1000, "--out", tmp_path, "CartPole-v1")
    said = capsys.readouterr().out
    assert "CartPole-v1, preset none: 1,024 of 1,000 steps" in said
    assert "  best " in said
    assert "files: best, checkpoints, config, evaluations, events, metrics" in said


def test_a_hackers_day(monkeypatch, tmp_path, capsys):
    example(
        "own_loop.py", monkeypatch, "--steps", 2048, "--out", tmp_path / "run", "--die-at", 3, "--env", "probe:both"
    )
    said = capsys.readouterr().out
    assert "the first process ended with -9" in said
    assert "goes on at iteration 2" in said
    assert [record["iteration"] for record in read_metrics(tmp_path / "run")] == list(range(1, 9))
    assert "best: " in said
