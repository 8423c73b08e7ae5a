"""What environments tell in ``info`` where episodes end: in metrics, in evaluations, and as a reason to stop."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits, untimed

import trpo
from trpo.cli.main import main
from trpo.envs import Box, Choice, EnvSpec
from trpo.rollout.episodes import RECENT, RecentEpisodes
from trpo.runs.evaluating import read_evaluations
from trpo.runs.sinks import read_metrics

LENGTHS = (2, 3)


class Telling(gym.Env):
    """Episodes of two and three steps in turn; the longer ones succeed, and say how far they came."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.time, self.episode = 0, 1 if seed is not None else self.episode + 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        length = LENGTHS[self.episode % 2]
        done = self.time == length
        # Before an episode's end it says what must not be counted.
        told = {"is_success": done and length == 3, "far": np.float64(length if done else 99), "name": "no number"}
        if done and length == 3:
            told["rare"] = 7
        return np.full(1, self.time / 9, np.float32), 1.0, done, False, told


class State(NamedTuple):
    time: Any
    odd: Any


SPEC = EnvSpec("telling", Box((1,)), Choice(2))


@dataclasses.dataclass(frozen=True)
class TellingInJax:
    """The same in JAX."""

    spec: EnvSpec = SPEC
    cheap_reset: bool = True

    def reset(self, key: Any) -> Any:
        return State(jnp.zeros((), jnp.int32), jnp.asarray(True)), jnp.zeros(1)

    def step(self, state: State, action: Any, key: Any) -> Any:
        time = state.time + 1
        done = time == 3
        info = {"is_success": done, "far": jnp.where(done, time, 99)}
        return State(time, state.odd), trpo.Step(time[None] / 9.0, jnp.ones(()), done, jnp.zeros((), bool), info)


def config(*info: str, iterations: int = 2, workers: int = 0, stagger: bool = False, **evaluate: Any) -> trpo.Config:
    env = trpo.EnvConfig(count=4, workers=workers, info=info, stagger=stagger)
    asked = trpo.EvaluateConfig(**evaluate)
    return trpo.Config(steps=iterations * 48, fragment=12, env=env, evaluate=asked)


def train(*info: str, env: Any = Telling, out: Any = None, **settings: Any) -> tuple[trpo.Agent, list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    made = config(*info, **settings)
    agent = trpo.train(env, config=made, out=out, quiet=True, callbacks=[lambda moment: seen.append(moment.metrics)])
    return agent, list(map(untimed, seen))


@pytest.mark.parametrize("workers", [0, 2])
def test_means_over_episodes_that_ended_are_metrics_and_change_no_bit(workers):
    with pytest.warns(UserWarning, match=r"env.info name nowhere: no number .* it has far, is_success, name") as caught:
        agent, seen = train("is_success", "far", "rare", "name", "nowhere", workers=workers)
    assert len(caught) == 1
    without, plain = train(workers=0)
    assert_same_bits(agent.learner, without.learner)
    for record, other in zip(seen, plain, strict=True):
        told = {key: record.pop(key) for key in list(record) if key.startswith("info.")}
        assert record == other
        assert told["info.far"] == pytest.approx(record["episode_length"])
        assert told["info.is_success"] == pytest.approx(record["episode_length"] - 2)
        assert told["info.rare"] == 7.0
        assert told["info.name"] is told["info.nowhere"] is None


def test_in_jax_it_is_the_same_and_a_key_that_is_not_there_is_refused_at_once(tmp_path):
    agent, seen = train("far", "is_success", env=TellingInJax(), every=48, episodes=3)
    assert [(record["info.far"], record["info.is_success"]) for record in seen] == [(3.0, 1.0)] * 2
    without, _ = train(env=TellingInJax())
    # Another program, in which sums may be ordered differently, in the last bit.
    for x, y in zip(jax.tree.leaves(agent.learner), jax.tree.leaves(without.learner), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert agent.evaluate(3).info == {"far": 3.0, "is_success": 1.0}
    with pytest.raises(ValueError, match=r"env.info is_sucess: .* does not tell it; its info has is_success, far"):
        train("is_sucess", env=TellingInJax(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_tells_it_and_a_success_rate_stops_the_run(tmp_path, capsys):
    asked = config("far", "is_success", iterations=4, every=48, episodes=8, stop_success=0.4)
    trpo.train(Telling, config=asked, out=tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped at 48 steps: evaluated is_success 1 reached evaluate.stop_success=0.4" in said
    (record,) = read_evaluations(tmp_path / "run")
    assert record["info"] == {"far": 3.0, "is_success": 1.0}
    assert read_metrics(tmp_path / "run")[-1]["info.far"] == 2.5
    state = json.loads((tmp_path / "run" / "checkpoints" / "00000001" / "state.json").read_text())
    assert [entry["key"] for entry in state["episodes"]["info"]] == ["far", "is_success"]
    agent = trpo.load(tmp_path / "run", env=Telling)
    assert agent.evaluate(64).to_json()["info"] == {"far": 2.5, "is_success": 0.5}
    cut = agent.evaluate(64, max_steps=2)
    assert cut.cut > 0
    assert cut.info == {"far": 2.0, "is_success": 0.0}  # of those that ended
    assert "info" not in trpo.train(Telling, config=config(iterations=1), quiet=True).evaluate(2).to_json()


@pytest.mark.filterwarnings("ignore:env.info is_success")
def test_a_resumed_run_has_the_account(tmp_path):
    _, expected = train("is_success", iterations=4, out=tmp_path / "a", env="probe:both")
    train("is_success", iterations=2, out=tmp_path / "b", env="probe:both")
    with pytest.warns(UserWarning, match=r"it has nothing"):
        trpo.resume(tmp_path / "b", steps=4 * 48, quiet=True)
    assert list(map(untimed, read_metrics(tmp_path / "b"))) == expected


def test_a_success_rate_needs_a_key(tmp_path, capsys):
    asked = ["--evaluate.every", "64", "--evaluate.stop-success", "0.9"]
    assert main(["train", "probe:both", *asked, "--out", str(tmp_path / "run")]) == 2
    assert "evaluate.stop_success=0.9: must be None where env.info names no key" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"evaluate.stop_success: env.info names no key"):
        trpo.train(Telling, config=config(), callbacks=[trpo.EvaluateEvery(48, stop_success=0.5)], quiet=True)


def test_the_account_is_of_the_latest_hundred_that_told_it():
    recent = RecentEpisodes(info=("a", "b"))
    assert recent.info_means() == {"a": None, "b": None}
    values = np.random.default_rng(0).normal(size=250)
    for value in values:
        recent.note("a", 1, float(value))
    assert recent.info_means()["a"] == pytest.approx(values[-RECENT:].mean())
    again = RecentEpisodes(json.loads(json.dumps(recent.to_json())), info=("b", "a"))
    assert again.info_means() == {"b": None, "a": recent.info_means()["a"]}


def test_envpool_tells_what_it_has():
    pytest.importorskip("envpool")
    env = trpo.EnvConfig("envpool:CartPole-v1", count=4, info=("elapsed_step", "is_success"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = []
        trpo.train(
            "envpool:CartPole-v1", config=trpo.Config(steps=400, fragment=100, env=env), quiet=True,
            callbacks=[lambda moment: seen.append(moment.metrics)],
        )  # fmt: skip
    assert any("env.info is_success: no number" in str(w.message) and "elapsed_step" in str(w.message) for w in caught)
    assert seen[-1]["info.elapsed_step"] == pytest.approx(seen[-1]["episode_length"])
