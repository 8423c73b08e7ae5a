"""What changes a run on its way, and where it begins: settings on resume, another run's policy, a file of settings."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from helpers import assert_same_bits, untimed

import trpo
from trpo.cli.main import main
from trpo.report.recording import record
from trpo.runs.changing import CHANGEABLE, changed, setting
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import resume_sweep
from trpo.settings.presets import apply_preset

BATCH = 32
NAMES = ("probe:both", "jax-probe:both")


def config(env="probe:both", iterations=2, **settings):
    where = trpo.EnvConfig(env, count=4)
    return trpo.Config(steps=iterations * BATCH, fragment=8, env=where, checkpoint_every=2, **settings)


def begin(out, env="probe:both", iterations=2, **settings):
    return trpo.train(env, config=config(env, iterations, **settings), out=out, quiet=True)


def described(run):
    return json.loads((run / "config.json").read_text())


@pytest.fixture(scope="module", params=NAMES)
def trained(request, tmp_path_factory):
    """A run of two iterations, which each test copies."""
    out = tmp_path_factory.mktemp("trained") / "run"
    begin(out, request.param)
    return request.param, out


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- settings that change on resume


def test_a_setting_changed_on_resume_is_that_of_the_iterations_that_follow(trained, run):
    env, _ = trained
    agent = trpo.resume(run, steps=4 * BATCH, changes={"rule.max_kl": 0.02, "discount": 0.9}, quiet=True)
    assert [record["max_kl"] for record in read_metrics(run)] == pytest.approx([0.01, 0.01, 0.02, 0.02])
    # By the definition: iterations with the one settings, then with the other, from the same state.
    made = config(env, 4)
    other = trpo.Config.from_json(made.to_json() | {"discount": 0.9, "rule": {"max_kl": 0.02}})
    first = trpo.make_agent(env, made)
    seen = [trpo.TrainingState(first.learner)]
    for settings, last in ((made, 2), (other, 4)):
        for state, _ in trpo.iterations(env, first, settings, seen[-1]):
            seen.append(state)
            if state.iteration == last:
                break
    assert_same_bits(agent.learner, seen[-1].learner)


def test_changes_are_kept_and_written_down(run):
    trpo.resume(run, steps=3 * BATCH, changes={"rule.max-kl": 0.02, "evaluate.every": 0}, quiet=True)
    trpo.resume(run, steps=4 * BATCH, quiet=True)
    data = described(run)
    assert data["config"]["rule"]["max_kl"] == 0.02
    assert data["changes"] == [
        {"iteration": 2, "steps": 64, "setting": "rule.max_kl", "old": 0.01, "new": 0.02},
        {"iteration": 2, "steps": 64, "setting": "steps", "old": 64, "new": 96},
        {"iteration": 3, "steps": 96, "setting": "steps", "old": 96, "new": 128},
    ]
    assert trpo.load(run).config.rule.max_kl == 0.02


@pytest.mark.parametrize("trained", NAMES[:1], indirect=True)
def test_a_run_that_goes_on_from_an_earlier_checkpoint_has_changed_from_there_on(run):
    trpo.resume(run, steps=4 * BATCH, changes={"discount": 0.5}, quiet=True)
    for iteration in (2, 4):
        shutil.rmtree(run / "checkpoints" / f"{iteration:08d}")
    trpo.resume(run, steps=5 * BATCH, quiet=True)
    assert [(c["setting"], c["iteration"], c["steps"]) for c in described(run)["changes"]] == [
        ("discount", 0, 0), ("steps", 0, 0), ("steps", 0, 0),
    ]  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_killed_after_a_change_was_written_goes_on_with_it(run, tmp_path, monkeypatch):
    changes = {"rule.max_kl": 0.03}
    shutil.copytree(run, tmp_path / "whole")
    whole = trpo.resume(tmp_path / "whole", steps=4 * BATCH, changes=changes, quiet=True)

    def killed(self, *rest):
        raise Killed

    with monkeypatch.context() as broken:  # nothing is saved any more
        broken.setattr("trpo.runs.run.Saver.save", killed)
        broken.setattr("trpo.runs.run.Saver.finished", killed)
        with pytest.raises((Killed, trpo.RunFailed)):
            trpo.resume(run, steps=4 * BATCH, changes=changes, quiet=True)
    assert described(run)["config"]["rule"]["max_kl"] == 0.03
    assert_same_bits(trpo.resume(run, quiet=True).learner, whole.learner)
    assert described(run)["changes"] == described(tmp_path / "whole")["changes"]
    one, other = (list(map(untimed, read_metrics(place))) for place in (run, tmp_path / "whole"))
    assert one == other


@pytest.mark.parametrize("trained", NAMES[:1], indirect=True)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy.hidden": (8,)}, r"policy.hidden=\(8,\): does not change in .*keeps its networks.*from the beginning"),
        ({"value.sees": ":1"}, "value.sees.*keeps its networks"),
        ({"env.count": 8}, "env.count=8: .*keeps its environments; instead: trpo train ENV --from .* --env.count 8"),
        ({"seed": 1}, "seed=1: .*instead: trpo train ENV --from .* --seed 1"),
        ({"rule.name": "penalty"}, "rule.name='penalty'.*--from"),
        ({"value.method": "gauss-newton"}, "value.method.*--from"),
        ({"reward": "sign"}, "reward='sign'.*--from"),
        ({"policy.initial_std": 0.3}, "policy.initial_std=0.3.*shapes the beginning alone"),
        ({"policy.averaging": 0.0}, "policy.averaging=0.0.*from the beginning, or never"),
        ({"rule.maxkl": 0.1}, "unknown setting rule.maxkl; did you mean rule.max_kl"),
        ({"rule": 0.1}, "not a group"),
        ({"rule.max_kl": -1.0}, "max_kl=-1.0"),
        ({"value.steps": 3}, "'adam' does not use it"),
        ({"fragment": 2**40}, "fragment"),
    ],
)  # fmt: skip
def test_a_refused_change_says_why_and_what_to_do_and_nothing_is_lost(changes, said, run):
    before = (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match=said) as caught:
        trpo.resume(run, steps=4 * BATCH, changes=changes, quiet=True)
    assert "\n" not in str(caught.value)
    assert (run / "config.json").read_bytes() == before
    assert len(read_metrics(run)) == 2


def test_a_rule_of_ones_own_has_no_settings_here(tmp_path):
    trpo.train("probe:both", config=config(), rule=trpo.TRPO(), out=tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match=r"rule.max_kl=0.02.*a rule of its own; instead: pass the rule .* as rule=…"):
        trpo.resume(tmp_path / "run", rule=trpo.TRPO(), changes={"rule.max_kl": 0.02}, quiet=True)


def test_every_setting_that_may_change_leaves_what_was_learned_as_it_is():
    """Its arrays and its functions are those of an agent that was made with the new value."""
    values = {
        "env.workers": 2, "env.devices": 1, "on_nonfinite": "continue", "problem.block": 5, "final_discount": 0.995,
        "log.wandb": "mine", "env.info": ("far",), "evaluate.stop_success": 0.5,
        "evaluate.stop_return": 1.0, "evaluate.patience": 2, "value.minibatch": 16,
        "rollout": "vine", "vine.proposal": "policy", "vine.kl": "roots", "vine.targets": "trunk",
    }  # fmt: skip
    other = {
        "evaluate.stop_success": {"env": {"count": 4, "info": ["far"]}, "evaluate": {"every": 32}},
        "evaluate.stop_return": {"evaluate": {"every": 32}},
        "evaluate.patience": {"evaluate": {"every": 32}},
        "rule.inner_steps": {"rule": {"name": "penalty"}},
        "value.steps": {"value": {"method": "gauss-newton"}},
        "value.max_change": {"value": {"method": "gauss-newton"}},
    }
    for name in sorted(CHANGEABLE):
        base = trpo.Config.from_json(config().to_json() | other.get(name, {}))
        agent = trpo.make_agent("probe:both", base)
        old = setting(base, name)
        new = values.get(name, not old if isinstance(old, bool) else (old or 1) * 2 if isinstance(old, int) else None)
        new = old / 2 if new is None else new
        after, records = changed(agent, {name: new}, Path("run"))
        assert [record["setting"] for record in records] == [name]
        made = trpo.make_agent("probe:both", after.config)
        assert_same_bits(made.learner, agent.learner)
        assert (made.policy, made.value) == (after.policy, after.value), name


def test_all_runs_of_a_sweep_change_but_not_in_what_they_differ_in(tmp_path):
    place = tmp_path / "sweep"
    trpo.sweep(NAMES[0], seeds=1, vary={"rule.max_kl": [0.01, 0.02]}, config=config(), out=place, quiet=True)
    names = sorted(path.name for path in place.iterdir() if path.is_dir())
    with pytest.raises(ValueError, match=r"rule.max-kl: it is what the runs of .* differ in; change it in one"):
        resume_sweep(place, changes={"rule.max-kl": 0.03}, quiet=True)
    agents = resume_sweep(place, steps=3 * BATCH, changes={"discount": 0.5}, quiet=True)
    assert [agent.config.discount for agent in agents] == [0.5, 0.5]
    assert [agent.config.rule.max_kl for agent in agents] == [0.01, 0.02]
    assert [[c["setting"] for c in described(place / name)["changes"]] for name in names] == [["discount", "steps"]] * 2


@pytest.mark.parametrize("trained", NAMES[:1], indirect=True)
def test_the_command_line_changes_settings(run, capsys):
    flags = ["--rule.max-kl", "0.02", "--no-standardise-advantages", "--evaluate.no-deterministic", "--steps", "96"]
    assert main(["resume", *flags, str(run), "--quiet"]) == 0
    changes = described(run)["changes"]
    assert {c["setting"]: c["new"] for c in changes} == {
        "rule.max_kl": 0.02, "standardise_advantages": False, "evaluate.deterministic": False, "steps": 96,
    }  # fmt: skip
    capsys.readouterr()
    for wrong, said in ((["--policy.hidden", "8"], "policy.hidden=(8,)"), (["--rule.maxkl", "1"], "--rule.max-kl?")):
        assert main(["resume", str(run), *wrong]) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
    assert main(["resume", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in CHANGEABLE)
    assert "--policy.hidden" not in text


# ---------------------------------------------------------------- beginning with what another run has learned


def test_a_run_begins_with_what_another_has_learned(trained, tmp_path):
    env, run = trained
    seen = []
    source = trpo.load(run)
    trpo.train(
        env, config=config(env, 1, seed=3, rule=trpo.RuleConfig(name="penalty")), start_from=run, quiet=True,
        out=tmp_path / "new", callbacks=[lambda moment: seen.append(moment)],
    )  # fmt: skip
    begun = trpo.load(tmp_path / "new", checkpoint=0)
    ours, theirs = begun.learner, source.learner
    assert_same_bits((ours.policy, ours.average), (theirs.policy, theirs.average))
    assert_same_bits((ours.observations, ours.value.params), (theirs.observations, theirs.value.params))
    assert_same_bits(ours.value.returns, theirs.value.returns)
    assert begun.evaluate(3) == source.evaluate(3)
    said = described(tmp_path / "new")["from"]
    assert (said["run"], said["iteration"], said["steps"]) == (str(run), 2, 64)
    assert said["id"] == described(run)["run"]
    trpo.resume(tmp_path / "new", steps=2 * BATCH, quiet=True)
    assert described(tmp_path / "new")["from"] == said


def test_networks_are_those_of_the_run_unless_others_are_asked_for(tmp_path, capsys):
    networks = {"policy": trpo.PolicyConfig(hidden=(8,)), "value": trpo.ValueConfig(hidden=(6,))}
    source = begin(tmp_path / "a", iterations=1, **networks, evaluate=trpo.EvaluateConfig(every=32, episodes=1))
    agent = trpo.train("probe:both", start_from=tmp_path / "a", steps=1, quiet=True)
    assert (agent.config.policy.hidden, agent.config.value.hidden) == ((8,), (6,))
    by_agent = trpo.train("probe:both", start_from=source, steps=1, quiet=True)
    assert_same_bits(by_agent.learner, agent.learner)
    with pytest.raises(ValueError, match=r"policy.hidden=\(64, 64\): .*/a has \(8,\), and its networks are taken"):
        trpo.train("probe:both", start_from=tmp_path / "a", config=config(), quiet=True)
    flags = ["train", "probe:both", "--from", str(tmp_path / "a"), "--checkpoint", "best", "--steps", "1"]
    flags += ["--env.count", "4", "--fragment", "8", "--out", str(tmp_path / "b"), "--quiet"]
    assert main(flags) == 0
    assert described(tmp_path / "b")["from"]["iteration"] == 1
    for more, said in (
        (["--policy.hidden", "9"], "policy.hidden=(9,)"),
        (["--checkpoint", "7"], "checkpoint='7': must be last, best or an iteration"),
    ):
        assert main([*flags, "--out", str(tmp_path / "c"), *more]) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
        assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("trained", NAMES[:1], indirect=True)
def test_what_a_run_cannot_begin_with_is_said(trained, tmp_path):
    _, run = trained
    for env, how, said in (
        ("CartPole-v1", {"start_from": run}, r"cannot start from .*/run: observations of the agent .* 'CartPole-v1'"),
        ("probe:both", {"start_from": tmp_path}, "not the directory of a run"),
        ("probe:both", {"checkpoint": "best"}, r"checkpoint='best': it is that of start_from \(--from RUN\)"),
        (
            "probe:both",
            {"start_from": run, "policy": lambda x: x},
            "does not fit this agent",
        ),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            trpo.train(env, steps=1, quiet=True, **how)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- a file of settings


def test_flags_win_over_the_file_which_wins_over_the_preset(tmp_path, capsys):
    file, out = tmp_path / "my.toml", tmp_path / "run"
    file.write_text('steps = 1_000\ndiscount = 0.9\n[env]\ncount = 4\n[rule]\nname = "penalty"\nmax-kl = 0.03\n')
    assert trpo.Config.from_toml(file).rule.max_kl == 0.03
    flags = ["train", "Pendulum-v1", "--config", str(file), "--steps", "1", "--rule.inner-steps", "2"]
    assert main([*flags, "--out", str(out), "--quiet"]) == 0
    made = trpo.load(out).config
    preset = apply_preset(trpo.Config(env=trpo.EnvConfig("Pendulum-v1")))[0]
    assert (made.steps, made.rule.inner_steps) == (1, 2)  # the flags'
    assert (made.discount, made.env.count, made.rule.max_kl) == (0.9, 4, 0.03)  # the file's
    assert made.fragment == preset.fragment != trpo.Config().fragment  # the preset's
    assert preset.discount != 0.9
    capsys.readouterr()
    for content, said in (
        ("rule.maxkl = 3", "my.toml: unknown setting rule.maxkl; did you mean rule.max_kl?"),
        ("rule = 3", "my.toml: rule=3: must be a group of settings"),
        ("discount = 7", "my.toml: discount=7.0: must be in [0, 1]"),
        ("discount 7", "my.toml: "),
        (None, "No such file"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        assert main(flags) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1


# ---------------------------------------------------------------- wrappers by name

MODULE = """
import gymnasium as gym, numpy as np
class Twice(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward
class Plus(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 1
def none(env):
    return 3
class Fails(gym.Wrapper):
    def __init__(self, env):
        raise KeyError("mine")
"""


@pytest.fixture
def my_wrappers(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_wrappers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    sys.modules.pop("my_wrappers", None)


def wrapped(*names, workers=0, env="CartPole-v1"):
    where = trpo.EnvConfig(env, count=4, workers=workers, wrappers=tuple(f"my_wrappers:{name}" for name in names))
    return trpo.Config(steps=BATCH, fragment=8, env=where)


@pytest.mark.parametrize("workers", [0, 2])
def test_wrappers_are_put_around_in_order(workers, my_wrappers):
    for names, expected in (((), 1.0), (("Twice", "Plus"), 3.0), (("Plus", "Twice"), 4.0)):
        env = wrapped(*names, workers=workers).env
        with contextlib.closing(trpo.make_envs(env.id, 4, workers, wrappers=env.wrappers)) as envs:
            envs.reset([0, 1, 2, 3])
            assert envs.step(np.zeros(4, int)).reward.tolist() == [expected] * 4


def test_a_run_has_its_wrappers_wherever_it_goes(my_wrappers, tmp_path, monkeypatch):
    run = tmp_path / "run"
    trpo.train("CartPole-v1", config=wrapped("Twice"), out=run, quiet=True)
    assert described(run)["config"]["env"]["wrappers"] == ["my_wrappers:Twice"]
    found = trpo.load(run).evaluate(3)
    assert np.array_equal(found.returns, 2.0 * np.array(found.lengths))
    trpo.resume(run, steps=2 * BATCH, quiet=True)
    # Elsewhere it is not trusted, and nothing is imported: with its own environment or with another.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    sys.modules.pop("my_wrappers", None)
    for what in (
        lambda: trpo.load(run).evaluate(1),
        lambda: trpo.resume(run, steps=3 * BATCH, quiet=True),
        lambda: trpo.evaluate(trpo.load(run), env="CartPole-v1", episodes=1),
        lambda: next(trpo.iterations("CartPole-v1", trpo.load(run))),
        lambda: trpo.evaluate(trpo.load(run, env=lambda: gym.make("CartPole-v1")), episodes=1),
        lambda: record(trpo.load(run, env=lambda: gym.make("CartPole-v1")), tmp_path / "x.gif"),
    ):
        with pytest.raises(ValueError, match=r"imports the module 'my_wrappers'.*--trust"):
            what()
    assert "my_wrappers" not in sys.modules
    assert trpo.load(run, trust=True).evaluate(1).mean_return > 0


def test_wrappers_that_cannot_be_are_named(my_wrappers):
    for names, said in (
        (["my_wrappers:Twise"], r"env.wrappers my_wrappers:Twise: my_wrappers has no 'Twise'; nearest: Twice"),
        (["no_such:Thing"], "env.wrappers no_such:Thing cannot be imported"),
        (["my_wrappers:Fails"], "env.wrappers my_wrappers:Fails cannot be .*KeyError"),
        (["my_wrappers:none"], "env.wrappers my_wrappers:none.* returned int, not a gymnasium.Env"),
    ):
        with pytest.raises(ValueError, match=said):
            trpo.make_envs("CartPole-v1", 1, wrappers=names)
    with pytest.raises(ValueError, match=r"env.wrappers=\('Twice',\): must be names of the form module:Class"):
        trpo.EnvConfig(wrappers=("Twice",))
    with pytest.raises(ValueError, match=r"env.wrappers my_wrappers:Twice: for environments of Gymnasium"):
        trpo.make_envs("jax-probe:both", 1, wrappers=["my_wrappers:Twice"])
