"""Evaluation and acting: whole episodes, fair shares, shapes that an environment accepts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import trpo
from trpo.envs import Transition
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Space, Tuple
from trpo.envs.spec import EnvSpec
from trpo.rollout import HostPolicy, noise_of, whole_episodes
from trpo.rollout.whole_episodes import MAX_STEPS, drawn_noise
from trpo.training.agent import Agent

SMALL: dict[str, Any] = {
    "policy": trpo.PolicyConfig(hidden=(4,), last_layer_scale=1.0),
    "value": trpo.ValueConfig(hidden=(4,)),
}


class Counter(gym.Env):
    """The k-th environment made has episodes of length 1 (k even) or 20 (k odd); the return is the length."""

    made = 0
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.length = 20 if type(self).made % 2 else 1
        type(self).made += 1
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.low, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self.observation_space.low, 1.0, self.steps == self.length, False, {}


def agent_in(env: Any, **changes: Any) -> Agent:
    return trpo.make_agent(env, trpo.Config(**(SMALL | changes)))


def test_shares_are_fixed_beforehand_so_short_episodes_are_not_favoured() -> None:
    """Whichever ten ended first would be nearly all of length 1."""
    agent = agent_in(Counter)
    Counter.made = 0
    result = trpo.evaluate(agent, Counter, episodes=10, count=4)
    assert result.lengths == (1, 1, 1, 20, 20, 20, 1, 1, 20, 20)  # 3 + 3 + 2 + 2
    assert result.returns == tuple(map(float, result.lengths))
    assert result.mean_return == pytest.approx(np.mean(result.lengths))
    assert result.std_return == pytest.approx(np.std(result.lengths))


@pytest.mark.parametrize(("episodes", "count"), [(1, 16), (5, 16), (7, 3), (6, 3), (3, 1)])
def test_exactly_as_many_episodes_as_asked_for(episodes: int, count: int) -> None:
    result = trpo.evaluate(agent_in("probe:endless"), episodes=episodes, count=count)
    assert result.returns == (10.0,) * episodes
    assert result.lengths == (10,) * episodes
    assert set(result.to_json()) == {"mean_return", "std_return", "returns", "lengths", "max_steps", "cut"}


class Endless(Counter):
    """Every second episode never ends; its reward is the episode's number, from 0."""

    def __init__(self) -> None:
        self.steps, self.episode = 0, -1

    def reset(self, **keywords: Any) -> tuple[np.ndarray, dict]:
        # Only a seed begins the count: to find masks an environment may be reset before.
        self.episode = 0 if keywords.get("seed") is not None else self.episode + 1
        self.length = 3 if self.episode % 2 else 10**9
        return super().reset(**keywords)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        seen, _, *rest = super().step(action)
        return seen, float(self.episode), *rest


@pytest.mark.parametrize("workers", [0, 1])
def test_episodes_that_do_not_end_are_cut_and_counted(workers: int) -> None:
    """Two environments: 0, 1, 2 and 0, 1. The second has ended when the first goes on, and counts nothing more."""
    envs = trpo.make_envs(Endless, 2, workers)
    result = trpo.evaluate(agent_in(Endless), envs, episodes=5, count=2, max_steps=7)
    envs.close()
    assert result.lengths == (7, 3, 7, 7, 3)
    assert result.returns == (0.0, 3.0, 14.0, 0.0, 3.0)
    assert (result.cut, result.max_steps) == (3, 7)
    assert {"cut": 3, "max_steps": 7}.items() <= result.to_json().items()


def test_jax_environments_are_cut_too() -> None:
    result = trpo.evaluate(agent_in("jax-probe:endless"), episodes=5, count=2, max_steps=4)
    assert (result.lengths, result.cut) == ((4,) * 5, 5)
    assert trpo.evaluate(agent_in("jax-probe:endless"), episodes=3, count=2, max_steps=10).cut == 0


def test_the_command_line_says_what_was_cut(here: Any, tmp_path: Any) -> None:
    config = trpo.Config(steps=32, fragment=4, env=trpo.EnvConfig(count=8), **SMALL)
    trpo.train("probe:endless", config=config, out=tmp_path / "run", quiet=True)
    assert "2 cut at 4 steps (--max-steps)" in here("evaluate", "run", "--episodes", 2, "--max-steps", 4).stdout
    done = json.loads(here("evaluate", "run", "--episodes", 2, "--max-steps", 4, "--json").stdout)
    assert (done["cut"], done["max_steps"], done["lengths"]) == (2, 4, [4, 4])
    assert "cut" not in here("evaluate", "run", "--episodes", 2).stdout
    for command in ("evaluate", "record"):
        shown = here(command, "--help").stdout
        assert "--max-steps" in shown
        assert f"(default: {MAX_STEPS})" in shown
    refused = here("evaluate", "run", "--max-steps", 0)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "max_steps=0: must be ≥ 1" in refused.stderr


def test_closing_that_fails_loses_no_result() -> None:
    class Stuck(Counter):
        def close(self) -> None:
            raise OSError("window")

    with pytest.warns(UserWarning, match="environment Stuck raised OSError: window when it was closed"):
        assert len(agent_in(Stuck).evaluate(episodes=2).returns) == 2


def test_no_episodes_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"episodes=0: must be ≥ 1"):
        agent_in("probe:endless").evaluate(episodes=0)


def test_deterministic_takes_the_mode_and_stochastic_samples() -> None:
    agent = agent_in("probe:action")
    mode = int(agent.act([0.0]))
    sure = agent.evaluate(episodes=40)
    assert set(sure.returns) == {2.0 * mode - 1.0}
    mixed = agent.evaluate(episodes=40, deterministic=False)
    assert set(mixed.returns) == {-1.0, 1.0}


@pytest.mark.parametrize("deterministic", [True, False])
def test_seeds_reproduce_and_matter(deterministic: bool) -> None:
    agent = agent_in("Pendulum-v1")
    runs = [agent.evaluate(episodes=2, seed=seed, deterministic=deterministic) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert set(runs[0].returns).isdisjoint(runs[2].returns)
    assert len(set(runs[0].returns)) == 2  # each environment has a seed of its own


class Telling(Counter):
    """Keeps the actions that it is given; an episode has five steps."""

    told: ClassVar[list[np.ndarray]] = []
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.told.append(action)
        self.length = 5
        return super().step(action)


def test_every_step_has_the_noise_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is μ + σ·noise with μ = 0 and σ = 1, so its actions are the noise; drawn for three steps at once."""
    monkeypatch.setattr(whole_episodes, "NOISE", 3)
    agent = agent_in(Telling, policy=trpo.PolicyConfig(hidden=(), initial_std=1.0, last_layer_scale=0.0))
    actor, key = agent.actor(), jax.random.key(9)
    drawn = [noise_of(agent.policy, actor, 2, (3,), jax.random.fold_in(key, start)) for start in (0, 3, 6, 9)]
    expected = np.concatenate(drawn)[:10]
    assert len(np.unique(expected)) == expected.size
    noise = drawn_noise(agent.policy, actor, 2, 9)
    np.testing.assert_array_equal([noise(step) for step in range(10)], expected)
    Telling.told.clear()
    assert trpo.evaluate(agent, Telling, episodes=4, deterministic=False, seed=9, count=2).lengths == (5,) * 4
    np.testing.assert_allclose(np.reshape(Telling.told, (10, 2, 2)), expected, rtol=1e-6)


class Scripted:
    """At time t both pay t. One ends at every second step; two at every fourth, then resets in a step worth nothing."""

    count, spec = 2, EnvSpec("scripted", Box((1,)), Box((1,)))

    def look(self) -> np.ndarray:
        return np.full((2, 1), self.time, np.float32)

    def reset(self, seeds: list[int]) -> np.ndarray:
        self.time = 0
        return self.look()

    def step(self, action: np.ndarray) -> Transition:
        np.testing.assert_array_equal(action, -self.look())
        self.time += 1
        first, second = self.time % 2 == 0, self.time % 4 == 3
        valid = np.array([True, self.time % 4 != 0])
        reward = np.where(valid, self.time, 100).astype(np.float32)
        return Transition(self.look(), reward, np.array([first, False]), np.array([False, second]), self.look(), valid)

    def snapshot(self) -> None: ...
    def restore(self, snapshot: Any) -> None: ...
    def close(self) -> None: ...


class Noting(HostPolicy):
    """Its memory is the number of its calls; it notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, list[bool], int]] = []

    def start(self, count: int) -> np.ndarray:
        return np.zeros(count, int)

    def __call__(self, observation: Any, carry: Any, reset: Any, noise: Any) -> tuple[Any, Any]:
        assert len(set(carry.tolist())) == 1
        self.given.append((int(carry[0]), reset.tolist(), noise))
        return -observation, carry + 1


def test_episodes_returns_memory_and_noise_step_by_step() -> None:
    policy = Noting()
    result = whole_episodes.whole_episodes(Scripted(), policy, 5, 0, lambda step: step)
    assert result.returns == (1 + 2, 3 + 4, 5 + 6, 1 + 2 + 3, 5 + 6 + 7)
    assert result.lengths == (2, 2, 2, 3, 3)
    # An episode begins in the first where the step before was its last, in the second also after the reset's own step.
    begins = [[True, True], [False, False], [True, False], [False, True], [True, True], [False, False], [True, False]]
    assert policy.given == [(k, reset, k) for k, reset in enumerate(begins)]


def test_evaluation_equals_stepping_by_hand() -> None:
    """Its first episode, with ``act`` and a plain environment."""
    agent = agent_in("Pendulum-v1")
    seed = int(np.random.SeedSequence([5, 0xE7A1]).generate_state(1)[0])
    env = gym.make("Pendulum-v1")
    seen, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        seen, reward, terminated, truncated, _ = env.step(agent.act(seen))
        total, done = total + reward, terminated or truncated
    env.close()
    assert agent.evaluate(episodes=1, seed=5).mean_return == pytest.approx(total, rel=1e-4)


def test_evaluation_leaves_the_agent_as_it_was() -> None:
    agent = agent_in("Pendulum-v1")
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(agent.learner)]
    first = agent.act(np.ones(3))
    agent.evaluate(episodes=2, deterministic=False)
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(agent.learner)] == before
    np.testing.assert_array_equal(agent.act(np.ones(3)), first)


def test_invalid_steps_do_not_count() -> None:
    """EnvPool's CartPole with a policy that always pushes one way: eight to eleven steps, each worth 1."""
    pytest.importorskip("envpool")
    agent = agent_in("envpool:CartPole-v1")
    agent = push(agent)
    result = agent.evaluate(episodes=20)
    assert all(7 <= n <= 12 for n in result.lengths)
    assert result.returns == tuple(map(float, result.lengths))


def push(agent: Agent) -> Agent:
    """Make the agent choose action 1 whatever it sees."""
    zero = jax.tree.map(jnp.zeros_like, agent.learner.policy)
    policy = eqx.tree_at(lambda p: p.trunk.biases[-1], zero, jnp.array([0.0, 50.0]))
    return dataclasses.replace(agent, learner=dataclasses.replace(agent.learner, policy=policy, average=None))


# ---------------------------------------------------------------- acting

ACTIONS: dict[str, tuple[Space, gym.Space]] = {
    "discrete": (Choice(3, 5, "int64"), spaces.Discrete(3, start=5)),
    "box": (Box((2,), low=-1.0, high=1.0, rescale=True), spaces.Box(-1.0, 1.0, (2,))),
    "box-0d": (Box((), low=-1.0, high=1.0, rescale=True), spaces.Box(-1.0, 1.0, ())),
    "box-2d": (Box((2, 3), "float64", low=0.0, high=1.0), spaces.Box(0.0, 1.0, (2, 3), np.float64)),
    "integers": (Box((2,), "int32", low=0.0, high=9.0, rescale=True), spaces.Box(0, 9, (2,), np.int32)),
    "multi-discrete": (
        Choices((2, 3, 4, 5), (0, 0, 0, 0), (2, 2), "int64"),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    ),
    "multi-binary": (Bits((3,)), spaces.MultiBinary(3)),
}
OBSERVATIONS: dict[str, tuple[int, ...]] = {
    "vector": (4,),
    "one": (1,),
    "0d": (),
    "row": (1, 4),
    "image": (2, 3, 1),
}
TWO = Box((2,), low=-1.0, high=1.0, rescale=True)
FORMS: dict[str, Space] = {
    "choice": Choice(5, 2),
    "bits": Bits((3,)),
    "dict": Dict((("joints", Box((2,))), ("hand", Tuple((Choice(3), Box((2, 2), "uint8")))))),
}


def agent_for(observation: Space, action: Space) -> Agent:
    return Agent.create(EnvSpec("some", observation, action), trpo.Config(**SMALL))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_ready_for_the_environment(action: str, deterministic: bool) -> None:
    ours, space = ACTIONS[action]
    agent = agent_for(Box((4,)), ours)
    random = np.random.default_rng(0)
    single = agent.act(random.normal(size=4), deterministic=deterministic)
    assert single.shape == space.shape
    assert space.contains(single if single.shape else single[()])
    batch = agent.act(random.normal(size=(5, 4)), deterministic=deterministic)
    assert batch.shape == (5, *space.shape)
    assert batch.dtype == space.dtype
    for each in batch:
        assert space.contains(each)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_one_observation_or_a_batch(observation: str) -> None:
    shape = OBSERVATIONS[observation]
    agent = agent_for(Box(shape), TWO)
    batch = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    together = agent.act(batch)
    assert together.shape == (3, 2)
    for x, expected in zip(batch, together, strict=True):
        alone = agent.act(x)
        assert alone.shape == (2,)
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)
    assert agent.act(batch[:1]).shape == (1, 2)
    assert agent.act(batch[0].tolist()).shape == (2,)
    flat = batch.reshape(3, -1)  # as a flattened image comes
    if observation not in ("0d", "row"):
        np.testing.assert_allclose(agent.act(flat), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_observations_of_every_form_alone_or_in_a_batch(form: str) -> None:
    space, random = FORMS[form], np.random.default_rng(0)
    agent = agent_for(space, TWO)

    def draw(leaf: Any) -> Any:
        low, high = (leaf.start, leaf.start + leaf.n) if isinstance(leaf, Choice) else (0, 2)
        return random.integers(low, high, (6, *leaf.shape)).astype(leaf.dtype)

    batch = space.map(draw)
    together = agent.act(batch)
    assert together.shape == (6, 2)
    assert len(np.unique(together.round(4), axis=0)) > 1
    for i, expected in enumerate(together):
        alone = agent.act(space.map(lambda leaf, x, i=i: x[i].tolist(), batch))
        assert alone.shape == (2,)
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)


IMAGE = Box((4, 5, 3), "uint8", 0.0, 255.0)
ROW = "or its numbers in a row"


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (
            Box((4,)),
            np.zeros(3),
            r"shape \(3,\): must be one of Box\(-inf, inf, \(4,\), float32\), or a batch \(N, 4\)",
        ),
        (Box((4,)), np.zeros((2, 3)), r"shape \(2, 3\): must"),
        (Box((4,)), np.zeros((4, 7)), r"shape \(4, 7\): must"),  # a multiple of 4: its rows would be scrambled
        (Box((4,)), np.zeros(8), r"shape \(8,\): must"),
        (Box((4,)), np.zeros((1, 1, 4)), r"shape \(1, 1, 4\): must"),
        (Box((4,)), 1.0, r"shape \(\): must"),
        (Box((1,)), 1.0, r"shape \(\): must be one of .*, or a batch \(N, 1\)"),
        (Box((1,)), np.zeros(3), r"shape \(3,\): must"),
        (Box((2, 2)), np.zeros((2, 8)), ROW),
        (
            IMAGE,
            np.zeros((3, 4, 5), np.uint8),
            r"shape \(3, 4, 5\): .*\(N, 4, 5, 3\), or its .* row, \(60,\) or \(N, 60\)",
        ),
        (IMAGE, np.zeros(120, np.uint8), ROW),
        (IMAGE, np.full((4, 5, 3), 0.5), "must be whole numbers that uint8 holds"),
        (IMAGE, np.full((4, 5, 3), 300), "must be whole numbers that uint8 holds"),
        (IMAGE, np.full((4, 5, 3), np.nan), "must be whole numbers that uint8 holds"),
        (Box((4,)), np.array([0, 1, np.nan, 0]), r"observation\[2\] is nan: observations must be finite"),
        (Box((4,)), np.array([[0, 0, 0, 0], [0, -np.inf, 1, 0]]), r"observation\[1, 1\] is -inf"),
        (Box((4,)), np.array([0, 1e300, 0, 0]), r"observation\[1\] is inf"),  # in single precision
        (Box(()), np.nan, r"observation is nan"),
        (Box((2,)), ["1", "2"], "not a number or an array of numbers"),
        (Box((2,)), np.ones(2, complex), "not a number or an array of numbers"),
        (Box((2,)), [1.0, None], "not a number or an array of numbers"),
        (Box((2,)), None, "not a number or an array of numbers"),
        (Box((2,)), [[1.0], [1.0, 2.0]], "type list is not an array"),
        (Choice(5, 2), 1, r"1 is not of Discrete\(5, start=2\)"),
        (Choice(5, 2), 7, r"7 is not of Discrete"),
        (Choice(5, 2), 2.5, "must be whole numbers"),
        (Choice(5, 2), np.nan, "must be whole numbers"),
        (Choice(5), np.arange(6), r"\[0 1 2 3 4 5\] is not of Discrete\(5\)"),
        (Choice(5), np.eye(5)[2], "one-hot vectors are not taken"),
        (Choice(5), np.arange(5) == 2, "one-hot vectors are not taken"),
        (Choice(5), np.zeros((2, 2), int), r"shape \(2, 2\): must be one of Discrete\(5\), or a batch \(N,\)"),
        (Choices((2, 3), (0, 1), (2,)), [0, 0], r"is not of MultiDiscrete\(\[2 3\], start=\[0 1\]\)"),
        (Bits((3,)), np.zeros(4), r"\(4,\): must be one of MultiBinary\(\(3,\)\)"),
        (Bits((3,)), [0, 2, 1], r"is not of MultiBinary"),
        (FORMS["dict"], {"joints": np.zeros(3), "hand": (1, np.zeros((2, 2)))}, r"must be one of Dict"),
        (FORMS["dict"], {"joints": np.zeros((5, 2)), "hand": (1, np.zeros((2, 2)))}, r"must be one of Dict"),
        (FORMS["dict"], {"joints": np.zeros(2)}, r"has parts joints: must have joints, hand"),
        (FORMS["dict"], {"joints": 0, "hand": 0, "foot": 0}, r"has parts joints, hand, foot: must have joints, hand"),
        (FORMS["dict"], {"joints": np.zeros(2), "hand": (1,)}, r"hand is of type tuple of 1: must"),
        (FORMS["dict"], {"joints": np.zeros(2), "hand": np.zeros(2)}, r"hand is of type ndarray: must"),
        (FORMS["dict"], {"joints": [0.0, np.inf], "hand": (1, np.zeros((2, 2)))}, r"joints\[1\] is inf"),
        (
            FORMS["dict"],
            {"joints": np.zeros(2), "hand": (3, np.zeros((2, 2)))},
            r"hand/0: observation 3 is not of Discrete\(3\)",
        ),
        (FORMS["dict"], np.zeros(2), r"must be one of Dict"),
        (Box((4,)), {"joints": np.zeros(4)}, r"not a number"),
    ],
)
def test_observations_that_are_not_of_the_space(space: Space, observation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        agent_for(space, TWO).act(observation)
    assert "\n" not in str(caught.value)


def test_an_array_for_discrete_is_a_batch_of_its_integers() -> None:
    agent = agent_for(Choice(16), Choice(4))
    batch = agent.act(np.arange(16))
    assert batch.tolist() == [int(agent.act(i)) for i in range(16)]
    assert agent.act(np.float64(3.0)) == batch[3]  # one number that is whole means the same
    assert agent.act(np.arange(16)[:0]).shape == (0,)


def test_numbers_in_a_row_are_the_image_and_batches_come_before_them() -> None:
    agent = agent_for(Box((2, 3)), TWO)
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    expected = agent.act(x)
    np.testing.assert_array_equal(agent.act(x.reshape(5, 6)), expected)
    np.testing.assert_array_equal(agent.act(x[0].ravel()), agent.act(x[0]))
    assert agent.act(x[:0]).shape == (0, 2)
    assert agent_for(Box(()), TWO).act([1.0]).shape == (1, 2)  # a batch of one, not one vector of one


def test_box_actions_are_rescaled_as_in_training() -> None:
    space = spaces.Box(np.array([0.0, -2.0], np.float32), np.array([10.0, 2.0], np.float32))
    agent = agent_for(Box((4,)), Box((2,), low=(0.0, -2.0), high=(10.0, 2.0), rescale=True))
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    raw = np.asarray(agent.module.trunk(jnp.clip(jnp.asarray(x), -10, 10)))
    expected = np.clip([5, 0] + raw * [5, 2], space.low, space.high)
    np.testing.assert_allclose(agent.act(x), expected, rtol=1e-5, atol=1e-5)


def test_a_seed_fixes_the_sample_and_nothing_is_carried_over() -> None:
    agent = agent_for(Box((4,)), TWO)
    x = np.ones(4)
    first = agent.act(x, deterministic=False, seed=3)
    agent.act(10 * x, deterministic=False)
    np.testing.assert_array_equal(agent.act(x, deterministic=False, seed=3), first)
    assert not np.array_equal(agent.act(x, deterministic=False, seed=4), first)
    fresh = [agent.act(x, deterministic=False) for _ in range(2)]
    assert not np.array_equal(*fresh)
    np.testing.assert_array_equal(agent.act(x), agent.act(x))
    batch = agent.act(np.ones((6, 4)), deterministic=False, seed=3)
    assert len(np.unique(batch, axis=0)) > 1  # every row has noise of its own


def test_trained_parameters_are_those_that_act() -> None:
    config = trpo.Config(steps=64, fragment=16, env=trpo.EnvConfig("probe:continuous", count=4), **SMALL)
    agent = trpo.make_agent("probe:continuous", config)
    before = agent.act([1.0])
    *_, (state, _) = trpo.iterations("probe:continuous", agent, config)
    trained = agent.at(state)
    assert trained.act([1.0]) != before
    assert agent.act([1.0]) == before
    distribution, _ = trained.module((), (trained.actor().see(jnp.ones((1, 1))), None))
    mean = distribution.mode()
    np.testing.assert_allclose(trained.act([1.0]), mean[0], rtol=1e-5)


def test_evaluating_elsewhere_than_trained() -> None:
    def made() -> gym.Env:
        return gym.wrappers.TimeLimit(Counter(), 5)

    agent = agent_in(Counter)
    Counter.made = 1  # long episodes only
    assert trpo.evaluate(agent, made, episodes=1).lengths == (5,)


# ---------------------------------------------------------------- spaces


def in_spaces(observation: gym.Space, action: gym.Space, fault: float | None = None, name: str = "Elsewhere") -> Any:
    """A class of environments with these spaces; from the third step on, ``fault`` is what is observed."""

    class Env(gym.Env):
        metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
        render_mode = "rgb_array"

        def __init__(self, render_mode: str | None = None) -> None:
            self.observation_space, self.action_space, self.steps = observation, action, 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            self.steps = 0
            return observation.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            assert self.action_space.contains(action)
            self.steps += 1
            seen = observation.sample()
            if fault is not None and self.steps > 2:
                seen = np.full(observation.shape, fault)
            return seen, 1.0, self.steps == 5, False, {}

        def render(self) -> Any:
            return np.zeros((8, 8, 3), np.uint8)

    Env.__name__ = name
    return Env


VECTOR, PAIR = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
ARM = spaces.Box(np.float32(-0.4), np.float32(0.4), (2,))
WIDEST = float(np.finfo(np.float32).max)
DIFFERENT: list[tuple[gym.Space, gym.Space, gym.Space, gym.Space, str]] = [
    (VECTOR, PAIR, VECTOR, spaces.Discrete(5, start=7), r"agent are Discrete\(2\), those of .* Discrete\(5, start=7\)"),
    (VECTOR, PAIR, VECTOR, spaces.Discrete(2, start=1), r"Discrete\(2, start=1\)"),
    (VECTOR, PAIR, VECTOR, ARM, r"agent are Discrete\(2\), those of environment 'Elsewhere' Box\(-0.4, 0.4"),
    (VECTOR, ARM, VECTOR, spaces.Box(-1, 1, (2,)), r"Box\(-0.4, 0.4, .* Box\(-1, 1"),
    (VECTOR, ARM, VECTOR, spaces.Box(-np.inf, np.inf, (2,)), r"Box\(-inf, inf"),
    (VECTOR, spaces.Box(0, 4, (2,)), VECTOR, spaces.Box(0, 4, (2,), np.int32), r"int32"),
    (VECTOR, spaces.MultiDiscrete([2, 3]), VECTOR, spaces.MultiDiscrete([3, 2]), r"\[2 3\].*\[3 2\]"),
    (VECTOR, spaces.MultiBinary(2), VECTOR, spaces.MultiDiscrete([2, 2]), r"MultiBinary.*MultiDiscrete"),
    (VECTOR, PAIR, spaces.Box(-1, 1, (4,)), PAIR, r"observations of the agent are .*\(3,\).*\(4,\)"),
    (spaces.Discrete(4), PAIR, spaces.Discrete(4, start=1), PAIR, r"Discrete\(4, start=1\)"),
    (spaces.Box(0, 255, (3,), np.uint8), PAIR, VECTOR, PAIR, r"uint8.*float32"),
    (spaces.Dict(a=VECTOR), PAIR, spaces.Dict(b=VECTOR), PAIR, r"Dict\(a: .*Dict\(b: "),
    (spaces.Tuple([VECTOR]), PAIR, spaces.Tuple([VECTOR, PAIR]), PAIR, r"Tuple"),
]


@pytest.mark.parametrize(("ours", "acts", "theirs", "its", "message"), DIFFERENT, ids=str)
def test_spaces_that_differ_in_meaning_are_named(ours: Any, acts: Any, theirs: Any, its: Any, message: str) -> None:
    agent = agent_in(in_spaces(ours, acts))
    with pytest.raises(ValueError, match=message) as caught:
        trpo.evaluate(agent, in_spaces(theirs, its))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "acts", "theirs", "its"),
    [
        (VECTOR, PAIR, spaces.Box(-9, np.inf, (3,), np.float64), PAIR),  # bounds of observations are not used
        (VECTOR, ARM, VECTOR, spaces.Box(-0.4, 0.4, (2,), np.float64)),
        (VECTOR, spaces.Box(-WIDEST, WIDEST, (2,)), VECTOR, spaces.Box(-np.inf, np.inf, (2,))),
        (VECTOR, PAIR, VECTOR, spaces.Discrete(2, dtype=np.uint8)),
        (spaces.Box(0, 255, (3,), np.uint8), PAIR, spaces.Box(-5, 5, (3,), np.int64), PAIR),
    ],
    ids=str,
)
def test_spaces_that_mean_the_same_are_accepted(ours: Any, acts: Any, theirs: Any, its: Any) -> None:
    result = trpo.evaluate(agent_in(in_spaces(ours, acts)), in_spaces(theirs, its), episodes=2)
    assert result.lengths == (5, 5)


def test_an_agent_meets_other_spaces_at_every_door(tmp_path: Any) -> None:
    """Training, resuming, a source, environments that are handed in, in processes, in JAX; evaluation and recording."""
    from trpo.envs.device.probes import make_probe
    from trpo.report.recording import record
    from trpo.runs.lock import RunLock
    from trpo.runs.one import Run

    config = trpo.Config(steps=32, fragment=4, env=trpo.EnvConfig(count=4), **SMALL)
    home, other = in_spaces(VECTOR, PAIR), in_spaces(VECTOR, spaces.Discrete(5, start=7))
    agent = trpo.make_agent(home, config)
    both, message = trpo.make_envs(other, 4), r"Discrete\(2\), those of environment .* Discrete\(5, start=7\)"
    source = trpo.HostSource(both)
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run") as lock:
        Run.begin(agent, lock)
    workers = dataclasses.replace(config, env=trpo.EnvConfig(count=4, workers=1))
    doors: list[Any] = [
        lambda: list(trpo.iterations(other, agent)),
        lambda: list(trpo.iterations(both, agent)),
        lambda: list(trpo.iterations(source, agent)),
        lambda: trpo.evaluate(agent, both),
        lambda: trpo.resume(tmp_path / "run", env=other, steps=64, quiet=True),
        lambda: record(trpo.load(tmp_path / "run", env=other), tmp_path / "video.gif"),
        lambda: list(trpo.iterations(other, agent, workers)),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=message):
            door()
    with pytest.raises(ValueError, match=r"observations of the agent are Box.*\(3,\).*Box.*\(1,\)"):
        list(trpo.iterations(make_probe("continuous"), agent))
    unscaled = trpo.make_envs("Pendulum-v1", 4, rescale_actions=False)
    with pytest.raises(ValueError, match=r"env.rescale_actions=True and False"):
        trpo.evaluate(agent_in("Pendulum-v1"), unscaled)


@pytest.mark.parametrize(
    ("observation", "fault"), [(VECTOR, np.nan), (VECTOR, np.inf), (spaces.Box(0, 9, (3,), int), np.nan)]
)
def test_an_environment_that_observes_what_is_not_finite_is_named(
    observation: Any, fault: float, tmp_path: Any
) -> None:
    from trpo.report.recording import record

    agent = agent_in(in_spaces(observation, PAIR, fault))
    words = r"environment Elsewhere:? .*(observation\[.*\] is (nan|inf)|whole numbers that int32 holds)"
    with pytest.raises(trpo.EnvironmentFailure, match=words):
        agent.evaluate(episodes=1)
    with pytest.raises(trpo.EnvironmentFailure, match=words):
        record(agent, tmp_path / "video.gif")


def test_what_is_observed_after_the_share_of_an_environment_does_not_matter() -> None:
    class Later(in_spaces(VECTOR, PAIR)):  # type: ignore[misc]
        made = 0

        def __init__(self) -> None:
            super().__init__()
            self.number, self.reset_times = type(self).made, 0
            type(self).made += 1

        def reset(self, **options: Any) -> tuple[Any, dict]:
            seen, info = super().reset(**options)
            self.reset_times += 1
            return (np.full(3, np.nan) if self.number == 1 and self.reset_times == 2 else seen), info

    agent = agent_in(Later)
    Later.made = 0
    assert trpo.evaluate(agent, Later, episodes=3, count=2).lengths == (5, 5, 5)


def test_environments_that_are_handed_in_are_evaluated_as_they_are_and_stay_open() -> None:
    agent = agent_in(Counter)
    Counter.made = 0
    envs = trpo.make_envs(Counter, 3)
    for _ in range(2):
        assert trpo.evaluate(agent, envs, episodes=4, deterministic=False).lengths == (1, 1, 20, 1)
    assert envs._envs
    envs.close()


@pytest.mark.parametrize("count", [0, -3])
def test_no_environments_is_a_mistake(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count={count}: must be ≥ 1"):
        trpo.evaluate(agent_in("probe:endless"), episodes=2, count=count)
