"""Rollouts: what is stored is what happened, in the policy's own terms."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from gymnasium import spaces
from helpers import assert_same_bits

import trpo
from trpo.envs import EnvironmentFailure, Transition
from trpo.envs.names import make_envs
from trpo.envs.plain import from_plain
from trpo.envs.spaces import Bits, Box, Choice, Dict, Space
from trpo.envs.spec import EnvSpec
from trpo.policies.function import to_numpy
from trpo.policies.networks import host_pass
from trpo.rollout import Actor, EpisodeStatistics, HostPolicy, HostSource, Trajectory, noise_of
from trpo.rollout.acting import act, bound, numpy_act
from trpo.rollout.episodes import RECENT, RecentEpisodes
from trpo.running_statistics import RunningStatistics
from trpo.training.agent import Agent

FEATURES = 3


class Recorder(gym.Env):
    """Random episodes; remembers every action it was given and every return, in its own double precision."""

    def __init__(self, actions: gym.Space, log: list[dict[str, Any]]):
        self.observation_space = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
        self.action_space = actions
        self.log = log

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.log.append({"actions": [], "rewards": [], "done": False, "seen": [self._look()]})
        return self.log[-1]["seen"][-1], {}

    def _look(self) -> np.ndarray:
        return self.np_random.normal(3.0, 5.0, FEATURES).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        episode = self.log[-1]
        assert self.action_space.contains(action)
        reward = float(self.np_random.normal(100.0, 30.0))
        terminated, truncated = (bool(x) for x in self.np_random.random(2) < 0.1)
        episode["actions"].append(np.copy(action))
        episode["rewards"].append(reward)
        episode["seen"].append(self._look())
        episode["done"] = terminated or truncated
        return episode["seen"][-1], reward, terminated, truncated, {}


def recorders(actions: gym.Space, count: int) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Return environments, and the log of each."""
    logs: list[list[dict[str, Any]]] = []

    def make() -> gym.Env:
        logs.append([])
        return Recorder(actions, logs[-1])

    return make_envs(make, count), logs


SPACES = {
    "box": spaces.Box(np.array([-1, 0.0], np.float32), np.array([1, 0.2], np.float32)),
    "state-dependent": spaces.Box(np.array([-1, 0.0], np.float32), np.array([1, 0.2], np.float32)),
    "discrete": spaces.Discrete(4, start=3),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi-binary": spaces.MultiBinary(3),
}
every_kind = pytest.mark.parametrize("kind", SPACES)


def agent_for(kind: str, spec: Any, **config: Any) -> Agent:
    settings = trpo.Config(
        policy=trpo.PolicyConfig(
            hidden=(8,), state_dependent_std=kind == "state-dependent", last_layer_scale=1.0, initial_std=0.8
        ),
        **config,
    )
    return Agent.create(spec, settings)


def statistics() -> RunningStatistics:
    """Statistics as after some training, whose mean and scale matter."""
    seen = np.random.default_rng(1).normal([3.0, -2.0, 0.5], [5.0, 0.1, 2.0], (200, FEATURES)).astype(np.float32)
    return RunningStatistics.zeros((FEATURES,)).merge(jnp.asarray(seen), jnp.ones(200))


def started(envs: Any, stagger: bool = False) -> HostSource:
    source = HostSource(envs, stagger=stagger)
    source.restart(list(range(envs.count)))
    return source


def drawn(agent: Agent, count: int, length: int, seed: int = 0) -> np.ndarray:
    return np.asarray(noise_of(agent.policy, agent.actor(), count, (length,), jax.random.key(seed)))


def latest(statistics: EpisodeStatistics) -> list[tuple[float, int]]:
    """Return and length of the latest episodes."""
    return [(total, length) for _, total, length in statistics.to_json()["recent"]]


def collected(kind: str, count: int = 3, length: int = 40) -> tuple[Agent, Actor, Trajectory, list]:
    envs, logs = recorders(SPACES[kind], count)
    agent = agent_for(kind, envs.spec)
    actor = Actor(agent.learner.policy, statistics().freeze(2.0), envs.spec.observation)
    trajectory = started(envs).collect(HostPolicy(agent.policy, actor), drawn(agent, count, length))
    envs.close()
    return agent, actor, trajectory, logs


def forward(agent: Agent, observation: np.ndarray) -> np.ndarray:
    """Normalise and run the network in double precision, from nothing but its arrays."""
    seen = np.random.default_rng(1).normal([3.0, -2.0, 0.5], [5.0, 0.1, 2.0], (200, FEATURES)).astype(np.float32)
    x = np.clip((observation.astype(np.float64) - seen.mean(0, np.float64)) / seen.std(0, dtype=np.float64), -2, 2)
    network = agent.module.trunk
    (w1, w2), (b1, b2) = ([np.asarray(a, np.float64) for a in arrays] for arrays in (network.weights, network.biases))
    return np.tanh(x @ w1 + b1) @ w2 + b2


def scipy_log_prob(kind: str, agent: Agent, outputs: np.ndarray, action: np.ndarray) -> np.ndarray:
    match kind:
        case "box":
            std = agent.module.head.min_std + np.exp(np.asarray(agent.module.head.log_std, np.float64))
            return scipy.stats.norm.logpdf(action, outputs, std).sum(-1)
        case "state-dependent":
            std = agent.module.head.min_std + np.exp(
                np.asarray(agent.module.head.log_std, np.float64) + outputs[..., 2:]
            )
            return scipy.stats.norm.logpdf(action, outputs[..., :2], std).sum(-1)
        case "discrete":
            return np.take_along_axis(scipy.special.log_softmax(outputs, -1), action[..., None], -1)[..., 0]
        case "multi-discrete":
            parts = np.split(outputs, [2, 5], -1)
            return sum(
                np.take_along_axis(scipy.special.log_softmax(part, -1), action[..., [i]], -1)[..., 0]
                for i, part in enumerate(parts)
            )
        case _:
            return scipy.stats.bernoulli.logpmf(action, scipy.special.expit(outputs)).sum(-1)


# ---------------------------------------------------------------- rows 16 and 17


@every_kind
def test_log_prob_of_the_stored_action_is_that_under_the_sampling_policy(kind: str) -> None:
    """Row 16: at every step, the first of the fragment included."""
    agent, actor, trajectory, _ = collected(kind)
    expected = scipy_log_prob(kind, agent, forward(agent, trajectory.observation), trajectory.action)
    assert np.std(expected) > 0.05
    distribution, _ = agent.policy(actor.params, (), (actor.see(jnp.asarray(trajectory.observation)), None))
    np.testing.assert_allclose(distribution.log_prob(jnp.asarray(trajectory.action)), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rescale", [False, True])
def test_unclipped_actions_are_stored_and_clipped_ones_reach_the_environment(rescale: bool) -> None:
    """Row 17."""
    space = SPACES["box"]
    log: list[dict[str, Any]] = []
    envs = make_envs(lambda: Recorder(space, log), 1, rescale_actions=rescale)
    agent = agent_for("box", envs.spec)
    noise = drawn(agent, 1, 60)
    trajectory = started(envs).collect(HostPolicy(agent.policy, agent.actor()), noise)
    received = np.concatenate([episode["actions"] for episode in log if episode["actions"]])
    stored = trajectory.action[:, 0]
    unit = stored if not rescale else stored * [1, 0.1] + [0, 0.1]
    np.testing.assert_allclose(received, np.clip(unit, space.low, space.high), atol=1e-6)
    assert (np.abs(unit - received) > 0.01).any(axis=0).all()  # bounds were exceeded, and stored as sampled
    # As sampled: μ + σ·noise of the very noise that was handed in.
    x = trajectory.observation[:, 0]
    mean = agent.module.trunk(jnp.clip(jnp.asarray(x), -10, 10))  # nothing merged yet: clipped, but not normalised
    np.testing.assert_allclose(stored, mean + 0.8 * noise[:, 0], rtol=1e-4, atol=1e-5)


def test_noise_is_standard_and_of_its_own_for_every_step_and_environment() -> None:
    envs, _ = recorders(SPACES["box"], 2)
    agent = agent_for("box", envs.spec)
    noise = drawn(agent, 50, 100, seed=1)
    assert noise.shape == (100, 50, 2)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert len(np.unique(noise)) > 0.99 * noise.size


# ---------------------------------------------------------------- two passes, one policy


@every_kind
@pytest.mark.parametrize("normalise", [False, True])
def test_the_numpy_pass_equals_the_compiled_pass(kind: str, normalise: bool) -> None:
    envs, _ = recorders(SPACES[kind], 1)
    agent = agent_for(kind, envs.spec)
    actor = Actor(agent.learner.policy, statistics().freeze(2.0) if normalise else None, envs.spec.observation)
    host = HostPolicy(agent.policy, actor)
    assert host.in_numpy
    compiled = HostPolicy(agent.policy, actor)
    compiled.in_numpy = False
    compiled.load(actor)
    observation = np.random.default_rng(0).normal(1.0, 4.0, (50, FEATURES)).astype(np.float32)
    for given in (drawn(agent, 50, 1)[0], None):
        (ours, _), (theirs, _) = (policy(observation, (), np.ones(50, bool), given) for policy in (host, compiled))
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == theirs.dtype or kind in ("discrete", "multi-discrete")  # int64 on the host
        if kind in ("box", "state-dependent"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)


OBSERVATIONS: dict[str, tuple[Space, str]] = {
    "vector": (Box((FEATURES,)), ""),
    "part": (Box((FEATURES,)), "[1:]"),
    "image": (Box((2, 2), "uint8"), ""),
    "dict": (Dict((("joints", Box((2,))), ("button", Choice(3)), ("lamps", Bits((2,))))), "button joints[:1] lamps"),
}
HEADS: dict[str, Any] = {
    "gaussian": lambda: trpo.GaussianHead(jnp.array([-0.5, 0.2])),
    "bounded": lambda: trpo.GaussianHead(jnp.array([-0.5, 0.2]), 0.3),
    "state-dependent": lambda: trpo.StateDependentGaussianHead(jnp.array([-0.5, 0.2]), 0.1),
    "categorical": lambda: trpo.CategoricalHead(4),
    "multi": lambda: trpo.MultiCategoricalHead((2, 3)),
    "bernoulli": lambda: trpo.BernoulliHead(3),
}


def met(space: Space, count: int, random: np.random.Generator) -> Any:
    """Draw observations of a space."""

    def draw(leaf: Any) -> np.ndarray:
        shape = (count, *leaf.shape)
        if np.issubdtype(leaf.dtype, np.floating):
            return random.normal(1.0, 4.0, shape).astype(leaf.dtype)
        return random.integers(0, 3 if isinstance(leaf, Choice) else 2, shape).astype(leaf.dtype)

    return space.map(draw)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_pass_for_mlps_is_the_policys_definition_bit_for_bit(
    activation: Any, head: str, kind: str, normalise: bool
) -> None:
    (space, sees), random, made = OBSERVATIONS[kind], np.random.default_rng(0), HEADS[head]()
    encoder = trpo.make_encoder(space, sees)
    trunk = trpo.mlp(jax.random.key(0), (encoder.size, 16, 8, made.size), activation)
    trunk = jax.tree.map(lambda leaf: leaf + 0.1, trunk)  # biases that matter
    function, params = trpo.as_policy(trpo.Policy(encoder, trunk, made))

    def frozen(leaf: Any) -> Any:
        seen = random.normal(0.5, 2.0, (50, *leaf.number_shape)).astype(np.float32)
        return RunningStatistics.zeros(leaf.number_shape).merge(jnp.asarray(seen), jnp.ones(50)).freeze(2.0)

    jax_actor = Actor(params, space.map(frozen) if normalise else None, space)
    actor = to_numpy(jax_actor)
    policy = bound(function, actor.params)
    assert host_pass(policy, actor.see, None) is not None
    fast = numpy_act(policy, actor)
    for count in (1, 8, 13):
        noise = to_numpy(noise_of(function, jax_actor, count, (2,), jax.random.key(1)))
        for given in (*noise, None):
            observation, reset = met(space, count, random), np.zeros(count, bool)
            if kind == "vector":
                observation[0, 0] = np.nan
            before = jax.tree.map(np.copy, observation)
            action, carry = fast(observation, (), reset, given)
            expected, _ = act(policy, actor, observation, (), reset, given)
            assert carry == ()
            assert action.dtype == expected.dtype
            np.testing.assert_array_equal(action, expected)
            jax.tree.map(np.testing.assert_array_equal, observation, before)


def test_only_the_usual_policy_has_its_own_pass() -> None:
    class Mine(trpo.Policy):
        pass

    class Trunk(trpo.MLP):
        pass

    encoder, trunk = trpo.make_encoder(Box((FEATURES,))), trpo.mlp(jax.random.key(0), (FEATURES, 8, 2))
    head = trpo.CategoricalHead(2)
    usual, mine, other = (
        to_numpy(policy)
        for policy in (
            trpo.Policy(encoder, trunk, head),
            Mine(encoder, trunk, head),
            trpo.Policy(encoder, Trunk(trunk.weights, trunk.biases, "tanh"), head),
        )
    )
    assert [host_pass(policy, lambda x: x, None) is None for policy in (usual, mine, other)] == [False, True, True]


class JaxOnly(eqx.Module):
    """A policy as users write it: library layers, vmapped, ``jax.numpy`` throughout."""

    net: eqx.nn.MLP
    log_std: jax.Array

    def __call__(self, observation: Any) -> trpo.DiagGaussian:
        flat = jnp.reshape(observation, (-1, observation.shape[-1]))
        mean = jax.vmap(self.net)(flat).reshape(*observation.shape[:-1], -1)
        return trpo.DiagGaussian(mean, jnp.broadcast_to(self.log_std, mean.shape))


def test_a_policy_that_insists_on_jax_still_works() -> None:
    envs, _ = recorders(SPACES["box"], 2)
    module = JaxOnly(eqx.nn.MLP(FEATURES, 2, 8, 1, key=jax.random.key(0)), jnp.zeros(2))
    agent = Agent.create(envs.spec, trpo.Config(normalise_observations=False), module)
    policy = HostPolicy(agent.policy, agent.actor())
    assert not policy.in_numpy
    noise = drawn(agent, 2, 10)
    trajectory = started(envs).collect(policy, noise)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trajectory))
    mean = np.array([[module.net(jnp.asarray(x)) for x in row] for row in trajectory.observation])
    np.testing.assert_allclose(trajectory.action, mean + noise, rtol=1e-5, atol=1e-5)
    new = jax.tree.map(lambda leaf: leaf + 1, agent.learner.policy)
    policy.load(Actor(new, None, envs.spec.observation))  # other parameters are taken up
    action, _ = policy(np.ones((2, FEATURES), np.float32), (), np.ones(2, bool), None)
    net = jax.tree.map(lambda leaf: leaf + 1 if eqx.is_array(leaf) else leaf, module.net)
    np.testing.assert_allclose(action[0], net(jnp.ones(FEATURES)), rtol=1e-5)
    envs.close()


class Fussy(eqx.Module):
    """A policy that raises something where it is given NumPy's arrays."""

    gain: Any
    error: Any = eqx.field(static=True)

    def __call__(self, observation: Any) -> Any:
        if not isinstance(self.gain, jax.Array):
            raise self.error
        return trpo.Categorical(self.gain * observation[..., :2])


@pytest.mark.parametrize(
    "error",
    [TypeError("no"), AttributeError("no"), jax.errors.UnexpectedTracerError("no")],
    ids=["TypeError", "AttributeError", "JAXTypeError"],
)
def test_a_policy_that_fails_in_numpy_in_any_usual_way_acts_compiled(error: Exception) -> None:
    agent = Agent.create(EnvSpec("fussy", Box((FEATURES,)), Choice(2)), trpo.Config(), Fussy(jnp.array(5.0), error))
    policy = HostPolicy(agent.policy, agent.actor())
    assert not policy.in_numpy
    seen = np.arange(2.0 * FEATURES, dtype=np.float32).reshape(2, FEATURES)
    action, _ = policy(seen, (), np.ones(2, bool), None)
    np.testing.assert_array_equal(action, [1, 1])


class Half:
    """Counts its steps in NumPy, and acts in JAX."""

    def start(self, count: int) -> Any:
        return np.zeros(count, np.int32)

    def __call__(self, params: Any, carry: Any, step: Any) -> Any:
        return trpo.Categorical(jnp.asarray(step[0])[..., :2]), carry + 1


def test_only_a_policy_that_is_all_in_numpy_acts_there() -> None:
    assert not HostPolicy(Half(), Actor({}, None, Box((FEATURES,)))).in_numpy


def test_loaded_parameters_are_those_that_act() -> None:
    envs, _ = recorders(SPACES["box"], 1)
    agent = agent_for("box", envs.spec)
    policy = HostPolicy(agent.policy, Actor(agent.learner.policy, None, envs.spec.observation))
    step = np.ones((1, FEATURES), np.float32), (), np.ones(1, bool), None
    before, _ = policy(*step)
    nothing = jax.tree.map(lambda leaf: 0 * leaf, agent.learner.policy)
    policy.load(Actor(nothing, None, envs.spec.observation))
    after, _ = policy(*step)
    assert np.abs(before).max() > 0.01
    np.testing.assert_array_equal(after, 0)


# ---------------------------------------------------------------- fragments and episodes


def joined(parts: list[Trajectory]) -> Trajectory:
    steps = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.steps() for part in parts))
    return Trajectory(**steps, carry=parts[0].carry, reset=parts[0].reset)


def test_fragments_join_up_and_statistics_equal_those_of_the_environments_own_log() -> None:
    count, length, fragments = 3, 7, 12
    envs, logs = recorders(SPACES["box"], count)
    agent = agent_for("box", envs.spec)
    policy, source = HostPolicy(agent.policy, agent.actor()), started(envs)
    parts = [source.collect(policy, drawn(agent, count, length, k)) for k in range(fragments)]
    whole = joined(parts)
    assert whole.valid.all()
    for i, log in enumerate(logs):
        episodes = log if log[0]["actions"] else log[1:]
        before = np.concatenate([episode["seen"][:-1] for episode in episodes if episode["actions"]])
        after = np.concatenate([episode["seen"][1:] for episode in episodes if episode["actions"]])
        rewards = np.concatenate([episode["rewards"] for episode in episodes])
        np.testing.assert_array_equal(whole.observation[:, i], before)
        np.testing.assert_array_equal(whole.next_observation[:, i], after)  # the episode's own last, not the reset's
        np.testing.assert_array_equal(whole.reward[:, i], rewards.astype(np.float32))
    ended = [episode for log in logs for episode in log if episode["done"]]
    lengths = sorted(len(episode["rewards"]) for episode in ended)
    assert len(ended) > 20
    assert max(lengths) > length  # some crossed fragments
    episodes = source.episodes
    assert episodes.recent.episodes == len(ended)
    returns, found = zip(*latest(episodes), strict=True)
    assert sorted(found) == lengths
    expected = sorted(sum(episode["rewards"]) for episode in ended)
    np.testing.assert_allclose(sorted(returns), expected, rtol=1e-6)
    under_way = [log[-1] for log in logs]
    np.testing.assert_allclose(episodes.running_return, [sum(e["rewards"]) for e in under_way], rtol=1e-6)
    assert episodes.running_length.tolist() == [len(e["rewards"]) for e in under_way]
    envs.close()


def test_ends_are_where_the_environment_said() -> None:
    _, _, trajectory, logs = collected("discrete")
    for i, log in enumerate(logs):
        ends = np.cumsum([len(episode["rewards"]) for episode in log if episode["done"]]) - 1
        done = trajectory.terminated[:, i] | trajectory.truncated[:, i]
        np.testing.assert_array_equal(np.flatnonzero(done), ends)
    assert trajectory.terminated.any()
    assert trajectory.truncated.any()


def test_a_fragment_of_one_step_and_one_environment() -> None:
    _, _, trajectory, logs = collected("box", count=1, length=1)
    assert trajectory.observation.shape == (1, 1, FEATURES)
    assert trajectory.reset.tolist() == [True]
    np.testing.assert_array_equal(trajectory.observation[0, 0], logs[0][0]["seen"][0])


class Scripted:
    """Host environments that replay given transitions, to place auto-reset steps exactly."""

    def __init__(self, spec: Any, script: list[Transition]):
        self.spec, self.count, self.script = spec, 1, iter(script)

    def reset(self, seeds: list[int]) -> np.ndarray:
        return np.zeros((1, FEATURES), np.float32)

    def step(self, action: np.ndarray) -> Transition:
        return next(self.script)

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def transition(reward: float, seen: float, terminated: bool = False, valid: bool = True) -> Transition:
    observation = np.full((1, FEATURES), seen, np.float32)
    no = np.array([False])
    return Transition(
        observation, np.array([reward], np.float32), np.array([terminated]), no, observation, np.array([valid])
    )


def test_auto_reset_steps_are_stored_invalid_and_count_for_nothing() -> None:
    envs, _ = recorders(SPACES["discrete"], 1)
    agent = agent_for("discrete", envs.spec)
    script = [
        transition(1, 10),
        transition(2, 20, terminated=True),
        transition(np.nan, 30, valid=False),
        transition(4, 40),
        transition(8, 50, terminated=True),
        transition(99, 60, valid=False),
        transition(16, 70),
    ]
    source = started(Scripted(envs.spec, script))
    trajectory = source.collect(HostPolicy(agent.policy, agent.actor()), drawn(agent, 1, 7))
    assert trajectory.valid[:, 0].tolist() == [True, True, False, True, True, False, True]
    assert trajectory.observation[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert trajectory.next_observation[:, 0, 0].tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert latest(source.episodes) == [(3.0, 2), (12.0, 2)]
    assert source.episodes.running_return.tolist() == [16.0]
    assert source.episodes.running_length.tolist() == [1]


def test_restart_forgets_episodes_under_way() -> None:
    envs = make_envs("probe:endless", 2)  # ends after 10 steps
    agent = agent_for("discrete", envs.spec)
    source, noise, policy = started(envs), drawn(agent, 2, 7), HostPolicy(agent.policy, agent.actor())
    source.collect(policy, noise)
    source.restart([0, 1])
    assert source.episodes.running_length.tolist() == [0, 0]
    assert not source.collect(policy, noise).truncated.any()
    source.collect(policy, noise[:3])
    assert latest(source.episodes) == [(10.0, 10), (10.0, 10)]
    envs.close()


@pytest.mark.parametrize("count", [1, 3])
def test_episode_statistics_do_not_depend_on_how_many_steps_are_added_at_once(count: int) -> None:
    random = np.random.default_rng(0)
    reward = random.normal(100, 30, (400, count)).astype(np.float32)
    reward[50, 0] = np.nan
    done, valid = random.random((400, count)) < 0.03, random.random((400, count)) < 0.9
    copies = [EpisodeStatistics(count) for _ in range(3)]
    for statistics, length in zip(copies, (1, 37, 400), strict=True):
        for k in range(0, 400, length):
            statistics.add(reward[k : k + length], done[k : k + length], valid[k : k + length])
    one, *others = (str(statistics.to_json()) for statistics in copies)  # as text: NaN equals itself
    assert others == [one, one]
    # In the order of time, in double precision.
    total, length, expected = 0.0, 0, []
    for r, d, v in zip(reward[:, 0], done[:, 0], valid[:, 0], strict=True):
        total, length = total + (float(r) if v else 0.0), length + int(v)
        if d:
            expected.append((total, length))
            total, length = 0.0, 0
    if count == 1:
        finite = [(r, n) for r, n in expected if np.isfinite(r)]
        assert len(finite) == len(expected) - 1
        assert latest(copies[0]) == finite[-RECENT:]


def test_episode_statistics_survive_json_and_remember_the_latest() -> None:
    import json

    statistics = EpisodeStatistics(2)
    random = np.random.default_rng(0)
    rewards = random.normal(size=(3 * RECENT, 2)).astype(np.float32)
    for reward in rewards:
        statistics.add(reward[None], np.array([[True, False]]), np.ones((1, 2), bool))
    assert latest(statistics) == [(float(r), 1) for r in rewards[-RECENT:, 0]]
    mean = float(np.mean(rewards[-RECENT:, 0], dtype=np.float64))
    assert statistics.recent.means() == (pytest.approx(mean), 1.0)
    assert statistics.recent.episodes == 3 * RECENT
    copy = EpisodeStatistics(2, json.loads(json.dumps(statistics.to_json(), allow_nan=False)))
    for one in (statistics, copy):
        one.add(np.ones((1, 2), np.float32), np.ones((1, 2), bool), np.ones((1, 2), bool))
    assert copy.to_json() == statistics.to_json()
    assert latest(copy)[-1] == (pytest.approx(rewards[:, 1].sum(dtype=np.float64) + 1), 3 * RECENT + 1)


def test_recent_episodes_are_the_latest_entries_that_hold_a_hundred() -> None:
    recent = RecentEpisodes()
    assert recent.means() == (None, None)
    recent.add(60, 60.0, 600)
    recent.add(99, 198.0, 99)
    assert recent.means() == (258 / 159, 699 / 159)
    recent.add(1, 5.0, 7)  # without the oldest there are a hundred
    for one in (recent, RecentEpisodes(recent.to_json())):
        assert one.means() == (2.03, 1.06)
    one.add(RECENT, 0.0, RECENT)
    assert one.means() == (0.0, 1.0)
    first_format = RecentEpisodes({"episodes": 9, "returns": [1.0, 2.0], "lengths": [3, 6]})
    assert (first_format.episodes, first_format.means()) == (9, (1.5, 4.5))


def test_episodes_under_way_are_those_of_their_environments() -> None:
    """With another number of environments they are not; what has ended stays. Old checkpoints know no first one."""
    statistics = EpisodeStatistics(2)
    assert statistics.first.tolist() == [True, True]
    statistics.add(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[False, True], [False, False]]), np.ones((2, 2), bool))
    data = statistics.to_json()
    again, other = EpisodeStatistics(2, data), EpisodeStatistics(3, data)
    found = again.running_return.tolist(), again.running_length.tolist(), again.first.tolist()
    assert found == ([4.0, 4.0], [2, 1], [True, False])
    assert other.running_return.tolist() == other.running_length.tolist() == [0, 0, 0]
    assert other.first.tolist() == [True, True, True]
    assert latest(again) == latest(other) == [(2.0, 1)]
    assert again.recent.episodes == other.recent.episodes == 1
    assert EpisodeStatistics(2, {k: v for k, v in data.items() if k != "first"}).first.tolist() == [False, False]
    again.restart()
    assert again.to_json() == data | {"running_return": [0, 0], "running_length": [0, 0], "first": [True, True]}


# ---------------------------------------------------------------- staggered first episodes


def pendulums(env: str, workers: int, stagger: bool, length: int, fragment: int) -> tuple[HostSource, Trajectory]:
    """Five pendulums, whose episodes always last 200 steps, for ``length`` steps in fragments."""
    from trpo import make_agent
    from trpo.envs.names import make_envs

    agent = make_agent("Pendulum-v1")
    envs = make_envs(env, 5, workers)
    source, policy = started(envs, stagger), HostPolicy(agent.policy, agent.actor())
    parts = [source.collect(policy, drawn(agent, 5, fragment, k)) for k in range(length // fragment)]
    envs.close()
    return source, joined(parts)


@pytest.mark.parametrize("env", ["Pendulum-v1", "envpool:Pendulum-v1"])
def test_first_episodes_are_cut_at_times_spread_over_the_time_limit(env: str) -> None:
    if env.startswith("envpool:"):
        pytest.importorskip("envpool")
    source, whole = pendulums(env, 0, True, 480, 32)
    assert not whole.terminated.any()
    for i in range(5):
        first = 40 * (i + 1)
        valid = whole.valid[:, i]
        ends = np.flatnonzero(whole.truncated[valid, i]) + 1
        assert ends.tolist() == [t for t in (first, first + 200, first + 400) if t <= valid.sum()]
    for i in range(4):  # the fifth's first episode is as long as any
        # The cut step's successor is where the pendulum was going, not where the next episode begins.
        first = 40 * (i + 1)
        speed, after = whole.observation[first - 1, i, 2], whole.next_observation[first - 1, i]
        assert abs(after[2] - speed) < 1.2  # a step changes the speed by at most 15·0.05 + 3·2·0.05
        assert not np.array_equal(after, whole.observation[first, i])
        assert abs(whole.observation[first, i, 2]) <= 1  # an episode's first speed
    # Only whole episodes count: not the four that were cut.
    assert {length for _, length in latest(source.episodes)} == {200}
    assert source.episodes.recent.episodes == whole.truncated.sum() - 4


def test_without_staggering_they_end_together() -> None:
    _, whole = pendulums("Pendulum-v1", 0, False, 448, 64)
    assert [np.flatnonzero(whole.truncated[:, i]).tolist() for i in range(5)] == [[199, 399]] * 5


def test_staggering_over_processes_is_the_same() -> None:
    (_, one), (_, many) = (pendulums("Pendulum-v1", workers, True, 128, 64) for workers in (0, 2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.truncated.sum() == 3


# ---------------------------------------------------------------- acting in several processes


def fragments(
    env: Any, count: int, workers: int, module: Any = None, stagger: bool = False
) -> tuple[HostSource, list[Trajectory], int]:
    """Collect three fragments of 70 steps; return the source, they, and how often all environments were stepped."""
    agent = trpo.make_agent(env, policy=module)
    envs = make_envs(env, count, workers)
    steps = 0
    step = envs.step

    def counted(action: np.ndarray) -> Any:
        nonlocal steps
        steps += 1
        return step(action)

    envs.step = counted  # type: ignore[method-assign]
    try:
        source, policy = started(envs, stagger), HostPolicy(agent.policy, agent.actor())
        return source, [source.collect(policy, drawn(agent, count, 70, k)) for k in range(3)], steps
    finally:
        envs.close()


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", "Hopper-v5"])
@pytest.mark.parametrize(("count", "workers"), [(8, 1), (12, 2), (4, 1), (5, 1)])
def test_every_process_acts_for_its_own_environments_with_the_same_bits(env: str, count: int, workers: int) -> None:
    (one, alone, _), (other, spread, steps) = fragments(env, count, 0), fragments(env, count, workers)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert_same_bits(one.seat, other.seat)
    assert one.episodes.to_json() == other.episodes.to_json()
    assert other.episodes.running_length.any()
    assert steps in (0, 3 * 70)  # by how this machine rounds matrix products


def test_first_episodes_that_are_to_be_cut_are_stepped_together() -> None:
    (one, alone, _), (other, spread, steps) = (fragments("Pendulum-v1", 8, w, stagger=True) for w in (0, 1))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.episodes.to_json() == other.episodes.to_json()
    assert steps == 3 * 70  # the last first episode is cut at 200
    assert sum(int(part.truncated.sum()) for part in alone) >= 8


class Local(eqx.Module):
    """A policy that can be written down, or not, whose rows do not depend on each other, or do."""

    gain: Any
    extra: Any = eqx.field(static=True, default=None)
    crowd: bool = eqx.field(static=True, default=False)

    def __call__(self, observation: Any) -> Any:
        logits = self.gain * observation[..., :2]
        return trpo.Categorical(logits - logits.mean(axis=0, keepdims=True) if self.crowd else logits)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 0), ({"extra": threading.Lock()}, 3 * 70), ({"crowd": True}, 3 * 70)],
    ids=["travels", "does not", "is another in a smaller batch"],
)
def test_a_policy_of_one_s_own_acts_elsewhere_if_it_is_the_same_there(options: dict[str, Any], steps: int) -> None:
    module = Local(jnp.array(5.0), **options)
    (_, alone, _), (_, spread, counted) = (fragments("CartPole-v1", 5, w, module) for w in (0, 1))
    assert_same_bits(alone, spread)
    assert counted == steps


@pytest.mark.parametrize("where", ["here", "in the worker"])
def test_an_environment_that_raises_while_every_process_acts(where: str) -> None:
    def make() -> Any:
        import multiprocessing

        import gymnasium

        class Fragile(gymnasium.Wrapper):
            left = 10

            def step(self, action: Any) -> Any:
                self.left -= 1
                if not self.left and (multiprocessing.parent_process() is None) == (where == "here"):
                    raise RuntimeError("a joint broke")
                return super().step(action)

        return Fragile(gymnasium.make("Pendulum-v1"))

    with pytest.raises(EnvironmentFailure, match="a joint broke"):
        fragments(make, 8, 1)
    assert multiprocessing.active_children() == []


def test_an_environment_that_ended_by_itself_is_not_cut() -> None:
    """CartPole falls within 500 steps of a random policy, so no episode there is truncated at all."""
    from trpo import make_agent
    from trpo.envs.names import make_envs

    agent = make_agent("CartPole-v1")
    envs = make_envs("CartPole-v1", 2)
    source = started(envs, stagger=True)
    trajectory = source.collect(HostPolicy(agent.policy, agent.actor()), drawn(agent, 2, 600))
    envs.close()
    assert trajectory.terminated.sum() > 10
    assert not trajectory.truncated.any()


def test_environments_that_cannot_be_restarted_are_left_alone() -> None:
    envs, logs = recorders(SPACES["box"], 2)
    source = started(envs, stagger=True)  # no time limit is known
    assert source.episodes.first.all()
    agent = agent_for("box", envs.spec)
    trajectory = source.collect(HostPolicy(agent.policy, agent.actor()), drawn(agent, 2, 30))
    envs.close()
    ends = [sum(episode["done"] for episode in log) for log in logs]
    assert (trajectory.terminated | trajectory.truncated).sum(0).tolist() == ends


class Vector:
    """Two environments in one, handed in, which show the same arrays every time: ± the number of steps."""

    def __init__(self, count: int = 2, **fields: Any):
        self.spec, self.count, self.fields = EnvSpec("vector", Dict((("x", Box((1,))),)), Choice(2)), count, fields
        self.seen, self.rewards = np.zeros((count, 1), np.float32), np.zeros(count, np.float32)
        self.flags = np.zeros(count, bool)

    def reset(self, seeds: list[int]) -> Any:
        self.seen[:] = 0
        return {"x": self.seen}

    def step(self, action: Any) -> Transition:
        self.seen += np.float32([[1], [-1]])[: self.count]
        self.rewards[:] = self.seen[:, 0]
        step = Transition({"x": self.seen}, self.rewards, self.flags, self.flags, {"x": self.seen}, ~self.flags)
        return step._replace(**self.fields)

    def snapshot(self) -> None:
        return

    def restore(self, snapshot: Any) -> None:
        raise TypeError

    def close(self) -> None:
        return


def gathered(envs: Vector, noting: Callable[[HostSource], Any] = lambda source: None) -> list[Trajectory]:
    """Two fragments of three steps."""
    agent = trpo.make_agent(envs, trpo.Config(env=trpo.EnvConfig(count=envs.count)))
    source, actor = HostSource(envs), agent.actor()
    source.restart([0, 1][: envs.count])
    noise = to_numpy(noise_of(agent.policy, actor, envs.count, (3,), jax.random.key(0)))
    found = []
    for _ in range(2):
        found.append(source.collect(HostPolicy(agent.policy, actor), noise))
        noting(source)
    return found


def test_a_snapshot_is_not_changed_by_later_steps() -> None:
    class Live(Vector):
        def snapshot(self) -> Any:
            return {"seen": self.seen}

    kept: list[Any] = []
    gathered(Live(), lambda source: kept.append(source.snapshot()))
    for snapshot, steps in zip(kept, (3, 6), strict=True):
        np.testing.assert_array_equal(snapshot.seat.observation["x"], np.float32([[steps], [-steps]]))
        np.testing.assert_array_equal(from_plain(snapshot.environments)["seen"], np.float32([[steps], [-steps]]))


def test_environments_handed_in_may_show_the_same_arrays_every_time() -> None:
    first, second = gathered(Vector())
    for trajectory, begin in ((first, 0), (second, 3)):
        steps = begin + np.float32([[0, 0], [1, -1], [2, -2]])
        steps[:, 1] -= 2 * begin
        np.testing.assert_array_equal(trajectory.observation["x"][..., 0], steps)
        np.testing.assert_array_equal(trajectory.next_observation["x"][..., 0], steps + np.float32([1, -1]))
        np.testing.assert_array_equal(trajectory.reward, steps + np.float32([1, -1]))


@pytest.mark.parametrize("kinds", [(float, np.int8), (np.float32, bool)], ids=["of other types", "of the usual types"])
def test_columns_of_numbers_are_rows_of_them(kinds: tuple[Any, Any]) -> None:
    envs = Vector(reward=np.ones((2, 1), kinds[0]), truncated=np.ones((2, 1), kinds[1]))
    for trajectory in gathered(envs):
        assert (trajectory.reward == np.ones((3, 2))).all()
        assert trajectory.truncated.dtype == bool
        assert trajectory.truncated.shape == trajectory.reward.shape == (3, 2)
    assert trpo.evaluate(trpo.make_agent(envs), envs, episodes=2, count=2).returns == (1.0, 1.0)


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("reward", None),
        ("reward", np.ones(3)),
        ("reward", np.ones((2, 2))),
        ("reward", np.array(["a", "b"])),
        ("reward", 1.0),
        ("terminated", False),
        ("truncated", None),
        ("terminated", np.zeros(2, complex)),
    ],
)
def test_a_vector_that_tells_something_else_is_named(field: str, what: Any) -> None:
    for count in (2, 1) if np.ndim(what) == 0 else (2,):
        envs = Vector(count, **{field: what})
        said = rf"^environment vector: step returned {field} of shape .*must be an array of shape \({count},\)"
        with pytest.raises(EnvironmentFailure, match=said):
            gathered(envs)
        with pytest.raises(EnvironmentFailure, match=said):
            trpo.evaluate(trpo.make_agent(envs), envs, episodes=2, count=count)
