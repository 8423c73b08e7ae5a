"""What watches a run and steers it: callbacks, evaluation on the side, a loop of one's own."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from helpers import assert_same_bits, end_processes, start_process, untimed

import trpo
from trpo.cli.main import main
from trpo.report.plots import plot_runs
from trpo.runs.checkpoint import checkpoints
from trpo.runs.evaluating import read_evaluations
from trpo.runs.sinks import read_metrics
from trpo.training import device, host

BATCH = 32
NAMES = ("probe:both", "jax-probe:both")


def config(env="probe:both", iterations=8, workers=0, **evaluate):
    where = trpo.EnvConfig(env, count=4, workers=workers)
    asked = trpo.EvaluateConfig(**evaluate)
    return trpo.Config(steps=iterations * BATCH, fragment=8, env=where, evaluate=asked, checkpoint_every=100)


def train(env="probe:both", out=None, callbacks=(), **settings):
    made = config(env, **settings)
    return trpo.train(env, config=made, out=out, callbacks=callbacks, quiet=True)


@dataclasses.dataclass
class Every:
    """Notes when it is called."""

    every: int = 0
    reason: str | None = None
    at: list = dataclasses.field(default_factory=list)

    def __call__(self, moment):
        self.at.append(moment.steps)
        return self.reason


class Scored:
    """Evaluations with these returns, one after the other."""

    def __init__(self, monkeypatch, scores):
        self.scores = iter(scores)
        monkeypatch.setattr("trpo.runs.evaluating.evaluate", self)

    def __call__(self, *arguments, **how):
        return trpo.EvaluationResult((next(self.scores),), (1,))


# ---------------------------------------------------------------- when they are called


@pytest.mark.parametrize("env", NAMES)
def test_a_callback_is_called_by_the_iteration_that_reaches_its_steps(env, tmp_path):
    each, third, rarely = Every(), Every(every=80), Every(every=1000)
    train(env, tmp_path / "run", [each, third, rarely])
    assert each.at == [BATCH * k for k in range(1, 9)]
    assert third.at == [96, 160, 256]  # the first multiples of the batch at or beyond 80, 160, 240
    assert rarely.at == []


@pytest.mark.parametrize("env", NAMES)
def test_a_callback_sees_the_state_that_the_metrics_are_of(env):
    seen = []

    def look(moment):
        seen.append((moment.iteration, moment.steps, moment.state.iteration, moment.state.steps, moment.directory))
        last.append(moment.agent)

    last = []
    agent = train(env, callbacks=[look])
    assert seen == [(k, k * BATCH, k, k * BATCH, None) for k in range(1, 9)]
    assert_same_bits(last[-1].learner, agent.learner)


@pytest.mark.parametrize("env", NAMES)
def test_every_run_of_a_sweep_has_callbacks_of_its_own(env, tmp_path):
    seen = []
    trpo.sweep(
        env, seeds=2, config=config(env, iterations=2), out=tmp_path / "s", quiet=True,
        callbacks=[lambda moment: seen.append((moment.template.config.seed, moment.steps, moment.directory.name))],
    )  # fmt: skip
    assert sorted(seen) == [(s, k * BATCH, f"seed-{s}") for s in (0, 1) for k in (1, 2)]


def test_runs_that_train_together_end_when_all_are_to_stop(tmp_path):
    def stop(moment):
        return "enough" if moment.iteration > moment.template.config.seed else None

    trpo.sweep("jax-probe:both", seeds=3, config=config(NAMES[1]), out=tmp_path / "s", callbacks=[stop], quiet=True)
    assert {len(read_metrics(tmp_path / "s" / f"seed-{s}")) for s in range(3)} == {3}


@pytest.mark.parametrize(("loop", "env"), [(host.HostLoop, NAMES[0]), (device.DeviceLoop, NAMES[1])])
def test_nothing_is_fetched_for_callbacks_that_are_not_there(loop, env, monkeypatch):
    fetched = []
    if loop is device.DeviceLoop:
        gather = loop._gather
        monkeypatch.setattr(loop, "_gather", lambda self, *a: fetched.append(1) or gather(self, *a))
    rarely = Every(every=1000)
    train(env, callbacks=[rarely])
    assert len(fetched) <= 1  # the result


def test_chunks_are_as_long_as_without_a_callback_that_is_rarely_due(monkeypatch):
    monkeypatch.setattr(device, "INTERVAL", 1e9)  # only doubling bounds a chunk
    chunks = []
    records = device.DeviceLoop._records

    def counted(self, rows, done, elapsed):
        chunks.append(done)
        return records(self, rows, done, elapsed)

    monkeypatch.setattr(device.DeviceLoop, "_records", counted)
    train(NAMES[1], iterations=15, callbacks=[Every(every=1000)])
    assert chunks == [1, 2, 4, 8]
    chunks.clear()
    train(NAMES[1], iterations=15, callbacks=[Every(every=4 * BATCH)])
    assert chunks == [1, 2, 1, 4, 4, 3]


# ---------------------------------------------------------------- stops and faults


@pytest.mark.parametrize("env", NAMES)
def test_a_reason_stops_the_run_which_is_said_saved_and_can_go_on(env, tmp_path, capsys):
    run = tmp_path / "run"
    trpo.train(env, config=config(env), out=run, callbacks=[Every(every=3 * BATCH, reason="seen enough")])
    assert "stopped at 96 steps: seen enough" in " ".join(capsys.readouterr().err.split())
    assert checkpoints(run / "checkpoints")[0].name == "00000003"
    trpo.resume(run, quiet=True)
    assert_same_bits(trpo.load(run).learner, train(env).learner)
    assert [r["iteration"] for r in read_metrics(run)] == list(range(1, 9))


def test_all_that_are_due_are_called_although_the_first_stops_the_run():
    first, second = Every(reason="one"), Every(reason="two")
    train(callbacks=[first, second])
    assert first.at == second.at == [BATCH]


def raising(moment):
    raise ValueError("callback\nfailed")


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (raising, "ValueError: callback "),
        (lambda moment: 3, "a callback returned int"),
        (lambda moment: True, "returned bool"),
    ],
)
def test_a_callback_that_fails_ends_the_run_which_is_saved_first(callback, said, tmp_path):
    with pytest.raises(trpo.RunFailed, match=said) as caught:
        train(out=tmp_path / "run", callbacks=[callback])
    assert "go on with: trpo resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert checkpoints(tmp_path / "run" / "checkpoints")[0].name == "00000001"


@pytest.mark.parametrize("callback", [Every(every=-1), Every(every=True), Every(every=1.5)])
def test_what_is_no_callback_is_refused_before_anything_happens(callback, tmp_path):
    with pytest.raises(ValueError, match="callback"):
        train(out=tmp_path / "run", callbacks=[callback])
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- evaluation on the side


@pytest.mark.parametrize(("env", "workers"), [(NAMES[0], 0), (NAMES[0], 2), (NAMES[1], 0)])
def test_evaluation_changes_no_bit_of_training(env, workers, tmp_path):
    without = train(env, tmp_path / "without", workers=workers)
    beside = train(env, tmp_path / "with", workers=workers, every=50, episodes=3, deterministic=False)
    assert len(read_evaluations(tmp_path / "with")) == 5
    assert_same_bits(without.learner, beside.learner)
    a, b = (list(map(untimed, read_metrics(tmp_path / which))) for which in ("without", "with"))
    assert a == b


@pytest.mark.parametrize("env", NAMES)
def test_an_evaluation_is_that_of_the_policy_then(env, tmp_path):
    agents = {}
    train(env, tmp_path / "run", [lambda m: agents.update({m.iteration: m.agent})], every=64, episodes=7)
    records = read_evaluations(tmp_path / "run")
    assert [record["iteration"] for record in records] == [2, 4, 6, 8]
    for record in records:
        assert record["returns"] == list(agents[record["iteration"]].evaluate(7).returns)


def test_an_evaluation_is_as_its_settings_say(monkeypatch):
    asked = []

    def evaluate(agent, env, **how):
        asked.append((env, how))
        return trpo.EvaluationResult((0.0,), (1,))

    monkeypatch.setattr("trpo.runs.evaluating.evaluate", evaluate)
    how = {"episodes": 3, "deterministic": False, "seed": 7, "max_steps": 9}
    train(every=4 * BATCH, **how)
    assert asked == [(None, how)] * 2


def test_the_best_checkpoint_is_kept_alone_and_can_be_loaded(tmp_path, monkeypatch):
    Scored(monkeypatch, [1.0, 3.0, 2.0, 3.0])
    run, agents = tmp_path / "run", {}
    train(NAMES[0], run, [lambda m: agents.update({m.iteration: m.agent})], every=64)
    assert [record["best"] for record in read_evaluations(run)] == [True, True, False, False]  # of equal ones the first
    assert [path.name for path in checkpoints(run / "best")] == ["00000004"]
    for which, iteration in (("best", 4), (4, 4), ("4", 4), ("last", 8), (8, 8)):
        assert_same_bits(trpo.load(run, checkpoint=which).learner, agents[iteration].learner)
    with pytest.raises(ValueError, match=r"must be last, best or an iteration that .* has: 0, 4, 8"):
        trpo.load(run, checkpoint=5)
    (run / "best" / "00000004" / "state.json").write_text("{}")
    for which in ("best", 4):  # asked for by name, no other takes its place
        with pytest.raises(ValueError, match=r"checkpoint 00000004: .* corrupt"):
            trpo.load(run, checkpoint=which)


def test_a_run_without_evaluation_has_no_best_checkpoint(tmp_path):
    train(out=tmp_path / "run", iterations=1)
    with pytest.raises(ValueError, match=r"no best checkpoint.*--evaluate.every"):
        trpo.load(tmp_path / "run", checkpoint="best")


def test_stops_at_a_return_or_when_patience_is_over(tmp_path, monkeypatch, capsys):
    Scored(monkeypatch, [1.0, 5.0, 9.0])
    trpo.train(NAMES[0], config=config(every=BATCH, stop_return=5.0), out=tmp_path / "a")
    assert "evaluated return 5 reached evaluate.stop_return=5" in " ".join(capsys.readouterr().err.split())
    assert len(read_metrics(tmp_path / "a")) == 2
    Scored(monkeypatch, [1.0, 2.0, 2.0, float("nan"), 9.0])
    trpo.train(NAMES[0], config=config(every=BATCH, patience=2), out=tmp_path / "b")
    assert "2 evaluations without a better one" in " ".join(capsys.readouterr().err.split())
    assert [record["mean_return"] for record in read_evaluations(tmp_path / "b")] == [1.0, 2.0, 2.0, None]
    Scored(monkeypatch, [3.0, 1.0, 1.0])
    trpo.resume(tmp_path / "b", quiet=True)  # the account goes on: a better one begins it anew
    assert [record["best"] for record in read_evaluations(tmp_path / "b")][-3:] == [True, False, False]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path, monkeypatch):
    scores = [1.0, 2.0, 3.0, 4.0]
    run = tmp_path / "run"
    Scored(monkeypatch, scores)
    whole = train(NAMES[0], run, every=64)
    kept = read_evaluations(run)
    for path in checkpoints(run / "checkpoints"):
        if path.name == "00000008":
            for file in path.iterdir():
                file.write_bytes(b"")
    Scored(monkeypatch, [float("nan")] * 4)  # from the beginning again: the only other checkpoint
    trpo.resume(run, quiet=True)
    records = read_evaluations(run)
    assert [r["iteration"] for r in records] == [r["iteration"] for r in kept]
    assert [r["best"] for r in records] == [False] * 4
    assert not checkpoints(run / "best")
    assert_same_bits(trpo.load(run).learner, whole.learner)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ('{"iteration": -1, "steps": 0, "mean_return": 0.0, "std_return": 0.0, "best": true}', "iteration=-1"),
    ],
)
def test_damaged_evaluations_are_named(line, said, tmp_path):
    train(out=tmp_path / "run", iterations=2, every=BATCH)
    (tmp_path / "run" / "evaluations.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"evaluations\.jsonl, line 1") as caught:
        trpo.resume(tmp_path / "run", steps=4 * BATCH, quiet=True)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["evaluations.jsonl", "best"])
def test_no_link_in_the_place_of_evaluations_is_followed(name, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    train(out=run, iterations=2, every=BATCH)
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = sorted(outside.rglob("*")) if outside.is_dir() else outside.read_text()
    with pytest.raises(ValueError, match="is a link"):
        trpo.resume(run, steps=4 * BATCH, quiet=True)
    with pytest.raises(ValueError, match="is a link"):
        trpo.load(run, checkpoint="best") if name == "best" else read_evaluations(run)
    assert before == (sorted(outside.rglob("*")) if outside.is_dir() else outside.read_text())


@pytest.mark.parametrize("wrong", [{"every": -1}, {"episodes": 0}, {"max_steps": 0}, {"patience": 0}])
def test_settings_of_evaluation_are_checked(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"evaluate.{name}="):
        trpo.EvaluateConfig(**wrong)
    with pytest.raises(ValueError, match=f"evaluate.{name}="):
        trpo.EvaluateEvery(**{"every": 1, **wrong})


def test_environments_that_are_handed_in_are_evaluated_in_others(tmp_path):
    envs = trpo.make_envs("probe:both", count=4)
    try:
        with pytest.raises(ValueError, match=r"EvaluateEvery\(..., env=...\)"):
            trpo.train(envs, config=config(every=BATCH), out=tmp_path / "run", quiet=True)
        beside = trpo.EvaluateEvery(every=BATCH, env="probe:both", episodes=2)
        trpo.train(envs, config=config(iterations=2), callbacks=[beside], quiet=True)
    finally:
        envs.close()
    assert [record["steps"] for record in beside.results] == [BATCH, 2 * BATCH]


def test_the_command_line_evaluates_keeps_and_takes_the_best(tmp_path, capsys):
    run = str(tmp_path / "run")
    flags = ["--env.count", "4", "--fragment", "8", "--evaluate.every", "32", "--evaluate.stop-return", "-9"]
    assert main(["train", "probe:both", "--steps", "256", "--out", run, *flags]) == 0
    assert "stopped at 32 steps: evaluated return" in " ".join(capsys.readouterr().err.split())
    for which, code, said in (
        ("best", 0, "at 32 steps"),
        ("0", 0, "at 0 steps"),
        ("7", 2, "checkpoint='7': must be last"),
    ):
        assert main(["evaluate", run, "--checkpoint", which]) == code
        assert said in "".join(capsys.readouterr())
    assert main(["train", "probe:both", "--evaluate.every", "-1"]) == 2
    assert "evaluate.every=-1: must be ≥ 0" in capsys.readouterr().err


def test_evaluations_are_drawn_as_dots(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("trpo.report.plots.save_png", lambda figure, out: drawn.append(figure) or out)
    train(out=tmp_path / "run", every=64, episodes=2)
    plot_runs([tmp_path / "run"], tmp_path / "curves.png")
    records = read_evaluations(tmp_path / "run")
    points = [(record["steps"], record["mean_return"]) for record in records]
    dots = [line for line in drawn[0].axes[0].lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 4]
    assert [list(map(tuple, line.get_xydata())) for line in dots] == [points]
    (tmp_path / "run" / "evaluations.jsonl").write_text("{\n")
    with pytest.warns(UserWarning, match=r"evaluations.jsonl, line 1: .*; drawn without evaluations"):
        plot_runs([tmp_path / "run"], tmp_path / "curves.png")
    assert not [line for line in drawn[1].axes[0].lines if line.get_linestyle() == "None"]


# ---------------------------------------------------------------- a loop of one's own


def own_loop(place, made=None, callbacks=(), stop_after=10**9, env="probe:both"):
    agent = trpo.make_agent(env, made or config(env))
    with trpo.run(place, agent, callbacks=callbacks) as run:
        for state, metrics in trpo.iterations(env, run.agent, state=run.state):
            if run.write(state, metrics) or state.iteration >= stop_after:
                break
    return run


@pytest.mark.parametrize("env", NAMES)
def test_an_own_loop_leaves_what_training_leaves_and_goes_on(env, tmp_path):
    trained = train(env, tmp_path / "a", every=64, episodes=2)
    made = config(env, every=64, episodes=2)
    assert own_loop(tmp_path / "b", made, stop_after=5, env=env).state.iteration == 5
    run = own_loop(tmp_path / "b", made, env=env)
    assert_same_bits(run.agent.learner, trained.learner)
    a, b = ([{**untimed(r), "returns": 0} for r in read_metrics(tmp_path / which)] for which in "ab")
    assert a == b
    assert read_evaluations(tmp_path / "a") == read_evaluations(tmp_path / "b")
    assert_same_bits(trpo.load(tmp_path / "b").learner, trained.learner)
    names = [{path.name.split(".")[0] for path in (tmp_path / which).iterdir()} for which in "ab"]
    assert names[0] == names[1]


def test_an_own_loop_goes_on_with_changed_settings(tmp_path):
    """As ``trpo.resume`` does; a run that is begun has them from the beginning."""
    for which in "ab":
        own_loop(tmp_path / which, stop_after=2)
    trpo.resume(tmp_path / "a", changes={"rule.max_kl": 0.002}, quiet=True)
    changes = {"rule.max-kl": 0.002}
    with trpo.run(tmp_path / "b", trpo.make_agent("probe:both", config()), changes=changes) as run:
        before = (tmp_path / "b" / "config.json").read_bytes()
        assert run.agent.config.rule.max_kl == 0.002
        for state, metrics in trpo.iterations("probe:both", run.agent, state=run.state):
            run.write(state, metrics)
            assert (tmp_path / "b" / "config.json").read_bytes() != before
    told = [json.loads((tmp_path / which / "config.json").read_text()) for which in "ab"]
    assert told[0]["changes"] == told[1]["changes"]
    assert told[1]["changes"] == [{"iteration": 2, "steps": 64, "setting": "rule.max_kl", "old": 0.01, "new": 0.002}]
    a, b = ([untimed(record) for record in read_metrics(tmp_path / which)] for which in "ab")
    assert a == b
    assert [record["max_kl"] for record in b] == [float(np.float32(x)) for x in [0.01] * 2 + [0.002] * 6]
    with trpo.run(tmp_path / "c", trpo.make_agent("probe:both", config()), changes=changes) as run:
        assert run.agent.config.rule.max_kl == 0.002
    told = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (told["config"]["rule"]["max_kl"], told.get("changes", [])) == (0.002, [])
    for place in (tmp_path / "b", tmp_path / "d"):
        refused = trpo.run(place, trpo.make_agent("probe:both", config()), changes={"policy.hidden": (8,)})
        with pytest.raises(ValueError, match=r"policy.hidden=\(8,\): does not change"), refused:
            pass
    assert not (tmp_path / "d").exists()


def test_an_own_loop_is_told_why_to_stop(tmp_path):
    run = own_loop(tmp_path / "run", callbacks=[Every(every=3 * BATCH, reason="enough")])
    assert run.state.iteration == 3
    assert checkpoints(tmp_path / "run" / "checkpoints")[0].name == "00000003"


def test_an_error_in_the_block_comes_out_as_it_is_with_the_last_iteration_saved(tmp_path):
    def fail(moment):
        if moment.iteration == 3:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        own_loop(tmp_path / "run", callbacks=[fail])
    assert "checkpoint of iteration 3" in caught.value.__notes__[0]
    assert own_loop(tmp_path / "run").state.iteration == 8


def test_ctrl_c_ends_an_own_loop_after_its_iteration(tmp_path):
    def press(moment):
        if moment.iteration == 2:
            signal.raise_signal(signal.SIGINT)

    for last in (8, 2):  # with an iteration to come, and in the last one
        place = tmp_path / f"run-{last}"
        with pytest.raises(KeyboardInterrupt, match="go on with: trpo resume"):
            own_loop(place, config(iterations=last), callbacks=[press])
        saved = {8: "00000003", 2: "00000002"}
        assert checkpoints(place / "checkpoints")[0].name == saved[last]
    assert own_loop(tmp_path / "run-8").state.iteration == 8


def test_an_own_loop_has_its_directory_alone(tmp_path):
    agent = trpo.make_agent("probe:both", config())
    with trpo.run(tmp_path / "run", agent), pytest.raises(ValueError, match="in use by"):
        own_loop(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        own_loop(tmp_path / "other")


def test_an_own_loop_does_not_go_on_in_other_spaces(tmp_path):
    own_loop(tmp_path / "run", stop_after=1)
    with (
        pytest.raises(ValueError, match="spaces are those"),
        trpo.run(tmp_path / "run", trpo.make_agent("CartPole-v1")),
    ):
        pass


SCRIPT = """
import sys, time, trpo
config = trpo.Config(steps=8 * 32, fragment=8, env=trpo.EnvConfig("probe:both", count=4), checkpoint_every=2)
agent = trpo.make_agent("probe:both", config)
with trpo.run(sys.argv[1], agent) as run:
    for state, metrics in trpo.iterations("probe:both", run.agent, state=run.state):
        run.write(state, metrics)
        if state.iteration == 5 and len(sys.argv) > 2:
            print("now", flush=True)
            time.sleep(300)
"""


def test_an_own_loop_survives_kill_9(tmp_path):
    place = tmp_path / "run"
    process = start_process([sys.executable, "-c", SCRIPT, str(place), "wait"])
    assert process.stdout.readline() == "now\n"
    end_processes([process])
    assert checkpoints(place / "checkpoints")[0].name == "00000004"
    own_loop(place)
    assert [record["iteration"] for record in read_metrics(place)] == list(range(1, 9))
    assert_same_bits(trpo.load(place).learner, train().learner)


class Still(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, {}


def test_an_own_loop_lends_what_is_not_stored(tmp_path):
    made = dataclasses.replace(config(), evaluate=trpo.EvaluateConfig(every=64, episodes=1))
    assert own_loop(tmp_path / "run", made, stop_after=3, env=Still).state.iteration == 3
    assert own_loop(tmp_path / "run", made, env=Still).state.iteration == 8


# ---------------------------------------------------------------- an agent's own directory


@pytest.mark.parametrize("env", NAMES)
def test_a_saved_agent_is_loaded_bit_for_bit(env, tmp_path):
    agent = train(env)
    agent.save(tmp_path / "saved")
    loaded = trpo.load(tmp_path / "saved")
    assert_same_bits(loaded.learner, agent.learner)
    assert loaded.evaluate(3) == agent.evaluate(3)
    with pytest.raises(ValueError, match="not empty"):
        agent.save(tmp_path / "saved")
