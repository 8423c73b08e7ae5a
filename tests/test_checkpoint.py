"""Checkpoints: what is written is read back, damage is found and named, nothing is executed."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import same_bits

import trpo
from trpo.runs import checkpoint
from trpo.runs.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def trained():
    config = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig("probe:both", count=4))
    agent = trpo.make_agent("probe:both", config)
    for state, _ in trpo.iterations("probe:both", agent, config):  # noqa: B007
        pass
    return agent, state


def test_round_trip_is_bit_exact(trained, tmp_path):
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path, state)
    read = checkpoint.read_checkpoint(path, agent.learner)
    assert same_bits(read.learner, state.learner)
    assert (read.iteration, read.steps) == (state.iteration, state.steps)
    assert read.episodes == state.episodes
    assert read.source is None  # the simulators offer no snapshot
    assert state.source is None


@pytest.mark.parametrize("averaged", [True, False])
def test_the_average_of_policies_may_be_begun_or_dropped(trained, tmp_path, averaged):
    """A checkpoint without one (older, or ``policy.averaging=0``) begins with its policy."""
    agent, state = trained
    without = dataclasses.replace(state.learner, average=None)
    saved, like = (without, agent.learner) if averaged else (state.learner, without)
    path = checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, learner=saved))
    read = checkpoint.read_checkpoint(path, like).learner
    assert same_bits(read, dataclasses.replace(state.learner, average=state.learner.policy if averaged else None))


def test_statistics_are_inside(trained, tmp_path):  # PITFALLS row 23
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path, state)
    names = set(checkpoint.named_arrays(checkpoint.read_checkpoint(path, agent.learner).learner))
    assert {"observations.mean", "observations.count", "value.returns.mean", "policy.trunk.weights[0]"} <= names
    assert any("value.optimiser" in name for name in names)


def test_checksums_are_those_of_sha256sum(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--quiet", "-c", checkpoint.SUMS], cwd=path, check=True)


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.DATA, checkpoint.SUMS])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_is_named_and_the_previous_one_used(trained, tmp_path, file, damage):
    agent, state = trained
    checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=1))
    newest = checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=2)) / file
    content = newest.read_bytes()
    match damage:
        case "flip":
            middle = len(content) // 2
            newest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "truncate":
            newest.write_bytes(content[: len(content) // 2])
        case "empty":
            newest.write_bytes(b"")
        case "delete":
            newest.unlink()
    read, problems = checkpoint.newest_checkpoint(tmp_path, agent.learner)
    assert read.iteration == 1
    assert len(problems) == 1
    assert "00000002" in problems[0]
    assert "\n" not in problems[0]


def test_all_damaged(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    (path / checkpoint.TENSORS).write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.newest_checkpoint(tmp_path, trained[0].learner)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.newest_checkpoint(tmp_path / "empty", trained[0].learner)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_loading_executes_no_code(trained, tmp_path, monkeypatch):  # PITFALLS row 24
    monkeypatch.chdir(tmp_path)
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path / "c", state)
    pickled = pickle.dumps(Bomb())
    with pytest.raises(CheckpointError):
        checkpoint.read_checkpoint(_forge(path, checkpoint.TENSORS, pickled), agent.learner)
    path = checkpoint.write_checkpoint(tmp_path / "c", state)
    with pytest.raises(CheckpointError):
        checkpoint.read_checkpoint(_forge(path, checkpoint.DATA, pickled), agent.learner)
    assert not (tmp_path / "bomb-went-off").exists()
    pickle.loads(pickled)  # the bomb does work
    assert (tmp_path / "bomb-went-off").exists()


def _forge(path, file, content):
    """Put ``content`` in place of a file, with a checksum to match."""
    import hashlib

    (path / file).write_bytes(content)
    sums = [
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (checkpoint.TENSORS, checkpoint.DATA)
    ]
    (path / checkpoint.SUMS).write_text("".join(sums))
    return path


def test_another_format_version_is_refused(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    data = json.loads((path / checkpoint.DATA).read_text())
    data["format"] = 99
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.read_checkpoint(_forge(path, checkpoint.DATA, json.dumps(data).encode()), trained[0].learner)


def test_another_agent_is_refused(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    config = trpo.Config(policy=trpo.PolicyConfig(hidden=(32,)), env=trpo.EnvConfig("probe:both"))
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.read_checkpoint(path, trpo.make_agent("probe:both", config).learner)


def test_only_the_last_k_are_kept_and_leftovers_are_ignored(trained, tmp_path):
    (tmp_path / ".tmp-00000009").mkdir(parents=True)  # what a crash while writing leaves behind
    for i in range(1, 6):
        checkpoint.write_checkpoint(tmp_path, dataclasses.replace(trained[1], iteration=i), keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["00000005", "00000004"]


def test_a_crash_at_any_write_leaves_the_previous_checkpoint(trained, tmp_path, monkeypatch):
    agent, state = trained
    checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=1))
    real = Path.write_bytes
    for crash_at in range(3):
        calls = iter(range(10))

        def write(path, data, calls=calls, crash_at=crash_at):
            if next(calls) == crash_at:
                real(path, data[: len(data) // 2])
                raise OSError("power cut")
            return real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write)
        with pytest.raises(OSError, match="power cut"):
            checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=2))
        read, problems = checkpoint.newest_checkpoint(tmp_path, agent.learner)
        assert read.iteration == 1
        assert problems == []
