"""Run directories that are damaged, hostile, in use or taken away: one line says so, and nothing outside is touched."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import same_bits

import trpo
from trpo.envs import Box, Choice, Choices, Dict, EnvSpec, Tuple
from trpo.envs.host.probes import Probe
from trpo.envs.names import imported_module
from trpo.report.plots import plot_runs
from trpo.report.recording import record
from trpo.runs import disk
from trpo.runs import lock as locks
from trpo.runs.checkpoint import (
    DATA,
    SUMS,
    TENSORS,
    CheckpointError,
    checkpoints,
    newest_checkpoint,
    prune,
    read_checkpoint,
)
from trpo.runs.disk import replacing
from trpo.runs.files import read_config
from trpo.runs.lock import LOCK, DirectoryLostError, RunLock
from trpo.runs.schema import parse_json
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import read_sweep, resume_sweep
from trpo.runs.train import _check_state, read_run
from trpo.settings.config import Config
from trpo.trees import from_named_arrays, named_arrays

SMALL = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,), minibatch=8, epochs=1)}
CONFIG = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig("probe:both", count=4), **SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, with checkpoints of 0, 1 and 2."""
    place = tmp_path_factory.mktemp("runs") / "run"
    trpo.train("probe:both", config=dataclasses.replace(CONFIG, checkpoint_every=1), out=place, quiet=True)
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


# ---------------------------------------------------------------- what is in the files

WRONG: list[Any] = [None, True, -1, 2.5, 1e308, 10**400, 2**63, float("nan"), float("inf"), "x", "\x1b[2J\n", "\ud800"]
WRONG += [[], {}, [None], [[[]]], ["x", 1], {"x": {"y": [1]}}, "__gone__"]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything inside."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies with one thing of another kind, or gone, or doubled, with what was done."""
    for path in places(data):
        for wrong in WRONG:
            other = place = copy.deepcopy(data)
            for key in path[:-1]:
                place = place[key]
            if wrong == "__gone__":
                del place[path[-1]]
            else:
                place[path[-1]] = wrong
            yield f"{path}={wrong!r}", other


def one_line(error: BaseException, *words: str) -> None:
    assert str(error)
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 1500
    assert all(word in str(error) for word in words), str(error)


def test_any_setting_or_space_of_any_kind_is_read_or_named(run: Path) -> None:
    data, refused, count = json.loads((run / "config.json").read_text()), 0, 0
    for _, other in random.Random(0).sample(list(damaged(data)), 400):
        (run / "config.json").write_text(json.dumps(other))
        count += 1
        try:
            read = read_config(run)
            EnvSpec.from_json(read["spec"])
            Config.from_json(read["config"])
        except ValueError as error:  # a reader of the agent turns any other into one: see the next test
            one_line(error)
            refused += 1
        except Exception:
            with pytest.raises(ValueError, match=r"config\.json") as caught:
                read_run(run)
            one_line(caught.value)
            refused += 1
    assert refused > 0.7 * count


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "", "null", "{", "7", "9" * 5000, "[" * 100_000, '{"a":' * 100_000, '{"format": 2, "format": 2}'),
        *('{"format": 1}', '{"format": 2}', '{"format": true}', '{"format": [2]}', '{"format": NaN}', "\ufeff{}"),
    ],
)
def test_whatever_else_is_in_config_json(run: Path, text: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        trpo.load(run)
    one_line(caught.value)


def test_flipped_bytes_of_config_json(run: Path) -> None:
    content, chance = (run / "config.json").read_bytes(), random.Random(0)
    for _ in range(300):
        other = bytearray(content)
        for _ in range(chance.choice((1, 1, 4))):
            other[chance.randrange(len(other))] = chance.randrange(256)
        (run / "config.json").write_bytes(other)
        try:
            read_config(run)
        except ValueError as error:
            one_line(error, "config.json")


def test_json_is_strict() -> None:
    for bad in (b'{"a": 1, "a": 1}', b'"\xff"', '{"a": 1}'.encode("utf-16"), b"[" * 10**6, b"1 2"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(bad)
    with pytest.raises(ValueError, match="NaN"):
        parse_json(b'{"a": NaN}', constants=False)
    assert parse_json('{"a": [1, "é"]}'.encode()) == {"a": [1, "é"]}


@pytest.mark.parametrize(
    "space",
    [
        Box((-1,)),
        Box((2,), low=(0.0,)),
        Box((2,), "object"),
        Box((10**6, 10**6)),
        Choice(0),
        Choice(2**40),
        Choices((2, 3), (0,), (2,)),
        Choices((2,), (0,), (2,)),
        Dict(()),
        Dict((("a", Tuple(())),)),
    ],
)
def test_spaces_that_no_environment_has(space: Any) -> None:
    with pytest.raises(ValueError, match=r"spec|space"):
        EnvSpec.from_json(EnvSpec("x", space, Choice(2)).to_json())


def test_a_space_in_too_many_others() -> None:
    space: Any = Choice(2)
    for _ in range(100):
        space = Tuple((space,))
    with pytest.raises(ValueError, match="must be a space"):
        EnvSpec.from_json(EnvSpec("x", space, Choice(2)).to_json())


def sealed(path: Path, file: str, content: bytes) -> None:
    """Put ``content`` in place of a file of a checkpoint, with checksums to match."""
    (path / file).write_bytes(content)
    sums = (f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in (TENSORS, DATA))
    (path / SUMS).write_text("".join(sums))


def test_any_entry_of_state_json_is_read_or_named(run: Path) -> None:
    agent, newest = trpo.load(run), run / "checkpoints" / "00000002"
    data, refused, count = json.loads((newest / DATA).read_text()), 0, 0
    data["episodes"]["recent"] = data["episodes"]["recent"][:2]
    for _, other in damaged({k: v for k, v in data.items() if k != "environments"}):
        sealed(newest, DATA, json.dumps(other | {"environments": data["environments"]}).encode())
        count += 1
        try:
            read_checkpoint(newest, agent.learner)
        except CheckpointError as error:
            one_line(error, "00000002")
            refused += 1
    assert count > 400
    assert refused > 0.8 * count


def test_a_state_json_of_no_kind_falls_back(run: Path) -> None:
    newest = run / "checkpoints" / "00000002"
    for text in ("[]", "null", "{}", "[" * 100_000, '{"format": 2}', '{"format": 99}', "\x00", '"x"'):
        sealed(newest, DATA, text.encode())
        _, state, problems = read_run(run)
        assert state.iteration == 1
        assert len(problems) == 1
        assert "\n" not in problems[0]


def changed(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield arrays of another type or shape, or with a number that is none."""
    yield array[None]
    yield np.zeros((*array.shape, 2), array.dtype)
    for kind in (np.float64, np.bool_, np.float16, np.int32, np.int64, np.uint8):
        if array.dtype != kind:
            yield array.astype(kind)
    if array.dtype.kind == "f" and array.size:
        for bad in (np.nan, np.inf, -np.inf):
            other = array.copy()
            other.flat[-1] = bad
            yield other


def newest_of(run: Path, agent: trpo.Agent) -> tuple[Any, list[str]]:
    """Read as going on with the run does, but for the agent, of which one will do."""
    return newest_checkpoint(run / "checkpoints", agent.learner, None, functools.partial(_check_state, agent, False))


def test_any_array_of_another_kind_is_named_and_the_checkpoint_before_used(run: Path) -> None:
    """Of what was learned, and of what environments were in: types are never cast, NaN is never loaded."""
    agent, newest = read_run(run)[0], run / "checkpoints" / "00000002"
    arrays, count = safetensors.numpy.load((newest / TENSORS).read_bytes()), 0
    for name, array in arrays.items():
        for other in changed(np.asarray(array)):
            learned = not name.startswith("rollout.")
            if not learned and other.dtype == array.dtype and other.shape == array.shape:
                continue  # what an environment shows may be anything
            sealed(newest, TENSORS, safetensors.numpy.save({**arrays, name: np.ascontiguousarray(other)}))
            if learned:
                with pytest.raises(CheckpointError) as caught:
                    read_checkpoint(newest, agent.learner)
                one_line(caught.value, name.split("[")[0])
            else:
                state, problems = newest_of(run, agent)
                assert (state.iteration, len(problems)) == (1, 1)
            count += 1
    assert count > 200
    for name in arrays:
        sealed(newest, TENSORS, safetensors.numpy.save({k: v for k, v in arrays.items() if k != name}))
        assert newest_of(run, agent)[0].iteration == 1


@pytest.fixture(scope="module")
def in_jax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs in JAX, with checkpoints of 0, 1 and 2."""
    place = tmp_path_factory.mktemp("runs") / "sweep"
    config = dataclasses.replace(CONFIG, steps=32, checkpoint_every=1)
    trpo.sweep("jax-probe:both", seeds=2, config=config, out=place, quiet=True)
    resume_sweep(place, steps=64, quiet=True)
    return place


@pytest.mark.parametrize("several", [False, True])
def test_any_environment_in_jax_of_another_kind_is_named_and_the_checkpoint_before_used(
    in_jax: Path, several: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever goes on with a run makes its environment, and so knows what its state is."""
    place = shutil.copytree(in_jax if several else in_jax / "seed-0", tmp_path / "run")
    newest = place / ("seed-0" if several else "") / "checkpoints" / "00000002"
    arrays, read = safetensors.numpy.load((newest / TENSORS).read_bytes()), newest.parents[1]
    simulated = [name for name in arrays if name.startswith("device.")]
    assert len(simulated) > 7
    for name in simulated:
        others = [arrays | {name: np.ascontiguousarray(other)} for other in itertools.islice(changed(arrays[name]), 4)]
        for other in [*others, {k: v for k, v in arrays.items() if k != name}]:
            sealed(newest, TENSORS, safetensors.numpy.save(other))
            _, state, problems = read_run(read, going_on=True)
            assert (state.iteration, len(problems)) == (1, 1)
            assert name.removeprefix("device.") in problems[0] or "expected" in problems[0]
    (resume_sweep if several else trpo.resume)(place, steps=96)
    assert "checkpoint 00000002" in capfd.readouterr().err
    for run in {read, place / "seed-1"} if several else {read}:
        assert [row["iteration"] for row in read_metrics(run)] == [1, 2, 3]
        assert read_run(run, going_on=True)[1].iteration == 3


def test_where_no_checkpoint_has_such_environments_new_episodes_begin(
    in_jax: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The package of the environment may have changed: what was learned is not given up for its state."""
    place = shutil.copytree(in_jax / "seed-0", tmp_path / "run")
    for path in (place / "checkpoints").iterdir():
        arrays = safetensors.numpy.load((path / TENSORS).read_bytes())
        named = {name.replace("device.envs.env.value", "device.envs.env.x"): x for name, x in arrays.items()}
        sealed(path, TENSORS, safetensors.numpy.save(named))
    trpo.resume(place, steps=96)
    said = capfd.readouterr().err
    assert "at iteration 2" in said
    assert "new episodes begin: the state is not that of these environments" in said


def test_a_checkpoint_under_another_s_name_is_not_used(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "00000001", run / "checkpoints" / "00000009")
    _, state, problems = read_run(run)
    assert (state.iteration, problems) == (2, ["checkpoint 00000009: is of iteration 1"])


@pytest.mark.parametrize("own", [False, True])
def test_simulators_that_take_no_such_state_begin_new_episodes(
    run: Path, own: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody but the simulator knows what its state must be."""
    config = json.loads((run / "config.json").read_text())
    config["custom"]["env"] = own
    (run / "config.json").write_text(json.dumps(config))
    newest = run / "checkpoints" / "00000002"
    data = json.loads((newest / DATA).read_text())
    data["environments"][1] = {"state": "x"}
    sealed(newest, DATA, json.dumps(data).encode())
    make = functools.partial(Probe, "both")
    make.__name__ = "probe:both"  # type: ignore[attr-defined]
    trpo.resume(run, steps=96, env=make if own else None)
    said = capfd.readouterr().err
    assert "at iteration 2" in said
    assert "new episodes begin: the state cannot be put back (environment probe:both raised ValueError: " in said
    assert [row["iteration"] for row in read_metrics(run)] == [1, 2, 3]


def test_types_that_numpy_has_not_and_rubbish(run: Path) -> None:
    agent, newest = trpo.load(run), run / "checkpoints" / "00000002"
    content, chance = (newest / TENSORS).read_bytes(), random.Random(0)
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    bad = [content.replace(b'"F32"', b'"BF8"'), b"", b"\xff" * 8, content[: len(content) // 2]]
    bad += [(10**15).to_bytes(8, "little") + content[8:]]
    half = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    bad += [len(half).to_bytes(8, "little") + half + b"\0\0"]
    for _ in range(100):
        other = bytearray(header)
        other[chance.randrange(size)] = chance.randrange(256)
        bad.append(content[:8] + bytes(other) + content[8 + size :])
    fallen = 0
    for each in bad:
        sealed(newest, TENSORS, each)
        state, problems = newest_of(run, agent)
        assert (state.iteration, len(problems)) in ((1, 1), (2, 0))
        assert all("\n" not in problem for problem in problems)
        fallen += len(problems)
    assert fallen > 90


def test_a_mask_of_one_s_own_may_be_infinite(x64: None) -> None:
    """What is not finite from the beginning is no damage."""
    from trpo.runs.checkpoint import _refuse_nonfinite

    like = {"mask": np.array([0.0, -np.inf]), "w": np.ones(2)}
    _refuse_nonfinite(like, like)
    with pytest.raises(CheckpointError, match="w"):
        _refuse_nonfinite(like | {"w": np.array([np.nan, 1.0])}, like)


def test_arrays_are_put_back_as_they_were_or_not_at_all() -> None:
    tree = {"key": jax.random.key(3), "x": np.arange(3, dtype=np.float32), "n": np.int32(2)}
    arrays = named_arrays(tree)
    assert same_bits(from_named_arrays(tree, arrays), tree)
    for name, array in arrays.items():
        for other in (array.astype(np.float16), array[..., None]):
            with pytest.raises(ValueError, match="expected"):
                from_named_arrays(tree, {**arrays, name: other})


@pytest.mark.parametrize("line", ["[]", "{", '{"iteration": "1"}', '{"iteration": 1, "x": NaN}', "\xff", "[" * 9999])
def test_a_damaged_line_of_metrics_is_named_and_left_out(run: Path, line: str) -> None:
    """No run is held up by it, and no line is lost: the file as it was is kept."""
    first, second, end = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(damaged := b"\n".join([first, line.encode("latin-1"), second, end]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 2: not JSON") as caught:
        assert [row["iteration"] for row in read_metrics(run)] == [1, 2]
    one_line(caught[0].message)
    with pytest.warns(UserWarning, match=r"line 2: .*kept in .*metrics-damaged\.jsonl"):
        trpo.resume(run, steps=96, quiet=True)
    assert (run / "metrics-damaged.jsonl").read_bytes() == damaged
    assert (run / "metrics.jsonl").read_bytes().startswith(b"\n".join([first, second, b"{"]))
    assert [row["iteration"] for row in read_metrics(run)] == [1, 2, 3]


def test_damage_to_metrics_comes_again_or_is_all_of_them(run: Path) -> None:
    for number, text in enumerate((b"x\n[]\n\xff\n" + b"[" * 2**21 + b"\n", b"\0\n")):
        (run / "metrics.jsonl").write_bytes(text)
        with pytest.raises(ValueError, match="line 1: not JSON") as caught:
            read_metrics(run)
        one_line(caught.value, *["3 more lines"][number:])
        with pytest.warns(UserWarning, match="line 1"):
            trpo.resume(run, steps=96 + 32 * number, quiet=True)
        assert (run / f"metrics-damaged{('', '-2')[number]}.jsonl").read_bytes() == text
        assert [row["iteration"] for row in read_metrics(run)] == [3 + number]


def test_a_line_that_is_too_long_is_one_line(run: Path) -> None:
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b" " * (5 * 2**20) + b"\n7\n" + content + b'{"iteration": 3')
    with pytest.warns(UserWarning, match="line 2"):
        assert [row["iteration"] for row in read_metrics(run)] == [1, 2]
    with pytest.warns(UserWarning, match="line 2"):
        plot_runs([run], run / "curves.png")


@pytest.mark.parametrize("name", ["../other", "/etc", "a/b", "..", ".", "", ".tmp-x", "a\\b", "C:x", "a\nb", 3, None])
def test_a_sweep_is_in_its_own_directory(tmp_path: Path, name: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    place = tmp_path / "sweep"
    place.mkdir()
    plan = {"format": 1, "runs": [{"name": name, "changes": {}, "seed": 0}]}
    (place / "sweep.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"sweep\.json") as caught:
        read_sweep(place)
    one_line(caught.value)
    assert list(other.iterdir()) == []


def test_any_entry_of_sweep_json_is_read_or_named(tmp_path: Path) -> None:
    plan = {"format": 1, "runs": [{"name": f"seed-{i}", "changes": {"discount": 0.9}, "seed": i} for i in range(2)]}
    for text in [json.dumps(other) for _, other in damaged(plan)] + ["[]", "null", "[" * 9999]:
        (tmp_path / "sweep.json").write_text(text)
        try:
            read_sweep(tmp_path)
        except ValueError as error:
            one_line(error, "sweep.json")


# ---------------------------------------------------------------- links, pipes and devices


def contents(place: Path) -> dict[str, tuple[bytes, float]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime) for p in sorted(place.rglob("*")) if p.is_file()}


LINKED = ["config.json", ".tmp-config.json", ".tmp-metrics.jsonl", "metrics.jsonl", "sweep.json", "checkpoints"]
LINKED += [
    LOCK,
    "checkpoints/.tmp-00000003",
    "checkpoints/.tmp-00000001",
    "checkpoints/00000002",
    "checkpoints/00000003",
]
LINKED += [f"checkpoints/00000002/{file}" for file in (TENSORS, DATA, SUMS)]


@pytest.mark.parametrize("to", ["file", "directory", "gone"])
@pytest.mark.parametrize("name", LINKED)
def test_no_link_in_a_run_is_followed(finished: Path, run: Path, tmp_path: Path, name: str, to: str) -> None:
    """Whatever becomes of the run: what a link leads to is as it was, and nothing is made where there was nothing."""
    victim, place = tmp_path / "victim", run / name
    shutil.copytree(finished / "checkpoints", victim / "photos")
    shutil.copy(finished / "config.json", victim / "config.json")
    target = {"file": victim / "config.json", "directory": victim / "photos", "gone": victim / "nothing"}[to]
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    before = contents(victim)
    for attempt in (lambda: trpo.resume(run, steps=96, quiet=True), lambda: trpo.load(run), lambda: read_metrics(run)):
        try:
            attempt()
        except ValueError as error:
            one_line(error)
    assert contents(victim) == before
    assert not (victim / "nothing").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", LOCK, f"checkpoints/00000002/{DATA}"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "huge"])
def test_what_is_no_regular_file_of_bounded_size_is_refused(run: Path, name: str, kind: str) -> None:
    """Nothing waits for the other end of a pipe, and nothing reads without end."""
    place = run / name
    place.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "device":
            place.symlink_to("/dev/zero")
        case "directory":
            place.mkdir()
        case "huge":
            with place.open("wb") as file:
                file.truncate(2**40)
    if name.startswith("checkpoints"):
        assert read_run(run)[1].iteration == 1
    elif not (name == LOCK and kind == "huge"):  # its size is nothing to anybody
        with pytest.raises((ValueError, IsADirectoryError), match=place.name) as caught:
            trpo.resume(run, steps=96, quiet=True)
        one_line(caught.value)


def test_only_real_directories_with_numbers_are_checkpoints(tmp_path: Path) -> None:
    for name in ("00000001", "2", "²²²²²²²²", "0" * 40, "00000003x", ".tmp-00000004"):
        (tmp_path / name).mkdir()
    (tmp_path / "00000005").symlink_to(tmp_path / "00000001")
    (tmp_path / "00000006").write_text("")
    assert [path.name for path in checkpoints(tmp_path)] == ["00000001"]


def test_events_are_in_a_file_that_nobody_can_foresee(run: Path, tmp_path: Path) -> None:
    for second in range(int(time.time()) - 1, int(time.time()) + 600):
        name = f"events.out.tfevents.{second}.{os.uname().nodename}"
        (run / name).symlink_to(tmp_path / "victim")
    trpo.resume(run, steps=96, quiet=True)
    assert not (tmp_path / "victim").exists()


def test_what_is_written_is_made_anew(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".tmp-x", "x"):
        (tmp_path / name).symlink_to(victim)
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "x").read_text() == "new"
    assert not (tmp_path / "x").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim", "x"]


def test_what_a_crash_has_left_is_removed_at_the_next_start(run: Path) -> None:
    for place in (run, run / "checkpoints"):
        (place / ".tmp-00000007").mkdir()
        (place / ".tmp-00000007" / "half").write_text("")
        (place / ".tmp-x").write_text("")
    trpo.resume(run, quiet=True)
    assert list(run.rglob(".tmp-*")) == []


def test_directories_are_not_opened_where_they_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which flushes only files, and those only if they may be written."""
    (tmp_path / "file").write_text("")
    opened, real = [], os.open

    def opening(path: Any, flags: int) -> int:
        opened.append((path, bool(flags & os.O_RDWR)))
        return real(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        patch.setattr(os, "open", opening)
        for path in (tmp_path, tmp_path / "file"):
            disk._sync(path)
    assert opened == [(tmp_path / "file", True)]


# ---------------------------------------------------------------- one process at a time


def test_a_directory_has_one_run_at_a_time(run: Path) -> None:
    with RunLock(run), pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on ") as caught:
        trpo.resume(run, quiet=True)
    one_line(caught.value)
    trpo.resume(run, quiet=True)
    assert not (run / LOCK).exists()


def test_a_new_run_is_one_too(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with RunLock(tmp_path / "new"), pytest.raises(ValueError, match="in use by process"):
        trpo.train("probe:both", config=CONFIG, out=tmp_path / "new", quiet=True)
    assert (tmp_path / "new").exists()  # it is the other's


HOLD = """
import sys, time
from pathlib import Path
from trpo.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid} on "):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        RunLock(tmp_path).release()
    finally:
        holder.kill()
        holder.communicate()


def test_of_many_that_come_at_once_one_has_the_lock(tmp_path: Path) -> None:
    """Taken and given up by turns: never two at a time, and the file that is removed is nobody else's."""
    from concurrent.futures import ThreadPoolExecutor

    inside, most, had = [], [], []

    def compete(_: int) -> None:
        for _ in range(50):
            try:
                with RunLock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    had.append(1)
                    inside.pop()
            except ValueError:
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compete, range(4)))
    assert max(most) == 1
    assert had


def test_without_locks_a_file_names_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has none: a dead process's is taken over, a living one's and another machine's are not."""
    monkeypatch.setattr(locks, "_locked", lambda file: False)
    with RunLock(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} on .* delete "):
        RunLock(tmp_path)
    assert not (tmp_path / locks.HOLDER).exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    said = locks._me()
    (tmp_path / locks.HOLDER).write_text(said.replace(f"process {os.getpid()}", f"process {ended.pid}"))
    RunLock(tmp_path).release()
    (tmp_path / locks.HOLDER).write_text("process 1 on another-machine since 2020-01-01 00:00:00")
    with pytest.raises(ValueError, match="another-machine"):
        RunLock(tmp_path)


# ---------------------------------------------------------------- a directory that goes while the run trains


class Meddling(gym.Env):
    """Does something at its 20th step of all."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)
    steps, deed = 0, staticmethod(lambda: None)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        type(self).steps += 1
        if type(self).steps == 20:
            type(self).deed()
        return np.zeros(1, np.float32), float(action), True, False, {}


def meddled(place: Path, deed: Callable[[], Any]) -> Path:
    env = type("Env", (Meddling,), {"steps": 0, "deed": staticmethod(deed)})
    config = dataclasses.replace(CONFIG, env=trpo.EnvConfig(count=2), fragment=8, steps=5 * 16, checkpoint_every=2)
    trpo.train(env, config=config, out=place, quiet=True)
    return place


DELETED = ["directory", "moved", "config.json", "metrics.jsonl", "checkpoints", "everything", "a link"]


@pytest.mark.parametrize("what", DELETED)
def test_what_is_deleted_while_a_run_trains_is_written_again(tmp_path: Path, what: str) -> None:
    place = tmp_path / "run"
    (tmp_path / "victim").write_text("mine")

    def deed() -> None:
        match what:
            case "a link":
                for name in ("config.json", "metrics.jsonl"):
                    (place / name).unlink()
                    (place / name).symlink_to(tmp_path / "victim")
            case "directory":
                shutil.rmtree(place)
            case "moved":
                place.rename(tmp_path / "elsewhere")
            case "checkpoints":
                shutil.rmtree(place / "checkpoints")
            case "everything":
                for path in place.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            case _:
                (place / what).unlink()

    meddled(place, deed)
    assert (tmp_path / "victim").read_text() == "mine"
    agent, state, problems = read_run(place)
    assert (state.iteration, problems) == (5, [])
    assert [row["iteration"] for row in read_metrics(place)] == [1, 2, 3, 4, 5]
    assert list(place.glob("events.out.tfevents.*"))
    assert not (place / LOCK).exists()
    trpo.resume(place, env=Meddling, steps=6 * 16, quiet=True)
    assert agent.config.steps == 5 * 16


def test_another_directory_in_its_place_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "run"

    def deed() -> None:
        place.rename(tmp_path / "elsewhere")
        place.mkdir()
        (place / "mine").write_text("")

    with pytest.raises((DirectoryLostError, trpo.RunFailed), match="replaced by another directory") as caught:
        meddled(place, deed)
    one_line(caught.value)
    assert [path.name for path in place.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_what_cannot_be_written_again_ends_the_run(tmp_path: Path, name: str) -> None:
    place = tmp_path / "run"

    def deed() -> None:
        (place / name).rename(tmp_path / name)
        (place / name).write_text("") if name == "checkpoints" else (place / name).mkdir()

    with pytest.raises(trpo.RunFailed, match=f"{name}: (Is a directory|is there).*once that is mended") as caught:
        meddled(place, deed)
    one_line(caught.value)
    assert "closed" not in str(caught.value)


def test_pruning_leaves_what_the_run_has_not_passed(tmp_path: Path) -> None:
    """The run is at 15: what another run of a sweep had when it went back counts for nothing."""
    for number in (5, 10, 15, 20):
        (tmp_path / f"{number:08d}").mkdir()
    prune(tmp_path, 15, keep=1)
    assert [int(path.name) for path in checkpoints(tmp_path)] == [20, 15]


# ---------------------------------------------------------------- whose code is run

MODULE = """
import gymnasium as gym
from tests.test_damage import Meddling
imported = __import__("pathlib").Path(__file__).with_suffix(".imported").write_text("")
gym.register("Meddling-v0", Meddling)
def make():
    from trpo.envs.device.probes import make_probe
    return make_probe("action")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"foreign_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield name
    sys.modules.pop(name, None)
    gym.registry.pop("Meddling-v0", None)


def rename(run: Path, **ids: str) -> None:
    data = json.loads((run / "config.json").read_text())
    data["config"]["env"]["id"] = ids.get("config", "probe:both")
    data["spec"]["id"] = ids.get("spec", data["config"]["env"]["id"])
    (run / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["{}:Meddling-v0", "jax:{}:make", "envpool:{}:Meddling-v0"])
def test_a_run_from_elsewhere_imports_nothing_unless_it_is_trusted(
    run: Path, module: str, name: str, tmp_path: Path, here: Callable[..., Any]
) -> None:
    rename(run, config=name.format(module))
    agent = trpo.load(run)
    assert agent.act([0.5]) in (0, 1)
    for attempt in (lambda: agent.evaluate(1), lambda: trpo.resume(run, steps=96), lambda: record(agent, run=run)):
        with pytest.raises(ValueError, match=module) as caught:
            attempt()
        one_line(caught.value, "--trust", "trust=True")
    for command in ("evaluate", "resume", "record"):
        done = here(command, run)
        assert done.returncode == 2
        assert module in done.stderr
    assert not (tmp_path / f"{module}.imported").exists()
    if name.startswith("{"):
        assert trpo.load(run, trust=True).evaluate(1).lengths == (1,)
        assert here("evaluate", run, "--trust").returncode == 0
        assert (tmp_path / f"{module}.imported").exists()


def test_a_name_in_the_spaces_alone_is_not_used(run: Path, module: str, tmp_path: Path) -> None:
    rename(run, spec=f"{module}:Meddling-v0")
    trpo.load(run).evaluate(1)
    assert not (tmp_path / f"{module}.imported").exists()


def test_a_run_that_was_trained_here_may_import_what_it_was_trained_with(module: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    trpo.train(f"{module}:Meddling-v0", config=dataclasses.replace(CONFIG, steps=32), out=place, quiet=True)
    moved = place.rename(tmp_path / "moved")
    assert trpo.load(moved).evaluate(1).lengths == (1,)
    trpo.resume(moved, steps=64, quiet=True)
    for key, value in (("run", "0" * 32), ("run", None)):
        data = json.loads((moved / "config.json").read_text())
        changed = {k: v for k, v in (data | {key: value}).items() if v is not None}
        shutil.copytree(moved, tmp_path / f"copy-{value}")
        (tmp_path / f"copy-{value}" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=module):
            trpo.load(tmp_path / f"copy-{value}").evaluate(1)
    rename(moved, config="antigravity:Other-v0")  # its own identity with another module
    with pytest.raises(ValueError, match="antigravity"):
        trpo.load(moved).evaluate(1)
    assert "antigravity" not in sys.modules


def test_which_names_import() -> None:
    known = [
        "Hopper-v5",
        "ALE/Pong-v5",
        "probe:both",
        "envpool:Hopper-v4",
        "gymnax:CartPole-v1",
        "brax:ant",
        "jax-probe:x",
    ]
    assert {name: imported_module(name) for name in known} == dict.fromkeys(known)
    importing = {"a.b:X-v0": "a.b", "jax:os:abort": "os", "envpool:m:X": "m", "x:y:z": "x"}
    assert {name: imported_module(name) for name in importing} == importing
