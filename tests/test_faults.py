"""Kinds of faults, as a list: what happens, how, and what must be right or be said. One member of each kind.

The files of each room test the rest of a kind. Three lists: what was wrong without a word, what was refused although it
can be done, and what cannot be done and must be refused in words that help.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo
from tests.helpers import run_process
from trpo.cli.main import main
from trpo.envs.names import resolve
from trpo.running_statistics import RunningStatistics
from trpo.runs.progress import joint_metrics
from trpo.runs.sinks import read_metrics
from trpo.runs.train import configure, read_run
from trpo.settings.presets import apply_preset
from trpo.training.agent import evaluate

NETWORKS: dict[str, Any] = {
    "policy": trpo.PolicyConfig(hidden=(4,)),
    "value": trpo.ValueConfig(hidden=(4,), minibatch=16),
}
SMALL = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig(count=4), **NETWORKS)
FLAGS = ["--steps", "32", "--fragment", "8", "--env.count", "4", "--policy.hidden", "4", "--value.hidden", "4"]


class Task(gym.Env):
    """Ten steps of noise, whose reward the action decides; each fault is one thing that it does otherwise."""

    observation_space: gym.Space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space: gym.Space = gym.spaces.Discrete(2)

    def __init__(self, **otherwise: Any):
        for name, value in otherwise.items():
            setattr(self, name, value)
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}

    def seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reward(self, action: Any) -> Any:
        return float(action) - 0.5

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.seen(), self.reward(action), self.time == 10, False, {}


def task(**otherwise: Any) -> Callable[[], gym.Env]:
    def task() -> gym.Env:
        return Task(**otherwise)

    return task


def train(settings: trpo.Config = SMALL, out: Path | None = None, **otherwise: Any) -> trpo.Agent:
    return trpo.train(task(**otherwise), config=settings, out=out, quiet=True)


def metrics_of(settings: trpo.Config = SMALL, **otherwise: Any) -> list[dict[str, Any]]:
    env = task(**otherwise)
    return [metrics for _, metrics in trpo.iterations(env, trpo.make_agent(env, settings), settings)]


# Wrong without a word


def small_units(place: Path) -> Any:
    x = jnp.asarray([1e-7, -1e-7])
    statistics = RunningStatistics.zeros((), x.dtype).merge(x, jnp.full(2, 0.5))
    return np.asarray(statistics.freeze(10.0)(x)).round(3).tolist()


def unit_of_reward(place: Path) -> Any:
    found = []
    for unit in (1.0, 2.0**-26):
        last = metrics_of(reward=lambda action, unit=unit: unit * (float(action) - 0.5))[-1]
        found.append((last["explained_variance"], last["episode_return"] / unit, last["mean_kl"]))
    return np.allclose(*found, rtol=1e-3, atol=1e-4)


def one_buffer(place: Path) -> Any:
    buffer, number = np.zeros(2, np.float32), iter(range(1000))

    def seen() -> np.ndarray:
        buffer[:] = next(number)
        return buffer

    envs = trpo.make_envs(task(seen=seen, observation_space=gym.spaces.Box(-1, 1e3, (2,), np.float32)), 3)
    envs.reset([0, 1, 2])
    before = next(number)
    return (envs.step(np.zeros(3, int)).observation[:, 0] - before).tolist()


def unbounded_integers(place: Path) -> Any:
    space = gym.spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64)
    agent = trpo.make_agent(task(action_space=space), SMALL)
    return all(space.contains(agent.act(np.zeros(2), deterministic=False, seed=seed)) for seed in range(20))


def progress_of_a_sweep(place: Path) -> Any:
    members = [{"mean_kl": 0.0005, "max_kl": 0.001}, {"mean_kl": 0.0979, "max_kl": 0.1}]
    rest = {"steps": 1, "episode_return": 1.0, "steps_per_second": 1.0, "result": "accepted", "iteration": 1}
    shown = joint_metrics([{**rest, **member} for member in members])
    return shown["mean_kl"], shown["max_kl"]


def integral_floats(place: Path) -> Any:
    # Unwrapped: the tests' checks of types would refuse what the library takes.
    inspect.unwrap(trpo.train)("probe:both", config=SMALL, steps=6.4e1, seed=np.int64(3), out=place / "r", quiet=True)
    inspect.unwrap(trpo.resume)(place / "r", steps=9.6e1, quiet=True)
    config = trpo.load(place / "r").config
    return config.steps, config.seed, type(config.steps), len(read_metrics(place / "r"))


def preset_of_a_family(place: Path) -> Any:
    return apply_preset(configure("HalfCheetah", SMALL, "none"), "auto")[1] != "none"


WRONG: list[tuple[str, Callable[[Path], Any], Any]] = [
    ("observations of small units are not normalised", small_units, [1.0, -1.0]),
    ("learning depends on the unit of reward", unit_of_reward, True),
    ("environments share one buffer", one_buffer, [1.0, 2.0, 3.0]),
    ("an unbounded integer space counts as bounded", unbounded_integers, True),
    ("a sweep's progress shows one run's KL beside another's bound", progress_of_a_sweep, (0.0979, 0.1)),
    ("what was trained with steps=64.0 cannot be read", integral_floats, (96, 3, int, 3)),
    ("an id without its version gets no preset", preset_of_a_family, True),
]


@pytest.mark.parametrize(("how", "right"), [pytest.param(how, right, id=what) for what, how, right in WRONG])
def test_is_right(how: Callable[[Path], Any], right: Any, tmp_path: Path) -> None:
    assert how(tmp_path) == right


# Refused, or stopped, although it can be done


def rewards_of_shape_1(place: Path) -> None:
    train(reward=lambda action: np.array([1.0]))


def nans_are_debugged(place: Path) -> None:
    with jax.debug_nans(True):
        train()


def an_endless_environment(place: Path) -> None:
    agent = trpo.make_agent(task(step=lambda action: (np.zeros(2, np.float32), 1.0, False, False, {})), SMALL)
    assert agent.evaluate(2, max_steps=50).lengths == (50, 50)


class StartsProcesses(Task):
    def reset(self, **how: Any) -> Any:
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()
        return super().reset(**how)


def processes_in_a_worker(place: Path) -> None:
    envs = trpo.make_envs(StartsProcesses, 2, workers=1)
    try:
        envs.reset([0, 1])
    finally:
        envs.close()


def another_count(place: Path) -> None:
    agent = train(out=place / "r")
    loaded, state, _ = read_run(place / "r", env=Task)
    assert loaded.spec == agent.spec
    more = dataclasses.replace(loaded.config, steps=128, env=dataclasses.replace(loaded.config.env, count=6))
    assert [metrics["steps"] for _, metrics in trpo.iterations(Task, loaded, more, state)] == [112, 160]


def an_observation_as_it_came(place: Path) -> None:
    space = gym.spaces.Dict({"eye": gym.spaces.Box(-1, 1, (2,), np.float32), "place": gym.spaces.Discrete(5, start=7)})
    agent = trpo.make_agent(task(observation_space=space), SMALL)
    assert agent.act(space.sample()) in Task.action_space


def numbers_as_people_write_them(place: Path) -> None:
    command = ["train", "probe:both", "--steps", "1e2", "--out", str(place / "r"), "--quiet"]
    assert main([*command, *FLAGS[2:6], "--policy.hidden", "4,4", "--value.hidden", "4"]) == 0
    config = trpo.load(place / "r").config
    assert (config.steps, config.policy.hidden) == (100, (4, 4))


def installed(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the console script, which is not where it is called."""
    script = place / "bin" / "command.py"
    script.parent.mkdir()
    script.write_text("from trpo.cli.main import entry_point\nentry_point()\n")
    return run_process([sys.executable, str(script), *arguments], cwd=place, env={**os.environ, **environment})


def help_in_ascii(place: Path) -> None:
    assert installed(place, "--help", PYTHONIOENCODING="ascii").returncode == 0


POSSIBLE: list[tuple[str, Callable[[Path], None]]] = [
    ("a reward is an array of one number", rewards_of_shape_1),
    ("JAX_DEBUG_NANS stops a policy that has no σ", nans_are_debugged),
    ("an environment never ends an episode", an_endless_environment),
    ("an environment starts processes, in a worker", processes_in_a_worker),
    ("a run goes on with another number of environments", another_count),
    ("an observation is a Dict with a Discrete part", an_observation_as_it_came),
    ("numbers on the command line are 1e2 and 4,4", numbers_as_people_write_them),
    ("the terminal knows ASCII only", help_in_ascii),
]


@pytest.mark.parametrize("how", [pytest.param(how, id=what) for what, how in POSSIBLE])
def test_can_be_done(how: Callable[[Path], None], tmp_path: Path) -> None:
    how(tmp_path)


# Refused in words that name what is wrong, and what is right


def in_another_environment(place: Path) -> Any:
    return evaluate(trpo.make_agent(Task, SMALL), task(action_space=gym.spaces.Discrete(5, start=7)), 1)


def act_on(observation: Any, place: Path) -> Any:
    return trpo.make_agent(Task, SMALL).act(observation)


def trained(place: Path, **otherwise: Any) -> Any:
    return train(**otherwise)


def given(env: Any, place: Path) -> Any:
    return inspect.unwrap(resolve)(env, SMALL.env)


def settings(place: Path, **changes: Any) -> Any:
    return trpo.PolicyConfig(**changes)


def empty_space(place: Path) -> Any:
    return trpo.make_agent(task(observation_space=gym.spaces.Box(-1, 1, (0,), np.float32)), SMALL)


def config_and_preset(place: Path) -> Any:
    return trpo.train("probe:both", config=SMALL, preset="ant", quiet=True)


REFUSED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("7 observations in one array of the wrong form", partial(act_on, np.zeros((4, 7))), r"\(4, 7\).*\(N, 2\)"),
    ("4 numbers where an observation has 2", partial(act_on, np.zeros(4)), r"\(4,\).*\(2,\)"),
    ("an observation is not a number", partial(act_on, np.float32([0, np.nan])), "(?i)nan"),
    ("an agent meets other spaces", in_another_environment, r"Discrete\(2\).*Discrete\(5, start=7\)"),
    ("rewards are two numbers", partial(trained, reward=lambda a: np.ones(2)), "task.*reward"),
    (
        "a step has four values",
        partial(trained, step=lambda a: (np.zeros(2), 1.0, False, {})),
        "task.*(four|4|five|5)",
    ),
    ("a reset has no info", partial(trained, reset=lambda **how: np.zeros(2, np.float32)), "task.*reset.*info"),
    ("σ is infinite", partial(settings, initial_std=float("inf")), "policy.initial_std=inf"),
    ("an observation space is empty", empty_space, "(?i)empty"),
    ("a preset beside a configuration", config_and_preset, "preset='ant'.*config|config.*preset"),
    ("an environment that is made already", partial(given, Task()), "pass"),
    ("a list of environments", partial(given, ["CartPole-v1"]), "must be"),
    ("no environment", partial(given, None), "must be"),
]


@pytest.mark.parametrize(("how", "said"), [pytest.param(how, said, id=what) for what, how, said in REFUSED])
def test_is_refused(how: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, trpo.RunFailed), match=f"(?s){said}") as refused:
        how(tmp_path)
    assert "\n" not in str(refused.value)


FAILS = """
import gymnasium as gym

def fails():
    raise RuntimeError("no licence for this simulator")

gym.register("Fails-v0", fails)
"""
TALKS = """
import gymnasium as gym

class Talks(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, **how):
        self.time = 0
        print("hello from the simulator")
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), 1.0, self.time == 10, False, {}

gym.register("Talks-v0", Talks)
"""
PATH = os.pathsep.join([str(Path(trpo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
LONG = "x" * 300
COMMANDS: list[tuple[str, list[str], int, str]] = [
    ("an environment cannot be made", ["train", "faulty_envs:Fails-v0"], 2, "no licence"),
    ("a module fails when it is imported", ["train", "failing_module:Any-v0"], 2, "failing_module.*broken import"),
    ("a run is to lie below a file", ["train", "probe:both", "--out", "file/run"], 2, "file"),
    ("a run's name is too long", ["train", "probe:both", "--out", LONG], 2, "name too long"),
    ("a flag is mistyped", ["train", "probe:both", "--rule.maxkl", "0.1"], 2, "rule.max-kl"),
    ("a command is mistyped", ["trian", "probe:both"], 2, "train"),
    ("an environment of another package", ["train", "Metaworld/MT1"], 2, "pip install metaworld"),
    ("not a run", ["resume", "file"], 2, "file"),
]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, with a user's modules and a file in it; nothing else finds the modules."""
    (tmp_path / "faulty_envs.py").write_text(FAILS)
    (tmp_path / "talking_envs.py").write_text(TALKS)
    (tmp_path / "failing_module.py").write_text("raise RuntimeError('broken import')\n")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("faulty_envs", "talking_envs", "failing_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [pytest.param(how, code, said, id=what) for what, how, code, said in COMMANDS]
)
def test_is_told_in_one_line(
    arguments: list[str], code: int, said: str, room: Path, monkeypatch: pytest.MonkeyPatch, here: Callable[..., Any]
) -> None:
    monkeypatch.syspath_prepend(str(room))
    monkeypatch.chdir(room)
    result = here(*arguments, *(FLAGS if arguments[0] == "train" else []))
    assert result.returncode == code
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("trpo: ")]
    assert re.search(f"(?i){said}", line), line
    assert "Traceback" not in result.stderr


def test_results_are_one_json_object_whatever_an_environment_prints(
    room: Path, monkeypatch: pytest.MonkeyPatch, here: Callable[..., Any]
) -> None:
    """And its module is found in the directory where the command is run."""
    done = installed(room, "train", "talking_envs:Talks-v0", *FLAGS, "--out", "run", "--quiet", PYTHONPATH=PATH)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(room))
    monkeypatch.chdir(room)
    result = here("evaluate", "run", "--episodes", 1, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["lengths"] == [10]


def test_a_finished_run_says_that_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trpo.train("probe:both", config=SMALL, out=tmp_path / "r", quiet=True)
    trpo.resume(tmp_path / "r")
    assert re.search("finished|done|has all", capfd.readouterr().err)
