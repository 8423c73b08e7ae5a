"""Presets: they apply to what they match, and what they say of an environment is so."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import trpo
from trpo.envs.host.gymnasium import quiet_mujoco
from trpo.settings.presets import NONE, apply_preset, names, preset_for


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
