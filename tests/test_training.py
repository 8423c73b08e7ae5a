"""The training loop: probes are solved, runs repeat and resume bit for bit, every setting does something."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import bits, untimed
from jax.flatten_util import ravel_pytree

import trpo
import trpo.envs
from tests.helpers import run_process
from trpo.envs import EnvironmentFailure, EnvSpec, Transition
from trpo.envs.host.probes import Probe
from trpo.envs.spaces import Box, Choice
from trpo.rollout import EpisodeStatistics, HostSource, Snapshot
from trpo.training.agent import Agent
from trpo.training.host import HostLoop, env_seeds
from trpo.training.learner import Hyper, improve, prepare, refit
from trpo.training.loop import advance
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.value_fits.fit import predict


def configure(env_id: str, iterations: int = 4, **changes: Any) -> trpo.Config:
    """Small networks: what is tested here does not depend on their size, and they compile quickly."""
    small: dict[str, Any] = {
        "env": trpo.EnvConfig(env_id, count=4),
        "fragment": 8,
        "policy": trpo.PolicyConfig(hidden=()),
        "value": trpo.ValueConfig(hidden=(), minibatch=16),
    }
    config = trpo.Config(**(small | changes))
    return dataclasses.replace(config, steps=iterations * config.batch)


def run(
    config: trpo.Config, env: Any = None, state: TrainingState | None = None, policy: Any = None
) -> tuple[trpo.Agent, list[TrainingState], list[dict[str, Any]]]:
    env = config.env.id if env is None else env
    agent = trpo.make_agent(env, config, policy)
    pairs = list(trpo.iterations(env, agent, config, state))
    return agent, [state for state, _ in pairs], [metrics for _, metrics in pairs]


# ---------------------------------------------------------------- probes with a choice (for V, see test_learner.py)


def solve(env: str) -> tuple[Callable[[float], Any], Callable[[float], float]]:
    """Return what was learned: s ↦ π(·|s) and s ↦ V(s)."""
    config = configure(
        env,
        iterations=45,
        env=trpo.EnvConfig(env, count=8),
        fragment=16,
        rule=trpo.RuleConfig(max_kl=0.03),
        policy=trpo.PolicyConfig(hidden=(8,)),
        value=trpo.ValueConfig(hidden=(8,), learning_rate=0.01),
        discount=0.9,
    )
    agent, states, metrics = run(config)
    assert states[-1].steps == 45 * 128
    assert all(row["result"] in ("accepted", "no_signal", "no_improvement") for row in metrics)
    learner, program = states[-1].learner, agent.program()
    actor = program.freeze(learner.policy, learner.observations)

    def seen(s: float) -> Any:
        return actor.see(jnp.full((1, 1), s, jnp.float32))

    def policy(s: float) -> Any:
        distribution, _ = agent.policy(learner.policy, (), (seen(s), None))
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), distribution)

    return policy, lambda s: float(predict(program.value_of, learner.value, seen(s))[0])


def test_probe_action() -> None:
    policy, value = solve("probe:action")
    p = np.exp(policy(0.0).log_prob(np.array(1)))
    assert p > 0.95
    assert value(0.0) == pytest.approx(1, abs=0.15)


def test_probe_both() -> None:
    policy, value = solve("probe:both")
    for s, right in ((1.0, 1), (-1.0, 0)):
        assert np.exp(policy(s).log_prob(np.array(right))) > 0.95
        assert value(s) == pytest.approx(1, abs=0.15)


def test_probe_continuous() -> None:
    policy, value = solve("probe:continuous")
    for s in (1.0, -1.0):
        p = policy(s)
        assert float(p.mean[0]) == pytest.approx(s / 2, abs=0.1)
        variance = float(np.exp(2 * p.log_std[0]))
        assert variance < 0.6**2 / 4
        assert value(s) == pytest.approx(-variance, abs=0.05)


# ---------------------------------------------------------------- the average of policies


def test_the_average_is_the_weighted_mean_of_the_policies() -> None:
    """With η = 3 the k-th policy has the weight k (k + 1) (k + 2), by the definition."""
    config = configure("Pendulum-v1", iterations=7, policy=trpo.PolicyConfig(hidden=(4,), averaging=1 / 4))
    agent, states, _ = run(config)
    policies = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.learner.policy)]) for state in states]
    k = np.arange(1, len(states) + 1)
    expected = np.average(np.float64(policies), axis=0, weights=k * (k + 1) * (k + 2))
    average = np.concatenate([np.ravel(x) for x in jax.tree.leaves(states[-1].learner.average)])
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
    # That is what acts afterwards, and what evaluation, loading and recording use, all through these two.
    result = agent.at(states[-1])
    assert bits(result.actor().params) == bits(states[-1].learner.average) != bits(states[-1].learner.policy)
    assert bits(jax.tree.leaves(result.module)) == bits(states[-1].learner.average)


def test_training_does_not_depend_on_the_average() -> None:
    with_it, without = (
        run(configure("Pendulum-v1", policy=trpo.PolicyConfig(averaging=share)))[1] for share in (0.05, 0.0)
    )
    assert bits(with_it[-1].learner.policy) == bits(without[-1].learner.policy)
    assert without[-1].learner.average is None


# ---------------------------------------------------------------- the same again


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    config = configure("Pendulum-v1")
    _, first, one = run(config)
    _, second, two = run(config)
    _, third, _ = run(dataclasses.replace(config, seed=1))
    assert [untimed(row) for row in one] == [untimed(row) for row in two]
    for a, b in zip(first, second, strict=True):
        assert bits(a.learner) == bits(b.learner)
    assert bits(first[-1].learner.policy) != bits(third[-1].learner.policy)
    assert one[0]["result"] == "accepted"


def test_seeds_come_from_the_global_index_of_an_environment() -> None:
    assert env_seeds(3, 0, 8)[:4] == env_seeds(3, 0, 4)
    everything = [env_seeds(seed, iteration, 8) for seed in range(3) for iteration in range(3)]
    assert len(set(np.ravel(everything).tolist())) == 72


@pytest.mark.parametrize("env", ["probe:both", "probe:endless", "probe:continuous"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_equals_not_stopping(env: str, workers: int) -> None:
    """Row 23. Eight steps a fragment: the episodes of ``endless`` are ten long and under way at the break."""
    config = configure(env, env=trpo.EnvConfig(env, count=4), iterations=5, final_discount=0.9, discount_steps=100)
    _, states, metrics = run(config)
    other = dataclasses.replace(config, env=dataclasses.replace(config.env, workers=workers))
    middle = states[1]
    saved = json.loads(json.dumps([middle.source.environments, middle.episodes], allow_nan=False))
    middle = dataclasses.replace(middle, source=Snapshot(saved[0], middle.source.seat), episodes=saved[1])
    _, resumed, again = run(other, state=middle)
    assert [state.iteration for state in resumed] == [3, 4, 5]
    for a, b in zip(states[2:], resumed, strict=True):
        assert bits(a.learner) == bits(b.learner)
        assert (a.steps, a.episodes, a.source.environments) == (b.steps, b.episodes, b.source.environments)
        assert bits(a.source.seat) == bits(b.source.seat)
    assert again[0]["value_loss"] is not None  # of the fit before
    assert [untimed(row) for row in metrics[2:]] == [untimed(row) for row in again]


def test_a_state_is_not_changed_by_later_iterations() -> None:
    config = configure("probe:endless")
    kept = []
    agent = trpo.make_agent("probe:endless", config)
    for state, _ in trpo.iterations("probe:endless", agent, config):
        kept.append((state, json.dumps([state.source.environments, state.episodes]), bits(state.source.seat)))
    for state, text, seat in kept:
        assert json.dumps([state.source.environments, state.episodes]) == text
        assert bits(state.source.seat) == seat


def test_resuming_without_snapshots_begins_new_episodes() -> None:
    class Opaque(gym.Wrapper):
        """Of which nothing is known."""

    def make() -> gym.Env:
        return Opaque(gym.make("CartPole-v1"))

    config = configure("CartPole-v1", iterations=3)
    _, states, _ = run(config, make)
    assert states[0].source is None
    _, resumed, metrics = run(config, make, states[0])
    assert [state.iteration for state in resumed] == [2, 3]
    assert metrics[-1]["steps"] == config.steps
    assert resumed[-1].episodes["episodes"] >= states[0].episodes["episodes"]


def longer(config: trpo.Config, iterations: int = 2, **changes: Any) -> trpo.Config:
    """The same with changes (``count`` and ``workers`` are the environments'), for so many more iterations."""
    env = {name: changes.pop(name) for name in ("count", "workers") if name in changes}
    changed = dataclasses.replace(config, env=dataclasses.replace(config.env, **env), **changes)
    return dataclasses.replace(changed, steps=config.steps + iterations * changed.batch)


@pytest.mark.parametrize("count", [3])
def test_going_on_with_another_number_of_environments_begins_new_episodes_and_says_so(count: int) -> None:
    config = configure("probe:endless", iterations=2)
    _, states, _ = run(config)
    said = f"new episodes begin: the state is that of 4 environments, not of {count}"
    with pytest.warns(UserWarning, match=said):
        _, resumed, rows = run(longer(config, count=count), state=states[-1])
    assert [state.iteration for state in resumed] == [3, 4]
    assert rows[-1]["steps"] == config.steps + 2 * 8 * count
    assert len(resumed[-1].episodes["running_return"]) == count
    # 16 steps of episodes of 10: one ended in each environment, after those that had ended before.
    assert resumed[-1].episodes["episodes"] == states[-1].episodes["episodes"] + count


def test_going_on_with_another_fragment_or_processes_goes_on_with_the_episodes() -> None:
    config = configure("probe:endless", iterations=2)
    _, states, _ = run(config)
    for changes in ({"fragment": 3}, {"workers": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, resumed, _ = run(longer(config, 1, **changes), state=states[-1])
        steps = changes.get("fragment", 8)
        assert resumed[-1].episodes["running_length"] == [(16 + steps) % 10] * 4


def test_going_on_elsewhere_begins_new_episodes_and_says_so() -> None:
    """On the device with a state of the host's, and the other way round; in another environment of the same spaces."""

    class Bare(gym.Wrapper):
        """What it wraps has snapshots, this has none."""

    class Stateless(HostSource):
        """Its snapshots tell only what the policy meets next."""

        def snapshot(self) -> Snapshot:
            return Snapshot(None, self.seat, self.spec.id)

    agents, states = {}, {}
    for name in ("probe:action", "jax-probe:action"):
        config = configure(name, iterations=1)
        agents[name], states[name], _ = run(config)
    doors: list[tuple[Any, str, str]] = [
        ("jax-probe:action", "probe:action", "environments on the host"),
        ("probe:action", "jax-probe:action", "environments in JAX"),
        ("probe:both", "probe:action", "that of 'probe:action', not of 'probe:both'"),
        (lambda: Bare(Probe("action")), "probe:action", "that of 'probe:action', not of '<lambda>'"),
        (lambda: Bare(Probe("action")), "lambda", "these environments take no state"),
        (Stateless(trpo.make_envs("probe:action", 4)), "probe:action", "these environments take no state"),
    ]
    config = configure("lambda", iterations=1)
    agents["lambda"], states["lambda"], _ = run(config, env=lambda: Probe("action"))
    # Whose agent it is does not matter.
    agents["both"], states["both"] = trpo.make_agent("probe:both", config), states["probe:action"]
    doors.append(("probe:both", "both", "that of 'probe:action', not of 'probe:both'"))
    for env, before, said in doors:
        agent = agents[before]
        with pytest.warns(UserWarning, match=f"new episodes begin: .*{said}"):
            pairs = list(trpo.iterations(env, agent, longer(agent.config, 1), states[before][-1]))
        assert [state.iteration for state, _ in pairs] == [2]


def test_a_run_whose_file_has_another_number_of_environments_goes_on(tmp_path: Path, capsys: Any) -> None:
    config = configure("probe:endless", iterations=1)
    trpo.train("probe:endless", config=config, out=tmp_path, quiet=True)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"count": 4', '"count": 2'))
    trpo.resume(tmp_path, steps=config.steps + 16)
    assert "new episodes begin: the state is that of 4 environments, not of 2" in capsys.readouterr().err


def test_a_finished_run_goes_on_only_with_more_steps() -> None:
    config = configure("probe:both", iterations=2)
    _, states, _ = run(config)
    assert run(config, state=states[-1])[1] == []
    longer = dataclasses.replace(config, steps=config.steps + 1)
    assert [state.iteration for state in run(longer, state=states[-1])[1]] == [3]


# ---------------------------------------------------------------- compilation


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILED.append(event) if "backend_compile" in event or "jaxpr_trace" in event else None
)


@pytest.mark.parametrize("kind", ["trpo", "penalty"])
def test_only_the_first_iteration_compiles(kind: str) -> None:
    value = trpo.ValueConfig(hidden=(), method="gauss-newton" if kind == "penalty" else "adam")
    config = configure("probe:both", 5, fragment=7, rule=trpo.RuleConfig(kind), value=value, final_discount=0.999)
    agent = trpo.make_agent("probe:both", config)
    counts = []
    COMPILED.clear()
    for _ in trpo.iterations("probe:both", agent, config):
        counts.append(len(COMPILED))
    assert counts[0] > 0
    assert counts == [counts[0]] * 5


def test_another_run_with_other_floats_compiles_nothing() -> None:
    config = configure("probe:both", iterations=2, final_discount=0.999)
    run(config)
    changed = dataclasses.replace(
        config,
        steps=config.steps - config.batch,
        seed=5,
        rule=trpo.RuleConfig(max_kl=0.5, damping=0.3, cg_tolerance=0.1, backtrack_ratio=0.3),
        discount=0.5,
        final_discount=0.9,
        discount_steps=50,
        gae_lambda=0.25,
        value=dataclasses.replace(config.value, learning_rate=0.5),
        policy=dataclasses.replace(config.policy, last_layer_scale=1.0),
    )
    agent = trpo.make_agent("probe:both", changed)
    COMPILED.clear()
    list(trpo.iterations("probe:both", agent, changed))
    assert [event for event in COMPILED if "backend_compile" in event] == []


# ---------------------------------------------------------------- row 22: every setting does something

PENALTY = {"rule.name": "penalty"}
PPO = {"rule.name": "ppo", "rule.epochs": 2}
BACKTRACKING = {"rule.max_kl": 5.0, "rule.damping": 1e-3}
GAUSS_NEWTON = {"value.method": "gauss-newton", "value.minibatch": 128}
DEEP_POLICY, DEEP_VALUE = {"policy.hidden": (4,)}, {"value.hidden": (4,)}
BRANCHES = {"vine.every": 4, "vine.actions": 3, "vine.length": 3}
VINE = {"rollout": "vine", **BRANCHES}
ELSEWHERE = "tested elsewhere"

ALTERNATIVES: dict[str, Any] = {
    # setting: another value, or (another value, what else must be set for it to matter)
    "env.id": "MountainCarContinuous-v0",
    "env.count": 5,
    "env.workers": ELSEWHERE,  # changes no bit, by design: test_resuming_equals_not_stopping; below: that it is used
    "env.rescale_actions": False,
    "env.frame_stack": 2,
    "env.screen": ELSEWHERE,  # concerns games only: test_envpool_equals_gymnasium
    "env.frame_skip": ELSEWHERE,
    "env.noops": ELSEWHERE,
    "env.flatten": ELSEWHERE,  # changes nothing where observations are vectors: test_spaces
    "env.stagger": (
        True,
        {"fragment": 100},
    ),  # two environments: the first one's episode is cut after 100 of 200 steps
    "rule.name": "natural-gradient",
    "rule.max_kl": 0.02,
    "rule.damping": 1.0,
    "rule.cg_iterations": 1,
    "rule.cg_tolerance": 0.5,
    "rule.max_step_norm": 0.01,
    "rule.backtrack_ratio": (0.5, BACKTRACKING),
    "rule.max_backtracks": (0, BACKTRACKING),
    "rule.use_measured_kl": (True, {"seed": 1}),  # a seed whose first full step is beyond δ
    "rule.initial_coefficient": (1.0, PENALTY),
    "rule.inner_steps": (1, PENALTY),
    "rule.clip": ELSEWHERE,  # test_rules
    "rule.learning_rate": (1e-3, PPO),
    "rule.decay_steps": (1000, PPO),
    "rule.max_gradient_norm": ELSEWHERE,  # test_rules
    "rule.entropy_bonus": ELSEWHERE,  # test_rules
    "rule.epochs": (3, PPO),
    "rule.minibatch": ELSEWHERE,  # test_rules
    "policy.sees": ":2",
    "policy.hidden": (4,),
    "policy.activation": ("relu", DEEP_POLICY),
    "policy.initial_std": 0.3,
    "policy.min_std": 0.1,
    "policy.state_dependent_std": True,
    "policy.hidden_layer_scale": (0.5, DEEP_POLICY),
    "policy.last_layer_scale": 1.0,
    "policy.averaging": 0.5,
    "value.sees": ":2",
    "value.hidden": (4,),
    "value.activation": ("relu", DEEP_VALUE),
    "value.hidden_layer_scale": (0.5, DEEP_VALUE),
    "value.method": ("gauss-newton", {"value.minibatch": 128}),
    "value.learning_rate": 0.01,
    "value.epochs": 3,
    "value.minibatch": 8,
    "value.steps": (1, GAUSS_NEWTON),
    "value.max_change": (1e-3, GAUSS_NEWTON),
    "value.normalise_returns": False,
    "steps": 65,
    "seed": 1,
    "fragment": 9,
    "discount": 0.5,
    "final_discount": (0.5, {"discount_steps": 100}),
    "discount_steps": (100, {"final_discount": 0.5}),
    "gae_lambda": 0.5,
    "updates_per_batch": 2,
    "fisher_subsample": 2,
    "reward": "sign",
    "standardise_advantages": False,
    "normalise_observations": False,
    "observation_clip": 0.5,
    "on_nonfinite": ELSEWHERE,  # test_a_nonfinite_batch_*
    "evaluate.every": ELSEWHERE,  # changes no bit of training: test_callbacks
    "evaluate.episodes": ELSEWHERE,
    "evaluate.deterministic": ELSEWHERE,
    "evaluate.seed": ELSEWHERE,
    "evaluate.max_steps": ELSEWHERE,
    "evaluate.stop_return": ELSEWHERE,
    "evaluate.patience": ELSEWHERE,
    "evaluate.stop_success": ELSEWHERE,
    "env.wrappers": ELSEWHERE,  # test_steering
    "env.info": ELSEWHERE,  # changes no bit of training: test_info
    "video.every": ELSEWHERE,  # change no bit of training: test_logs
    "video.episodes": ELSEWHERE,
    "video.max_steps": ELSEWHERE,
    "log.csv": ELSEWHERE,
    "log.wandb": ELSEWHERE,
    "checkpoint_every": ELSEWHERE,  # concerns files only
    "keep_checkpoints": ELSEWHERE,
    "policy.distribution": "beta",
    "policy.trunk": "gru",
    "policy.memory": (8, {"policy.trunk": "gru"}),
    "value.trunk": "lstm",
    "value.memory": (8, {"value.trunk": "gru"}),
    "rollout": ("vine", BRANCHES),
    "vine.every": (2, VINE),
    "vine.actions": (2, VINE),
    "vine.length": (2, VINE),
    "vine.proposal": ("uniform", VINE),
    "vine.branch_lambda": (0.5, VINE),
    "vine.kl": ("roots", VINE),
    "vine.targets": ("trunk", VINE),
    "env.drop": ELSEWHERE,  # test_names
    "policy.encoder": ELSEWHERE,  # where there are images: test_images
    "value.encoder": ELSEWHERE,
    "normalise_all": ELSEWHERE,
    "problem.block": ELSEWHERE,  # changes nothing but rounding: test_problem
    "env.devices": ELSEWHERE,  # test_parallel
    "env.kwargs": ELSEWHERE,  # test_names
}


def settings(config: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        names += settings(value, f"{prefix}{field.name}.") if inner else [prefix + field.name]
    return names


def with_settings(config: trpo.Config, changes: dict[str, Any]) -> trpo.Config:
    data = config.to_json()
    for name, value in changes.items():
        *groups, last = name.split(".")
        place = data
        for group in groups:
            place = place[group]
        place[last] = value
    return trpo.Config.from_json(data)


OUTCOMES: dict[str, Any] = {}


def outcome(changes: dict[str, Any]) -> Any:
    key = json.dumps(changes, sort_keys=True)
    if key not in OUTCOMES:
        _, states, metrics = run(with_settings(configure("Pendulum-v1", iterations=2), changes))
        OUTCOMES[key] = [untimed(row) for row in metrics], bits(states[-1].learner)
    return OUTCOMES[key]


def test_every_setting_has_an_entry() -> None:
    assert sorted(settings(trpo.Config())) == sorted(ALTERNATIVES)


@pytest.mark.parametrize("name", [name for name, value in ALTERNATIVES.items() if value is not ELSEWHERE])
def test_every_setting_changes_the_outcome(name: str) -> None:
    value = ALTERNATIVES[name]
    value, base = value if isinstance(value, tuple) and isinstance(value[-1], dict) else (value, {})
    assert outcome(base) != outcome(base | {name: value})


class FirstTwo(gym.ObservationWrapper):
    """Pendulum without its velocity."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[:2]


def test_elements_not_seen_are_as_good_as_not_there() -> None:
    config = configure(
        "Pendulum-v1",
        3,
        policy=trpo.PolicyConfig(hidden=(4,), sees=":2"),
        value=trpo.ValueConfig(hidden=(4,), sees=":2"),
    )
    agent, states, _ = run(config)
    seeing_all = {name: dataclasses.replace(getattr(config, name), sees="") for name in ("policy", "value")}
    short, expected, _ = run(dataclasses.replace(config, **seeing_all), env=FirstTwo)
    one, other = states[-1].learner, expected[-1].learner
    assert bits((one.policy, one.value, one.average)) == bits((other.policy, other.value, other.average))
    np.testing.assert_array_equal(one.observations.mean[:2], other.observations.mean)
    whole = np.array([0.6, 0.8, -3.0], np.float32)
    np.testing.assert_array_equal(agent.at(states[-1]).act(whole), short.at(expected[-1]).act(whole[:2]))


def test_more_elements_than_there_are() -> None:
    config = configure("Pendulum-v1", policy=trpo.PolicyConfig(sees=":4"))
    with pytest.raises(ValueError, match=r"sees=':4': .* the 3 elements"):
        trpo.make_agent("Pendulum-v1", config)


class InParts(gym.ObservationWrapper):
    """Pendulum with its observation as a dict."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        one, two = (spaces.Box(-10, 10, (n,), np.float32) for n in (1, 2))
        self.observation_space = spaces.Dict({"angle": two, "speed": one})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"angle": observation[:2], "speed": observation[2:]}


def test_observations_in_parts_are_as_good_as_flat_ones() -> None:
    """Bit for bit, statistics included."""
    config = configure("Pendulum-v1", 3, policy=trpo.PolicyConfig(hidden=(4,)))
    _, parts, _ = run(config, env=InParts)
    for env in (config.env, dataclasses.replace(config.env, flatten=True)):
        _, flat, _ = run(dataclasses.replace(config, env=env), env=InParts if env.flatten else None)
        one, other = parts[-1].learner, flat[-1].learner
        assert bits((one.policy, one.value)) == bits((other.policy, other.value))
        for field in ("mean", "deviations"):
            joined = np.concatenate([getattr(one.observations[name], field) for name in ("angle", "speed")])
            np.testing.assert_array_equal(joined, getattr(other.observations, field))
        assert one.observations["angle"].count == one.observations["speed"].count == other.observations.count == 96


def test_workers_are_processes() -> None:
    config = configure("probe:both", iterations=1)
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, workers=3))
    agent = trpo.make_agent("probe:both", config)
    seen = [len(multiprocessing.active_children()) for _ in trpo.iterations("probe:both", agent, config)]
    assert seen == [3]
    assert multiprocessing.active_children() == []


# ---------------------------------------------------------------- what goes wrong


class Faulty(gym.Env):
    """CartPole-like numbers; in the first episode of the first environment, something happens at step ``when``."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, log: list[str], what: str, when: int):
        self.log, self.what, self.when, self.steps, self.first = log, what, when, 0, not log
        log.append("made")

    def _look(self) -> np.ndarray:
        return self.np_random.normal(size=2).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.log.append("reset")
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        seen, reward = self._look(), float(self.np_random.normal())
        if self.first and self.steps == self.when:
            if self.what == "raise":
                raise KeyError("the door")
            if self.what == "observation":
                seen = np.full(2, np.nan, np.float32)
            if self.what == "reward":
                reward = math.inf
        return seen, reward, False, False, {}

    def close(self) -> None:
        self.log.append("closed")


FAULTY = EnvSpec("faulty", Box((2,)), Choice(2))


def faulty(what: str, when: int) -> tuple[Callable[[], gym.Env], list[str]]:
    log: list[str] = []
    return lambda: Faulty(log, what, when), log


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_nonfinite_batch_stops_the_run_with_the_parameters_before_it(what: str) -> None:
    config = configure("faulty", iterations=6)
    make, log = faulty(what, 8 * 2 + 3)  # in the third iteration
    agent = Agent.create(FAULTY, config)
    states = []

    def go() -> None:
        states.extend(state for state, _ in trpo.iterations(make, agent, config))

    with pytest.raises(NonFiniteBatchError, match=r"iteration 3: .*NaN or infinite") as caught:
        go()
    assert log.count("closed") == log.count("made") == 4
    kept = caught.value.state
    assert [state.iteration for state in states] == [1, 2, 3]  # it is counted, so that a resumed run has no gap
    shorter = dataclasses.replace(config, steps=2 * config.batch)
    *_, last = trpo.iterations(faulty("nothing", 0)[0], agent, shorter)
    assert bits(kept.learner) == bits(last[0].learner)  # those of two iterations without the fault
    # Going on from there works: new episodes, no NaN left over.
    rest = [m for _, m in trpo.iterations(faulty("nothing", 0)[0], agent, config, kept)]
    assert rest
    assert all(row["result"] != "nonfinite_batch" for row in rest)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_nonfinite_batch_is_skipped_if_so_configured(what: str) -> None:
    config = configure("faulty", iterations=6, on_nonfinite="continue")
    make, log = faulty(what, 8 * 2 + 3)
    agent = Agent.create(FAULTY, config)
    states, metrics, resets = [], [], []
    for state, row in trpo.iterations(make, agent, config):
        states.append(state)
        metrics.append(row)
        resets.append(log.count("reset"))
    results = [row["result"] for row in metrics]
    assert results.index("nonfinite_batch") == 2
    assert results.count("nonfinite_batch") == 1
    assert results[0] == results[1] == results[3] == "accepted"
    assert bits(states[2].learner) == bits(states[1].learner)  # statistics and value function, too
    assert bits(states[3].learner.policy) != bits(states[2].learner.policy)
    assert [n - resets[0] for n in resets] == [0, 0, 4, 4, 4, 4]  # new episodes, once
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].learner))
    for row in metrics:
        json.dumps(row, allow_nan=False)
    # The state after the fault leads where the run went.
    resumed = [s for s, _ in trpo.iterations(faulty("nothing", 0)[0], agent, config, states[2])]
    assert bits(resumed[-1].learner) == bits(states[-1].learner)


def test_a_refused_value_fit_stops_or_is_skipped() -> None:
    """A learning rate that sends V to infinity: the policy has learned meanwhile, V keeps its last good parameters."""
    value = trpo.ValueConfig(hidden=(), learning_rate=1e38, minibatch=16)
    config = configure("probe:both", iterations=4, value=value, on_nonfinite="continue")
    agent, states, metrics = run(config)
    assert len(metrics) == 4
    assert bits(states[-1].learner.value) == bits(agent.learner.value)
    assert bits(states[-1].learner.policy) != bits(agent.learner.policy)
    stop = dataclasses.replace(config, on_nonfinite="stop")
    # Also where the run was left between the fit and the iteration that sees it.
    for state in (None, states[0]):
        with pytest.raises(NonFiniteBatchError, match=r"^iteration 1: its value fit gave a NaN") as caught:
            run(stop, state=state)
        assert bits(caught.value.state.learner) == bits(states[0].learner)


def test_a_refused_value_fit_is_followed_by_new_episodes() -> None:
    """It is seen in the iteration after it."""
    value = trpo.ValueConfig(hidden=(), learning_rate=1e38, minibatch=16)
    config = configure("faulty", iterations=3, value=value, on_nonfinite="continue")
    make, log = faulty("nothing", 0)
    agent = Agent.create(FAULTY, config)
    resets = [log.count("reset") for _ in trpo.iterations(make, agent, config)]
    assert np.diff(resets).tolist() == [4, 4]


def test_a_value_fit_has_the_key_of_its_own_iteration() -> None:
    """The same fit of the same batch, by hand."""
    config = configure("faulty", iterations=1, value=trpo.ValueConfig(hidden=(), minibatch=4, learning_rate=0.1))
    agent, seen = Agent.create(FAULTY, config), {}

    class Noting(HostSource):
        def collect(self, *arguments: Any) -> Any:
            seen["trajectory"] = super().collect(*arguments)
            return seen["trajectory"]

    source = Noting(trpo.make_envs(faulty("nothing", 0)[0], 4))
    ((state, _),) = HostLoop(source, agent, TrainingState(agent.learner)).run()
    program, hyper, learner = agent.program(), Hyper.of(config), agent.learner
    key = jax.random.key(config.seed)

    def fitted(trajectory: Any, iteration: Any) -> Any:
        _, _, fit_key = prepare(program, learner.policy, learner.observations, key, iteration)
        _, data, _ = improve(program, hyper, learner, trajectory, 0)
        return refit(program, hyper, learner.value, data, fit_key)[0].params

    fits = [jax.jit(fitted)(seen["trajectory"], k) for k in (0, 1)]
    own, other, found = (ravel_pytree(params)[0] for params in (*fits, state.learner.value.params))
    np.testing.assert_allclose(found, own, rtol=1e-4)
    assert not np.allclose(found, other, rtol=1e-3)


def test_an_environment_that_raises_in_the_middle() -> None:
    config = configure("faulty", iterations=6)
    make, log = faulty("raise", 8 * 2 + 3)
    agent = Agent.create(FAULTY, config)
    states = []

    def go() -> None:
        states.extend(state for state, _ in trpo.iterations(make, agent, config))

    with pytest.raises(EnvironmentFailure, match="KeyError: 'the door'"):
        go()
    assert log.count("closed") == log.count("made") == 4


def test_leaving_the_loop_closes_the_environments() -> None:
    make, log = faulty("nothing", 0)
    config = configure("faulty", iterations=6)
    loop = trpo.iterations(make, Agent.create(FAULTY, config), config)
    next(loop)
    loop.close()
    assert log.count("closed") == 4


def test_environments_stay_open_as_long_as_the_caller_says() -> None:
    """So that what is worth keeping can be written before they are closed, however long that takes."""
    make, log = faulty("nothing", 0)
    agent = Agent.create(FAULTY, configure("faulty", iterations=1))
    with contextlib.ExitStack() as ending:
        assert len(list(advance(make, [agent], [TrainingState(agent.learner)], ending=ending))) == 1
        assert "closed" not in log
    assert log.count("closed") == 4


def test_environments_that_are_handed_in_stay_open_and_must_be_as_many_as_configured() -> None:
    make, log = faulty("nothing", 0)
    envs = trpo.make_envs(make, 4)
    config = configure("faulty", iterations=1)
    agent = trpo.make_agent(envs, config)
    list(trpo.iterations(envs, agent, config))
    assert "closed" not in log
    other = dataclasses.replace(config, env=dataclasses.replace(config.env, count=3))
    with pytest.raises(ValueError, match=r"env\.count=3, but 4 environments"):
        list(trpo.iterations(envs, agent, other))
    envs.close()


# ---------------------------------------------------------------- metrics

PROMISED = """iteration steps seconds steps_per_second episode_return episode_length result surrogate_gain
    predicted_gain mean_kl max_kl max_state_kl cg_iterations cg_residual backtracks step_fraction entropy
    explained_variance"""


def test_metrics_have_what_the_design_promises() -> None:
    config = configure("probe:endless", iterations=5)
    _, states, metrics = run(config)
    for k, row in enumerate(metrics):
        assert set(PROMISED.split()) <= set(row)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert (row["iteration"], row["steps"]) == (k + 1, 32 * (k + 1)) == (states[k].iteration, states[k].steps)
        assert row["mean_kl"] <= row["max_kl"] == pytest.approx(0.01)
    # Every episode is ten steps of reward 1: raw, undiscounted, whole.
    assert metrics[0]["episode_return"] is metrics[0]["episode_length"] is None
    for row in metrics[1:]:
        assert (row["episode_return"], row["episode_length"]) == (10.0, 10.0)
    assert [row["episodes"] for row in metrics] == [0, 4, 8, 12, 16]
    seconds = [row["seconds"] for row in metrics]
    assert seconds == sorted(seconds)


class EverySecondStepResets:
    """Environments that need a step to reset, as EnvPool's do; every episode is one step."""

    def __init__(self, count: int):
        self.count = count
        self.spec = EnvSpec("resetting", Box((1,)), Choice(2))
        self.resetting = False

    def reset(self, seeds: list[int]) -> np.ndarray:
        return np.zeros((self.count, 1), np.float32)

    def step(self, action: np.ndarray) -> Transition:
        valid = np.full(self.count, not self.resetting)
        seen = np.full((self.count, 1), np.nan if self.resetting else 1.0, np.float32)
        reward = np.where(valid, action, np.nan).astype(np.float32)
        following = np.zeros((self.count, 1), np.float32)
        self.resetting = not self.resetting
        return Transition(following, reward, valid, np.zeros(self.count, bool), seen, valid)

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_steps_do_not_count_auto_resets() -> None:
    config = configure("resetting", iterations=2)
    envs = EverySecondStepResets(4)
    agent = trpo.make_agent(envs, config)
    rows = [row for _, row in trpo.iterations(envs, agent, config)]
    assert [row["steps"] for row in rows] == [16, 32, 48, 64]
    assert [row["episodes"] for row in rows] == [16, 32, 48, 64]
    assert all(row["result"] == "accepted" for row in rows)
    assert all(row["episode_length"] == 1 for row in rows)


def test_a_run_goes_on_with_seeds_and_times_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """New episodes are seeded by the run and the iteration that begins; the clock goes on, too.

    Episodes that were under way where there is no snapshot are gone, and count for nothing.
    """

    class Noting(EverySecondStepResets):
        def reset(self, seeds: list[int]) -> np.ndarray:
            self.seeds = seeds
            return super().reset(seeds)

    for seed, iteration in ((0, 0), (3, 5)):
        config, envs = configure("resetting", iterations=1, seed=seed), Noting(4)
        agent = trpo.make_agent(envs, config)
        left = EpisodeStatistics(4).to_json() | {"running_return": [2.5] * 4, "running_length": [3] * 4}
        before = TrainingState(agent.learner, iteration=iteration, seconds=1000.0 * iteration, episodes=left)
        clock = iter([10.0, 20.0, 23.0, 27.0])  # the run began; an iteration began, had collected, and ended
        monkeypatch.setattr("trpo.training.host.time", SimpleNamespace(perf_counter=clock.__next__))
        state, row = next(iter(trpo.iterations(envs, agent, config, before)))
        assert envs.seeds == env_seeds(seed, iteration, 4)
        assert state.iteration == row["iteration"] == iteration + 1
        assert state.seconds == row["seconds"] == before.seconds + 17
        assert (row["collect_seconds"], row["steps_per_second"]) == (3, config.batch / 7)
        assert row["episode_length"] == 1


def test_the_value_fit_of_an_iteration_is_used_in_the_next() -> None:
    """V(s) = s is learned in one fit, and then explains all of the next batch's returns."""
    value = trpo.ValueConfig(hidden=(), learning_rate=0.05, epochs=100, minibatch=0)
    config = configure("probe:observation", iterations=2, fragment=32, value=value)
    _, _, metrics = run(config)
    assert metrics[0]["explained_variance"] < 0.6
    assert metrics[1]["explained_variance"] > 0.9


# ---------------------------------------------------------------- edges


def test_one_environment_one_step_an_iteration() -> None:
    """A batch of a single state: its standardised advantage is zero, so there is never a signal."""
    config = configure("probe:both", iterations=5, env=trpo.EnvConfig("probe:both", count=1), fragment=1)
    agent, states, metrics = run(config)
    assert [row["result"] for row in metrics] == ["no_signal"] * 5
    assert bits(states[-1].learner.policy) == bits(agent.learner.policy)
    assert bits(states[-1].learner.value.params) != bits(agent.learner.value.params)


def test_an_environment_with_one_action() -> None:
    class One(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Discrete(1, start=7)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            assert action == 7
            return np.zeros(1, np.float32), float(self.np_random.normal()), True, False, {}

    agent, states, metrics = run(configure("one", iterations=2), env=One)
    assert [row["result"] for row in metrics] == ["no_signal"] * 2
    assert bits(states[-1].learner.policy) == bits(agent.learner.policy)


@pytest.mark.parametrize("method", ["adam", "gauss-newton"])
def test_rewards_of_any_scale(method: Any) -> None:
    """A run in another unit of reward is the same run: bit for bit where the unit is a power of two."""

    def scaled(factor: float) -> list[dict[str, Any]]:
        def make() -> gym.Env:
            return gym.wrappers.TransformReward(trpo.envs.names.make_single("probe:both"), lambda r: r * factor)

        value = trpo.ValueConfig(hidden=(), method=method)
        _, states, metrics = run(configure("scaled", iterations=3, value=value), env=make)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].learner))
        return [untimed(row) | {"episode_return": row["episode_return"] / factor} for row in metrics]

    one = scaled(1.0)
    assert [row["result"] for row in one] == ["accepted"] * 3
    for factor in (2.0**40, 2.0**-40):
        assert scaled(factor) == one
    for factor in (1e12, 1e-12):
        for row, same in zip(scaled(factor), one, strict=True):
            for name in ("mean_kl", "surrogate_gain", "explained_variance", "episode_return"):
                assert row[name] == pytest.approx(same[name], rel=1e-4, abs=1e-5), name


def test_double_precision_end_to_end() -> None:
    program = """
        import jax, numpy as np, trpo
        for env in ("probe:continuous",):
            config = trpo.Config(
                steps=96, fragment=8, env=trpo.EnvConfig(env, count=4),
                policy=trpo.PolicyConfig(hidden=(4,)), value=trpo.ValueConfig(hidden=(4,), minibatch=16),
            )
            agent = trpo.make_agent(env, config)
            for state, metrics in trpo.iterations(env, agent, config):
                assert metrics["result"] == "accepted", metrics
                assert metrics["mean_kl"] <= metrics["max_kl"] == 0.01, metrics
            agent = agent.at(state)
            kinds = {str(leaf.dtype) for leaf in jax.tree.leaves((agent.learner.policy, agent.learner.value.params,
                     agent.learner.observations, agent.learner.value.returns))}
            assert kinds == {"float64"}, kinds
            action = agent.act(np.zeros(1))
            print(env, action.dtype, len(agent.evaluate(episodes=3).returns))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = run_process(command, env={**os.environ, "JAX_ENABLE_X64": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["probe:continuous float32 3"]


def test_a_loop_that_is_left_open_says_nothing_at_the_end() -> None:
    program = """
        import trpo
        config = trpo.Config(fragment=8, env=trpo.EnvConfig("probe:both", count=2), policy=trpo.PolicyConfig(hidden=()))
        loop = trpo.iterations("probe:both", trpo.make_agent("probe:both", config), config)
        next(loop)
    """
    done = run_process([sys.executable, "-c", textwrap.dedent(program)])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("env", ["probe:both", "jax-probe:both"])
@pytest.mark.parametrize("check", ["jax_debug_nans", "jax_debug_infs"])
def test_nothing_makes_a_nan_or_an_infinity_on_purpose(env: str, check: str) -> None:
    """JAX then looks at the results of every compiled function."""
    config = trpo.Config(
        steps=2 * 8 * 4, fragment=4, env=trpo.EnvConfig(count=8), policy=trpo.PolicyConfig(hidden=(4,))
    )
    jax.config.update(check, True)
    try:
        agent = trpo.train(env, config=config, quiet=True)
        agent.evaluate(episodes=2, deterministic=False)
    finally:
        jax.config.update(check, False)


def test_a_reward_that_is_not_finite_is_named() -> None:
    class Infinite(gym.Env):
        observation_space, action_space, steps = spaces.Box(-1, 1, (1,)), spaces.Discrete(2), 0

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            return np.zeros(1, np.float32), math.nan if self.steps == 3 else 1.0, False, False, {}

    config = trpo.Config(steps=64, fragment=4, env=trpo.EnvConfig(count=2), on_nonfinite="stop")
    said = r"iteration 1: .*; environment Infinite: reward nan of copy 0, at step 2 of the fragment"
    with pytest.raises(trpo.RunFailed, match=said):
        trpo.train(Infinite, config=config, quiet=True)
