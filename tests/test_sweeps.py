"""Sweeps: each run is what it would be alone, compiled once for all; directories, summaries, resuming, flags."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import bits, untimed
from scipy import integrate, stats

import trpo
from trpo.envs import Box, EnvSpec
from trpo.envs.device import Step
from trpo.runs import one as runs
from trpo.runs import sweep as sweeps
from trpo.runs.aggregate import curves_on_grid, interquartile_mean, interval
from trpo.runs.lock import LOCK, RunLock
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import TRACED, Variant, groups, is_sweep, nested, read_sweep, resume_sweep, variants
from trpo.settings.config import merge
from trpo.training import device as device_training

jax.devices()  # JAX has begun, on one device: a sweep that is the first to use it would make every core a device

LIMIT = 6


class Walk:
    """x ← 0.9 x + 0.5 a + noise, reward −x²; absorbing beyond 1.2, cut after six steps. Counts its own tracing."""

    cheap_reset = True

    def __init__(self, bound: float = 1.0):
        self.spec, self.traced = EnvSpec("walk", Box((2,)), Box((1,), low=-bound, high=bound)), 0

    def reset(self, key: Any) -> tuple[Any, Any]:
        x = jax.random.uniform(key, minval=-1.0, maxval=1.0)
        return (x, jnp.zeros((), jnp.int32)), jnp.stack([x, 0.0 * x])

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        self.traced += 1
        x, time = 0.9 * state[0] + 0.5 * action[0] + 0.3 * jax.random.uniform(key, minval=-1.0), state[1] + 1
        return (x, time), Step(jnp.stack([x, 0.1 * time]), -(x**2), jnp.abs(x) > 1.2, time == LIMIT)


WALK = Walk()
DOUBLE = Walk(1.5)
"""For double precision, with bounds of its own: JAX tells constants within a scan apart by identity alone."""


def configure(iterations: int = 3, **changes: Any) -> trpo.Config:
    small: dict[str, Any] = {
        "env": trpo.EnvConfig(count=4),
        "fragment": 5,
        "policy": trpo.PolicyConfig(hidden=(8,)),
        "value": trpo.ValueConfig(hidden=(8,), minibatch=8, epochs=2),
    }
    config = trpo.Config(**(small | changes))
    return dataclasses.replace(config, steps=iterations * config.batch)


def assert_close(one: trpo.Agent, other: trpo.Agent, tolerance: float = 1e-8) -> None:
    """Of double precision's rounding, a conjugate gradient that is not quite converged makes much more."""
    assert one.config == other.config
    for a, b in zip(jax.tree.leaves(one.learner), jax.tree.leaves(other.learner), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- each run is what it would be alone


GAUSS_NEWTON = trpo.ValueConfig(hidden=(8,), method="gauss-newton", steps=2)
MANY = configure(rule=trpo.RuleConfig("penalty"), value=GAUSS_NEWTON)
"""With a rule and a fit that between them have all floats but one."""
VALUES = {
    "discount": 0.5,
    "gae_lambda": 0.2,
    "rule.max_kl": 0.0003,
    "rule.damping": 2.0,
    "rule.cg_tolerance": 0.3,
    "rule.max_step_norm": 0.01,
    "rule.backtrack_ratio": 0.3,
    "rule.initial_coefficient": 0.5,
    "policy.initial_std": 0.3,
    "policy.last_layer_scale": 1.0,
    "policy.hidden_layer_scale": 0.5,
    "value.hidden_layer_scale": 0.5,
    "value.max_change": 1e-3,
}


@functools.cache
def alone(env: Walk, config: trpo.Config) -> trpo.Agent:
    return trpo.train(env, config=config, quiet=True)


@pytest.mark.usual_compiler
@pytest.mark.slow
def test_members_equal_single_runs(x64: None) -> None:
    """Every combination, in order; four of the twelve are run alone."""
    before = device_training._compile.cache_info().misses
    vary = {"rule.max-kl": [0.01, 0.05, 0.003], "value.max_change": [0.1, 1e-3]}
    agents = trpo.sweep(DOUBLE, seeds=[3, 11], vary=vary, config=MANY, quiet=True)
    assert [(a.config.rule.max_kl, a.config.value.max_change, a.config.seed) for a in agents] == [
        (kl, change, seed) for kl in (0.01, 0.05, 0.003) for change in (0.1, 0.001) for seed in (3, 11)
    ]
    assert device_training._compile.cache_info().misses == before + 1
    for agent in agents[::-3]:
        assert_close(alone(DOUBLE, agent.config), agent)
    assert len({tuple(bits(agent.learner)) for agent in agents}) == 12


@pytest.mark.usual_compiler
@pytest.mark.slow
def test_whatever_may_vary_is_what_it_would_be_alone(x64: None) -> None:
    """Every such setting changed by itself, together in one program, next to a run of which none is changed."""
    assert set(VALUES) | {"value.learning_rate"} == TRACED  # that one: below
    configs = [MANY] + [merge(MANY, nested({name: value})) for name, value in VALUES.items()]
    agents = [trpo.make_agent(DOUBLE, config) for config in configs]
    *_, progress = trpo.training.loop.advance(DOUBLE, agents, [trpo.TrainingState(agent.learner) for agent in agents])
    trained = [agent.at(state) for agent, state in zip(agents, progress.states(), strict=True)]
    for name, agent in zip(["nothing", *VALUES], trained, strict=True):
        assert_close(alone(DOUBLE, agent.config), agent)
        if name not in ("nothing", "rule.backtrack_ratio"):  # which matters where a step is refused
            assert bits(agent.learner) != bits(trained[0].learner), name


def test_members_side_by_side_equal_single_runs(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one after the other within the program, as on a CPU, but by ``vmap``, as elsewhere."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    vary = {"policy.initial_std": [0.6, 0.3], "value.max_change": [0.1, 1e-3]}
    config = dataclasses.replace(MANY, steps=MANY.batch)  # the difference grows a hundredfold with each iteration
    agents = trpo.sweep(Walk(1.5), seeds=[3], vary=vary, config=config, quiet=True)
    for agent in agents:
        assert_close(alone(DOUBLE, agent.config), agent, tolerance=1e-6)
    for a, b in itertools.combinations(agents, 2):
        apart = zip(jax.tree.leaves(a.learner), jax.tree.leaves(b.learner), strict=True)
        assert max(float(np.abs(x - y).max()) for x, y in apart) > 1e-2


def test_the_learning_rate_may_vary_too() -> None:
    """In single precision, and one iteration: rounding grows with each."""
    config, rates = configure(iterations=1), (1e-4, 1e-3, 1e-2, 1e-1)
    agents = trpo.sweep(WALK, vary={"value.learning_rate": rates}, config=config, quiet=True)
    assert [agent.config.value.learning_rate for agent in agents] == list(rates)
    start = jax.tree.leaves(trpo.make_agent(WALK, config).learner.value.params)
    # Adam's first steps are as long as the rate says, whatever the gradient.
    moved = []
    for agent in agents:
        params = jax.tree.leaves(agent.learner.value.params)
        moved.append(max(float(np.abs(a - b).max()) for a, b in zip(params, start, strict=True)))
        assert bits(agent.learner.policy) == bits(agents[0].learner.policy)
    np.testing.assert_allclose(np.array(moved) / rates, moved[0] / rates[0], rtol=0.5)


def settings(config: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        found |= settings(value, f"{prefix}{field.name}.") if inner else {prefix + field.name: value}
    return found


def test_nothing_else_may_vary_within_one_program() -> None:
    everything = settings(trpo.Config())
    assert set(everything) > TRACED
    for name in set(everything) - TRACED:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are below)
            trpo.sweep("jax-probe:both", vary={name: [everything[name]]}, config=configure(), quiet=True)
        message = str(caught.value)
        assert f"vary {name!r}" in message
        assert "\n" not in message
        if name not in ("seed", "env.id"):
            assert "compiled in" in message
            assert "rule.max_kl" in message  # what may vary


def test_one_compilation_for_all_values() -> None:
    """Four members always; the environment is looked at again for the shapes of a batch alone."""
    config, before = configure(), device_training._compile.cache_info().misses
    trpo.sweep(WALK, vary={"rule.max_kl": [0.01, 0.02, 0.03, 0.04]}, config=config, quiet=True)
    assert device_training._compile.cache_info().misses <= before + 1  # a test before this one may have made it
    programs, traced = device_training._compile.cache_info().misses, WALK.traced
    trpo.sweep(WALK, vary={"rule.max_kl": [0.1, 0.2, 0.3, 0.4]}, config=config, quiet=True)
    trpo.sweep(WALK, vary={"discount": [0.1, 0.2], "gae_lambda": [0.3, 0.4]}, config=config, quiet=True)
    trpo.sweep(WALK, seeds=[5, 6, 7, 8], config=config, quiet=True)
    assert device_training._compile.cache_info().misses == programs
    assert WALK.traced - traced <= 3


def test_a_sweep_by_name_asks_for_the_cores_unless_it_is_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed; see test_parallel.py for what that does."""
    asked: list[int] = []
    monkeypatch.setattr(sweeps, "use_cores", asked.append)
    monkeypatch.setattr(sweeps, "_train", lambda *_: [])
    config = configure(iterations=1)
    one = dataclasses.replace(config, env=trpo.EnvConfig(count=4, devices=1))
    trpo.sweep("jax-probe:action", seeds=3, vary={"discount": [0.9, 1.0]}, config=config, quiet=True)
    assert asked == [6]
    trpo.sweep("jax-probe:action", seeds=6, config=one, quiet=True)
    trpo.sweep("probe:action", seeds=6, config=config, quiet=True)
    assert asked == [6]


# ---------------------------------------------------------------- environments on the host


class Logged(gym.Env):
    """probe:both that notes its life."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, log: list[str]):
        self.log, self.state = log, 0.0
        log.append("made")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = float(self.np_random.choice([-1.0, 1.0]))
        return np.array([self.state], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.log.append("step")
        right = (int(action) == 1) == (self.state > 0)
        return np.array([self.state], np.float32), 1.0 if right else -1.0, True, False, {}

    def close(self) -> None:
        self.log.append("closed")


def test_host_environments_run_one_after_the_other_and_anything_may_vary(tmp_path: Path) -> None:
    log: list[str] = []
    config = configure(iterations=2)
    vary = {"fragment": [5, 7]}
    agents = trpo.sweep(lambda: Logged(log), seeds=2, vary=vary, config=config, out=tmp_path / "s", quiet=True)
    assert [(a.config.fragment, a.config.seed) for a in agents] == [(5, 0), (5, 1), (7, 0), (7, 1)]
    # What is made, stepped and closed for one run, in this order, and then for the next: never two at a time.
    life = [what for i, what in enumerate(log) if i == 0 or log[i - 1] != what]
    runs = "".join({"made": "m", "step": "s", "closed": "c"}[what] for what in life).removeprefix("mc" * 4)
    assert runs == "msc" * 4
    for agent in agents:
        alone = trpo.train(lambda: Logged([]), config=agent.config, quiet=True)
        assert bits(alone.learner) == bits(agent.learner)
    assert is_sweep(tmp_path / "s")
    assert len(json.loads((tmp_path / "s" / "summary.json").read_text())["runs"]) == 4


# ---------------------------------------------------------------- the directory


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[trpo.Agent]]:
    out = tmp_path_factory.mktemp("sweep") / "s"
    agents = trpo.sweep(
        "jax-probe:action",
        seeds=3,
        vary={"rule.max-kl": [0.01, 0.2]},
        config=configure(iterations=10, checkpoint_every=1000),
        out=out,
        quiet=True,
    )
    return out, agents


NAMED = [f"rule.max_kl={kl}-seed-{seed}" for kl in (0.01, 0.2) for seed in (0, 1, 2)]


def test_each_run_has_a_directory_that_is_complete_in_itself(place: tuple[Path, list[trpo.Agent]]) -> None:
    out, agents = place
    found = sorted(path.name.replace("-kl", "_kl") for path in out.iterdir())
    assert found == sorted([*NAMED, "summary.json", "sweep.json"])
    for variant, agent in zip(read_sweep(out), agents, strict=True):
        run = out / variant.name
        loaded = trpo.load(run)
        assert loaded.config == agent.config
        assert bits(loaded.learner) == bits(agent.learner)
        rows = read_metrics(run)
        assert [row["iteration"] for row in rows] == list(range(1, 11))
        assert all(row["mean_kl"] <= row["max_kl"] == pytest.approx(agent.config.rule.max_kl) for row in rows)
        assert list(run.glob("events.out.tfevents.*"))
        assert max(path.name for path in (run / "checkpoints").iterdir()) == "00000010"
        assert not is_sweep(run)
    assert is_sweep(out)
    kls = [max(row["mean_kl"] for row in read_metrics(out / v.name)) for v in read_sweep(out)]
    assert max(kls[:3]) < 0.01 < min(kls[3:])


def test_one_run_of_a_sweep_can_go_on_alone(place: tuple[Path, list[trpo.Agent]], tmp_path: Path) -> None:
    out, agents = place
    shutil.copytree(out / read_sweep(out)[4].name, tmp_path / "r")
    agent = trpo.resume(tmp_path / "r", steps=12 * 20, quiet=True)
    assert agent.config.seed == agents[4].config.seed == 1
    assert [row["iteration"] for row in read_metrics(tmp_path / "r")] == list(range(1, 13))


def test_sweep_json_says_which_run_is_which(place: tuple[Path, list[trpo.Agent]]) -> None:
    out, agents = place
    data = json.loads((out / "sweep.json").read_text())
    assert data["format"] == 1
    for record, agent in zip(data["runs"], agents, strict=True):
        (value,) = record["changes"].values()
        assert (value, record["seed"]) == (agent.config.rule.max_kl, agent.config.seed)


def test_summary_is_of_the_last_metrics(place: tuple[Path, list[trpo.Agent]]) -> None:
    out, _ = place
    data = json.loads((out / "summary.json").read_text())
    plan = read_sweep(out)
    assert list(data["runs"]) == [variant.name for variant in plan]
    for name, record in data["runs"].items():
        last = read_metrics(out / name)[-1]
        assert record == {key: last[key] for key in record}
        assert {"steps", "episode_return", "episode_length", "episodes"} <= set(record)
        assert record["steps"] == 200
    assert len(data["groups"]) == 2
    for k, group in enumerate(data["groups"]):
        returns = [data["runs"][variant.name]["episode_return"] for variant in plan[3 * k : 3 * k + 3]]
        assert (group["seeds"], group["with_return"]) == (3, 3)
        assert group["return"]["iqm"] == pytest.approx(np.mean(returns))  # of three, none is cut off
        low, high = group["return"]["low"], group["return"]["high"]
        assert min(returns) - 1e-9 <= low <= group["return"]["iqm"] <= high <= max(returns) + 1e-9
    assert data["groups"][1]["return"]["iqm"] > data["groups"][0]["return"]["iqm"] + 0.2  # the larger step learned more


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trpo.sweep("jax-probe:action", seeds=3, vary={"rule.max_kl": [0.01, 0.2]}, config=configure(), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_has_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="already exists and is not empty"):
        trpo.sweep("jax-probe:action", seeds=2, config=configure(), out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json is not JSON"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 99, "runs": []}')
    with pytest.raises(ValueError, match="format 99, but this version reads format 1"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": 0}, "seeds=0: must be ≥ 1"),
        ({"seeds": -2}, "seeds=-2: must be ≥ 1"),
        ({"seeds": []}, "must be ≥ 1"),
        ({"seeds": [1, 2, 1]}, "each seed once"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"vary": {"rule.max_kll": [0.1]}}, "did you mean rule.max_kl"),
        ({"vary": {"rule.max_kl": []}}, "one or more values"),
        ({"vary": {"rule.max_kl": [0.1, 0.1]}}, "each once"),
        ({"vary": {"rule.max_kl": [0.1, -0.1]}}, "max_kl=-0.1"),
        ({"vary": {"rule.max_kl": ["much"]}}, "rule.max_kl='much'"),
        ({"vary": {"rule": [0.1]}}, "a group of settings"),
        ({"vary": {"seed": [1, 2]}}, "use seeds"),
        ({"vary": {"value.epochs": [1, 2]}}, "compiled in"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are below)
        trpo.sweep("jax-probe:action", config=configure(), out=tmp_path / "s", quiet=True, **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("name", "values"), [("env.id", ["probe:both", "probe:action"]), ("seed", [1, 2])])
def test_two_settings_may_not_vary_on_the_host_either(name: str, values: list[Any]) -> None:
    """They would be written down and not heeded."""
    with pytest.raises(ValueError, match=f"^vary '{name}'"):
        trpo.sweep("probe:both", vary={name: values}, config=configure(), quiet=True)


def test_every_combination_in_order() -> None:
    plan = variants([4, 9], {"a": [1, 2], "b.c": ["x"]})
    assert plan[0] == Variant("a=1-b.c=x-seed-4", {"a": 1, "b.c": "x"}, 4)
    assert [(v.changes["a"], v.seed) for v in plan] == [(1, 4), (1, 9), (2, 4), (2, 9)]
    assert variants([7], {}) == [Variant("seed-7", {}, 7)]
    assert {label: [v.seed for v in some] for label, some in groups(plan).items()} == {
        "a=1 b.c=x": [4, 9],
        "a=2 b.c=x": [4, 9],
    }
    assert nested({"a-b.c": 1, "a-b.d": 2, "e": 3}) == {"a_b": {"c": 1, "d": 2}, "e": 3}


# ---------------------------------------------------------------- resuming


def test_a_sweep_goes_on_from_the_newest_common_iteration(tmp_path: Path) -> None:
    """One run has lost its newest checkpoint, as by a crash between two saves: all go back, and end bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def config(iterations: int) -> trpo.Config:
        return configure(iterations, checkpoint_every=1000)  # so saved are the beginning and each end alone

    vary = {"discount": [0.9, 0.99]}
    uninterrupted = trpo.sweep(WALK, seeds=2, vary=vary, config=config(10), out=whole, quiet=True)
    trpo.sweep(WALK, seeds=2, vary=vary, config=config(4), out=parts, quiet=True)
    resume_sweep(parts, steps=config(7).steps, env=WALK, quiet=True)
    names = [variant.name for variant in read_sweep(parts)]
    kept = {name: sorted(path.name for path in (parts / name / "checkpoints").iterdir()) for name in names}
    assert kept == {name: ["00000000", "00000004", "00000007"] for name in names}
    shutil.rmtree(parts / names[2] / "checkpoints" / "00000007")
    agents = resume_sweep(parts, steps=config(10).steps, env=WALK, quiet=True)
    for name, agent, other in zip(names, agents, uninterrupted, strict=True):
        assert bits(agent.learner) == bits(other.learner)
        newest = [place / name / "checkpoints" / "00000010" / "state.safetensors" for place in (whole, parts)]
        assert newest[0].read_bytes() == newest[1].read_bytes()  # environments included
        rows, expected = read_metrics(parts / name), read_metrics(whole / name)
        assert [row["iteration"] for row in rows] == list(range(1, 11))
        assert [untimed(row) for row in rows] == [untimed(row) for row in expected]
        assert trpo.load(parts / name).config.steps == config(10).steps
    summaries = [json.loads((place / "summary.json").read_text()) for place in (parts, whole)]
    assert summaries[0]["groups"] == summaries[1]["groups"]


def test_a_sweep_that_is_killed_between_two_saves_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run keeps one checkpoint; whenever power fails, there is an iteration of which all have one."""
    place, moments = tmp_path / "sweep", []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **more: Any) -> Any:
            shutil.copytree(place, tmp_path / f"killed-{len(moments)}")
            moments.append(name)
            return real(*arguments, **more)

        return noted

    for name in ("write_checkpoint", "prune"):
        monkeypatch.setattr(runs, name, noting(name, getattr(runs, name)))
    config = configure(4, checkpoint_every=1000, keep_checkpoints=1)  # so saved are the beginning and the end alone
    uninterrupted = trpo.sweep(WALK, seeds=2, config=config, out=place, quiet=True)
    monkeypatch.undo()
    # Two saves at the beginning, before it is a sweep; then all are saved, and then all are pruned.
    assert moments == ["write_checkpoint"] * 2 + ["write_checkpoint"] * 2 + ["prune"] * 2
    for moment in range(2, len(moments)):
        agents = resume_sweep(tmp_path / f"killed-{moment}", env=WALK, quiet=True)
        assert [bits(a.learner) for a in agents] == [bits(a.learner) for a in uninterrupted]
        rows, expected = (read_metrics(tmp_path / name / "seed-1") for name in (f"killed-{moment}", "sweep"))
        assert [untimed(row) for row in rows] == [untimed(row) for row in expected]


def test_a_sweep_and_its_runs_are_in_use_while_it_trains(place: tuple[Path, list[trpo.Agent]], tmp_path: Path) -> None:
    out = shutil.copytree(place[0], tmp_path / "sweep")
    name = read_sweep(out)[1].name
    with RunLock(out), pytest.raises(ValueError, match="in use by process"):
        resume_sweep(out, quiet=True)
    with RunLock(out / name), pytest.raises(ValueError, match="in use by process"):
        resume_sweep(out, quiet=True)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "train_runs", lambda *a, **k: taken.extend(path.parent for path in out.rglob(LOCK)) or [])
        resume_sweep(out, quiet=True)
    assert sorted(taken) == sorted([out, *(out / variant.name for variant in read_sweep(out))])
    assert list(out.rglob(LOCK)) == []


def test_a_run_s_directory_is_named_by_what_paths_may_have() -> None:
    (variant,) = variants([0], {"policy.sees": ['a/b[:2] "c"']})
    assert variant.name == "policy.sees=a_b[_2] _c_-seed-0"
    assert variant.changes == {"policy.sees": 'a/b[:2] "c"'}


def test_a_finished_sweep_stays_as_it_is(place: tuple[Path, list[trpo.Agent]]) -> None:
    out, agents = place
    before = (out / read_sweep(out)[0].name / "metrics.jsonl").read_bytes()
    again = resume_sweep(out, quiet=True)
    assert [bits(a.learner) for a in again] == [bits(a.learner) for a in agents]
    assert (out / read_sweep(out)[0].name / "metrics.jsonl").read_bytes() == before


def test_a_sweep_of_host_environments_goes_on(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    vary = {"fragment": [5, 7]}
    expected = trpo.sweep("probe:both", vary=vary, config=configure(4), steps=140, out=whole, quiet=True)
    trpo.sweep("probe:both", vary=vary, config=configure(4), steps=20, out=parts, quiet=True)
    agents = resume_sweep(parts, steps=140, quiet=True)
    assert [bits(a.learner) for a in agents] == [bits(a.learner) for a in expected]
    assert [read_metrics(parts / v.name)[-1]["iteration"] for v in read_sweep(parts)] == [7, 5]


# ---------------------------------------------------------------- summaries over seeds


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([4.0]) == 4
    assert interquartile_mean([1.0, 2.0, 6.0]) == 3  # nothing is cut off
    assert interquartile_mean([100.0, 2.0, 3.0, -50.0]) == 2.5
    assert interquartile_mean([9.0, 1.0, 2.0, 3.0, 100.0]) == pytest.approx(14 / 3)
    assert interquartile_mean([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0]) == 2.5


@pytest.mark.parametrize("n", [4, 7, 8, 10, 13, 40])
def test_interquartile_mean_is_scipy_s_and_numpy_s(n: int) -> None:
    scores = np.random.default_rng(n).standard_cauchy((3, n))
    middle = np.sort(scores)[:, n // 4 : n - n // 4].mean(-1)
    np.testing.assert_allclose(interquartile_mean(scores), middle, rtol=1e-12)
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(interval(scores).iqm, middle, rtol=1e-12)


def test_the_interval_is_a_percentile_bootstrap() -> None:
    """SciPy's, of 20,000 draws. An end from 2,000 draws has an error of about a twentieth of the interval's width."""
    scores = np.random.default_rng(0).exponential(size=12)
    iqm: Callable[..., Any] = lambda x, axis: stats.trim_mean(x, 0.25, axis=axis)  # noqa: E731
    theirs = stats.bootstrap(
        (scores,), iqm, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    ours = interval(scores)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)
    assert interval(scores) == ours  # the same draws every time
    assert set(ours.to_json()) == {"iqm", "low", "high"}


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_the_interval_covers_the_truth_in_95_of_100_cases(law: str) -> None:
    """A thousand samples of twenty seeds: the frequency has a standard error of 0.7 %.

    A percentile bootstrap is known to fall short by a few per cent in samples of this size; allowed are 2 % more.
    """
    distribution = stats.norm if law == "normal" else stats.expon
    truth = 2 * integrate.quad(distribution.ppf, 0.25, 0.75)[0]
    scores = distribution.rvs(size=(1000, 20), random_state=np.random.default_rng(0))
    covered = []
    for some in np.split(scores, 4):
        found = interval(some)
        covered.append((found.low <= truth) & (truth <= found.high))
    frequency = np.mean(covered)
    assert 0.95 - 0.02 - 3 * 0.007 < frequency < 0.95 + 3 * 0.007


def test_of_one_seed_the_interval_is_that_value() -> None:
    found = interval([3.5])
    assert (found.iqm, found.low, found.high) == (3.5, 3.5, 3.5)


def test_curves_on_a_common_grid() -> None:
    """Each curve's latest known value at or before a step."""
    grid, values = curves_on_grid([([10, 20, 30], [1.0, np.nan, 3.0]), ([5, 25, 60], [7.0, 8.0, 9.0])], points=6)
    np.testing.assert_allclose(grid, [5, 10, 15, 20, 25, 30])
    np.testing.assert_array_equal(values[:, 0], [np.nan, 1, 1, 1, 1, 3])
    np.testing.assert_array_equal(values[:, 1], [7, 7, 7, 7, 8, 8])
    _, nothing = curves_on_grid([([1, 2], [np.nan, np.nan])], points=2)
    assert np.isnan(nothing).all()


# ---------------------------------------------------------------- the command line

SMALL = ["--env.count", "4", "--fragment", "5", "--policy.hidden", "8", "--value.hidden", "8", "--value.minibatch", "8"]
SMALL += ["--value.epochs", "2", "--checkpoint-every", "1000"]


def test_train_evaluate_resume(here: Callable[..., Any], tmp_path: Path) -> None:
    vary = ["--vary", "rule.max-kl=0.01,0.02", "--seeds", 3]
    done = here("train", "jax-probe:action", *vary, "--steps", 60, *SMALL)
    assert done.returncode == 0, done.stderr
    out = Path("runs/jax-probe-action-sweep")
    names = [variant.name for variant in read_sweep(tmp_path / out)]
    assert len(names) == 6
    assert f"trpo evaluate {out}" in done.stderr
    assert "batch of 6 runs × 4 environments × 5 steps; memory" in done.stderr
    assert "360/360 steps" in done.stderr  # of all
    assert [trpo.load(out / name).config.rule.max_kl for name in names] == [0.01] * 3 + [0.02] * 3

    told = here("evaluate", out, "--episodes", 2)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert len(lines) == 8
    for name, line in zip(names, lines[:6], strict=True):
        assert line.startswith(f"{out / name} at 60 steps: return ")
    assert "max_kl=0.02, 3 seeds: interquartile mean " in lines[7].replace("max-kl", "max_kl")
    data = json.loads(here("evaluate", out, "--episodes", 2, "--json").stdout)
    assert list(data["runs"]) == names
    for label, members in groups(read_sweep(out)).items():
        means = [data["runs"][variant.name]["mean_return"] for variant in members]
        assert data["groups"][label]["iqm"] == pytest.approx(np.mean(means))

    done = here("resume", out, "--steps", 100, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [read_metrics(out / name)[-1]["steps"] for name in names] == [100] * 6
    again = here("train", "jax-probe:action", "--seeds", 6, "--steps", 20, *SMALL, "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert is_sweep(Path(f"{out}-2"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jax-probe:acton", "--seeds", "2"], ["probe:action"]),
        (["jax-probe:action", "--seeds", "0"], ["seeds=0", "≥ 1"]),
        (["jax-probe:action", "--seeds", "x"], ["--seeds"]),
        (["jax-probe:action", "--vary", "rule.max-kl"], ["'rule.max-kl'", "SETTING=VALUE,VALUE"]),
        (["jax-probe:action", "--vary", "rule.max-kl="], ["'rule.max-kl='", "SETTING=VALUE,VALUE"]),
        (["jax-probe:action", "--vary", "=1"], ["SETTING=VALUE,VALUE"]),
        (["jax-probe:action", "--vary", "rule.max-kll=1"], ["rule.max_kll", "did you mean rule.max_kl"]),
        (["jax-probe:action", "--vary", "rule.max-kl=0.1,0.1"], ["rule.max_kl", "each once"]),
        (["jax-probe:action", "--vary", "rule.max-kl=0.1,-1"], ["max_kl=-1", "0.01"]),
        (["jax-probe:action", "--vary", "rule.max-kl=big"], ["rule.max_kl='big'"]),
        (["jax-probe:action", "--vary", "seed=1,2"], ["--seeds"]),
        (["jax-probe:action", "--vary", "fragment=8,16"], ["vary 'fragment'", "compiled in"]),
        (["jax-probe:action", "--seeds", "2", "--steps", "1"], ["steps=1", "4 × 5 = 20"]),
        (["jax-probe:action", "--seeds", "2", "--env.workers", "2"], ["env.workers=2", "use 0"]),
        (["jax-probe:action", "--seeds", "2", "--env.devices", "64"], ["env.devices=64", "there are"]),
        (["jax-probe:action", "--env.count", "1000000000", "--steps", "10000000000"], ["env.count=1000000000", "GiB"]),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], here: Callable[..., Any]
) -> None:
    # A flag that comes twice counts as it is given last.
    done = here("train", arguments[0], *SMALL, *arguments[1:], "--quiet")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("trpo: ")
    for word in words:
        assert word in lines[0]


def test_what_a_finished_sweep_recommends_works(here: Callable[..., Any], place: tuple[Path, list[Any]]) -> None:
    done = here("plot", place[0], "--out", "curves.png")
    assert done.returncode == 0, done.stderr
