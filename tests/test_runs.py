"""Runs from Python: directories, loading, policies, rules and environments of the user's own."""

from __future__ import annotations

import dataclasses
import errno
import json

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same_bits, untimed
from hypothesis import given, settings
from hypothesis import strategies as st

import trpo
from trpo.envs.plain import from_plain, to_plain
from trpo.runs import one as room
from trpo.runs import progress
from trpo.runs.checkpoint import checkpoints
from trpo.runs.sinks import JsonLines, TensorBoard, read_metrics

CONFIG = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig("probe:both", count=4))


class Permuted(eqx.Module):
    """A policy with an integer array in it."""

    network: trpo.MLP
    order: jax.Array

    def __call__(self, observation):
        return trpo.Categorical(self.network(observation)[..., self.order])


def own_policy():
    return Permuted(trpo.mlp(jax.random.key(0), (1, 8, 2)), jnp.array([1, 0]))


class HalfStep(eqx.Module):
    """A rule of the user's own: TRPO with a state that counts its updates."""

    max_kl: float = 0.005
    enforces_max_kl = True

    def init(self, params):
        return jnp.asarray(0)

    def update(self, problem, params, state):
        params, _, info = trpo.TRPO(max_kl=self.max_kl).update(problem, params, ())
        return params, state + 1, info


class Constant(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action), True, False, {}


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trpo.train("probe:both", config=CONFIG, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_load_gives_the_agent_that_was_trained(tmp_path):
    agent = trpo.train("probe:both", config=CONFIG, out=tmp_path / "r", quiet=True)
    loaded = trpo.load(tmp_path / "r")
    assert same_bits(agent.learner, loaded.learner)
    assert loaded.spec == agent.spec
    assert loaded.config == agent.config
    for x in (-1.0, 1.0):
        assert agent.act([x]) == loaded.act([x])


def test_a_policy_of_ones_own_trains_loads_and_resumes(tmp_path):
    agent = trpo.train("probe:both", config=CONFIG, policy=own_policy(), out=tmp_path / "r", quiet=True)
    assert not same_bits(agent.learner.policy, trpo.as_function(own_policy())[1])
    with pytest.raises(ValueError, match="policy=…"):
        trpo.load(tmp_path / "r")
    assert same_bits(trpo.load(tmp_path / "r", policy=own_policy()).learner, agent.learner)
    trpo.resume(tmp_path / "r", policy=own_policy(), steps=128, quiet=True)
    assert len(read_metrics(tmp_path / "r")) == 4


def test_a_rule_of_ones_own(tmp_path):
    agent = trpo.train("probe:both", config=CONFIG, rule=HalfStep(), out=tmp_path / "r", quiet=True)
    assert int(agent.learner.rule) == 2
    assert all(r["mean_kl"] <= r["max_kl"] == pytest.approx(0.005) for r in read_metrics(tmp_path / "r"))
    with pytest.raises(ValueError, match="rule=…"):
        trpo.load(tmp_path / "r")
    assert int(trpo.resume(tmp_path / "r", rule=HalfStep(), steps=96, quiet=True).learner.rule) == 3


def test_an_environment_of_ones_own(tmp_path):
    agent = trpo.train(Constant, config=CONFIG, out=tmp_path / "r", quiet=True)
    assert len(agent.evaluate(episodes=2).returns) == 2
    loaded = trpo.load(tmp_path / "r")
    assert loaded.act([0.0]) == agent.act([0.0])  # acting needs no environment
    with pytest.raises(ValueError, match="env=…"):
        loaded.evaluate(episodes=1)
    assert trpo.load(tmp_path / "r", env=Constant).evaluate(episodes=1).lengths == (1,)


def test_resume_to_more_steps_is_remembered(tmp_path):
    trpo.train("probe:both", config=CONFIG, out=tmp_path / "r", quiet=True)
    trpo.resume(tmp_path / "r", steps=96, quiet=True)
    assert trpo.load(tmp_path / "r").config.steps == 96


def test_metrics_beyond_the_checkpoint_and_a_cut_line_are_dropped_at_resume(tmp_path):
    run = tmp_path / "r"
    trpo.train("probe:both", config=dataclasses.replace(CONFIG, checkpoint_every=100), out=run, quiet=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "steps": 96}\n{"iteration": 4, "st')
    assert len(read_metrics(run)) == 3
    trpo.resume(run, steps=96, quiet=True)
    records = read_metrics(run)
    assert [r["iteration"] for r in records] == [1, 2, 3]
    assert "mean_kl" in records[2]


def test_steps_and_seed_override_the_configuration():
    agent = trpo.train("probe:both", config=CONFIG, steps=32, seed=7, quiet=True)
    assert (agent.config.steps, agent.config.seed) == (32, 7)


def test_a_rule_in_the_configuration_given_to_the_loop_is_used():
    """PITFALLS row 22: not that of the configuration which the agent was made with."""
    agent = trpo.make_agent("probe:both", CONFIG)
    config = dataclasses.replace(CONFIG, rule=trpo.RuleConfig(max_kl=0.0025))
    rows = [metrics for _, metrics in trpo.iterations("probe:both", agent, config)]
    assert [row["max_kl"] for row in rows] == [pytest.approx(0.0025)] * 2
    assert all(row["mean_kl"] <= row["max_kl"] for row in rows)


class Unheard(BaseException):
    """What no library expects."""


FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(monkeypatch, owner, name, error, call):
    """Make a function raise from a call on, as long as the list that is returned has something in it."""
    right, calls, broken = getattr(owner, name), [], [error]

    def wrong(*arguments, **keywords):
        calls.append(arguments)
        if broken and len(calls) >= call:
            raise error
        return right(*arguments, **keywords)

    monkeypatch.setattr(owner, name, wrong)
    return broken


def iterations_of(run):
    return [r["iteration"] for r in read_metrics(run)]


LONG = dataclasses.replace(CONFIG, steps=160, checkpoint_every=100)


PIPE = BrokenPipeError(errno.EPIPE, "Broken pipe")
ENDS = [
    (JsonLines, FULL, "No space left on device"),
    (TensorBoard, FULL, "No space left on device"),
    (progress.Reporter, FULL, "No space left on device"),
    (progress.Reporter, PIPE, "Broken pipe"),
    (JsonLines, TypeError("a bug\nof ours"), "TypeError: a bug (all of it in"),
    (JsonLines, ValueError("a number"), "ValueError: a number"),
    (JsonLines, MemoryError(), "MemoryError (all of it in"),
    (JsonLines, SystemExit(3), "something called sys.exit(3)"),
    (TensorBoard, Unheard("of"), "Unheard: of"),
]


@pytest.mark.parametrize(("owner", "error", "words"), ENDS)
def test_whatever_ends_a_run_its_last_iteration_is_saved(tmp_path, monkeypatch, owner, error, words):
    run = tmp_path / "r"
    broken = failing(monkeypatch, owner, "update" if owner is progress.Reporter else "write", error, 4)
    with pytest.raises(trpo.RunFailed) as raised:
        trpo.train("probe:both", config=LONG, out=run, quiet=True)
    assert raised.value.__cause__ is error
    message = str(raised.value)
    assert message.startswith(words)
    assert message.endswith(f"go on with: trpo resume {run}")
    assert "\n" not in message
    last = 4 if owner is progress.Reporter else 3  # an iteration is finished when its metrics are written
    assert int(checkpoints(run / "checkpoints")[0].name) == last
    unexpected = not isinstance(error, OSError)
    assert (run / "traceback.txt").exists() == unexpected
    assert not unexpected or type(error).__name__ in (run / "traceback.txt").read_text()
    broken.clear()
    trpo.resume(run, quiet=True)
    assert iterations_of(run) == [1, 2, 3, 4, 5]


def test_a_full_disk_leaves_the_checkpoints_before_and_the_run_goes_on_once_there_is_space(tmp_path, monkeypatch):
    run, whole = tmp_path / "r", tmp_path / "whole"
    config = dataclasses.replace(LONG, checkpoint_every=1)
    broken = failing(monkeypatch, room, "write_checkpoint", FULL, 4)  # the first is of iteration 0
    with pytest.raises(trpo.RunFailed) as raised:
        trpo.train("probe:both", config=config, out=run, quiet=True)
    assert str(raised.value) == (
        "No space left on device; what came after iteration 2 could not be saved; "
        f"once that is mended, go on with: trpo resume {run}"
    )
    broken.clear()
    trpo.resume(run, quiet=True)
    trpo.train("probe:both", config=config, out=whole, quiet=True)
    lost = {"value_loss"}  # of the fit before the checkpoint, which is not kept
    kept = [[{k: v for k, v in untimed(r).items() if k not in lost} for r in read_metrics(x)] for x in (run, whole)]
    assert kept[0] == kept[1]
    assert same_bits(trpo.load(run).learner, trpo.load(whole).learner)


@pytest.mark.parametrize(("owner", "name"), [(room, "write_checkpoint"), (TensorBoard, "__init__")])
def test_a_disk_that_is_full_from_the_beginning_leaves_no_directory(tmp_path, monkeypatch, owner, name):
    failing(monkeypatch, owner, name, OSError(*FULL.args), 1)  # one of its own: it is given a name
    with pytest.raises(OSError, match=f"No space.*{tmp_path / 'r'}"):
        trpo.train("probe:both", config=CONFIG, out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


class Drifting(gym.Env):
    """Its state is an array, which it hands out as it is and goes on to change."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)
    extra = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.time = self.np_random.normal(size=2), np.int64(0)
        return self.state.copy(), {}

    def step(self, action):
        self.state += self.np_random.normal(size=2) + action
        self.time = self.time + np.int64(1)
        return self.state.copy(), np.float32(-abs(self.state[0])), bool(self.time >= 7), False, {}

    def snapshot(self):
        random = self.np_random.bit_generator.state
        return {"state": self.state, "time": self.time, "random": random, "extra": self.extra}

    def restore(self, snapshot):
        self.state, self.time = snapshot["state"], snapshot["time"]
        assert isinstance(self.time, np.int64)
        self.np_random.bit_generator.state = snapshot["random"]


class Holding(Drifting):
    extra = object()  # not to be written in any form


def test_a_snapshot_may_hold_numpy_arrays_and_is_what_it_was(tmp_path, monkeypatch):
    run, whole = tmp_path / "r", tmp_path / "whole"
    broken = failing(monkeypatch, JsonLines, "write", FULL, 4)
    with pytest.raises(trpo.RunFailed):  # what was handed out for the last iteration has changed since
        trpo.train(Drifting, config=LONG, out=run, quiet=True)
    broken.clear()
    assert same_bits(
        trpo.resume(run, env=Drifting, quiet=True).learner,
        trpo.train(Drifting, config=LONG, out=whole, quiet=True).learner,
    )


def test_a_snapshot_that_cannot_be_written_is_left_out(tmp_path):
    run = tmp_path / "r"
    with pytest.warns(UserWarning, match=r"cannot be saved .*object.* begins new episodes"):
        trpo.train(Holding, config=CONFIG, out=run, quiet=True)
    assert json.loads((checkpoints(run / "checkpoints")[0] / "state.json").read_text())["environments"] is None
    with pytest.warns(UserWarning, match="cannot be saved"):
        trpo.resume(run, env=Holding, steps=96, quiet=True)
    assert iterations_of(run) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["?", "b", "B", "i4", "u8", "f2", "f4", "f8", ">f4", "U3"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3)])
def test_arrays_as_plain_data_keep_type_shape_and_bits(kind, shape):
    values = np.random.default_rng(0).integers(0, 2**63, shape, np.uint64) * np.uint64(3)
    with np.errstate(over="ignore"):
        x = np.asarray(values).astype(kind)[()]
    data = {"a": [x, (x, {"b": "text", "c": None})], "numpy": 1}
    again = from_plain(json.loads(json.dumps(to_plain(data))))
    assert (again["numpy"], again["a"][1][1]) == (1, {"b": "text", "c": None})
    for y in (again["a"][0], again["a"][1][0]):
        assert (y.dtype, y.shape, np.asarray(y).tobytes()) == (x.dtype, x.shape, np.asarray(x).tobytes())


def members(*pairs):
    common = {"steps": 10, "episode_return": 1.0, "result": "accepted"}
    return [{**common, "mean_kl": kl, "max_kl": bound} for kl, bound in pairs]


def test_the_kl_of_a_sweep_is_shown_beside_its_own_bound():
    joint = progress.joint_metrics(members((0.0009, 0.001), (0.08, 0.1), (0.0099, 0.01)))
    assert (joint["mean_kl"], joint["max_kl"], joint["steps"]) == (0.0099, 0.01, 30)
    without = progress.joint_metrics(members((0.3, None), (0.5, None)))
    assert (without["mean_kl"], without["max_kl"]) == (0.5, None)


numbers = st.floats(-1e7, 1e7).flatmap(lambda x: st.sampled_from([x, x / 1e5, x / 1e9]))


@settings(deadline=None)
@given(numbers, numbers, st.sampled_from([1e-5, 0.001, 0.0123, None]), st.integers(1, 10**9), st.integers(40, 150))
def test_the_progress_line_fits(score, kl, bound, steps, width):
    show = progress.Reporter(steps * 2, quiet=True)
    result = ["accepted", "nonpositive_curvature"][steps % 2]
    m = {"steps": steps, "episode_return": score, "mean_kl": abs(kl), "max_kl": bound, "result": result}
    for now in (1.0, 5000.0):
        line = show._line({**m, "steps": steps // 2 if now == 1.0 else steps}, steps, now, width)
        assert len(line) <= width
        assert "steps · return " in line


def test_the_progress_line_of_a_long_run_has_all_that_matters_in_60_columns():
    show = progress.Reporter(10**7, quiet=True)
    m = {"episode_return": -1234.5, "mean_kl": 0.00978, "max_kl": 0.01, "result": "accepted"}
    show._line({**m, "steps": 0}, 0, 0.0, 60)
    assert show._line(m, 1_250_000, 720.0, 60) == "1.25M/10M steps · return -1234 · KL 0.00978/0.01 · 1.4h left"


def test_a_finished_run_says_so_and_the_total_is_in_whole_iterations(tmp_path, capfd):
    trpo.train("probe:both", config=CONFIG, steps=40, out=tmp_path / "r")  # 32 steps an iteration
    assert "64/64 steps" in capfd.readouterr().err
    trpo.resume(tmp_path / "r")
    said = capfd.readouterr().err
    assert said == f"{tmp_path / 'r'} is finished: 64 steps; to train on: trpo resume {tmp_path / 'r'} --steps N\n"
