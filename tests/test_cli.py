"""The command line as a user types it: real processes, real files."""

import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo
from tests.helpers import run_process, start_process
from trpo.cli.help import parse
from trpo.cli.main import COMMANDS
from trpo.cli.options import Train, gathered, varied
from trpo.runs.sinks import read_metrics
from trpo.settings.config import merge, settings_of
from trpo.settings.presets import names

KEYS = {
    "iteration", "steps", "seconds", "steps_per_second", "episode_return", "episode_length", "result",
    "surrogate_gain", "predicted_gain", "mean_kl", "max_kl", "max_state_kl", "cg_iterations", "cg_residual",
    "backtracks", "step_fraction", "entropy", "explained_variance",
}  # fmt: skip
SMALL = ["--env.count", "4", "--fragment", "8", "--policy.hidden", "8", "--value.hidden", "8"]


def cli(*arguments, cwd=None, timeout=240):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "trpo", *map(str, arguments)]
    return run_process(command, timeout, cwd=cwd)


def one_line(result, code):
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("trpo: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    result = cli("train", "probe:both", "--steps", 320, "--out", out, *SMALL, "--checkpoint-every", 3)
    assert result.returncode == 0, result.stderr
    return out


def test_train_leaves_a_run_directory(run):
    assert (run / "config.json").is_file()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["00000006", "00000009", "00000010"]
    assert list(run.glob("events.out.tfevents.*"))
    records = read_metrics(run)
    assert [r["iteration"] for r in records] == list(range(1, 11))
    assert set(records[0]) >= KEYS
    for r in records:
        assert r["mean_kl"] <= r["max_kl"]


def test_progress_is_plain_when_not_a_terminal(tmp_path, here):
    result = here("train", "probe:both", "--steps", 64, "--out", tmp_path / "r", *SMALL)
    assert "\x1b" not in result.stderr + result.stdout
    assert "64/64 steps" in result.stderr
    assert "KL" in result.stderr
    quiet = here("train", "probe:both", "--steps", 64, "--out", tmp_path / "q", *SMALL, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_evaluate_prints_one_json_object(run, here):
    result = here("evaluate", run, "--episodes", 3, "--json")
    data = json.loads(result.stdout)
    assert set(data) == {"mean_return", "std_return", "returns", "lengths", "max_steps", "cut"}
    assert len(data["returns"]) == 3
    assert data["mean_return"] == pytest.approx(np.mean(data["returns"]))
    assert "stochastic" in here("evaluate", run, "--stochastic").stdout


def test_plot(run, tmp_path, here):
    result = here("plot", run, run, "--out", tmp_path / "x.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_explicit_flags_override_the_preset(tmp_path, here):
    result = here("train", "MountainCar-v0", "--steps", 32, "--out", tmp_path / "r", *SMALL, "--rule.max-kl", 0.0321)
    assert "preset" in result.stderr
    config = json.loads((tmp_path / "r" / "config.json").read_text())["config"]
    assert config["rule"]["max_kl"] == 0.0321
    assert config["discount"] == 0.999
    assert config["env"]["id"] == "MountainCar-v0"
    assert config["env"]["count"] == 4


def test_parts_of_an_observation_are_chosen_by_name(tmp_path, here):
    """The policy sees one element of a leaf and a choice, the value function all; flattened, elements are counted."""
    env = "tests.golden.environments:Mixed-v0"  # goal, one of three; near, two bits; x, four numbers
    arguments = ["train", env, "--steps", 32, *SMALL, "--quiet", "--out"]
    assert here(*arguments, tmp_path / "r", "--policy.sees", "x[1:2] goal").returncode == 0
    agent = trpo.load(tmp_path / "r")
    assert set(agent.learner.observations) == {"goal", "near", "x"}
    assert agent.config.policy.sees == "x[1:2] goal"
    sizes = [part.trunk.weights[0].shape[0] for part in (agent.learner.policy, agent.learner.value.params)]
    assert sizes == [3 + 1, 3 + 2 + 4]
    seen = {"goal": np.eye(3)[2], "near": np.ones(2)}
    module, outside = agent.module, np.array([9.0, 0, 9, 9])  # of the element that is seen
    one, same, other = (
        module((), (jax.tree.map(jnp.asarray, seen | {"x": x}), None))[0].logits
        for x in (np.zeros(4), outside, np.ones(4))
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert here(*arguments, tmp_path / "f", "--env.flatten", "--policy.sees", ":4").returncode == 0
    agent = trpo.load(tmp_path / "f")
    assert agent.spec.observation.shape == (9,)
    sizes = [part.trunk.weights[0].shape[0] for part in (agent.learner.policy, agent.learner.value.params)]
    assert sizes == [4, 9]
    assert len(agent.evaluate(episodes=2).returns) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "probe:both", "--policy.sees", "jonts"], ["sees='jonts'", "no part", ":27"]),
        (["train", "Pendulum-v1", "--value.sees", ":4"], ["':4'", "3 elements"]),
        (["train", "Hoper-v5"], ["Hoper-v5", "nearest", "Hopper-v5"]),
        (["train", "probe:acton"], ["probe:action"]),
        (["train"], ["ENV"]),
        (["train", "probe:both", "--rule.max-kl", "-1"], ["max_kl", "-1", "(0, ∞)", "0.01"]),
        (["train", "probe:both", "--rule.max-kl", "x"], ["--rule.max-kl"]),
        (["train", "probe:both", "--discount", "2"], ["discount", "[0, 1]", "0.99"]),
        (["train", "probe:both", "--no-such", "1"], ["--no-such"]),
        (["train", "probe:both", "--preset", "mujocco"], ["mujocco", "mujoco"]),
        (["train", "probe:both", "--env.workers", "99"], ["env.workers", "99", "env.count"]),
        (["train", "nosuchmodule:Env-v0"], ["nosuchmodule"]),
        (["resume", "nowhere"], ["nowhere", "config.json"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["plot", "nowhere"], ["nowhere"]),
        (["record", "nowhere"], ["nowhere"]),
        (["fly"], ["fly", "train"]),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(arguments, words, tmp_path, here):
    line = one_line(here(*arguments), 2)
    for word in words:
        assert word in line


TOO_LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "probe:both", *SMALL, "--out", "file/r"], ["file", "Not a directory"]),
        (["train", "probe:both", *SMALL, "--out", TOO_LONG], ["File name too long"]),
        (["train", "probe:both", *SMALL, "--out", "dangling"], ["dangling", "no directory"]),
        (["train", "probe:both", *SMALL, "--seeds", 2, "--out", "file/r"], ["file", "Not a directory"]),
        (["plot", "RUN", "--out", "file/x.png"], ["file", "no directory"]),
        (["plot", "RUN", "--out", f"{TOO_LONG}.png"], ["File name too long"]),
        (["theory", "--out", "file/x"], ["file"]),
        (["theory", "--out", TOO_LONG], ["File name too long"]),
        (["evaluate", "file/r"], ["file"]),
        (["evaluate", TOO_LONG], ["File name too long"]),
        (["resume", TOO_LONG], ["File name too long"]),
        (["record", TOO_LONG], ["File name too long"]),
        (["plot", TOO_LONG], ["File name too long"]),
    ],
)
def test_a_place_that_cannot_be_written_or_read_is_one_line(run, arguments, words, tmp_path, here):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    line = one_line(here(*(run if a == "RUN" else a for a in arguments)), 2)
    for word in words:
        assert word in line
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling"}


@pytest.mark.parametrize("command", ["resume", "evaluate", "record", "plot"])
def test_no_permission_and_errors_of_ours_are_one_line(run, command, here, monkeypatch):
    """As for a user who is not root; and a traceback only where it is asked for."""
    from trpo.runs import sinks
    from trpo.runs import train as runs

    owner, name = (sinks, "read_metrics") if command == "plot" else (runs, "read_config")
    if command == "plot":
        from trpo.report import plots as owner  # where it is looked up
    error = PermissionError(13, "Permission denied", "x/config.json")

    def refuse(*arguments):
        raise error

    monkeypatch.setattr(owner, name, refuse)
    assert one_line(here(command, run), 2) == "trpo: x/config.json: Permission denied"
    error = KeyError("a bug")
    assert one_line(here(command, run), 1) == "trpo: KeyError: 'a bug' (TRPO_TRACEBACK=1 shows where)"
    monkeypatch.setenv("TRPO_TRACEBACK", "1")
    assert "in refuse" in here(command, run).stderr


@pytest.mark.parametrize(("command", "platform"), [("train", "nosuch"), ("evaluate", "cuda"), ("theory", "nosuch")])
def test_a_platform_that_is_not_there_is_named(run, command, platform, tmp_path, monkeypatch):
    if platform == "cuda" and jax.devices()[0].platform == "gpu":
        pytest.skip("there is one")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    arguments = {"train": ["probe:both", "--out", tmp_path / "r"], "evaluate": [run], "theory": []}[command]
    line = one_line(cli(command, *arguments), 2)
    assert line.startswith(f"trpo: JAX_PLATFORMS={platform}: JAX finds no such device (")
    assert not (tmp_path / "r").exists()


NOISY = """
import atexit, ctypes, os, sys
import gymnasium as gym, numpy as np

def noise():
    print("Python", flush=True)
    os.write(1, b"a descriptor\\n")
    ctypes.CDLL(None).printf(b"C, into a buffer\\n")

class Noisy(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self):
        noise()
        os.system("echo a child")
    def reset(self, *, seed=None, options=None):
        noise()
        return np.zeros(2, np.float32), {}
    def step(self, action):
        noise()
        return np.zeros(2, np.float32), 1.0, True, False, {}
    def close(self):
        noise()

noise()
if "pytest" not in sys.modules:
    atexit.register(noise)
gym.register("Noisy-v0", Noisy)
"""
NOISES = ("Python", "a descriptor", "C, into a buffer", "a child")


@pytest.fixture
def noisy(tmp_path, monkeypatch, here):
    (tmp_path / "noisyenvs.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    result = here("train", "noisyenvs:Noisy-v0", "--steps", 32, *SMALL, "--out", tmp_path / "r")
    assert (result.returncode, result.stdout) == (0, "")
    assert all(noise in result.stderr for noise in NOISES)
    return tmp_path / "r"


def test_what_an_environment_prints_is_not_in_the_results(noisy, here):
    result = here("evaluate", noisy, "--episodes", 2, "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["returns"] == [1.0, 1.0]
    assert all(noise in result.stderr for noise in NOISES)
    assert here("evaluate", noisy, "--episodes", 2).stdout.startswith(f"{noisy} at 32 steps: return 1.0 ± 0.0")


def test_nor_is_what_is_printed_at_exit_and_no_encoding_loses_a_result(noisy, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = cli("evaluate", noisy, "--episodes", 2)
    assert result.returncode == 0
    assert result.stdout == f"{noisy} at 32 steps: return 1.0 ? 0.0 (2 episodes, deterministic; length 1)\n"
    assert "\\x" not in result.stderr
    assert all(noise in result.stderr for noise in NOISES)


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_help_in_any_encoding(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for arguments in ((), ("train",)):
        command = [sys.executable, "-m", "trpo", *arguments, "--help"]
        result = subprocess.run(command, capture_output=True, timeout=240, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"trpo train" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors in a shell")
def test_streams_that_are_closed_or_full(tmp_path):
    """A result that nobody can be told is an error, of a line; what is no result may get lost."""
    version = shlex.join([sys.executable, "-m", "trpo", "--version"])
    shut, full = "trpo: standard output: Bad file descriptor\n", "trpo: standard output: No space left on device\n"
    cases = {">&-": (2, "", shut), "2>&-": (0, f"trpo {trpo.__version__}\n", ""), "<&- >&- 2>&-": (2, "", "")}
    if os.path.exists("/dev/full"):
        cases[">/dev/full"] = (2, "", full)
    for how, expected in cases.items():
        found = subprocess.run(["bash", "-c", f"{version} {how}"], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout, found.stderr) == expected, how
    # No file gets the number of a stream: what is printed would go into it.
    program = "from trpo.cli.output import *; prepare_streams(); print(open('x', 'w').fileno())"
    script = f"cd {tmp_path}; {shlex.join([sys.executable, '-c', program])} <&- 2>&-"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert int(found.stdout) > 2


def test_a_directory_that_is_gone_is_no_place_to_be(tmp_path):
    (tmp_path / "gone").mkdir()
    script = f"rmdir ../gone; exec {shlex.join([sys.executable, '-m', 'trpo', '--version'])}"
    found = subprocess.run(["bash", "-c", script], cwd=tmp_path / "gone", capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"trpo {trpo.__version__}\n", "")


def test_a_closed_pipe_ends_a_run_whose_last_iteration_is_saved(tmp_path):
    out = tmp_path / "r"
    flags = ["--steps", 10**7, "--checkpoint-every", 10**6, *SMALL, "--out", out]
    command = shlex.join(map(str, [sys.executable, "-m", "trpo", "train", "probe:both", *flags]))
    script = f"{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (1, "", 1)
    last = read_metrics(out)[-1]["iteration"]
    assert max(p.name for p in (out / "checkpoints").iterdir()) == f"{last:08d}"


def test_what_comes_next_is_what_can_be_done(tmp_path, here):
    from trpo.report.recording import can_record

    trained = here("train", "jax-probe:both", "--steps", 32, *SMALL, "--out", tmp_path / "r")
    assert "next: trpo evaluate" in trained.stderr
    assert "trpo record" not in trained.stderr
    assert can_record("Hopper-v5")
    for env in ("probe:both", "brax:ant", "envpool:NoSuch-v0", "no:such:thing", "Blackjack"):
        assert not can_record(env)


def test_an_existing_run_is_not_overwritten(run, here):
    before = (run / "metrics.jsonl").read_bytes()
    assert "resume" in one_line(here("train", "probe:both", "--out", run, *SMALL), 2)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_default_directories_do_not_collide(tmp_path, here):
    for name in ("probe-both-s0", "probe-both-s0-2"):
        assert here("train", "probe:both", "--steps", 32, *SMALL, "--quiet").returncode == 0
        assert (tmp_path / "runs" / name / "config.json").is_file()


def test_help_and_version(here):
    assert "trpo train ENV" in here("--help").stdout
    assert trpo.__version__ in here("--version").stdout


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_checkpoints_that_cannot_be_listed_are_there_all_the_same(run, command, tmp_path, here, monkeypatch):
    """Nobody is told to start anew."""
    place, listed = shutil.copytree(run, tmp_path / "r"), Path.iterdir

    def forbidden(path):
        if path.name == "checkpoints":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    result = here(command, place)
    assert (result.returncode, result.stderr) == (2, f"trpo: {place}/checkpoints: Permission denied\n")


def test_damaged_checkpoint_is_named_and_the_previous_one_used(run, tmp_path, here):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "00000010" / "state.safetensors").write_bytes(b"")
    result = here("evaluate", copy)
    assert result.returncode == 0
    assert "00000010" in result.stderr
    assert "using the one before" in result.stderr


def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path, here):  # PITFALLS row 23
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert here("train", "probe:both", "--steps", 640, "--out", whole, *SMALL, "--quiet").returncode == 0
    assert here("train", "probe:both", "--steps", 256, "--out", parts, *SMALL, "--quiet").returncode == 0
    assert here("resume", parts, "--steps", 640).returncode == 0
    assert same_run(whole, parts)


def same_run(a, b):
    """Metrics (but for time) and every array of the newest checkpoint are equal to the bit."""
    timed = {"seconds", "steps_per_second", "collect_seconds", "value_loss"}
    strip = [[{k: v for k, v in r.items() if k not in timed} for r in read_metrics(x)] for x in (a, b)]
    newest = [max((x / "checkpoints").glob("0*")) / "state.safetensors" for x in (a, b)]
    return strip[0] == strip[1] and newest[0].read_bytes() == newest[1].read_bytes()


def test_resume_says_whether_the_simulator_starts_anew(tmp_path, here):
    pytest.importorskip("envpool")
    for env, anew in (("CartPole-v1", False), ("envpool:CartPole-v1", True)):  # EnvPool's states cannot be taken
        out = tmp_path / env
        assert here("train", env, "--steps", 64, "--out", out, *SMALL, "--quiet").returncode == 0
        result = here("resume", out, "--steps", 96)
        assert result.returncode == 0
        assert ("new episodes begin" in result.stderr) is anew


def start(*arguments):
    command = [sys.executable, "-m", "trpo", *map(str, arguments)]
    return start_process(command)


def wait_for_iterations(out, count, process):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        if (out / "metrics.jsonl").is_file() and len((out / "metrics.jsonl").read_bytes().split(b"\n")) > count:
            return
        time.sleep(0.02)
    raise AssertionError("training did not start")


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(tmp_path):
    out = tmp_path / "r"
    process = start("train", "probe:both", "--steps", 10**7, "--out", out, *SMALL, "--checkpoint-every", 10**6)
    wait_for_iterations(out, 3, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"trpo resume {out}" in stderr
    assert "Traceback" not in stderr
    last = read_metrics(out)[-1]["iteration"]
    assert max(p.name for p in (out / "checkpoints").iterdir()) == f"{last:08d}"


def kill_and_resume(out, kills, seed):
    """Kill -9 at random moments, resume each time; return the iterations that each resume started from."""
    generator = random.Random(seed)
    process = start("train", "probe:both", "--steps", 10**7, "--out", out, *SMALL, "--checkpoint-every", 1)
    wait_for_iterations(out, 1, process)
    started = []
    for _ in range(kills):
        time.sleep(generator.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        process = start("resume", out)
        line = process.stderr.readline()
        while not line.startswith("resuming"):
            assert line, "resume failed"
            assert "checkpoint" in line
            line = process.stderr.readline()
        started.append(int(line.split("iteration ")[1].split(",")[0]))
        wait_for_iterations(out, started[-1] + 1, process)
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(timeout=60) == 130
    return started


def test_kill_9_then_resume(tmp_path):
    out = tmp_path / "r"
    started = kill_and_resume(out, 2, seed=0)
    assert started == sorted(started)
    assert started[0] >= 1
    assert [r["iteration"] for r in read_metrics(out)] == list(range(1, len(read_metrics(out)) + 1))


@pytest.mark.slow
def test_kill_9_at_20_random_moments(tmp_path):
    """… and what comes out equals a run that was never interrupted, bit for bit."""
    out, whole = tmp_path / "r", tmp_path / "whole"
    started = kill_and_resume(out, 20, seed=1)
    assert started == sorted(started)
    steps = read_metrics(out)[-1]["steps"]
    flags = ["--steps", steps, "--out", whole, *SMALL, "--quiet", "--checkpoint-every", 1000]
    assert cli("train", "probe:both", *flags).returncode == 0
    assert same_run(out, whole)


ENV_MODULE = """
import gymnasium as gym, numpy as np

class Broken(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, kind="raise"):
        self.kind, self.steps = kind, 0
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.steps += 1
        bad = self.steps == 20
        if bad and self.kind == "raise":
            raise RuntimeError("motor on fire")
        reward = float("nan") if bad else 1.0
        return np.zeros(2, np.float32), reward, self.steps % 5 == 0, False, {}

gym.register("Raises-v0", lambda: Broken("raise"))
gym.register("NaN-v0", lambda: Broken("nan"))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "brokenenvs.py").write_text(ENV_MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "brokenenvs"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_that_raises_leaves_a_checkpoint_and_one_message(module, tmp_path, workers):
    out = tmp_path / "r"
    flags = ["--out", out, *SMALL, "--quiet", "--env.workers", workers]
    line = one_line(cli("train", f"{module}:Raises-v0", *flags), 1)
    assert "motor on fire" in line
    assert f"trpo resume {out}" in line
    assert max(p.name for p in (out / "checkpoints").iterdir()) == "00000002"


def test_nonfinite_reward_stops_or_continues(module, tmp_path):  # PITFALLS row 13
    stop = tmp_path / "stop"
    line = one_line(cli("train", f"{module}:NaN-v0", "--out", stop, *SMALL, "--quiet"), 1)
    assert "NaN or infinite" in line
    assert "trpo resume" in line
    on = tmp_path / "on"
    flags = ["--out", on, *SMALL, "--quiet", "--on-nonfinite", "continue", "--steps", 320]
    assert cli("train", f"{module}:NaN-v0", *flags).returncode == 0
    results = [r["result"] for r in read_metrics(on)]
    assert results[2] == "nonfinite_batch"
    assert "accepted" in results[3:] or "no_signal" in results[3:]


# ---------------------------------------------------------------- flags, help, presets, completion


def flags_in(text):
    return set(re.findall(r"(?m)^[ │]+(--[a-z][\w.-]*)", text))


def test_train_s_help_shows_few_flags_with_the_values_for_env(here):
    text = here("train", "Hopper-v5", "--steps", "1e5", "--help").stdout
    assert 12 <= len(flags_in(text)) <= 16
    for word in ("--steps 100000", "--env.count 4", "--rule.max-kl 0.02", "--policy.hidden 64 64", "Preset mujoco"):
        assert word in text
    assert "--env.count 16" in here("train", "-h").stdout
    everything = here("train", "Ant-v5", "--help-all").stdout
    expected = {
        f"--{name.replace('_', '-')}" for name in settings_of(trpo.Config) if name not in ("env.id", "normalise_all")
    }
    assert flags_in(everything) >= expected
    assert re.search(r"--policy.sees STR[^-]*default: :27", everything)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    flags = ["--help-all" if command == "train" else "--help"]
    done = [here(*([command] if command else []), flag) for flag in {*flags, "--help"}]
    assert all(each.returncode == 0 for each in done)
    assert max(len(line) for each in done for line in each.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "x", "--polic.hidden", "3"], "--polic.hidden; did you mean --policy.hidden?"),
        (["train", "x", "--max_kl=3"], "--max_kl; did you mean --rule.max-kl?"),
        (["train", "x", "-steps", "3"], "-steps; did you mean --steps?"),
        (["train", "x", "--hidden", "3"], "did you mean --policy.hidden or --value.hidden?"),
        (["train", "x", "--qqqq"], "--qqqq; see trpo train --help-all"),
        (["train", "x", "--steps", "1.5"], "--steps: '1.5' is not a whole number"),
        (["train", "x", "--steps", "1e400"], "--steps: '1e400' is not a whole number"),
        (["train", "x", "--env.kwargs", "a"], "--env.kwargs: 'a' is not NAME=VALUE"),
        (["evaluate", "x", "--epsiodes", "3"], "--epsiodes; did you mean --episodes?"),
        (["trian", "x"], "'trian'; nearest: train"),
        (["completion", "tcsh"], "bash, zsh, fish"),
    ],
)
def test_mistyped_flags_get_the_nearest(arguments, words, here):
    assert words in one_line(here(*arguments), 2)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--steps", "1e6"], {"steps": 10**6}),
        (["--steps=1_000_000"], {"steps": 10**6}),
        (["--policy.hidden", "32,16"], {"policy": {"hidden": (32, 16)}}),
        (["--policy.hidden", "32", "16"], {"policy": {"hidden": (32, 16)}}),
        (["--policy.hidden=[32, 16]"], {"policy": {"hidden": (32, 16)}}),
        (["--policy.hidden"], {"policy": {"hidden": ()}}),
        (
            ["--env.kwargs", "a=3", "b=0.5", "c=true", "d=null", "e=text", "--env.kwargs", "f=[1, 2]", 'g="3"', "h=.5"],
            {"env": {"kwargs": {"a": 3, "b": 0.5, "c": True, "d": None, "e": "text", "f": [1, 2], "g": "3", "h": 0.5}}},
        ),
        (["--env.kwargs=a=1_0", "b=a=b", "c={x}"], {"env": {"kwargs": {"a": 10, "b": "a=b", "c": "{x}"}}}),
    ],
    ids=str,
)  # fmt: skip
def test_values_as_people_write_them(flags, kept):
    parsed = parse(Train, "train", gathered(["Hopper-v5", *flags]))
    assert parsed.config == merge(trpo.Config(), kept)


def test_values_that_vary():
    found = varied(["rule.max-kl=0.01,2e-2", "policy.hidden=[64,64],[32]", "policy.min_std=auto,0.1"])
    assert found == {
        "rule.max_kl": [0.01, 0.02], "policy.hidden": [[64, 64], [32]], "policy.min_std": ["auto", 0.1],
    }  # fmt: skip
    twice = parse(Train, "train", gathered(["x", "--vary", "a=1,2", "--seed", "3", "--vary", "b=1,2"]))
    assert (twice.vary, twice.config.seed) == (("a=1,2", "b=1,2"), 3)


def test_presets_are_listed(here):
    text = here("presets").stdout
    assert all(f"{name}: " in text for name in names())
    assert max(map(len, text.splitlines())) <= 80
    assert here("presets", "Ant").stdout.startswith("ant: Ant")
    assert "did you mean mujoco?" in here("presets", "mujocco").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, here, tmp_path):
    script = here("completion", shell).stdout
    assert all(word in script for word in ("rule.max-kl", "episodes", *COMMANDS))
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0


MY_ENV = """
import gymnasium as gym, numpy as np

class My(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, gain=1.0, length=5):
        self.gain, self.length = gain, length
    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), self.gain, self.time >= self.length, False, {}

gym.register("My-v0", My)
"""


def test_an_environment_beside_one_with_arguments_of_its_own(tmp_path):
    """By the console script, in whose path the current directory is not by itself; in workers, too."""
    (tmp_path / "my_env.py").write_text(MY_ENV)
    script = tmp_path / "bin" / "trpo"
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom trpo.cli.main import entry_point\nif __name__ == '__main__':\n    entry_point()\n"
    )

    def trpo_script(*arguments):
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ["--env.kwargs", "gain=2", "length=3", "--env.workers", 1, "--steps", "6.4e1", "--quiet", "--out", "r"]
    trpo_script("train", "my_env:My-v0", *SMALL, *flags)
    assert json.loads((tmp_path / "r/config.json").read_text())["config"]["env"]["kwargs"] == {"gain": 2, "length": 3}
    assert json.loads(trpo_script("evaluate", "r", "--episodes", 2, "--json"))["returns"] == [6.0, 6.0]
    trpo_script("resume", "r", "--steps", "9_6", "--quiet")
    assert [record["episode_return"] for record in read_metrics(tmp_path / "r")] == [6.0] * 3
