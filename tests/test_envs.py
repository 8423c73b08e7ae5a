"""Adapters: each gives exactly what stepping the simulator by hand gives, and fails in words."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import trpo
from tests.helpers import run_process
from trpo.envs import Box, Choice, EnvironmentFailure, HostEnv, Space
from trpo.envs.host.frames import Frames
from trpo.envs.host.probes import TIME_LIMIT, Probe
from trpo.envs.names import make_envs, make_single
from trpo.envs.protocol import UnknownEnvironmentError, UnusableEnvironmentError

SEEDS = [11, 7, 2**32 - 1, 0]


@pytest.fixture(params=[True, False], ids=["looking", "by pipe"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which processes can wait for each other, whatever the machine would choose."""
    monkeypatch.setattr("trpo.envs.host.workers.can_look", lambda workers: request.param)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Close what is handed to it, and then no process may be left."""
    opened: list[Any] = []

    def keep(env: Any) -> Any:
        opened.append(env)
        return env

    yield keep
    for env in opened:
        env.close()
    assert multiprocessing.active_children() == []


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the memory that this test shares with its workers, of which nothing may be left.

    Not all that the machine has: another test, or another user's run, may share memory at the same time.
    """
    names: list[str] = []

    def create(*arguments: Any, **keywords: Any) -> SharedMemory:
        memory = SharedMemory(*arguments, **keywords)
        names.append(memory.name)
        return memory

    monkeypatch.setattr("trpo.envs.host.workers.SharedMemory", create)
    yield names
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def actions_for(envs: HostEnv, steps: int) -> np.ndarray:
    """Arbitrary actions as a policy gives them, often out of bounds."""
    random = np.random.default_rng(3)
    space, count = envs.spec.action, envs.count
    if isinstance(space, Choice):
        return random.integers(0, space.n, (steps, count))
    assert isinstance(space, Box)
    return random.normal(scale=2.0, size=(steps, count, space.size)).astype(np.float32)


def equal(ours: Any, theirs: Any) -> None:
    """Two trees of arrays are the same, types included."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = tuple(ours.values()), tuple(theirs[name] for name in ours)
    if isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            equal(a, b)
        return
    if ours is None or theirs is None:  # of a field that is not there
        assert ours is theirs
        return
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------- a plain environment, stepped by hand


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5"])
def test_gymnasium_adapter_equals_stepping_by_hand(env_id: str, closing: Callable) -> None:
    steps = 210  # beyond Pendulum's time limit of 200
    envs = closing(make_envs(env_id, len(SEEDS), rescale_actions=False))
    actions = actions_for(envs, steps)
    plain = [gym.make(env_id) for _ in SEEDS]
    observation = envs.reset(SEEDS)
    by_hand = [env.reset(seed=seed)[0].astype(np.float32) for env, seed in zip(plain, SEEDS, strict=True)]
    np.testing.assert_array_equal(observation, by_hand)
    ends = 0
    for action in actions:
        after = envs.step(action)
        assert after.observation.dtype == after.final_observation.dtype == after.reward.dtype == np.float32
        assert after.valid.all()
        for i, env in enumerate(plain):
            space = env.action_space
            own = np.clip(action[i], space.low, space.high) if isinstance(space, spaces.Box) else int(action[i])
            seen, reward, terminated, truncated, _ = env.step(own)
            np.testing.assert_array_equal(after.final_observation[i], seen.astype(np.float32))
            assert after.reward[i] == np.float32(reward)
            assert (after.terminated[i], after.truncated[i]) == (terminated, truncated)
            if terminated or truncated:
                ends += 1
                seen, _ = env.reset()  # without a seed: the generator goes on
                assert not np.array_equal(after.observation[i], after.final_observation[i])
            np.testing.assert_array_equal(after.observation[i], seen.astype(np.float32))
    assert ends >= len(SEEDS)
    for env in plain:
        env.close()


def test_rescaled_actions_reach_the_simulator() -> None:
    """Pendulum's cost has a term 0.001·u², and its torque bound is 2: half of [−1, 1] is u = 1."""
    costs = {}
    for rescale in (False, True):
        envs = make_envs("Pendulum-v1", 1, rescale_actions=rescale)
        envs.reset([0])
        costs[rescale] = -envs.step(np.array([[0.5]], np.float32)).reward[0]
        envs.close()
    assert costs[True] - costs[False] == pytest.approx(0.001 * (1.0**2 - 0.5**2), rel=1e-3)


class Reusing(gym.Env):
    """Hands out one array, which it changes in place, and infos of changing type and shape."""

    observation_space = spaces.Box(-100, 100, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._seen = np.zeros(2)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._seen[:] = self.np_random.integers(10)
        self._steps, self._end = 0, 1 + int(self._seen[0]) % 3
        return self._seen, {"path": np.zeros(0)}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps += 1
        self._seen += 1
        end = self._steps == self._end
        return self._seen, 1.0, False, end, {"path": np.zeros(self._steps), "why": "end" if end else 0}


def test_final_observation_is_right_for_an_environment_that_reuses_its_array() -> None:
    envs = make_envs(Reusing, 3)
    before = envs.reset([0, 1, 2])
    ends = 0
    for _ in range(30):
        after = envs.step(np.zeros(3, int))
        np.testing.assert_array_equal(after.final_observation, before + 1)
        ends += after.truncated.sum()
        before = after.observation.copy()
    assert ends > 5
    envs.close()


def test_transitions_are_not_overwritten_by_later_steps() -> None:
    for env, workers in ((Reusing, 0), ("probe:both", 0), ("probe:both", 1)):
        envs = make_envs(env, 2, workers)
        first = envs.reset([0, 1])
        kept = [first, *(x for x in envs.step(np.zeros(2, int)) if x is not None)]
        expected = [array.copy() for array in kept]
        for _ in range(5):
            envs.step(np.ones(2, int))
        for ours, theirs in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        envs.close()


# ---------------------------------------------------------------- observation spaces


class Counting(gym.Env):
    """Shows how many episodes and steps there were; an episode has four steps."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)
    action_space = spaces.Discrete(2)
    episode = step_number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode, self.step_number = self.episode + 1, 0
        return np.array([self.episode, 0], np.uint8), {}

    def step(self, action: Any) -> Any:
        self.step_number += 1
        return np.array([self.episode, self.step_number], np.uint8), 0.0, False, self.step_number == 4, {}


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_are_stacked_within_an_episode(workers: int, closing: Callable) -> None:
    """PITFALLS row 30: the first frame stands for those before it; the last stack is all of the episode that ended."""
    envs = closing(make_envs(Counting, 2, workers, frames=Frames(3)))
    assert envs.spec.observation.shape == (3, 2)

    seen = envs.reset([0, 1])
    began = seen[:, 0, 0]  # an environment may have been begun before, to see what it tells

    def stacks(episode: int, time: int) -> list[list[list[int]]]:
        return [[[first + episode, max(0, t)] for t in range(time - 2, time + 1)] for first in began]

    np.testing.assert_array_equal(seen, stacks(0, 0))
    for t in range(9):
        after = envs.step(np.zeros(2, int))
        episode, time = t // 4, t % 4 + 1
        np.testing.assert_array_equal(after.final_observation, stacks(episode, time))
        np.testing.assert_array_equal(after.observation, stacks(episode, time) if time < 4 else stacks(episode + 1, 0))


@pytest.mark.parametrize(
    ("env_id", "frames", "words"),
    [
        ("CartPole-v1", Frames(screen=84), r"env\.screen=84: environment 'CartPole-v1' is no Atari game"),
        ("envpool:CartPole-v1", Frames(4), r"env\.frame_stack=4: EnvPool's 'CartPole-v1' is no Atari game"),
        ("jax-probe:both", Frames(4), r"env\.frame_stack=4: for environments on the host"),
    ],
)
def test_frames_that_an_environment_does_not_have(env_id: str, frames: Frames, words: str) -> None:
    if env_id.startswith("envpool:"):
        pytest.importorskip("envpool")
    options = trpo.EnvConfig(frame_stack=frames.stack, screen=frames.screen)
    for make in (
        lambda: make_envs(env_id, 1, frames=frames),
        lambda: trpo.make_agent(env_id, trpo.Config(env=options)),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def env_seeing(space: gym.Space, **attributes: Any) -> Callable[[], gym.Env]:
    """Make a function for an environment that shows samples of ``space``."""

    class Env(gym.Env):
        observation_space = space
        action_space = attributes.get("actions", spaces.Discrete(2))

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            if seed is not None:
                self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return self.observation_space.sample(), 0.0, bool(self.np_random.random() < 0.3), False, {}

    return Env


SPACES: list[tuple[gym.Space, int]] = [
    (spaces.Discrete(5, start=2), 5),
    (spaces.MultiDiscrete([3, 4]), 7),
    (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]])), 14),
    (spaces.MultiBinary(4), 4),
    (spaces.Box(0, 255, (3, 4, 2), np.uint8), 24),
    (spaces.Box(-5, 2**30, (3,), np.int64), 3),
    (spaces.Box(-1.0, 1.0, ()), 1),
    (spaces.Dict(b=spaces.Box(0, 1, (2, 2)), a=spaces.Discrete(3)), 7),
    (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (3,), np.float64)]), 5),
    (
        spaces.Dict(
            z=spaces.Tuple([spaces.Box(-9, 9, (2,), np.int16), spaces.Dict(m=spaces.MultiBinary(2))]),
            pixels=spaces.Box(0, 255, (2, 3), np.uint8),
            at=spaces.Box(-(2.0**60), 2.0**60, (2,), np.float64),
        ),
        12,
    ),
]
"""Spaces of observations, and the numbers in one."""


@pytest.mark.parametrize(("space", "size"), SPACES, ids=str)
def test_observations_are_flattened_as_gymnasium_flattens_them(space: gym.Space, size: int) -> None:
    envs = make_envs(env_seeing(space), 1, flatten=True)
    assert envs.spec.observation == Box((size,))
    twin = copy.deepcopy(space)
    twin.seed(5)
    observation = envs.reset([5])
    for _ in range(10):
        assert observation.shape == (1, size)
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation[0], np.float32(spaces.flatten(space, twin.sample())).ravel())
        after = envs.step(np.zeros(1, int))
        if after.terminated[0]:
            expected = np.float32(spaces.flatten(space, twin.sample())).ravel()
            np.testing.assert_array_equal(after.final_observation[0], expected)
        observation = after.observation
    envs.close()


def rows_equal(space: Space, columns: Any, row: int, sample: Any) -> None:
    """Row ``row`` of a tree of columns is what the environment showed, in the space's types."""

    def compare(leaf: Any, column: np.ndarray, part: Any) -> None:
        assert column.dtype == leaf.dtype
        np.testing.assert_array_equal(column[row], np.asarray(part).astype(leaf.dtype))

    space.map(compare, columns, sample)


@pytest.mark.parametrize("space", [space for space, _ in SPACES], ids=str)
def test_observations_are_what_environments_show(space: gym.Space) -> None:
    """Samples of any space, in three environments, stepped, restarted and ended: the same values in the same form."""
    envs = make_envs(env_seeing(space), 3)
    seen = envs.spec.observation
    twins = [env_seeing(copy.deepcopy(space))() for _ in range(3)]
    for i, env in enumerate(envs._envs):
        env.observation_space = copy.deepcopy(space)
        env.reset(seed=i)
    observation = envs.reset([5, 6, 7])
    shown = [twin.reset(seed=seed)[0] for twin, seed in zip(twins, (5, 6, 7), strict=True)]
    ends = 0
    for _ in range(12):
        assert seen.fits(observation) == (3,)
        for i in range(3):
            rows_equal(seen, observation, i, shown[i])
        after = envs.step(np.zeros(3, int))
        observation = after.observation
        for i, twin in enumerate(twins):
            shown[i], _, ended, *_ = twin.step(0)
            rows_equal(seen, after.final_observation, i, shown[i])
            if ended:
                shown[i], ends = twin.reset()[0], ends + 1
    assert ends > 3
    begun = envs.restart(np.array([2, 0]))
    assert seen.fits(begun) == (2,)
    for row, i in enumerate((2, 0)):
        rows_equal(seen, begun, row, twins[i].reset()[0])
    envs.close()


@pytest.mark.parametrize("copies", [False, True], ids=["one array", "new views of one array"])
def test_environments_may_share_a_buffer(copies: bool) -> None:
    """Row i is what environment i returned at its step, although the next one writes into the same array."""
    buffer = np.zeros(2, np.float32)

    class Sharing(Reusing):
        def reset(self, **keywords: Any) -> tuple[np.ndarray, dict]:
            return self._show(super().reset(**keywords)[0])

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
            seen, *rest, info = super().step(action)
            return self._show(seen)[0], *rest, info

        def _show(self, seen: np.ndarray) -> tuple[np.ndarray, dict]:
            buffer[:] = seen
            return (buffer[:] if copies else buffer), {}

    shared, own = make_envs(Sharing, 4), make_envs(Reusing, 4)
    equal(shared.reset([0, 1, 2, 3]), own.reset([0, 1, 2, 3]))
    ends = 0
    for _ in range(20):
        ours, theirs = shared.step(np.zeros(4, int)), own.step(np.zeros(4, int))
        equal(tuple(ours), tuple(theirs))
        ends += ours.truncated.sum()
    assert ends > 5
    equal(shared.restart(np.array([3, 1])), own.restart(np.array([3, 1])))


def test_a_choice_outside_its_space_is_refused() -> None:
    class Wild(env_seeing(spaces.Discrete(3, start=1))):  # type: ignore[misc]
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return 4, 0.0, False, False, {}

    envs = make_envs(Wild, 2)
    envs.reset([0, 1])
    with pytest.raises(EnvironmentFailure, match=r"Wild: observation 4 is not of Discrete\(3, start=1\)"):
        envs.step(np.zeros(2, int))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Hoper-v5", ["'Hoper-v5'", "nearest: Hopper-v5"]),
        ("CartPole-v7", ["'CartPole-v7'", "CartPole-v1"]),
        ("Hopper v5", ["'Hopper v5'", "Hopper-v5"]),  # Gymnasium calls it malformed
        ("Zzyzx", ["'Zzyzx'", "pprint_registry"]),
        ("no_such_module_here:X-v0", ["no_such_module_here:X-v0", "cannot be imported", "No module named"]),
        ("probe:delay", ["probe:delayed"]),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unknown_names_are_answered_with_the_nearest(env_id: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is checked below
        make_envs(env_id, 1)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_versions_that_are_gone_are_the_user_s_mistake() -> None:
    for env_id in ("Hopper-v1", "Hopper-v2"):
        with pytest.raises(UnknownEnvironmentError, match=env_id):
            make_envs(env_id, 1)


def test_a_registered_environment_whose_module_is_missing_is_not_called_unknown() -> None:
    gym.register("TrpoTestLost-v0", "no_such_module_here:Env")
    try:
        with pytest.raises(UnknownEnvironmentError, match=r"cannot be imported.*no_such_module_here") as caught:
            make_envs("TrpoTestLost-v0", 1)
        assert "nearest" not in str(caught.value)
    finally:
        del gym.registry["TrpoTestLost-v0"]


def test_module_and_id_import_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trpo_test_tasks.py").write_text(
        textwrap.dedent("""
        import gymnasium as gym
        from trpo.envs.host.probes import Probe
        gym.register("TrpoTestTask-v0", lambda: Probe("constant"), max_episode_steps=4)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        for workers in (0, 1):
            envs = make_envs("trpo_test_tasks:TrpoTestTask-v0", 1, workers)
            envs.reset([0])
            assert envs.step(np.zeros(1, int)).reward.tolist() == [1.0]
            envs.close()
        single = make_single("trpo_test_tasks:TrpoTestTask-v0")
        assert isinstance(single, gym.Env)
    finally:
        gym.registry.pop("TrpoTestTask-v0", None)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_returns_something_else(workers: int) -> None:
    def make() -> Any:
        return {"not": "an environment"}

    with pytest.raises(ValueError, match=r"returned dict, not a gymnasium\.Env"):
        make_envs(make, 1, workers)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"env\.count=0.*≥ 1"):
        make_envs("CartPole-v1", 0)
    with pytest.raises(ValueError, match=r"env\.workers=-1.*≥ 0"):
        make_envs("CartPole-v1", 1, -1)
    with pytest.raises(ValueError, match=r"env\.workers=3.*env\.count=2"):
        make_envs("CartPole-v1", 2, 3)


# ---------------------------------------------------------------- answers that are not those of the interface


class Answering(gym.Env):
    """Answers as the interface asks for, but for what a test replaces."""

    observation_space: gym.Space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(2)
    answers: dict[str, Any] = {}  # noqa: RUF012

    def _shown(self) -> Any:
        return np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.answers.get("reset", (self._shown(), {}))

    def step(self, action: Any) -> Any:
        fields = {"observation": self._shown(), "reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        return self.answers.get("step", tuple((fields | self.answers).get(name) for name in fields))


def answering(space: gym.Space | None = None, **answers: Any) -> Callable[[], gym.Env]:
    def make() -> gym.Env:
        env = Answering()
        env.answers, env.observation_space = answers, space or Answering.observation_space
        return env

    return make


def first_step(make: Callable[[], gym.Env], workers: int = 0) -> Any:
    envs = make_envs(make, 2, workers)
    try:
        envs.reset([0, 1])
        return envs.step(np.zeros(2, int))
    finally:
        envs.close()


@pytest.mark.parametrize(
    "one", [np.array([2.0]), np.array(2), np.array([[2]], np.int8), np.float16(2), 2, jnp.ones(1) * 2]
)
@pytest.mark.parametrize("true", [np.array([True]), np.array(1), np.array([1.0]), 1, np.True_, True])
def test_arrays_of_one_number_are_numbers(one: Any, true: Any) -> None:
    after = first_step(answering(reward=one, truncated=true, terminated=np.array([False])))
    np.testing.assert_array_equal(after.reward, np.float32([2, 2]))
    assert after.truncated.all()
    assert not after.terminated.any()
    assert after.reward.dtype == np.float32


A, O = spaces.Box(-9, 9, (2,), np.float32), np.zeros(2, np.float32)  # noqa: E741
WRONG: list[tuple[str, dict[str, Any], gym.Space, str]] = [
    ("no reward", {"reward": None}, A, "reward is None"),
    ("a string", {"reward": "1"}, A, "reward is '1'"),
    ("two", {"reward": np.zeros(2)}, A, r"reward is an array of shape \(2,\)"),
    ("complex", {"reward": 1j}, A, "reward is 1j"),
    ("an object", {"reward": object()}, A, "reward is <object"),
    ("a list", {"reward": [1.0, 2.0]}, A, "reward is a list of 2"),
    ("empty", {"reward": np.zeros(0)}, A, r"reward is an array of shape \(0,\)"),
    ("no end", {"terminated": None}, A, "terminated is None"),
    ("a word", {"terminated": "no"}, A, "terminated is 'no'"),
    ("two ends", {"truncated": np.zeros(2, bool)}, A, r"truncated is an array of shape \(2,\)"),
    ("NaN", {"truncated": np.nan}, A, "truncated is nan"),
    ("four", {"step": (O, 1.0, False, {})}, A, "step returned a tuple of 4: must be a tuple .*gym before 0.26"),
    ("none", {"step": None}, A, "step returned None"),
    ("no info", {"reset": O}, A, r"reset returned an array of shape \(2,\): must be a tuple .*gym before 0.26"),
    ("one", {"reset": np.zeros(1)}, spaces.Box(-9, 9, (1,)), r"reset returned an array of shape \(1,\)"),
    ("a pair", {"reset": (0.0, 0.0)}, A, "reset returned a tuple of 2"),
    ("reset a list", {"reset": [O, {}]}, A, "reset returned a list of 2"),
    ("longer", {"observation": np.zeros(3)}, A, r"observation has shape \(3,\), but its space has \(2,\)"),
    ("a column", {"observation": np.zeros((2, 1))}, A, r"observation has shape \(2, 1\)"),
    ("at reset", {"reset": (np.zeros(4), {})}, A, r"observation has shape \(4,\)"),
    ("words", {"observation": ["a", "b"]}, A, "observation .* is not a number or an array of numbers"),
    ("nothing", {"observation": [None, None]}, A, "observation .* is not a number or an array of numbers"),
    ("two complex", {"observation": O + 1j}, A, "is not a number or an array of numbers"),
    ("halves", {"reset": (O + 0.5, {})}, spaces.Box(0, 255, (2,), np.uint8), "must be whole numbers that uint8 holds"),
    (
        "negative",
        {"reset": ([-1, 0], {})},
        spaces.Box(0, 255, (2,), np.uint8),
        "must be whole numbers that uint8 holds",
    ),
    ("an image", {"reset": (np.zeros((4, 3), "u1"), {})}, spaces.Box(0, 255, (3, 4), np.uint8), r"shape \(4, 3\)"),
    ("bits", {"reset": ([0, 2], {})}, spaces.MultiBinary(2), "is not of "),
    ("choices", {"reset": ([0, 2], {})}, spaces.MultiDiscrete([2, 2]), "is not of "),
    ("a part", {"reset": ({"b": O}, {})}, spaces.Dict(a=A), "observation is .*: its space asks for a part 'a'"),
    ("in a part", {"reset": ({"a": 0}, {})}, spaces.Dict(a=A), r"observation\['a'\] has shape \(\)"),
]


@pytest.mark.parametrize(("answers", "space", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_with_an_answer_is_said_with_the_environment(
    answers: dict[str, Any], space: gym.Space, words: str
) -> None:
    with pytest.raises(EnvironmentFailure, match=f"^environment make: .*{words}") as caught:
        first_step(answering(space, **answers))
    assert "\n" not in str(caught.value)


def test_a_wrong_answer_in_a_worker_is_said_as_here() -> None:
    def make() -> gym.Env:
        from trpo.envs.host.probes import Probe

        class Nothing(Probe):
            def step(self, action: Any) -> Any:
                observation, _, *rest = super().step(action)
                return observation, None, *rest

        return Nothing("endless")

    with pytest.raises(EnvironmentFailure, match=r"^environment make: reward is None: [^\n]*$"):
        first_step(make, 2)


@pytest.mark.parametrize(
    "error", [SystemExit(3), RuntimeError("no\nlicence"), ValueError("odd"), GeneratorExit(), StopIteration("all")]
)
def test_whatever_an_environment_raises_is_said_with_its_name(error: BaseException) -> None:
    class Raising(Answering):
        when = "init"

        def __init__(self) -> None:
            if self.when == "init":
                raise error

        def reset(self, **keywords: Any) -> Any:
            if self.when == "reset":
                raise error
            return super().reset()

        def close(self) -> None:
            raise error

    said = rf"{type(error).__name__}(: .*)?$"
    with pytest.raises(UnusableEnvironmentError, match=f"^environment 'Raising' cannot be made: {said}") as caught:
        make_envs(Raising, 1)
    assert caught.value.__cause__ is error
    Raising.when = "reset"
    envs = make_envs(Raising, 1)
    with pytest.raises(EnvironmentFailure, match=f"^environment Raising raised {said}") as failed:
        envs.reset([0])
    assert failed.value.__context__ is error
    with pytest.warns(UserWarning, match=f"environment Raising raised {said[:-1]} when it was closed"):
        envs.close()


def test_a_module_that_raises_when_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {"exits": "raise SystemExit(4)", "breaks": "1 / 0", "garbled": "def"}.items():
        (tmp_path / f"{name}_at_import.py").write_text(code)
        for env in (f"{name}_at_import:Own-v0", f"jax:{name}_at_import:make"):
            with pytest.raises(ValueError, match=f"^environment '{env}' cannot be (made|imported): (Sys|Zero|Synt)"):
                make_envs(env, 1)


# ---------------------------------------------------------------- processes


def env_of_everything() -> gym.Env:
    """Make an environment that shows the last and largest of :data:`SPACES`."""
    return env_seeing(copy.deepcopy(SPACES[-1][0]))()


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("env", ["probe:both", "CartPole-v1", "Pendulum-v1", env_of_everything])
def test_worker_processes_equal_one_process_bit_for_bit(env: Any, flatten: bool, closing: Callable) -> None:
    """Five environments over two and three processes: the shares differ in size."""
    seeds, steps = [5, 4, 3, 2, 1], 60
    alone = closing(make_envs(env, 5, flatten=flatten))
    several = [closing(make_envs(env, 5, workers, flatten=flatten)) for workers in (1, 2)]
    assert all(spread.spec == alone.spec for spread in several)
    actions = actions_for(alone, steps)
    for _ in range(2):  # a second reset, too
        first = alone.reset(seeds)
        for spread in several:
            equal(spread.reset(seeds), first)
        for action in actions:
            after = alone.step(action)
            for spread in several:
                equal(tuple(spread.step(action)), tuple(after))
        begun = alone.restart(np.array([0, 2, 3]))
        for spread in several:
            equal(spread.restart(np.array([0, 2, 3])), begun)
        seeds = seeds[::-1]


def test_snapshots_pass_through_worker_processes(closing: Callable) -> None:
    alone, spread = closing(make_envs("probe:both", 3)), closing(make_envs("probe:both", 3, 2))
    alone.reset([1, 2, 3]), spread.reset([9, 9, 9])
    alone.step(np.zeros(3, int))
    spread.restore(json.loads(json.dumps(alone.snapshot())))
    for _ in range(10):
        for ours, theirs in zip(spread.step(np.ones(3, int)), alone.step(np.ones(3, int)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_environments_without_snapshots_say_so(closing: Callable) -> None:
    for workers in (0, 1):
        envs = closing(make_envs(lambda: type("Opaque", (gym.Wrapper,), {})(gym.make("CartPole-v1")), 1, workers))
        envs.reset([0])
        assert envs.snapshot() is None


def test_a_worker_does_not_import_jax(closing: Callable) -> None:
    def make() -> gym.Env:
        import sys

        from trpo.envs.host.probes import Probe

        if "jax" in sys.modules:
            raise ValueError("jax is loaded")
        return Probe("constant")

    closing(make_envs(make, 1, 1))


def breaking_env(when: str) -> Callable[[], gym.Env]:
    """Make a function, to be sent by value, for an environment that raises an error of its own class."""

    def make() -> gym.Env:
        import gymnasium

        class OwnError(Exception):
            def __init__(self, a: int, b: int):
                super().__init__(f"door {a} of {b} is locked")

        class Broken(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(-1, 1, (1,))
            action_space = gymnasium.spaces.Discrete(2)
            steps = 0

            def __init__(self) -> None:
                if when == "init":
                    raise OwnError(1, 2)

            def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
                if when == "reset" or (when == "auto-reset" and self.steps):
                    raise OwnError(1, 2)
                return self.observation_space.low, {}

            def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
                self.steps += 1
                if when == "step" and self.steps == 3:
                    raise OwnError(1, 2)
                return self.observation_space.low, 0.0, self.steps == 3, False, {}

        return Broken()

    return make


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("when", ["init", "reset", "auto-reset", "step"])
def test_an_environment_that_raises(when: str, workers: int, either_way: None, shared_memory: list[str]) -> None:

    def run() -> None:
        envs = make_envs(breaking_env(when), 2, workers)
        try:
            envs.reset([0, 1])
            for _ in range(5):
                envs.step(np.zeros(2, int))
        finally:
            envs.close()

    kind, done = (UnusableEnvironmentError, "cannot be made:") if when == "init" else (EnvironmentFailure, "raised")
    with pytest.raises(kind, match=rf"^environment '?make'? {done} OwnError: door 1 of 2 is locked$") as caught:
        run()
    assert "OwnError" in repr(caught.value.__cause__)  # the error itself, or a worker's traceback as text
    assert multiprocessing.active_children() == []
    assert len(shared_memory) == (workers > 0 and when in ("auto-reset", "step"))  # the first step is what needs it


@pytest.mark.parametrize("kind", ["ValueError('three')", "UnicodeDecodeError('utf8', b'', 0, 1, 'three')"])
def test_a_value_error_in_a_worker_is_a_value_error_here(kind: str) -> None:
    def make() -> gym.Env:
        raise eval(kind)

    with pytest.raises(ValueError, match="three"):
        make_envs(make, 1, 1)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_killed_worker(moment: str, either_way: None, shared_memory: list[str]) -> None:
    """Between two steps the parent cannot write to it, within a step it cannot read from it."""
    limit = 3 if moment == "during" else 10**9
    parent = os.getpid()

    def make() -> gym.Env:
        import os
        import signal

        from trpo.envs.host.probes import Probe

        class Suicidal(Probe):
            steps = 0

            def step(self, action: Any) -> Any:
                self.steps += 1
                if self.steps == limit and os.getpid() != parent:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().step(action)

        return Suicidal("endless")

    envs = make_envs(make, 6, 2)
    envs.reset(list(range(6)))
    envs.step(np.zeros(6, int))
    if moment == "before":
        victim = sorted(multiprocessing.active_children(), key=lambda process: process.pid)[-1]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(5)
    if moment == "during":
        envs.step(np.zeros(6, int))  # two environments in a process, and each takes its third step next
    with pytest.raises(EnvironmentFailure, match=r"environment worker \d died \(exit code -9"):
        envs.step(np.zeros(6, int))
    envs.close()
    envs.close()  # twice does no harm
    assert multiprocessing.active_children() == []
    assert len(shared_memory) == 1


def test_workers_leave_nothing_behind_and_print_nothing() -> None:
    """In a process of its own: the resource tracker complains about leaks when the interpreter ends."""
    program = """
        import numpy as np
        from trpo.envs.names import make_envs
        if __name__ == "__main__":
            envs = make_envs("probe:both", 4, 2)
            envs.reset([0, 1, 2, 3])
            for _ in range(3):
                envs.step(np.zeros(4, int))
            envs.close()
    """
    done = run_program(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_environment_registered_under_the_main_guard_alone(tmp_path: Path) -> None:
    """Workers import the script anew, and do not see what stands there."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import gymnasium as gym
            from trpo.envs.host.probes import Probe
            from trpo.envs.names import make_envs
            if __name__ == "__main__":
                gym.register("Guarded-v0", lambda: Probe("endless"))
                try:
                    make_envs("Guarded-v0", 2, 1)
                except ValueError as error:
                    print(error)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert "'Guarded-v0' is registered in this process, but not in its workers" in done.stdout, done
    assert "register it at the top of a module" in done.stdout


def test_a_script_without_the_main_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from trpo.envs.names import make_envs\nmake_envs('probe:endless', 2, 1)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert "EnvironmentFailure: environment worker 0 died" in done.stderr
    assert 'outside of `if __name__ == "__main__":`' in done.stderr


def parent_env(where: str) -> Callable[[], gym.Env]:
    """Make a function for an environment whose steps are taken by a process of its own, known by a file in ``where``.

    It ends neither when it is asked to nor when its parent does.
    """

    def make() -> gym.Env:
        import multiprocessing
        import pathlib
        import signal
        import time

        from trpo.envs.host.probes import Probe

        def serve() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)

        class Parent(Probe):
            def __init__(self) -> None:
                super().__init__("endless")
                self.child = multiprocessing.get_context("fork").Process(target=serve)
                self.child.start()
                (pathlib.Path(where) / str(self.child.pid)).touch()

        return Parent()

    return make


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid) for pid in pids):
        assert time.monotonic() < until, "left behind"
        time.sleep(0.05)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("end", ["closed", "worker killed", "parent killed"])
def test_an_environment_in_a_worker_may_start_processes_and_none_is_left(end: str, tmp_path: Path) -> None:
    if end == "parent killed":
        program = tmp_path / "program.py"
        program.write_text(
            "import sys, time\nimport numpy as np\nfrom test_envs import parent_env\n"
            "from trpo.envs.names import make_envs\n"
            "if __name__ == '__main__':\n"
            "    envs = make_envs(parent_env(sys.argv[1]), 2, 2)\n    envs.reset([0, 1])\n"
            "    envs.step(np.zeros(2, int))\n    print('ready', flush=True)\n    time.sleep(600)\n"
        )
        (tmp_path / "pids").mkdir()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, program, tmp_path / "pids"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
        process.kill()
        process.wait()
        process.stdout.close()
    else:
        envs = make_envs(parent_env(str(tmp_path)), 2, 2)
        pids = [int(file.name) for file in tmp_path.iterdir()]
        if end == "worker killed":
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            with pytest.raises(EnvironmentFailure, match="died"):
                envs.reset([0, 1])
        else:
            envs.reset([0, 1])
            envs.step(np.zeros(2, int))
        envs.close()
    assert len(pids) == 2
    wait_until_gone(pids)


def test_processes_give_what_one_gives(closing: Callable, either_way: None) -> None:
    """Bit for bit, also where there are fewer environments than processes, and after a pause as long as an update."""
    for count, workers in ((5, 1), (5, 2), (3, 3), (1, 1)):
        one, several = (closing(make_envs("Pendulum-v1", count, k)) for k in (0, workers))
        seeds = list(range(count))
        np.testing.assert_array_equal(one.reset(seeds), several.reset(seeds))
        rng = np.random.default_rng(0)
        for t in range(210):  # beyond the time limit of 200
            action = rng.normal(size=(count, 1)).astype(np.float32)
            for a, b in zip(one.step(action), several.step(action), strict=True):
                np.testing.assert_array_equal(a, b)
            if t in (3, 50):
                time.sleep(0.02)  # a worker that looks for a step has given up and sleeps
            if t == 100:
                which = np.arange(count)[::2]
                np.testing.assert_array_equal(one.restart(which), several.restart(which))


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return run_process([sys.executable, "-c", textwrap.dedent(program)], env=environment)


def test_making_a_mujoco_environment_prints_nothing() -> None:
    """MuJoCo writes to the file descriptor, which Python's capturing does not see."""
    pytest.importorskip("mujoco")
    program = """
        from trpo.envs.names import make_envs, make_single
        envs = make_envs("HalfCheetah-v5", 2)
        print(envs.reset([0, 1]).shape)
        make_single("HalfCheetah-v5").close()
    """
    done = run_program(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 17)\n", "")


def test_what_else_mujoco_says_is_passed_on() -> None:
    mujoco = pytest.importorskip("mujoco")
    from trpo.envs.host.gymnasium import quiet_mujoco

    previous = mujoco.get_mju_user_warning()
    with quiet_mujoco(), pytest.warns(UserWarning, match="unstable"):
        mujoco.get_mju_user_warning()("simulation is unstable")
    with quiet_mujoco():
        mujoco.get_mju_user_warning()("this is deprecated")
    assert mujoco.get_mju_user_warning() == previous


# ---------------------------------------------------------------- EnvPool


def test_envpool_steps_after_an_end_only_reset(closing: Callable) -> None:
    """Its documented semantics: the step after an end ignores its action and returns the new episode's start."""
    envpool = pytest.importorskip("envpool")
    count, steps = 3, 120
    envs = closing(make_envs("envpool:CartPole-v1", count, rescale_actions=False))
    plain = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=count, seed=5)
    np.testing.assert_array_equal(envs.reset([5, 0, 0]), plain.reset()[0])
    ended = np.zeros(count, bool)
    length = np.zeros(count, int)
    resets = 0
    for action in np.random.default_rng(0).integers(0, 2, (steps, count)):
        after = envs.step(action)
        seen, reward, terminated, truncated, _ = plain.step(action)
        np.testing.assert_array_equal(after.valid, ~ended)
        np.testing.assert_array_equal(after.observation, seen)
        np.testing.assert_array_equal(after.final_observation, seen)
        assert not (after.terminated | after.truncated)[ended].any()
        np.testing.assert_array_equal(after.terminated[~ended], terminated[~ended])
        np.testing.assert_array_equal(after.reward[~ended], reward[~ended])
        # A new episode of CartPole begins within ±0.05; one that has just fallen is far outside.
        assert (np.abs(after.observation[ended]) <= 0.05).all()
        assert (np.abs(after.observation[after.terminated]).max(axis=-1) > 0.2).all()
        length = np.where(ended, 0, length + 1)
        resets += ended.sum()
        ended = terminated | truncated
    assert resets >= 5


def test_envpool_names() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(UnknownEnvironmentError, match=r"'CartPol-v1'.*nearest: .*CartPole-v1"):
        make_envs("envpool:CartPol-v1", 1)
    with pytest.raises(ValueError, match=r"env\.workers=2.*use 0"):
        make_envs("envpool:CartPole-v1", 2, 2)


@pytest.mark.parametrize("env_id", ["CartpoleBalance-v1", "FrozenLake-v1", "Catch-v0"])
def test_envpool_shows_what_it_has(env_id: str, closing: Callable) -> None:
    """A dict of vectors, a choice, an image; flattened, the numbers are Gymnasium's."""
    envpool = pytest.importorskip("envpool")
    envs, flat = closing(make_envs(f"envpool:{env_id}", 2)), closing(make_envs(f"envpool:{env_id}", 2, flatten=True))
    plain = envpool.make(env_id, env_type="gymnasium", num_envs=2, seed=3)
    observation, rows, theirs = envs.reset([3, 4]), flat.reset([3, 4]), plain.reset()[0]
    for _ in range(5):
        assert envs.spec.observation.fits(observation) == (2,)
        for i in range(2):
            shown = {name: x[i] for name, x in theirs.items()} if isinstance(theirs, dict) else theirs[i]
            rows_equal(envs.spec.observation, observation, i, shown)
            expected = np.float32(spaces.flatten(plain.observation_space, shown)).ravel()
            np.testing.assert_array_equal(rows[i], expected)
        (action,) = actions_for(envs, 1)
        observation, rows = envs.step(action).observation, flat.step(action).observation
        theirs = plain.step(envs.spec.action.to_env(action))[0]


def test_envpool_says_nothing_about_its_spaces(closing: Callable) -> None:
    pytest.importorskip("envpool")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        envs = closing(make_envs("envpool:CartPole-v1", 2))
        envs.reset([0, 1])


def test_envpool_is_reproducible(closing: Callable) -> None:
    pytest.importorskip("envpool")
    envs = closing(make_envs("envpool:CartPole-v1", 2))
    runs = []
    for seeds in ([3, 4], [3, 4], [5, 6]):
        first = envs.reset(seeds)
        runs.append(np.stack([first, *(envs.step(np.ones(2, int)).observation for _ in range(30))]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


# ---------------------------------------------------------------- probes


def episode(name: str, action: Any, seed: int = 0) -> tuple[float, list[float], list[float], bool, bool]:
    """Return first observation, rewards, later observations and how it ended."""
    env = Probe(name)
    first, _ = env.reset(seed=seed)
    assert env.observation_space.contains(first)
    rewards, seen = [], []
    for _ in range(100):
        observation, reward, terminated, truncated, _ = env.step(action)
        assert env.observation_space.contains(observation)
        rewards.append(reward)
        seen.append(float(observation[0]))
        if terminated or truncated:
            break
    return float(first[0]), rewards, seen, terminated, truncated


def test_probes_are_what_their_table_says() -> None:
    assert episode("constant", 0) == (0.0, [1.0], [0.0], True, False)
    assert episode("delayed", 0) == (0.0, [0.0, 1.0], [1.0, 1.0], True, False)
    assert episode("action", 0)[1:4:2] == ([-1.0], True)
    assert episode("action", 1)[1:4:2] == ([1.0], True)
    assert episode("endless", 0)[1:] == ([1.0] * TIME_LIMIT, [0.0] * TIME_LIMIT, False, True)
    signs = set()
    for seed in range(12):
        state, rewards, _, terminated, truncated = episode("observation", 0, seed)
        signs.add(state)
        assert (rewards, terminated, truncated) == ([state], True, False)
        for action in (0, 1):
            state, rewards, *ends = episode("both", action, seed)
            assert rewards == [1.0 if (action == 1) == (state > 0) else -1.0]
            assert ends[1:] == [True, False]
        for action in (-0.5, 0.25):
            state, rewards, *ends = episode("continuous", np.array([action], np.float32), seed)
            assert rewards == [pytest.approx(-((action - state / 2) ** 2))]
            assert ends[1:] == [True, False]
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["both", "delayed", "endless", "continuous"])
def test_a_restored_snapshot_goes_on_identically(name: str) -> None:
    def run_on(env: Any, steps: int) -> list[Any]:
        out = []
        for _ in range(steps):
            seen, reward, terminated, truncated, _ = env.step(np.ones(1) if name == "continuous" else 1)
            out.append((seen.tolist(), reward, terminated, truncated))
            if terminated or truncated:
                out.append(env.reset()[0].tolist())
        return out

    env = Probe(name)
    env.reset(seed=3)
    run_on(env, 3)
    text = json.dumps(env.snapshot(), allow_nan=False)
    expected = run_on(env, 40)
    other = Probe(name)
    other.reset(seed=99)
    run_on(other, 4)
    other.restore(json.loads(text))
    assert run_on(other, 40) == expected
