"""Several processes train the run of one: the same environments, noise and decisions, parameters but for rounding.

They are started once: a pair, and beside it one alone, which runs the same script. In double precision, so that what
rounding does to a simulator stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo
from tests.helpers import end_processes, run_process, start_process, untimed
from trpo.cli.local import without_local
from trpo.runs.sinks import read_metrics
from trpo.settings.config import HostsConfig

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

SCRIPT = """
import dataclasses, pickle, sys
import gymnasium as gym, jax, numpy as np
jax.config.update("jax_enable_x64", True)
import trpo
from trpo.envs.plain import to_plain
from trpo.training import hosts, shares
from trpo.settings.config import HostsConfig

out, count, index, where = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if count > 1:
    hosts.join(HostsConfig(coordinator=where, count=count, index=index))
    assert (hosts.count(), hosts.index()) == (count, index)
found = {"fragments": []}

hand_in = shares.Shares.hand_in
def noted(self, collected):
    found["fragments"].append(jax.tree.map(np.array, collected.trajectory.steps()))
    return hand_in(self, collected)
shares.Shares.hand_in = noted


class Broken(gym.Env):
    "The copy of index 4 (one more is made for its spaces) raises, or its reward is not a number, from step 5 on."
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,))
    made = 4 * index

    def __init__(self, how):
        self.how, self.copy, self.time = how, Broken.made, 0
        Broken.made += 1

    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        bad = self.copy == 5 and self.time > 4
        if bad and self.how == "raise":
            raise RuntimeError("the arm is jammed")
        return np.zeros(2, np.float32), np.nan if bad else 0.0, False, False, {}


small = dict(policy=trpo.PolicyConfig(hidden=(8,)), value=trpo.ValueConfig(hidden=(8,), minibatch=24, epochs=2))
memory = dict(
    policy=trpo.PolicyConfig(hidden=(4,), trunk="gru", memory=4),
    value=trpo.ValueConfig(hidden=(4,), trunk="gru", memory=4, minibatch=64, epochs=2),
)
vine = dict(rollout="vine", vine=trpo.VineConfig(every=8, actions=2, length=4))
CASES = {
    "plain": ("Pendulum-v1", trpo.Config(fragment=32, env=trpo.EnvConfig(count=8, stagger=True), **small), 4),
    "memory": ("Pendulum-v1", trpo.Config(fragment=32, env=trpo.EnvConfig(count=8), **memory), 2),
    "vine": ("CartPole-v1", trpo.Config(fragment=32, env=trpo.EnvConfig(count=8), **(small | vine)), 2),
}


def run(env, config, iterations, state=None):
    agent = trpo.make_agent(env, config)
    rows = []
    loop = trpo.iterations(env, agent, dataclasses.replace(config, steps=10**9), state)
    for _ in range(iterations):
        state, metrics = next(loop)
        rows.append(metrics)
    loop.close()
    return agent, state, rows


def arrays(learner):  # all but the optimiser's moments, which are of the size of single gradients
    value = learner.value.params, learner.value.returns, learner.value_carry
    tree = learner.policy, learner.average, learner.observations, value
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def outcome(state, rows):
    learned = arrays(state.learner)
    simulators = to_plain(state.source.environments) if state.source else None
    return {"rows": rows, "learned": learned, "episodes": state.episodes, "simulators": simulators}


def message(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)


for name, (env, config, iterations) in CASES.items():
    found["fragments"] = []
    agent, state, rows = run(env, config, iterations)
    begun = arrays(agent.learner)
    found[name] = outcome(state, rows) | {"fragments": list(found["fragments"]), "begun": begun}
    if name == "plain":
        found["resumed"] = outcome(*run(env, config, 1, state)[1:])
        if index == 0:
            agent.at(state).save(out + ".agent")
config = dataclasses.replace(CASES["plain"][1], env=trpo.EnvConfig(count=8))
for how in ("raise", "nan"):
    found[how] = message(lambda: run(lambda: Broken(how), config, 2))  # it is raised when one goes on
    Broken.made = 4 * index
other = dataclasses.replace(config, discount=0.9 + 0.05 * index)
found["other settings"] = message(lambda: run("Pendulum-v1", other, 1))
found["uneven"] = message(lambda: run("Pendulum-v1", dataclasses.replace(config, env=trpo.EnvConfig(count=7)), 1))
pickle.dump(found, open(f"{out}.{index}", "wb"))
"""


def free_address() -> str:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each process of a pair found, and one alone."""
    place, where = tmp_path_factory.mktemp("hosts"), free_address()
    started = {}
    for name, count in (("one", 1), ("two", 2)):
        for i in range(count):
            command = [sys.executable, "-c", SCRIPT, str(place / name), str(count), str(i), where]
            started[name, i] = start_process(command, env={**os.environ, "XLA_FLAGS": QUICK})
    found: dict[str, list[dict[str, Any]]] = {"one": [], "two": []}
    for (name, i), process in started.items():
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, f"{name} {i}: {err}"
        found[name].append(pickle.loads((place / f"{name}.{i}").read_bytes()))
    return found


CASES = ("plain", "memory", "vine")


def assert_near(ours: list[np.ndarray], others: list[np.ndarray], size: float = 1e-6) -> None:
    """Of each array the largest difference is at most ``size`` of its largest element, or of 0.1."""
    for a, b in zip(ours, others, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0.0) <= size * np.abs(b).max(initial=0.1)


DECISIONS = ("result", "backtracks", "steps", "episodes", "cg_iterations", "accepted_updates")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_collect_the_batch_of_one(case: str, outcomes: dict[str, Any]) -> None:
    """The first bit for bit, each its half of it; later ones as near as the parameters are."""
    (whole,), halves = ([one[case]["fragments"] for one in outcomes[name]] for name in ("one", "two"))
    for k, fragment in enumerate(whole):
        together = jax.tree.map(lambda *parts: np.concatenate(parts, 1), *(half[k] for half in halves))
        for a, b in zip(jax.tree.leaves(fragment), jax.tree.leaves(together), strict=True):
            if k == 0:
                assert a.dtype == b.dtype
                assert a.tobytes() == b.tobytes()
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(case: str, outcomes: dict[str, Any]) -> None:
    (one,), pair = ([each[case] for each in outcomes[name]] for name in ("one", "two"))
    moved = [np.abs(a - b).max() for a, b in zip(one["begun"], one["learned"], strict=True)]
    assert max(moved) > 1e-3
    for other in pair:
        assert [[row[k] for k in DECISIONS] for row in other["rows"]] == [
            [r[k] for k in DECISIONS] for r in one["rows"]
        ]
        assert_near(other["learned"], one["learned"])
        for a, b in zip(one["rows"], other["rows"], strict=True):
            for name in untimed(a):
                assert a[name] == b[name] or a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-8), name


def test_the_state_of_all_environments_is_gathered(outcomes: dict[str, Any]) -> None:
    """As a checkpoint has it: simulators and account of episodes, in the order of one process."""
    (one,), pair = ([each["plain"] for each in outcomes[name]] for name in ("one", "two"))
    for other in pair:
        assert len(other["simulators"]) == len(one["simulators"]) == 8
        assert other["episodes"]["running_length"] == one["episodes"]["running_length"]
        assert other["episodes"]["first"] == one["episodes"]["first"]
        assert np.allclose(other["episodes"]["running_return"], one["episodes"]["running_return"], rtol=1e-5)
        recent = [np.array(each["episodes"]["recent"]) for each in (other, one)]
        assert recent[0].shape == recent[1].shape
        assert np.allclose(*recent, rtol=1e-5)
        (again,), others = ([each["resumed"] for each in outcomes[name]] for name in ("one", "two"))
        for resumed in others:
            assert_near(resumed["learned"], again["learned"])


def test_what_one_process_meets_ends_all_and_names_it(outcomes: dict[str, Any]) -> None:
    (one,), (first, second) = outcomes["one"], outcomes["two"]
    assert second["raise"] == one["raise"]
    assert one["raise"][0] == "EnvironmentFailure"
    assert "the arm is jammed" in one["raise"][1]
    kind, said = first["raise"]
    assert kind == "HostFailure"
    assert said == f"process 1 on {socket.gethostname()}: {one['raise'][1]}"
    assert one["nan"][0] == "NonFiniteBatchError"
    assert "reward nan of copy 4, at step 4" in one["nan"][1]
    assert first["nan"] == second["nan"] == one["nan"]


def test_processes_that_cannot_train_together_are_refused(outcomes: dict[str, Any]) -> None:
    (one,), pair = outcomes["one"], outcomes["two"]
    assert one["other settings"] is None
    assert one["uneven"] is None
    for each in pair:
        kind, said = each["other settings"]
        assert kind == "ValueError"
        assert "process 1 has discount=0.95" in said
        assert "process 0 has 0.9" in said
        kind, said = each["uneven"]
        assert kind == "ValueError"
        assert said == "env.count=7: 2 processes do not divide it; use 6 or 8"


SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "ompi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (KUBERNETES, "k8s"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_who_has_started_several_processes_is_found(environment: dict[str, str], found: str | None) -> None:
    assert HostsConfig().cluster(environment) == found
    assert HostsConfig(auto=False).cluster(environment) is None
    assert HostsConfig(coordinator="here:1", count=1).cluster(environment) is None
    assert HostsConfig(local=2).cluster(environment) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"local": 0}, "hosts.local=0: must be ≥ 1"),
        ({"count": 2}, "hosts.count=2: must be left out without hosts.coordinator"),
        ({"coordinator": "node", "count": 2}, "hosts.coordinator='node': must be HOST:PORT"),
        ({"coordinator": "node:0", "count": 2}, "hosts.coordinator='node:0': must be HOST:PORT"),
        ({"coordinator": "node:1"}, "hosts.count=0: must be ≥ 1"),
        ({"coordinator": "node:1", "count": 2, "index": 2}, "hosts.index=2: must be from 0 to 1"),
        ({"coordinator": "node:1", "count": 2, "local": 2}, "hosts.local=2: must be 1"),
    ],
)
def test_settings_of_hosts_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="hosts") as refused:
        HostsConfig(**settings)
    assert said in str(refused.value)


def test_how_a_run_was_started_is_no_setting_of_it() -> None:
    assert "hosts" not in trpo.Config().to_json()


def test_the_processes_are_started_without_the_flag_that_starts_them() -> None:
    given = ["Hopper-v5", "--hosts.local", "2", "--seed", "3", "--hosts.local=4", "--out", "x"]
    assert without_local(given) == ["Hopper-v5", "--seed", "3", "--out", "x"]


TRAIN = (
    "train",
    "probe:continuous",
    "--fragment",
    "16",
    "--env.count",
    "4",
    "--preset",
    "none",
    "--value.epochs",
    "2",
    "--checkpoint-every",
    "1",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trpo", *arguments]


@pytest.mark.parametrize("index", ["0", "1"])
def test_processes_that_do_not_meet_are_not_waited_for(index: str, tmp_path: Path) -> None:
    """Neither the coordinator by the others, nor they by it."""
    where = free_address()
    hosts = ("--hosts.coordinator", where, "--hosts.count", "2", "--hosts.index", index, "--hosts.patience", "1")
    done = run_process(command(*TRAIN, "--steps", "64", "--out", str(tmp_path / "run"), *hosts))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"trpo: hosts: {where}: not all processes have met within 1 s;")
    assert not (tmp_path / "run").exists()


class Local:
    """A run of two processes that ``--hosts.local`` has started."""

    def __init__(self, out: Path):
        self.out = out
        flags = ("--steps", "1e9", "--out", str(out), "--hosts.local", "2")
        self.process = start_process(command(*TRAIN, *flags), env={**os.environ, "XLA_FLAGS": QUICK})

    def wait_for(self, iterations: int) -> None:
        until = time.monotonic() + 240
        while not (self.out / "metrics.jsonl").exists() or len(read_metrics(self.out)) < iterations:
            if time.monotonic() > until or self.process.poll() is not None:
                pytest.fail(f"{self.process.communicate(timeout=5)}")
            time.sleep(0.05)

    def members(self) -> list[int]:
        """Return the processes, in the order of their indices."""
        table = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(None, 2) for line in table.splitlines()]
        ours = {args.rpartition("--hosts.index ")[2]: int(pid) for pid, up, args in rows if int(up) == self.process.pid}
        return [ours[str(i)] for i in range(len(ours))]

    def end(self) -> tuple[int, list[str]]:
        """Return the exit code, and what was said at the end."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, [line for line in said.splitlines() if line.startswith("trpo: ")]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Callable[[], Local]]:
    started: list[Local] = []

    def start() -> Local:
        started.append(Local(tmp_path / f"run{len(started)}"))
        return started[-1]

    yield start
    end_processes([run.process for run in started])


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_processes_of_one_command_stop_together_and_one_goes_on(local: Callable[[], Local]) -> None:
    run = local()
    run.wait_for(2)
    members = run.members()
    run.process.send_signal(signal.SIGINT)
    code, said = run.end()
    assert code == 130
    (line,) = said
    assert "interrupted; checkpoint of iteration" in line
    assert f"trpo resume {run.out}" in line
    assert all(map(_gone, members))
    # What it has done is what one process does, which also goes on with it.
    iterations = len(read_metrics(run.out))
    steps = str(64 * (iterations + 1))
    alone = run.out.with_name("alone")
    for flags in ((*TRAIN, "--steps", steps, "--out", str(alone)), ("resume", str(run.out), "--steps", steps)):
        done = run_process(command(*flags, "--quiet"), env={**os.environ, "XLA_FLAGS": QUICK})
        assert done.returncode == 0, done.stderr
        assert "new episodes begin" not in done.stderr
    ours, others = (json.loads((place / "config.json").read_text()) for place in (run.out, alone))
    assert ours["config"] | {"steps": 0} == others["config"] | {"steps": 0}
    for a, b in zip(read_metrics(run.out), read_metrics(alone), strict=True):
        for name in untimed(a):
            assert a[name] == b[name] or a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.slow
def test_a_process_that_is_killed_ends_all(which: int, local: Callable[[], Local]) -> None:
    run = local()
    run.wait_for(2)
    members = run.members()
    killed = time.monotonic()
    os.kill(members[which], signal.SIGKILL)
    code, said = run.end()
    assert (code, len(said)) == (1, 1)
    assert f"process {which} of 2 was killed by SIGKILL" in said[0]
    assert time.monotonic() - killed < 30  # half a second, on a machine with nothing else to do
    assert all(map(_gone, members))
    assert trpo.load(run.out).learner is not None
