"""States of Gymnasium's simulators: what is put back goes on bit for bit, and what cannot be saved is named."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from helpers import end_processes, same_bits, start_process

import trpo
from trpo.envs.host.saving import Keeper, UnsavableError
from trpo.envs.names import resolve
from trpo.envs.plain import from_plain, to_plain
from trpo.rollout import HostSource

STEPS = 1000


def game() -> gym.Env:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    return gym.make("ALE/Breakout-v5")  # sticky actions: the emulator's own random numbers matter


class Own(gym.Env):
    """A walk with noise that saves itself, under wrappers too."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.x.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x += self.np_random.normal(size=2) + int(action)  # in place: a state that was handed out would change
        return self.x.astype(np.float32), float(self.x[0]), bool(self.x[1] > 9), False, {}

    def snapshot(self) -> Any:
        return {"x": self.x, "random": self.np_random.bit_generator.state}

    def restore(self, state: Any) -> None:
        self.x = np.array(state["x"])
        self.np_random.bit_generator.state = state["random"]


def wrapped(env: gym.Env) -> gym.Env:
    """Statistics, counters, clocks, queues and repeated actions of Gymnasium's own wrappers."""
    env = wrappers.StickyAction(wrappers.TimeLimit(env, 37), 0.25)
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(wrappers.RecordEpisodeStatistics(env)))
    return wrappers.TimeAwareObservation(wrappers.FrameStackObservation(env, 3))


KINDS: dict[str, Callable[[], gym.Env]] = {
    **{name: lambda name=name: gym.make(name) for name in ("Hopper-v5", "Ant-v5", "Humanoid-v5", "Reacher-v5")},
    **{name: lambda name=name: gym.make(name) for name in ("CartPole-v1", "Pendulum-v1", "Taxi-v4", "Blackjack-v1")},
    **{name: lambda name=name: gym.make(name) for name in ("Acrobot-v1", "FrozenLake-v1", "MountainCar-v0")},
    "ALE": game,
    "wrapped": lambda: wrapped(gym.make("Hopper-v5")),
    "own, wrapped": lambda: wrappers.TimeLimit(Own(), 11),
}


def run_on(env: gym.Env, actions: list[Any]) -> list[Any]:
    out: list[Any] = []
    for action in actions:
        seen, reward, terminated, truncated, _ = env.step(action)
        out.append((np.array(seen), reward, terminated, truncated))
        if terminated or truncated:
            out.append(np.array(env.reset()[0]))
    return out


@pytest.mark.parametrize("kind", [*KINDS, "MountainCarContinuous-v0", "CliffWalking-v1"])
def test_a_state_is_put_back_whenever_it_was_taken(kind: str) -> None:
    """Before the first step in the middle of an episode, and the other way round: some tasks keep another type then."""
    env = KINDS.get(kind, lambda: gym.make(kind))()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(30)]
    env.reset(seed=3)
    keeper = Keeper(env)
    begun = keeper.save()
    first = run_on(env, actions[:9])
    midway = keeper.save()
    rest = run_on(env, actions[9:])
    keeper.restore(begun)
    assert same_bits(run_on(env, actions[:9]), first)
    env.reset(seed=4)
    keeper.restore(midway)
    assert same_bits(run_on(env, actions[9:]), rest)
    env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_back_goes_on_bit_for_bit(kind: str) -> None:
    """In the same environment, taken from the middle of an episode, and by way of JSON in another."""
    env, other = KINDS[kind](), KINDS[kind]()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(40 + STEPS)]
    env.reset(seed=3), other.reset(seed=4)
    run_on(env, actions[:40]), run_on(other, actions[10:23])
    state = Keeper(env).save()
    text = json.dumps(to_plain(state))
    expected = run_on(env, actions[40:])
    keepers = Keeper(env), Keeper(other)
    keepers[0].restore(state)
    assert same_bits(run_on(env, actions[40:]), expected)
    keepers[1].restore(from_plain(json.loads(text)))
    assert same_bits(run_on(other, actions[40:]), expected)
    keepers[0].restore(state)  # it was not changed by the steps
    assert json.dumps(to_plain(state)) == text
    env.close(), other.close()


class Opaque(wrappers.TimeLimit):
    """A wrapper of one's own, of which nothing is known."""


class Held(gym.Wrapper):
    __module__ = "gymnasium.wrappers.held"

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.handle = object()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Opaque(gym.make("CartPole-v1"), 5), r"^Opaque cannot be saved; give it snapshot\(\) and restore"),
        (
            lambda: Held(gym.make("CartPole-v1")),
            r"^attribute handle of Held is of type object, which is no plain data$",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(make: Callable[[], gym.Env], said: str) -> None:
    with pytest.raises(UnsavableError, match=said):
        Keeper(make())
    envs = trpo.make_envs(make, 2)
    envs.reset([1, 2])
    assert envs.snapshot() is None
    envs.close()


def damaged(change: Callable[[Any], None], kind: str = "Hopper-v5") -> tuple[Keeper, Any]:
    env = KINDS[kind]()
    env.reset(seed=1)
    state = Keeper(env).save()
    change(state["layers"])
    return Keeper(env), from_plain(json.loads(json.dumps(to_plain(state))))


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.pop(),
        lambda layers: layers[-1].pop("arrays"),
        lambda layers: layers[-1]["arrays"].pop("qpos"),
        lambda layers: layers[-1]["arrays"].update(qpos=np.zeros(1)),
        lambda layers: layers[-1]["arrays"].update(qpos=layers[-1]["arrays"]["qpos"].astype(np.float32)),
        lambda layers: layers[-1]["arrays"].update(qpos=[1.0, 2.0]),
        lambda layers: layers[-1].update(time="now"),
        lambda layers: layers[-1]["attributes"].update(frame_skip="1"),
        lambda layers: layers[-1]["attributes"].update(step=1),
        lambda layers: layers[-1]["attributes"].update(__class__=1),
        lambda layers: layers[-1]["attributes"].update(model={}),
        lambda layers: layers[-1]["attributes"].update(_np_random=1),
        lambda layers: layers[-1]["attributes"].update(_np_random={"bit_generator": "MT19937"}),
        lambda layers: layers[0].update(_elapsed_steps=[1]),
        lambda layers: layers[0].update(anything=1),
        lambda layers: layers[-1]["attributes"].update(_reset_noise_scale=[1.0]),
        lambda layers: layers.__setitem__(0, [1]),
    ],
)
def test_a_state_of_another_kind_is_refused(change: Callable[[Any], Any]) -> None:
    """Nothing that is not there is set, and nothing gets another kind, or another shape."""
    keeper, state = damaged(change)
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        keeper.restore(state)


def test_texts_of_wrappers_are_no_state(tmp_path: Path) -> None:
    """Such as the folder into which one writes."""

    class Folder(gym.Wrapper):
        __module__ = "gymnasium.wrappers.folder"

        def __init__(self, env: gym.Env):
            super().__init__(env)
            self.folder, self.count = "here", 0

    env = Folder(gym.make("CartPole-v1"))
    env.reset(seed=0)
    keeper = Keeper(env)
    state = keeper.save()
    assert "folder" not in state["layers"][0]
    state["layers"][0]["folder"] = "/elsewhere"
    with pytest.raises(ValueError, match="has no 'folder' of such a kind"):
        keeper.restore(state)
    assert env.folder == "here"


@pytest.mark.filterwarnings("error")
def test_the_state_of_another_environment_begins_new_episodes() -> None:
    """As a state without a simulator's does."""
    config = trpo.Config(steps=96, fragment=8, env=trpo.EnvConfig(count=4))
    agent = trpo.make_agent("CartPole-v1", config)
    source = HostSource(trpo.make_envs("CartPole-v1", 4))
    source.restart([1, 2, 3, 4])
    snapshot = source.snapshot()
    source.close()
    assert snapshot is not None
    snapshot.environments[2]["layers"][-1]["gravity"] = "low"
    state = trpo.TrainingState(agent.learner, iteration=1, source=snapshot)
    with pytest.raises(UserWarning, match="new episodes begin: the state cannot be put back"):
        next(trpo.iterations("CartPole-v1", agent, config, state))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_as_if_it_was_not(workers: int, tmp_path: Path) -> None:
    """With MuJoCo in Gymnasium, by kill −9 between two checkpoints."""
    small = "--fragment 8 --env.count 3 --policy.hidden 8 --value.hidden 8 --checkpoint-every 2 --quiet"
    flags = [*small.split(), "--env.workers", str(workers)]
    command = [sys.executable, "-m", "trpo", "train", "Hopper-v5", *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = start_process(
        [*command, "--steps", str(10**7), "--out", "run"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while len(list((tmp_path / "run" / "checkpoints").glob("0*"))) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    end_processes([process])
    steps = 24 * 30
    while json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["steps"] >= steps:
        steps *= 2
    resumed = trpo.resume(tmp_path / "run", steps=steps, quiet=True)
    whole = trpo.train("Hopper-v5", config=dataclasses.replace(resumed.config, steps=steps), quiet=True)
    assert same_bits(whole.learner, resumed.learner)


def test_environments_with_masks_are_saved_as_what_they_wrap() -> None:
    origin = resolve("Taxi-v4", trpo.EnvConfig(count=2))
    envs = origin.open(2)
    envs.reset([1, 2])
    state = to_plain(envs.snapshot())
    actions = [np.array([0, 1]), np.array([2, 3])]
    expected = [envs.step(a) for a in actions]
    envs.restore(from_plain(json.loads(json.dumps(state))))
    assert same_bits([envs.step(a) for a in actions], expected)
    envs.close()
