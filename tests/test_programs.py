"""Compiled programs in memory and on disk: how many are kept, where, and that nothing about them is ever a failure."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import trpo
from tests.helpers import run_process, same_bits, untimed
from trpo import programs
from trpo.envs.device.probes import make_probe
from trpo.programs import KEPT, cache_directory, compiled, keep_programs, make_room

SMALL = trpo.Config(
    steps=64,
    fragment=8,
    env=trpo.EnvConfig(count=4),
    policy=trpo.PolicyConfig(hidden=(4,)),
    value=trpo.ValueConfig(hidden=(4,)),
)


@pytest.fixture
def no_cache_of_jax(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the session's own cache away, which is respected, and forget what was compiled."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", programs.SHORTEST)}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(programs, "_ours", None)
    jax.config.update(programs.SHORTEST, 1.0)
    monkeypatch.delenv(programs.SHORTEST.upper(), raising=False)
    compilation_cache.reset_cache()
    jax.clear_caches()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def trained() -> tuple[Any, list[dict[str, Any]]]:
    """Train in a process that has compiled nothing yet, as far as that goes; return what was learned and said."""
    jax.clear_caches()
    programs.forget()
    agent = trpo.make_agent("probe:both", SMALL)
    state, metrics = list(trpo.iterations("probe:both", agent, SMALL))[-1]
    return state.learner, untimed(metrics)


def computed() -> list[float]:
    """Run a few programs that are compiled or read."""
    jax.clear_caches()
    return [float(jax.jit(lambda x, i=i: x**i + i)(0.3)) for i in range(2, 6)]


def files_in(place: Path) -> list[Path]:
    return sorted(place.glob(f"*/*{programs.SUFFIX}"))


# In memory


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
    by: float


def test_programs_of_a_bounded_number_of_arguments_are_kept() -> None:
    traced = []

    def times(scale: Scale, x: Any) -> Any:
        traced.append(scale.by)
        return scale.by * x

    fast = compiled(times)
    scales = [Scale(float(i)) for i in range(KEPT + 2)]
    assert [float(fast(scale, 1.0)) for scale in scales] == [scale.by for scale in scales]
    assert float(fast(scales[-1], 2.0)) == 2 * scales[-1].by
    assert traced == [scale.by for scale in scales]  # once each
    traced.clear()
    alive = [weakref.ref(scale) for scale in scales]
    scales.clear()
    gc.collect()
    assert [ref() is not None for ref in alive] == [False] * 2 + [True] * KEPT


class OwnEnv:
    """An environment in JAX of which each object is another one."""

    cheap_reset = True

    def __init__(self) -> None:
        self._probe = make_probe("action")
        self.spec = self._probe.spec

    def reset(self, key: Any) -> Any:
        return self._probe.reset(key)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return self._probe.step(state, action, key)


def test_environments_that_were_trained_in_are_given_up() -> None:
    """With them what was compiled for them: 30 MB each."""
    env = OwnEnv()
    trpo.train(env, config=SMALL, quiet=True).evaluate(2, deterministic=False)
    alive = weakref.ref(env)
    del env
    programs.forget()  # as KEPT others would
    gc.collect()
    assert alive() is None


# Where


@pytest.mark.parametrize(
    ("system", "variables", "place"),
    [
        ("linux", {}, "/home/me/.cache/trpo"),
        ("linux", {"XDG_CACHE_HOME": "/big"}, "/big/trpo"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/trpo"),  # the specification says so
        ("darwin", {"XDG_CACHE_HOME": "/big"}, "/home/me/Library/Caches/trpo"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/trpo"),
        ("win32", {}, "/home/me/AppData/Local/trpo"),
        ("linux", {"TRPO_CACHE": "/there"}, "/there"),
        ("darwin", {"TRPO_CACHE": "~/there"}, "/home/me/there"),
        ("linux", {"TRPO_CACHE": ""}, "/home/me/.cache/trpo"),
        ("linux", {"TRPO_CACHE": "off"}, None),
        ("win32", {"TRPO_CACHE": "OFF"}, None),
    ],
)
def test_place(monkeypatch: pytest.MonkeyPatch, system: str, variables: dict[str, str], place: str | None) -> None:
    for name in ("TRPO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert cache_directory() == (place and Path(place))


def test_without_a_home_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("TRPO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() is None


def test_importing_changes_no_setting_and_training_only_from_when_programs_are_kept(tmp_path: Path) -> None:
    program = """
import jax
settings = lambda: {name: getattr(jax.config, name, None) for name in jax.config.values}
before = settings()
import trpo, trpo.cli.main
trpo.make_agent("probe:both")
assert settings() == before
from trpo.programs import keep_programs
keep_programs()
print({name: value for name, value in settings().items() if value != before[name]})
"""
    hidden = {"JAX_COMPILATION_CACHE_DIR", programs.SHORTEST.upper()}
    env = {name: value for name, value in os.environ.items() if name not in hidden} | {"TRPO_CACHE": str(tmp_path)}
    done = run_process([sys.executable, "-c", program], env=env)
    changed = ast.literal_eval(done.stdout)
    assert changed.keys() == {"jax_compilation_cache_dir", programs.SHORTEST}, done.stderr
    assert Path(changed["jax_compilation_cache_dir"]).parent == tmp_path


def test_a_cache_of_the_users_own_is_left_alone(
    no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not (tmp_path / "ours").exists()


def test_it_can_be_turned_off_again(no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    keep_programs()
    computed()
    kept = files_in(tmp_path)
    assert kept
    monkeypatch.setenv("TRPO_CACHE", "off")
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    jax.jit(lambda x: x + 12345)(1.0)
    assert files_in(tmp_path) == kept


@pytest.mark.parametrize("door", ["train", "resume", "evaluate", "sweep", "resume_sweep", "command line"])
def test_every_door_keeps_programs(
    door: str, no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trpo.cli.main import main
    from trpo.runs.sweep import resume_sweep

    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    doors: dict[str, Callable[[], Any]] = {  # each with a mistake, found after the door
        "train": lambda: trpo.train("probe:nothing"),
        "resume": lambda: trpo.resume(tmp_path / "none"),
        "evaluate": lambda: trpo.make_agent("probe:both", SMALL).evaluate(-1),
        "sweep": lambda: trpo.sweep("probe:nothing", seeds=0),
        "resume_sweep": lambda: resume_sweep(tmp_path / "none"),
        "command line": lambda: main(["plot", str(tmp_path / "none")]),
    }
    with contextlib.suppress(ValueError, OSError):
        doors[door]()
    assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path


# On disk


def test_the_same_bits_with_and_without(no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, said = trained()
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    keep_programs()
    first, first_said = trained()
    kept = files_in(tmp_path)
    assert kept
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    second, second_said = trained()
    assert files_in(tmp_path) == kept  # nothing new was compiled
    assert hits.count("/jax/compilation_cache/cache_hits") >= len(kept)  # and each was read
    assert same_bits(learned, first)
    assert same_bits(learned, second)
    assert said == first_said == second_said


def garbage(file: Path) -> None:
    file.write_bytes(b"garbage")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)


DAMAGES = [garbage, cut, empty, flipped]


def test_programs_of_another_processor_are_not_read(
    no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    keep_programs()
    ours = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(programs, "_machine", lambda: "another")
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "another") != ours


def test_training_over_damaged_programs_says_nothing(
    no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    keep_programs()
    right = computed()
    whole = {file: file.stat().st_size for file in files_in(tmp_path)}
    for i, file in enumerate(whole):
        DAMAGES[i % len(DAMAGES)](file)
    with warnings.catch_warnings(record=True) as told:
        assert computed() == right
    assert told == []
    assert files_in(tmp_path) == list(whole)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["below a file", "read only"])
def test_a_place_that_cannot_be_written_is_as_none(
    fault: str, no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    if fault == "below a file":
        place.write_text("not a directory")
    else:  # whoever runs the tests may be root, who may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("TRPO_CACHE", str(place / "programs"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    computed()


def test_a_full_disk_is_not_talked_of(
    no_cache_of_jax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is room but for names: no file may have a byte."""
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("TRPO_CACHE", str(tmp_path))
    keep_programs()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as told:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            computed()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told == []
    assert capfd.readouterr() == ("", "")
    assert all(file.stat().st_size == 0 for file in files_in(tmp_path))
    make_room(tmp_path)
    assert files_in(tmp_path) == []


def test_those_used_longest_ago_are_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "BOUND", 1000)
    (tmp_path / "a").mkdir()
    others = tmp_path / "a" / "somebody-elses"
    others.write_bytes(b"x" * 10_000)
    files = [tmp_path / "a" / f"{i}{programs.SUFFIX}" for i in range(12)]
    for i, file in enumerate(files):
        file.write_bytes(bytes(100))
        os.utime(file, (i, i))
    os.utime(files[0], (20, 0))  # read just now
    empty(files[11])
    make_room(tmp_path)
    assert [i for i, file in enumerate(files) if not file.exists()] == [1, 11]
    assert others.exists()
