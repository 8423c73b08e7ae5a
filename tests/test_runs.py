"""Runs from Python: directories, loading, policies, rules and environments of the user's own."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same_bits

import trpo
from trpo.runs.sinks import read_metrics

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
