"""EnvPool's tasks against Gymnasium's: results of one may stand for the other only if these pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from trpo.envs import Box
from trpo.envs.host.frames import Frames
from trpo.envs.host.gymnasium import quiet_mujoco
from trpo.envs.names import make_envs

envpool = pytest.importorskip("envpool")

State = tuple[np.ndarray, np.ndarray]


def _tail(hidden: int, positions: int) -> Callable[[np.ndarray], State]:
    """Observations that are positions without the first ``hidden``, then velocities, then perhaps more."""

    def state(o: np.ndarray) -> State:
        shown = positions - hidden
        velocities = {7: 6, 15: 14, 24: 23}.get(positions, positions)
        return np.concatenate([np.zeros(hidden), o[:shown]]), o[shown : shown + velocities]

    return state


def _reacher(o: np.ndarray) -> State:
    return np.concatenate([np.arctan2(o[2:4], o[:2]), o[4:6]]), np.concatenate([o[6:8], np.zeros(2)])


def _double_pendulum(o: np.ndarray) -> State:
    return np.array([o[0], np.arctan2(o[1], o[3]), np.arctan2(o[2], o[4])]), o[5:8]


STATE: dict[str, Callable[[np.ndarray], State]] = {
    "Hopper": _tail(1, 6),
    "Walker2d": _tail(1, 9),
    "HalfCheetah": _tail(1, 9),
    "Ant": _tail(2, 15),
    "Humanoid": _tail(2, 24),
    "Swimmer": _tail(2, 5),
    "InvertedPendulum": _tail(0, 2),
    "InvertedDoublePendulum": _double_pendulum,
    "Reacher": _reacher,
}
"""What the simulator's state is, from an observation: what is hidden (places on the ground) moves nothing."""

CLASSIC: dict[str, Callable[[np.ndarray], Any]] = {
    "CartPole-v1": lambda o: o,
    "Acrobot-v1": lambda o: np.array([np.arctan2(o[1], o[0]), np.arctan2(o[3], o[2]), o[4], o[5]]),
    "MountainCar-v0": lambda o: o,
    "MountainCarContinuous-v0": lambda o: o,
    "Pendulum-v1": lambda o: np.array([np.arctan2(o[1], o[0]), o[2]]),
}
"""The same for classic control, where everything is observed."""


def put(env: gym.Env, observation: np.ndarray) -> np.ndarray:
    """Put the simulator where an observation was made; return what it observes there."""
    assert env.spec is not None
    simulator: Any = env.unwrapped
    env.reset(seed=0)
    if env.spec.id in CLASSIC:
        simulator.state = CLASSIC[env.spec.id](observation)
        observe = getattr(simulator, "_get_obs", getattr(simulator, "_get_ob", None))
        return observe() if observe else np.array(simulator.state)
    simulator.set_state(*STATE[env.spec.name](observation))
    return simulator._get_obs()


def draw(space: gym.Space, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw actions: uniform in the middle half of a Box."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=shape)
    assert isinstance(space, gym.spaces.Box)
    return (rng.uniform(-0.5, 0.5, shape + space.shape) * space.high).astype(np.float32)


@pytest.fixture(params=[*(f"{name}-v5" for name in STATE), *CLASSIC])
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def single(task: str) -> Iterator[gym.Env]:
    with quiet_mujoco():
        env = gym.make(task)
    yield env
    env.close()


def make(task: str, count: int, seed: int) -> Any:
    return envpool.make(task, env_type="gymnasium", num_envs=count, seed=seed)


def test_the_same_actions_from_the_same_start_give_the_same_episode(task: str, single: gym.Env) -> None:
    """Ten starts of EnvPool's, put into Gymnasium's simulator, and the same random actions for both.

    Contacts amplify the last bits (a step of Humanoid tenfold, of Ant a hundredfold), so those two are compared over
    fewer steps; the others agree to 1e-5 over forty.
    """
    steps, tolerance = {"Ant-v5": (3, 2e-3), "Humanoid-v5": (12, 2e-3)}.get(task, (40, 1e-5))
    pool = make(task, 10, seed=3)
    rng = np.random.default_rng(0)
    starts = np.asarray(pool.reset()[0], np.float64)
    actions = draw(single.action_space, rng, (steps, 10))
    theirs = [[np.array(x) for x in pool.step(a.astype(pool.action_space.dtype))[:4]] for a in actions]
    pool.close()
    ended = 0
    for i, start in enumerate(starts):
        np.testing.assert_allclose(put(single, start), start, atol=1e-6)
        for t in range(steps):
            after, reward, terminated, truncated = (column[i] for column in theirs[t])
            seen, gained, ends, cut, _ = single.step(actions[t, i])
            np.testing.assert_allclose(after, seen, rtol=tolerance, atol=tolerance, err_msg=f"start {i}, step {t}")
            np.testing.assert_allclose(reward, gained, rtol=1e-4, atol=1e-4, err_msg=f"start {i}, step {t}")
            assert (bool(terminated), bool(truncated)) == (ends, cut)
            if ends:
                ended += 1
                break
    assert ended > 0 or task not in ("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "CartPole-v1")


def test_spaces_and_time_limits_are_the_same(task: str, single: gym.Env) -> None:
    pool = make(task, 1, seed=0)
    assert pool.observation_space.shape == single.observation_space.shape
    ours, theirs = single.action_space, pool.action_space
    if isinstance(ours, gym.spaces.Discrete):
        assert theirs.n == ours.n
    else:
        assert isinstance(ours, gym.spaces.Box)
        np.testing.assert_allclose(theirs.low, ours.low)
        np.testing.assert_allclose(theirs.high, ours.high)
    assert single.spec is not None
    assert pool.spec.config.max_episode_steps == single.spec.max_episode_steps
    pool.close()


def test_episodes_begin_alike(task: str, single: gym.Env) -> None:
    """Every observed feature of 400 first states each: a Kolmogorov–Smirnov test, all features together at p = 1e-4."""
    count = 400
    pool = make(task, count, seed=1)
    theirs = np.asarray(pool.reset()[0], np.float64)
    pool.close()
    ours = np.stack([single.reset(seed=s)[0] for s in range(count)])
    varies = ours.std(0) > 1e-9
    np.testing.assert_allclose(theirs[:, ~varies], ours[:, ~varies], atol=1e-6)
    p = np.array([stats.ks_2samp(a, b).pvalue for a, b in zip(ours[:, varies].T, theirs[:, varies].T, strict=True)])
    assert p.min() > 1e-4 / len(p)


@pytest.fixture
def games() -> None:
    for module in ("ale_py", "cv2"):
        pytest.importorskip(module, reason="needs trpo[atari]")


@pytest.mark.parametrize(("game", "skip"), [("Pong", 4), ("Breakout", 3)])
def test_games_are_shown_alike(game: str, skip: int, games: None) -> None:
    """Frames, rewards and ends, from the same number of no-ops on and without chance, bit for bit.

    So the actions mean the same, frames are skipped once, and both take the maximum of the same two.
    """
    frames, alone = Frames(4, 84, skip, 1), {"repeat_action_probability": 0.0}
    ours, theirs = (make_envs(f"{of}{game}-v5", 1, frames=frames, kwargs=alone) for of in ("ALE/", "envpool:"))
    assert ours.spec.observation == theirs.spec.observation == Box((4, 84, 84), "uint8", 0.0, 255.0)
    assert ours.spec.action.n == theirs.spec.action.n  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ours.reset([0]), theirs.reset([0]))
    rng, gained = np.random.default_rng(0), 0.0
    for t in range(160):
        action = rng.integers(ours.spec.action.n, size=1)  # type: ignore[attr-defined]
        a, b = ours.step(action), theirs.step(action)
        for name in ("observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{name}, step {t}")
        gained += abs(a.reward[0])
        if a.terminated[0]:
            break
    assert gained > 0 or game != "Pong"
    ours.close()
    theirs.close()


def test_games_are_those_of_their_version(games: None) -> None:
    """Sticky actions, up to 30 no-ops, half an hour, whole games: as Gymnasium has them by the same id."""
    pool: Any = make_envs("envpool:Breakout-v5", 1, frames=Frames(4, 84))
    options, spec = pool._envs.spec.config, gym.spec("ALE/Breakout-v5")
    pool.close()
    assert options.repeat_action_probability == spec.kwargs["repeat_action_probability"] == 0.25
    assert options.max_episode_steps * options.frame_skip == spec.kwargs["max_num_frames_per_episode"]
    assert (options.noop_max, options.frame_skip, options.stack_num) == (30, 4, 4)
    others = ("use_fire_reset", "episodic_life", "reward_clip", "full_action_space")
    assert {name: getattr(options, name) for name in others} == dict.fromkeys(others, False)
