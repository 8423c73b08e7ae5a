"""What changes a run on its way, and where it begins: settings on resume, another run's policy, a file of settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import assert_same_bits, untimed

import trpo
from trpo.cli.main import main
from trpo.runs.changing import CHANGEABLE, changed, setting
from trpo.runs.sinks import read_metrics
from trpo.runs.sweep import resume_sweep

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
        "evaluate.stop_return": 1.0, "evaluate.patience": 2, "value.minibatch": 16,
        "rollout": "vine", "vine.proposal": "policy", "vine.kl": "roots", "vine.targets": "trunk",
    }  # fmt: skip
    other = {
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
