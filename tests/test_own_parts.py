"""Value functions and sources of one's own: trained, stored, and asked for again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits, bits

import trpo
from trpo.envs.spaces import Box, Choice
from trpo.rollout import Snapshot

COUNT, FRAGMENT = 8, 8
CONFIG = trpo.Config(
    steps=6 * COUNT * FRAGMENT,
    fragment=FRAGMENT,
    env=trpo.EnvConfig("probe:observation", count=COUNT),
    policy=trpo.PolicyConfig(hidden=()),
    value=trpo.ValueConfig(hidden=(), learning_rate=0.05, minibatch=16),
)
SHORT = dataclasses.replace(CONFIG, steps=3 * COUNT * FRAGMENT)


class Line(eqx.Module):
    """V = a + b x, in units of the returns' deviation."""

    weight: jax.Array

    def __call__(self, observation: Any) -> Any:
        return self.weight[0] + self.weight[1] * observation[..., 0]


LINE = Line(jnp.zeros(2))


# ---------------------------------------------------------------- a value function


@pytest.mark.parametrize("env", ["probe:observation", "jax-probe:observation"])
def test_a_value_function_of_one_s_own_is_trained(env: str) -> None:
    config = dataclasses.replace(CONFIG, steps=20 * COUNT * FRAGMENT)
    agent = trpo.make_agent(env, config, value=LINE)
    *_, (state, metrics) = trpo.iterations(env, agent, config)
    assert metrics["explained_variance"] > 0.98  # V(s) = s
    learner = state.learner
    actor = agent.program().freeze(learner.policy, learner.observations)
    seen = actor.see(jnp.array([[-1.0], [1.0]]))
    value = agent.program().value_of(learner.value.params, seen) * learner.value.scale
    np.testing.assert_allclose(value, [-1, 1], atol=0.1)


def test_a_value_function_of_one_s_own_is_stored_and_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = trpo.train("probe:observation", config=CONFIG, value=LINE, quiet=True)
    trpo.train("probe:observation", config=SHORT, value=LINE, out=out, quiet=True)
    for again in (trpo.load, trpo.resume):
        with pytest.raises(ValueError, match=r"was trained with a value of its own: pass a module .* as value=…"):
            again(out)
    resumed = trpo.resume(out, steps=CONFIG.steps, value=LINE, quiet=True)
    assert_same_bits(resumed.learner, whole.learner)
    assert_same_bits(trpo.load(out, value=LINE).learner, whole.learner)
    assert bits(whole.learner.value.params) != bits(LINE)


@pytest.mark.parametrize("env", ["probe:observation", "jax-probe:observation"])
def test_a_sweep_with_a_value_function_of_one_s_own(env: str, tmp_path: Path) -> None:
    agents = trpo.sweep(env, seeds=2, config=CONFIG, value=LINE, out=tmp_path / "sweep", quiet=True)
    values = [bits(agent.learner.value.params) for agent in agents]
    assert len(values) == 2
    assert values[0] != values[1]
    assert all(bits(LINE) != value for value in values)


# ---------------------------------------------------------------- a source


class Bandit:
    """Contexts are drawn, and every step is an episode; the first of two actions is right where x_0 > x_1."""

    spec = trpo.EnvSpec("bandit", Box((2,)), Choice(2))

    def __init__(self, count: int = COUNT):
        self.count, self.episodes, self.closed = count, trpo.EpisodeStatistics(count), False

    def restart(self, seeds: list[int]) -> None:
        self.random = np.random.default_rng(seeds)
        self.episodes.restart()

    def collect(self, policy: Any, noise: Any) -> trpo.Trajectory:
        x = self.random.normal(size=(*noise.shape[:2], 2)).astype(np.float32)
        begins, ends = np.ones(self.count, bool), np.ones(noise.shape[:2], bool)
        action = np.stack([policy(now, (), begins, z)[0] for now, z in zip(x, noise, strict=True)])
        reward = (action == (x[..., 0] > x[..., 1])).astype(np.float32)
        self.episodes.add(reward, ends, ends)
        return trpo.Trajectory(x, action, reward, ends, ~ends, x, ends, carry=(), reset=begins)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.random.bit_generator.state, {})

    def restore(self, snapshot: Snapshot) -> None:
        self.random.bit_generator.state = snapshot.environments

    def close(self) -> None:
        self.closed = True


def test_an_agent_knows_which_of_its_parts_are_not_in_its_settings() -> None:
    envs = trpo.make_envs("probe:both", 2)
    module = trpo.make_agent(envs).module
    assert trpo.make_agent("probe:both", policy=module).own == {"policy"}
    assert trpo.make_agent(envs, policy=module).own == {"policy", "env"}
    assert trpo.make_agent("probe:both").config.env.id == "probe:both"


def test_a_source_of_one_s_own_in_iterations() -> None:
    config = dataclasses.replace(CONFIG, steps=40 * COUNT * FRAGMENT, rule=trpo.RuleConfig(max_kl=0.05))
    source = Bandit()
    assert isinstance(source, trpo.Source)
    agent = trpo.make_agent(source, config)
    states, metrics = zip(*trpo.iterations(source, agent, config), strict=True)
    assert metrics[0]["episode_return"] < 0.7
    assert metrics[-1]["episode_return"] > 0.9
    assert metrics[-1]["episodes"] == config.steps == states[-1].steps
    assert not source.closed  # it is the caller's
    assert agent.at(states[-1]).act([1.0, -1.0]) == 1
    # From the middle on, in another source: the same.
    other = Bandit()
    resumed = [state for state, _ in trpo.iterations(other, agent, config, states[19])]
    assert_same_bits(resumed[-1].learner, states[-1].learner)
    with pytest.raises(ValueError, match=r"env.count=8, but 3 environments"):
        list(trpo.iterations(Bandit(3), agent, config))


def test_a_source_of_one_s_own_in_train_and_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = trpo.train(Bandit(), config=CONFIG, quiet=True)
    trpo.train(Bandit(), config=SHORT, out=out, quiet=True)
    resumed = trpo.resume(out, steps=CONFIG.steps, env=Bandit(), quiet=True)
    assert_same_bits(resumed.learner, whole.learner)
    assert_same_bits(trpo.load(out).learner, whole.learner)
