"""Presets: they apply to what they match, and what they say of an environment is so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import trpo
from trpo.envs.host.gymnasium import quiet_mujoco
from trpo.envs.host.probes import Probe
from trpo.runs.train import configure
from trpo.settings.config import merge
from trpo.settings.presets import AUTO, NONE, about, apply_preset, describe, names, preset_for, settings_of, tasks


@pytest.mark.parametrize("name", names())
def test_every_preset_changes_something_that_exists(name: str) -> None:
    config = trpo.Config()
    changed, chosen, _ = apply_preset(config, name)
    assert chosen == name
    assert changed != config


def test_the_simulator_s_name_does_not_matter() -> None:
    assert preset_for("envpool:Ant-v5") == preset_for("Ant-v5") == "ant"
    assert preset_for("HalfCheetah-v5") == "no-falls"
    assert {preset_for(f"{task}-v5") for task in ("HumanoidStandup", "Hopper", "InvertedDoublePendulum")} == {"mujoco"}
    assert preset_for("brax:ant") == "brax"
    assert preset_for("MyAnt-v0") == NONE


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        (["HalfCheetah", "envpool:HalfCheetah-v4", "my.tasks:HalfCheetah-v5", "my.tasks:HalfCheetah"], "no-falls"),
        (["Hopper", "Hopper-v2", "envpool:Hopper"], "mujoco"),
        (["MountainCar", "MountainCar-v0"], "car"),
        (["MountainCarContinuous", "my:MountainCarContinuous-v0"], "continuous-car"),
        (["gymnax:CartPole", "gymnax:CartPole-v1"], "gymnax-classic"),
        (["gymnax:Pendulum-v1"], "gymnax-pendulum"),
        (["gymnax:Breakout-MinAtar"], "minatar"),
        (["CartPole", "Ants", "Ant-Maze-v0", "Ant-", "my/Ant-v5", "jax:my:Ant", "probe:Ant", "gymnax:Ant", ""], NONE),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_counts_is_the_task(ids: list[str], name: str) -> None:
    """Its version does not matter, nor what imports or simulates it; a task of another family is another."""
    assert {env_id: preset_for(env_id) for env_id in ids} == dict.fromkeys(ids, name)


def test_every_preset_says_what_it_is_for() -> None:
    assert all(0 < len(about(name)) <= 100 for name in names())
    assert not any({"about", "match"} & settings_of(name).keys() for name in names())


def test_the_tasks_that_are_said_to_be_a_preset_s_have_it() -> None:
    said = {task: name for name in names() for task in tasks(name).split(", ")}
    assert sum(len(tasks(name).split(", ")) for name in names()) == len(said)  # no task is said twice
    assert {task: preset_for(task.replace("*", "Q") + "-v9") for task in said} == said


def test_an_applied_preset_is_its_settings_and_an_unknown_one_names_the_nearest() -> None:
    config = trpo.Config(env=trpo.EnvConfig("Ant-v5"))
    changed, name, settings = apply_preset(config)
    assert (name, settings) == ("ant", settings_of("ant"))
    assert changed == merge(config, settings) != config
    assert apply_preset(config, NONE) == (config, NONE, {})
    with pytest.raises(ValueError, match=r"^preset='antt': unknown; did you mean ant"):
        apply_preset(config, "antt")
    assert describe({"rule": {"max_kl": 0.02, "b": {"c": (1,)}}, "d": 3}) == "rule.max_kl=0.02 rule.b.c=(1,) d=3"


def task() -> Probe:
    return Probe("both")


@pytest.mark.parametrize("start", [trpo.train, trpo.sweep])
def test_a_preset_is_applied_or_refused_and_never_ignored(start: Callable[..., Any], tmp_path: Path) -> None:
    """With a config, which is used as it is, it would be ignored; for a function, it is applied if it is named."""
    config, out = trpo.Config(steps=8), tmp_path / "r"
    for preset in ("ant", "no-such"):
        with pytest.raises(ValueError, match=f"preset='{preset}': a config is used as it is"):
            start("probe:both", config=config, preset=preset, out=out, quiet=True)
    assert not out.exists()
    for preset in (AUTO, NONE):
        assert configure("Ant-v5", config, preset) == dataclasses.replace(config, env=trpo.EnvConfig("Ant-v5"))
    assert configure(task, None, "ant") == apply_preset(trpo.Config(), "ant")[0]
    assert configure(task, None, AUTO) == configure(task, None, NONE) == trpo.Config()
    with pytest.raises(ValueError, match="no-such"):
        start(task, preset="no-such", out=out, quiet=True)


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", ["Ant-v4", "Ant-v5"])
def test_what_the_ant_s_preset_leaves_is_positions_and_velocities(env_id: str) -> None:
    with quiet_mujoco():
        env = gym.make(env_id)
    config, *_ = apply_preset(trpo.Config(env=trpo.EnvConfig(env_id)))
    assert config.policy.sees == config.value.sees == ":27"
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        observation = env.step(env.action_space.sample())[0]
    data = env.unwrapped.data  # type: ignore[attr-defined]
    np.testing.assert_array_equal(observation[:27], np.concatenate([data.qpos[2:], data.qvel]))
    assert len(observation) == {"Ant-v4": 27, "Ant-v5": 105}[env_id]
    env.close()
