"""Policies with memory: what they are is each episode unrolled alone, wherever fragments and episodes begin."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces
from helpers import assert_same_bits, flags_for_devices, run_process
from jax.flatten_util import ravel_pytree
from problems import LEADING, uneven_weight
from scipy.special import expit

import trpo
from trpo.envs import Transition
from trpo.envs.device.probes import make_probe
from trpo.envs.spaces import Box, Choice
from trpo.envs.spec import EnvSpec
from trpo.policies.function import to_numpy
from trpo.policies.recurrent import GATES, TRUNKS
from trpo.rollout import HostPolicy, HostSource, Seat, Trajectory, noise_of
from trpo.rollout.acting import act
from trpo.rollout.device import DeviceSource
from trpo.rollout.host import _same_apart
from trpo.training import learner as stages
from trpo.training.agent import Agent
from trpo.training.learner import Hyper
from trpo.trees import namespace, shuffled
from trpo.value_fits import fit_value

SPEC = EnvSpec("random", Box((3,)), Box((2,)))
STEPS, COUNT = 64, 5


class Elman(eqx.Module):
    """h ← tanh(x U + h W), y = h V + age / 10, with the age of an episode in steps as a memory of another type."""

    u: Any
    w: Any
    v: Any
    size: int = eqx.field(static=True)
    jax_only: bool = eqx.field(static=True, default=False)

    @classmethod
    def make(cls, sizes: tuple[int, int, int], jax_only: bool = False, scale: float = 0.8) -> Elman:
        inputs, hidden, outputs = sizes
        keys = jax.random.split(jax.random.key(3), 3)
        shapes = (inputs, hidden), (hidden, hidden), (hidden, outputs)
        dtype = jnp.result_type(float)
        drawn = (scale * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))
        return cls(*drawn, hidden, jax_only)

    def start(self, count: int) -> Any:
        return {"h": jnp.zeros((count, self.size)), "age": jnp.zeros(count, jnp.int32)}

    def __call__(self, carry: Any, x: Any, reset: Any) -> tuple[Any, Any]:
        xp = jnp if self.jax_only else namespace(x)
        h = xp.where(reset[:, None], 0.0, carry["h"])
        age = xp.where(reset, 0, carry["age"])
        h = xp.tanh(x @ self.u + h @ self.w)
        return h @ self.v + age[:, None].astype(x.dtype) / 10, {"h": h, "age": age + 1}


def gated(cell: str, sizes: tuple[int, ...] = (3, 5, 2), memory: int = 4) -> Any:
    """A trunk of the library's own, whose last layer is not near zero, with biases that count."""
    made = TRUNKS[cell](jax.random.key(3), sizes, "tanh", 1.0, 2**0.5, jnp.result_type(float), memory)
    return jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), made)


CELLS = ("elman", "gru", "lstm")


def policy(jax_only: bool = False, cell: str = "elman") -> trpo.Policy:
    head = trpo.GaussianHead(jnp.array([-0.5, 0.2], jnp.result_type(float)))
    trunk = Elman.make((3, 4, 2), jax_only) if cell == "elman" else gated(cell)
    return trpo.Policy(trpo.make_encoder(SPEC.observation), trunk, head)


def gated_outputs(trunk: Any, x: np.ndarray) -> np.ndarray:
    """Outputs along one episode by the formulas of the papers, one gate after the other, in double precision."""
    numbers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (trunk.before, trunk.weight, trunk.after))
    before, recurrent, after = numbers
    gates = GATES[trunk.cell]
    w, b, u = (np.split(part, gates, -1) for part in (before.weights[-1], before.biases[-1], recurrent))
    h = c = np.zeros(len(recurrent))
    outputs = []
    for row in x.astype(np.float64):
        for weight, bias in zip(before.weights[:-1], before.biases[:-1], strict=True):
            row = np.tanh(row @ weight + bias)
        if trunk.cell == "gru":
            z, r = (expit(row @ w[k] + b[k] + h @ u[k]) for k in range(2))
            h = z * h + (1 - z) * np.tanh(row @ w[2] + b[2] + r * (h @ u[2]))
        else:
            i, f, o = (expit(row @ w[k] + b[k] + h @ u[k]) for k in range(3))
            c = f * c + i * np.tanh(row @ w[3] + b[3] + h @ u[3])
            h = o * np.tanh(c)
        outputs.append(h @ after.weights[0] + after.biases[0])
    return np.array(outputs)


def alone(module: trpo.Policy, x: np.ndarray) -> np.ndarray:
    """Means of one episode ``[time, 3]``, by NumPy in double precision."""
    if not isinstance(module.trunk, Elman):
        return gated_outputs(module.trunk, x)
    u, w, v = (np.asarray(a, np.float64) for a in (module.trunk.u, module.trunk.w, module.trunk.v))
    h, means = np.zeros(len(w)), []
    for age, row in enumerate(x.astype(np.float64)):
        h = np.tanh(row @ u + h @ w)
        means.append(h @ v + age / 10)
    return np.array(means)


def assert_each_episode_alone(module: trpo.Policy, whole: Trajectory, mean: np.ndarray) -> None:
    """Compare means ``[time, env, 2]`` of a run from its beginning with those of each episode by itself."""
    lengths = []
    for i in range(whole.valid.shape[1]):
        ends = np.flatnonzero(whole.terminated[:, i] | whole.truncated[:, i]) + 1
        for episode in np.split(np.arange(len(whole.valid)), ends):
            rows = episode[whole.valid[episode, i]]
            if len(rows):
                expected = alone(module, whole.observation[rows, i])
                np.testing.assert_allclose(mean[rows, i], expected, rtol=2e-4, atol=2e-5)
                lengths.append(len(rows))
    assert len(lengths) > 3 * COUNT
    assert max(lengths) > 10


class Resetting:
    """Random observations and ends; resets within the step that ended an episode, or as EnvPool in one of its own."""

    spec, count = SPEC, COUNT

    def __init__(self, apart: bool, successors: bool = False):
        self.apart, self.successors = apart, successors

    def _look(self) -> np.ndarray:
        return self.random.normal(size=(COUNT, 3)).astype(np.float32)

    def reset(self, seeds: list[int]) -> np.ndarray:
        self.random, self.over = np.random.default_rng(seeds), np.zeros(COUNT, bool)
        return self._look()

    def step(self, action: np.ndarray) -> Transition:
        valid = ~self.over
        terminated, truncated = (valid & (self.random.random(COUNT) < 0.06) for _ in range(2))
        self.over = (terminated | truncated) & self.apart
        seen, reward = self._look(), self.random.normal(size=COUNT).astype(np.float32)
        final = seen
        if self.successors and not self.apart:  # what an episode ended with is not what the next begins with
            final = np.where((terminated | truncated)[:, None], self._look(), seen)
        return Transition(seen, reward, terminated, truncated & ~terminated, final, valid)

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def agent_with(module: trpo.Policy, fragment: int) -> Agent:
    value = trpo.ValueConfig(hidden=(4,))
    config = trpo.Config(fragment=fragment, env=trpo.EnvConfig(count=COUNT), value=value, normalise_observations=False)
    return Agent.create(SPEC, config, module)


def fragments_on_host(agent: Agent, envs: Any, fragment: int) -> list[tuple[Trajectory, Any]]:
    source = HostSource(envs, agent.policy.start)
    source.restart([7])
    acting = HostPolicy(agent.policy, agent.actor())
    noise = np.asarray(noise_of(agent.policy, agent.actor(), COUNT, (STEPS,), jax.random.key(1)))
    parts = [noise[k : k + fragment] for k in range(0, STEPS - STEPS % fragment, fragment)]
    return [(source.collect(acting, part), part) for part in parts]


def problem_of(agent: Agent) -> Callable[[Trajectory], Any]:
    """Return, compiled: a trajectory, and maybe a learner, ↦ means (or logits) and ratios at θ_old, and more."""
    program, hyper = agent.program(), Hyper.of(agent.config)

    @jax.jit
    def at_old(trajectory: Trajectory, learner: Any) -> Any:
        problem = stages.local_problem(program, learner, stages.estimate(program, hyper, learner, trajectory, 0))
        here = problem.distributions(learner.policy)
        ratio = jnp.exp(here.log_prob(trajectory.action) - problem.old.log_prob(trajectory.action))
        return jax.tree.leaves(problem.old)[0], ratio, problem.evaluate(learner.policy)

    return lambda trajectory, learner=agent.learner: at_old(trajectory, learner)


@pytest.fixture(scope="module")
def remembered() -> Callable[..., tuple[Agent, Any]]:
    """An agent of a cell for fragments of a length, and what its batches are at θ_old, compiled once."""

    @cache
    def made(fragment: int, cell: str, jax_only: bool = False) -> tuple[Agent, Any]:
        agent = agent_with(policy(jax_only, cell), fragment)
        return agent, problem_of(agent)

    return made


@pytest.mark.parametrize("fragment", [1, 7, 32])
@pytest.mark.parametrize("apart", [False, True], ids=["resets at once", "resets in a step of its own"])
@pytest.mark.parametrize(
    ("cell", "jax_only"),
    [("elman", False), ("elman", True), ("gru", False), ("lstm", False)],
    ids=["numpy", "compiled", "gru", "lstm"],
)
def test_fragments_on_the_host_are_each_episode_alone(
    fragment: int, apart: bool, cell: str, jax_only: bool, remembered: Callable[..., tuple[Agent, Any]]
) -> None:
    module = policy(jax_only, cell)
    (agent, at_old), means = remembered(fragment, cell, jax_only), []
    assert HostPolicy(agent.policy, agent.actor()).in_numpy is not jax_only
    collected = fragments_on_host(agent, Resetting(apart), fragment)
    for trajectory, noise in collected:
        mean, ratio, start = at_old(trajectory)
        np.testing.assert_array_equal(ratio, 1.0)
        assert float(start.mean_kl) == float(start.max_state_kl) == 0.0
        # The memory that acted is the memory of the update: μ + σ·noise of the noise that was handed in.
        acted = np.asarray(mean) + np.exp([-0.5, 0.2]) * noise
        np.testing.assert_allclose(trajectory.action[trajectory.valid], acted[trajectory.valid], rtol=1e-4, atol=1e-5)
        means.append(np.asarray(mean))
    steps = jax.tree.map(lambda *x: np.concatenate(x), *(trajectory.steps() for trajectory, _ in collected))
    whole = Trajectory(**steps, carry=(), reset=np.ones(COUNT, bool))
    assert whole.valid.all() != apart
    assert_each_episode_alone(module, whole, np.concatenate(means))


def test_auto_reset_steps_of_envpool() -> None:
    """CartPole of EnvPool: what the update sees of each episode is that episode alone."""
    pytest.importorskip("envpool")
    spec = trpo.make_agent("envpool:CartPole-v1").spec
    module = trpo.Policy(trpo.make_encoder(spec.observation), Elman.make((4, 4, 2)), trpo.CategoricalHead(2))
    config = trpo.Config(fragment=40, env=trpo.EnvConfig(count=COUNT), normalise_observations=False)
    agent = Agent.create(spec, config, module)
    source = HostSource(trpo.make_envs("envpool:CartPole-v1", COUNT), agent.policy.start)
    source.restart(list(range(COUNT)))
    noise = to_numpy(noise_of(agent.policy, agent.actor(), COUNT, (120,), jax.random.key(1)))
    acting, logits = HostPolicy(agent.policy, agent.actor()), problem_of(agent)
    collected = [source.collect(acting, noise[k : k + 40]) for k in (0, 40, 80)]
    source.close()
    steps = jax.tree.map(lambda *x: np.concatenate(x), *(trajectory.steps() for trajectory in collected))
    whole = Trajectory(**steps, carry=(), reset=np.ones(COUNT, bool))
    assert not whole.valid.all()
    assert_each_episode_alone(module, whole, np.concatenate([logits(trajectory)[0] for trajectory in collected]))


@dataclasses.dataclass(frozen=True)
class Device:
    """Random observations and ends, in JAX."""

    spec = SPEC
    cheap_reset = True

    def reset(self, key: Any) -> Any:
        return jnp.zeros(()), jax.random.normal(key, (3,))

    def step(self, state: Any, action: Any, key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        ends = jax.random.uniform(c, (2,)) < 0.06
        return state, trpo.Step(jax.random.normal(a, (3,)), jax.random.normal(b), ends[0], ends[1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("fragment", [1, 7, 32])
def test_fragments_on_the_device_are_each_episode_alone_and_those_of_the_host(
    fragment: int, cell: str, remembered: Callable[..., tuple[Agent, Any]]
) -> None:
    module = policy(cell=cell)
    agent, at_old = remembered(fragment, cell)
    source = DeviceSource(Device(), SPEC)
    collect = jax.jit(source.collect, static_argnums=0)
    rollout = source.begin(jax.random.key(0), COUNT, agent.policy.start(COUNT))
    host, carry = HostPolicy(agent.policy, agent.actor()), to_numpy(agent.policy.start(COUNT))
    means, parts, reset = [], [], np.ones(COUNT, bool)
    for k in range(STEPS // fragment):
        noise = noise_of(agent.policy, agent.actor(), COUNT, (fragment,), jax.random.key(k))
        rollout, trajectory, _ = collect(agent.policy, agent.actor(), rollout, noise)
        mean, ratio, start = at_old(trajectory)
        np.testing.assert_array_equal(ratio, 1.0)
        assert float(start.mean_kl) == float(start.max_state_kl) == 0.0
        trajectory = to_numpy(trajectory)
        for t in range(fragment):
            action, carry = host(trajectory.observation[t], carry, reset, np.asarray(noise[t]))
            np.testing.assert_allclose(trajectory.action[t], action, rtol=1e-4, atol=1e-5)
            reset = trajectory.terminated[t] | trajectory.truncated[t]
        means.append(np.asarray(mean))
        parts.append(trajectory.steps())
    steps = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    assert_each_episode_alone(module, Trajectory(**steps, carry=(), reset=reset), np.concatenate(means))


# ---------------------------------------------------------------- the local problem


def batch_in_the_middle(function: Any) -> trpo.Batch:
    """Fragments that begin with a memory, in which episodes begin."""
    random = np.random.default_rng(0)
    reset = np.zeros(LEADING, bool)
    reset[0, 0] = reset[1, 2] = reset[2, 1] = True
    carry = jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype), function.start(LEADING[1]))
    return trpo.Batch(
        observation=jnp.asarray(random.normal(size=(*LEADING, 3))),
        action=jnp.asarray(random.normal(size=(*LEADING, 2))),
        advantage=jnp.asarray(random.normal(size=LEADING)),
        weight=uneven_weight(jnp.float64),
        carry=jax.tree.map(jnp.asarray, carry),
        reset=jnp.asarray(reset),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_fisher_products_are_the_dense_hessian_of_the_unrolled_mean_kl(cell: str, x64: None) -> None:
    function, params = trpo.as_policy(policy(cell=cell))
    batch = batch_in_the_middle(function)
    flat, unravel = ravel_pytree(params)

    def unrolled(params: Any) -> trpo.DiagGaussian:
        trunk, carry, means = function.bind(params).trunk, batch.carry, []
        for t in range(LEADING[0]):
            mean, carry = trunk(carry, batch.observation[t], batch.reset[t])
            means.append(mean)
        log_std = function.bind(params).head.log_std
        return trpo.DiagGaussian(jnp.stack(means), jnp.broadcast_to(log_std[None, None], (*LEADING, 2)))

    old = unrolled(params)
    mean_kl = jax.jit(lambda x: jnp.sum(batch.weight * old.kl_to(unrolled(unravel(x)))))
    dense = np.asarray(jax.jit(jax.hessian(mean_kl))(flat))

    @jax.jit
    def products(vectors: Any, elsewhere: Any) -> Any:
        problem = trpo.sampled_problem(function, params, batch)
        model = problem.linearise(params)
        rows = jax.vmap(lambda v: ravel_pytree(model.fisher_vp(unravel(v)))[0])(vectors)
        return rows, problem.mean_kl(unravel(elsewhere))

    elsewhere = flat + 0.1 * np.cos(np.arange(flat.size))
    found, kl = products(jnp.eye(flat.size), elsewhere)
    np.testing.assert_allclose(found, dense, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(kl, mean_kl(elsewhere), rtol=1e-10)
    assert np.abs(dense).max() > 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_slopes_of_the_unrolled_surrogate(cell: str, x64: None) -> None:
    """Away from the policy that sampled: central differences along a few directions."""
    function, params = trpo.as_policy(policy(cell=cell))
    problem = trpo.sampled_problem(function, params, batch_in_the_middle(function))
    flat, unravel = ravel_pytree(params)
    flat = flat + 0.1 * np.cos(np.arange(flat.size))
    surrogate = jax.jit(lambda x: problem.surrogate(unravel(x)))
    gradient = ravel_pytree(jax.jit(lambda x: problem.linearise(unravel(x)).gradient)(flat))[0]
    for direction in np.random.default_rng(1).normal(size=(4, flat.size)):
        step = 1e-5 * direction
        slope = (surrogate(flat + step) - surrogate(flat - step)) / 2e-5
        np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-6, atol=1e-9)


def test_a_subsample_for_products_is_of_whole_environments(x64: None) -> None:
    """One of each two; a third is left over: products are those of these environments' fragments alone."""
    function, params = trpo.as_policy(policy(cell="gru"))
    batch = batch_in_the_middle(function)
    carry = {"h": jnp.concatenate([batch.carry["h"], jnp.ones((1, 4))])}
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :1]], 1), dataclasses.replace(batch, carry=()))
    batch = dataclasses.replace(batch, carry=carry)
    vector = jax.tree.map(jnp.cos, params)
    problem = trpo.sampled_problem(function, params, batch, fisher_subsample=2)
    found = problem.linearise(params).fisher_vp(vector)
    matches = []
    for pair in itertools.product((0, 1), (2, 3)):
        columns = np.array(pair)
        part = jax.tree.map(lambda x: x[:, columns], dataclasses.replace(batch, carry=()))  # noqa: B023
        part = dataclasses.replace(part, carry={"h": batch.carry["h"][columns]}, weight=part.weight / part.weight.sum())
        alone = trpo.sampled_problem(function, params, part).linearise(params).fisher_vp(vector)
        matches.append(all(map(partial(np.allclose, rtol=1e-9), jax.tree.leaves(alone), jax.tree.leaves(found))))
    assert sum(matches) == 1
    assert problem.weight.shape == (3, 5)
    few = trpo.sampled_problem(function, params, batch, fisher_subsample=100)
    assert few.product_weight.shape == (3, 1)


def test_a_memory_that_is_not_the_policys_is_refused_in_a_line() -> None:
    function, params = trpo.as_policy(policy())
    zeros = jnp.zeros(LEADING)
    batch = trpo.Batch(
        jnp.zeros((*LEADING, 3)), jnp.zeros((*LEADING, 2)), zeros, zeros, function.start(LEADING[1]), zeros > 0
    )
    known = r"must be a memory of the shapes \{'age': \(4,\), 'h': \(4, 4\)\}, as start gives it; found "
    for carry, found in ((), "none"), (function.start(3), r"\{'age': \(3,\)"), ({"h": zeros}, r"\{'h': \(3, 4\)\}"):
        with pytest.raises(ValueError, match="batch.carry: " + known + found):
            trpo.sampled_problem(function, params, dataclasses.replace(batch, carry=carry))
    with pytest.raises(ValueError, match=r"batch.reset: a policy with memory needs to know where episodes begin"):
        trpo.sampled_problem(function, params, dataclasses.replace(batch, reset=None))
    for cell in CELLS:
        agent = agent_with(policy(cell=cell), 8)
        one, many = np.zeros(3, np.float32), np.zeros((2, 3), np.float32)
        wrong = (one, agent.start(1)), (one, ()), (one, np.zeros(4)), (many, agent.start()), (many, agent.start(3))
        for x, carry in wrong:
            with pytest.raises(
                ValueError, match=r"carry: must be a memory of the shapes \{.*\}, as start gives it"
            ) as info:
                agent.act(x, carry)
            assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"carry: must be a memory of the shapes none"):
        Agent.create(SPEC, trpo.Config()).act(one, np.zeros(4))


# ---------------------------------------------------------------- the value function


def valued(cell: str, fragment: int, strata: int = 1, **value: Any) -> tuple[Agent, Any]:
    """An agent whose value function has a memory, and the unit of its value function is known: 2.5."""
    settings = trpo.ValueConfig(hidden=(5,), trunk=cell, memory=4, **value)
    config = trpo.Config(
        fragment=fragment, env=trpo.EnvConfig(count=COUNT), value=settings, gae_lambda=0.8, normalise_observations=False
    )
    agent = Agent.create(SPEC, config, policy())
    trunk = gated(cell, (3, 5, 1))
    params = trpo.as_policy(trpo.ValueFunction(trpo.make_encoder(SPEC.observation), trunk))[1]
    returns = dataclasses.replace(agent.learner.value.returns, count=jnp.array(4.0), deviations=jnp.array(25.0))
    returns = dataclasses.replace(returns, unit=jnp.array(1.0))
    learner = dataclasses.replace(
        agent.learner, value=dataclasses.replace(agent.learner.value, params=params, returns=returns)
    )
    return dataclasses.replace(agent, learner=learner), trunk


def plain_targets(trunk: Any, whole: Trajectory, discount: float, decay: float, ends: list[int]) -> np.ndarray:
    """λ-returns by loops over episodes, each by itself; fragments end at ``ends``, where they are bootstrapped."""
    targets = np.full(whole.reward.shape, np.nan)
    for i in range(COUNT):
        over = whole.terminated[:, i] | whole.truncated[:, i]
        for episode in np.split(np.arange(len(over)), np.flatnonzero(over) + 1):
            rows = [t for t in episode if whole.valid[t, i]]
            if not rows:
                continue
            shown = np.concatenate([whole.observation[rows, i], whole.next_observation[rows[-1:], i]])
            v = 2.5 * gated_outputs(trunk, shown)[:, 0]
            following = None  # the λ-return of the next step, in the same fragment and episode
            for k, t in reversed(list(enumerate(rows))):
                after = 0.0 if whole.terminated[t, i] else v[k + 1]
                last = following is None or t in ends
                ahead = after if last else (1 - decay) * after + decay * following
                following = targets[t, i] = whole.reward[t, i] + discount * ahead
    return targets


@pytest.mark.parametrize("apart", [False, True], ids=["resets at once", "resets in a step of its own"])
@pytest.mark.parametrize(("cell", "fragment"), [("gru", 1), ("gru", 7), ("lstm", 32)])
def test_lambda_returns_are_those_of_each_episode_alone(cell: str, fragment: int, apart: bool) -> None:
    """A truncated step, and the last of a fragment, is valued by what was met in its own episode, and nothing else."""
    agent, trunk = valued(cell, fragment)
    program, hyper = agent.program(), Hyper.of(agent.config)
    improve = jax.jit(partial(stages.estimate, program, hyper))
    learner, found, parts = agent.learner, [], []
    for trajectory, _ in fragments_on_host(agent, Resetting(apart, successors=True), fragment):
        estimates = improve(learner, trajectory, 0)
        learner = dataclasses.replace(learner, value_carry=estimates.value_carry)
        found.append(np.asarray(estimates.target))
        parts.append(trajectory)
    steps = jax.tree.map(lambda *x: np.concatenate(x), *(trajectory.steps() for trajectory in parts))
    whole = Trajectory(**steps, carry=(), reset=np.ones(COUNT, bool))
    ends = list(range(fragment - 1, len(whole.valid), fragment))
    expected = plain_targets(trunk, whole, agent.config.discount, 0.8, ends)
    assert whole.truncated.sum() > 5
    np.testing.assert_array_equal(np.isnan(expected), ~whole.valid)
    targets = np.concatenate(found)
    np.testing.assert_allclose(targets[whole.valid], expected[whole.valid], rtol=2e-4, atol=2e-4)


def sequences(count: int, fragment: int) -> tuple[Agent, Any, Any]:
    """A learner in the middle of training, and the data of its value fit."""
    agent, _ = valued("gru", fragment)
    agent = dataclasses.replace(agent, config=dataclasses.replace(agent.config, env=trpo.EnvConfig(count=COUNT)))
    ((first, _), (second, _), *_) = fragments_on_host(agent, Resetting(True), fragment)
    program, hyper = agent.program(), Hyper.of(agent.config)
    estimate = jax.jit(partial(stages.estimate, program, hyper))
    carry = estimate(agent.learner, first, 0).value_carry
    learner = dataclasses.replace(agent.learner, value_carry=carry)
    return agent, stages.value_batch(carry, estimate(learner, second, 0), 1), second


@pytest.mark.parametrize("minibatch", [0, 16])
def test_values_are_fitted_to_whole_sequences(minibatch: int) -> None:
    """By Adam of Optax, on losses whose sequences are unrolled one by one, from the memory that was stored."""
    agent, batch, trajectory = sequences(COUNT, 8)
    program, state, key = agent.program(), agent.learner.value, jax.random.key(3)
    (carry, reset), (rows, time) = batch.memory, batch.weight.shape
    assert (rows, time) == (COUNT, 8)
    assert np.abs(carry["h"]).max() > 0.1
    assert np.asarray(reset)[:, 1:].any()
    there = trajectory.valid[:, 2]
    np.testing.assert_array_equal(batch.observation[2][there], trajectory.observation[there, 2])

    def loss(params: Any, columns: Any) -> Any:
        total, weights = 0.0, batch.weight[columns] / batch.weight[columns].sum()
        for row, weight in zip(columns, weights, strict=True):
            memory = jax.tree.map(lambda x: x[row][None], carry)  # noqa: B023
            for t in range(time):
                v, memory = program.value(params, memory, (batch.observation[row, t][None], reset[row, t][None]))
                total += 0.5 * weight[t] * (v[0] - batch.target[row, t]) ** 2
        return total

    adam, params = optax.adam(1e-2), state.params
    moments = adam.init(params)
    gradient = jax.jit(jax.grad(loss))
    for epoch in jax.random.split(key, 2):
        order = np.asarray(shuffled(epoch, COUNT)) if minibatch else np.arange(COUNT)
        size = 2 if minibatch else COUNT
        for columns in np.split(order[: COUNT // size * size], COUNT // size):
            updates, moments = adam.update(gradient(params, columns), moments, params)
            params = optax.apply_updates(params, updates)
    fit = trpo.AdamFit(1e-2, epochs=2, minibatch=minibatch)
    found, _ = jax.jit(lambda b: fit.minimise(program.value_of, state.params, fit.init(state.params), b, key))(batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    strata = jax.tree.map(lambda x: jnp.stack([x[:2], x[2:4]]), batch)
    flat = jax.tree.map(lambda x: x[:4], batch)
    values = jax.jit(lambda b: b.values(program.value_of, state.params))
    np.testing.assert_allclose(values(strata).reshape(4, time), values(flat), rtol=1e-5, atol=1e-6)


def test_gauss_newton_fits_whole_sequences_too() -> None:
    agent, batch, _ = sequences(COUNT, 8)
    program, state = agent.program(), agent.learner.value
    state = dataclasses.replace(state, optimiser=())
    fit = jax.jit(partial(fit_value, trpo.GaussNewtonFit(max_change=10.0), program.value_of))
    before = batch.values(program.value_of, state.params) * state.scale
    after, info = fit(state, batch, jax.random.key(0))
    error = batch.values(program.value_of, after.params) * after.scale - batch.target
    assert jnp.sum(batch.weight * error**2) < 0.5 * jnp.sum(batch.weight * (before - batch.target) ** 2)
    np.testing.assert_allclose(info.loss * after.scale**2, jnp.sum(batch.weight * error**2), rtol=1e-4)


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize("cell", CELLS)
def test_the_pass_in_numpy_is_the_definition(cell: str) -> None:
    agent = agent_with(policy(cell=cell), 8)
    acting, random = HostPolicy(agent.policy, agent.actor()), np.random.default_rng(0)
    carry = other = acting.start(COUNT)
    for _ in range(4):
        x, reset = random.normal(size=(COUNT, 3)).astype(np.float32), random.random(COUNT) < 0.3
        for noise in random.normal(size=(COUNT, 2)).astype(np.float32), None:
            found, expected = acting(x, carry, reset, noise), act(*acting.parts, x, other, reset, noise)
            assert_same_bits(found, expected)
            assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
        carry, other = found[1], expected[1]


@pytest.mark.parametrize("deterministic", [True, False])
def test_act_carries_the_memory(deterministic: bool) -> None:
    module = policy()
    agent = agent_with(module, 8)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    expected = alone(module, x)
    carry, actions = agent.start(), []
    assert carry["h"].shape == (4,)
    for row in x:
        action, carry = agent.act(row, carry, deterministic=deterministic, seed=0)
        assert action.shape == (2,)
        actions.append(action)
    assert carry["age"] == 6
    if deterministic:
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
    else:  # the same noise at every step, from the seed
        noise = np.asarray(actions) - expected
        np.testing.assert_allclose(noise, np.broadcast_to(noise[:1], noise.shape), rtol=1e-3, atol=1e-4)
        assert np.abs(noise).min() > 1e-3


def test_act_on_a_batch_and_without_memory_begins_an_episode() -> None:
    module = policy()
    agent = agent_with(module, 8)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    carry = agent.start(5)
    assert carry["h"].shape == (5, 4)
    first, carry = agent.act(x[0], carry)
    second, carry = agent.act(x[1], carry)
    assert (first.shape, carry["age"].tolist()) == ((5, 2), [2] * 5)
    for i in range(5):
        np.testing.assert_allclose([first[i], second[i]], alone(module, x[:, i]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(agent.act(x[0]), first)
    with pytest.raises(TypeError, match=r"write deterministic="):
        agent.act(x[0], False)
    plain = Agent.create(EnvSpec("plain", Box((3,)), Choice(2)), trpo.Config())
    assert plain.start() == plain.start(4) == ()
    action, carry = plain.act(x[0, 0], ())
    assert (action.shape, carry) == ((), ())


# ---------------------------------------------------------------- training


class Recall(gym.Env):
    """Two steps: a cue of ±1, then nothing; the second action earns 1 where it matches the cue, else −1."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.time = 2 * int(self.np_random.integers(2)) - 1, 0
        return np.array([self.cue], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        right = 1.0 if (action == 1) == (self.cue == 1) else -1.0
        return np.zeros(1, np.float32), right if self.time == 2 else 0.0, self.time == 2, False, {}

    def snapshot(self) -> dict[str, Any]:
        return {"cue": self.cue, "time": self.time, "random": self.np_random.bit_generator.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.cue, self.time = snapshot["cue"], snapshot["time"]
        self.np_random.bit_generator.state = snapshot["random"]


def recalling() -> trpo.Policy:
    encoder = trpo.make_encoder(Box((1,)))
    return trpo.Policy(encoder, Elman.make((1, 8, 2), scale=0.5), trpo.CategoricalHead(2))


@pytest.mark.slow
def test_what_must_be_remembered_is_learned() -> None:
    """Without memory nothing is better than chance, 0."""
    config = trpo.Config(
        steps=40 * 8 * 15, fragment=15, env=trpo.EnvConfig(count=8), rule=trpo.RuleConfig(max_kl=0.03), discount=0.9
    )
    agent = trpo.make_agent(Recall, config, recalling())
    states, metrics = zip(*trpo.iterations(Recall, agent, config), strict=True)
    assert all(row["mean_kl"] <= row["max_kl"] for row in metrics)
    assert agent.at(states[-1]).evaluate(episodes=40).mean_return == 1.0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_memory_resumes_bit_for_bit(workers: int, tmp_path: Path) -> None:
    """Fragments of odd length: at the break, episodes are under way."""
    env = trpo.EnvConfig(count=8, workers=workers)
    config = trpo.Config(steps=5 * 8 * 7, fragment=7, env=env, value=trpo.ValueConfig(hidden=()))
    whole = trpo.train(Recall, config=config, policy=recalling(), quiet=True)
    short = dataclasses.replace(config, steps=2 * 8 * 7)
    trpo.train(Recall, config=short, policy=recalling(), out=tmp_path / "run", quiet=True)
    resumed = trpo.resume(tmp_path / "run", steps=config.steps, policy=recalling(), env=Recall, quiet=True)
    assert_same_bits(resumed.learner, whole.learner)
    loaded = trpo.load(tmp_path / "run", policy=recalling())
    x = np.ones((3, 1), np.float32)
    np.testing.assert_array_equal(loaded.act(x, loaded.start(3))[1]["h"], whole.act(x, whole.start(3))[1]["h"])


def remembering(name: str, iterations: int, cell: str = "gru", fragment: int = 7, **changes: Any) -> trpo.Config:
    """Fragments whose length is none of episodes': at their ends, episodes are under way."""
    usual = {
        "env": trpo.EnvConfig(name, count=8),
        "rule": trpo.RuleConfig(max_kl=0.03),
        "policy": trpo.PolicyConfig(hidden=(6,), trunk=cell, memory=8),
        "value": trpo.ValueConfig(hidden=(6,), trunk=cell, memory=5, epochs=2),
    }
    return trpo.Config(steps=iterations * 8 * fragment, fragment=fragment, **(usual | changes))


@pytest.mark.parametrize(("env", "cell"), [("probe:memory", "gru"), ("jax-probe:memory", "lstm")])
@pytest.mark.slow
def test_a_cue_is_remembered(env: str, cell: str) -> None:
    config = remembering(env, 30, cell, fragment=32, discount=0.95)
    agent = trpo.train(env, config=config, quiet=True)
    assert agent.evaluate(episodes=40).mean_return == 1.0


@pytest.mark.parametrize(
    ("env", "cell", "workers"),
    [
        ("probe:memory", "gru", 0),
        pytest.param("probe:memory", "lstm", 3, marks=pytest.mark.slow),
        ("jax-probe:memory", "lstm", 0),
    ],
)
def test_a_run_whose_value_function_remembers_resumes_bit_for_bit(
    env: str, cell: str, workers: int, tmp_path: Path
) -> None:
    config = remembering(env, 5, cell, env=trpo.EnvConfig(env, count=8, workers=workers))
    whole = trpo.train(env, config=config, quiet=True)
    first = trpo.train(env, config=remembering(env, 2, cell, env=config.env), out=tmp_path / "run", quiet=True)
    loaded = trpo.load(tmp_path / "run")
    assert_same_bits(loaded.learner, first.learner)
    assert np.abs(loaded.learner.value_carry["h"]).max() > 0
    resumed = trpo.resume(tmp_path / "run", steps=config.steps, quiet=True)
    assert_same_bits(resumed.learner, whole.learner)
    if workers:
        alone = trpo.train(env, config=remembering(env, 5, cell), quiet=True)
        assert_same_bits(alone.learner, whole.learner)


def test_whether_processes_act_apart_is_tried_with_memory_in_use() -> None:
    """Where every episode begins, as at a run's start, memory is 0, and 0 times anything is the same in any batch."""

    class OfBatch(HostPolicy):
        parts = (
            lambda carry, seen: trpo.Categorical(np.where(seen[1][:, None], 0, carry) * np.float32(len(carry))),
            SimpleNamespace(see=lambda observation: observation),
        )

    seat = Seat(np.zeros((4, 1), np.float32), np.zeros((4, 2), np.float32), np.ones(4, bool))
    assert not _same_apart(object.__new__(OfBatch), seat, [slice(0, 2), slice(2, 4)])
    assert _same_apart(object.__new__(OfBatch), seat, [slice(0, 4)])


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILED.append(event) if "backend_compile" in event or "jaxpr_trace" in event else None
)


class Noting(HostSource):
    """Keeps the trajectories that it hands out."""

    def collect(self, policy: HostPolicy, noise: Any) -> Trajectory:
        self.kept = [*getattr(self, "kept", []), super().collect(policy, noise)]
        return self.kept[-1]


def test_every_batch_of_a_run_begins_at_its_own_policy() -> None:
    """While parameters, statistics and memory move on; only the first iteration compiles."""
    config = remembering("probe:memory", 4, normalise_observations=True)
    envs = Resetting(apart=True)
    config = dataclasses.replace(config, env=trpo.EnvConfig(count=COUNT), steps=4 * 7 * COUNT)
    agent = Agent.create(SPEC, config)
    source = Noting(envs, agent.policy.start)
    counts, learners = [], [agent.learner]
    COMPILED.clear()
    for state, row in trpo.iterations(source, agent, config):
        counts.append(len(COMPILED))
        learners.append(state.learner)
        assert row["mean_kl"] <= row["max_kl"]
    assert len(counts) > 3
    assert counts == [counts[0]] * len(counts)
    at_old = problem_of(agent)
    for learner, trajectory in zip(learners[1:], source.kept[1:], strict=False):
        _, ratio, start = at_old(trajectory, learner)
        np.testing.assert_array_equal(ratio, 1.0)
        assert float(start.mean_kl) == float(start.max_state_kl) == 0.0
    assert not (source.kept[-1].terminated | source.kept[-1].truncated)[-1].all()


def test_every_batch_on_the_device_begins_at_its_own_policy() -> None:
    config = remembering("jax-probe:memory", 3, "lstm")
    agent = trpo.make_agent("jax-probe:memory", config)
    source = DeviceSource(make_probe("memory"), agent.spec)
    at_old = problem_of(agent)
    for state, _ in trpo.iterations("jax-probe:memory", agent, config):
        actor = agent.program().freeze(state.learner.policy, state.learner.observations)
        noise = noise_of(agent.policy, actor, 8, (7,), jax.random.key(1))
        _, trajectory, _ = jax.jit(source.collect, static_argnums=0)(agent.policy, actor, state.source, noise)
        _, ratio, start = at_old(trajectory, state.learner)
        np.testing.assert_array_equal(ratio, 1.0)
        assert float(start.mean_kl) == float(start.max_state_kl) == 0.0


@pytest.mark.slow
def test_members_of_a_sweep_are_runs_alone() -> None:
    config = remembering("jax-probe:memory", 3)
    swept = trpo.sweep("jax-probe:memory", seeds=(0, 3), config=config, quiet=True)
    for agent, seed in zip(swept, (0, 3), strict=True):
        alone = trpo.train("jax-probe:memory", config=dataclasses.replace(config, seed=seed), quiet=True)
        for a, b in zip(jax.tree.leaves(agent.learner), jax.tree.leaves(alone.learner), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_state_of_another_number_of_environments_begins_with_new_memory() -> None:
    for env in "probe:memory", "jax-probe:memory":
        config = remembering(env, 1)
        agent = trpo.make_agent(env, config)
        ((state, _),) = trpo.iterations(env, agent, config)
        more = remembering(env, 2, env=trpo.EnvConfig(env, count=12), fragment=7)
        with pytest.warns(UserWarning, match="new episodes begin"):
            *_, (after, _) = trpo.iterations(env, agent, dataclasses.replace(more, steps=56 + 84), state)
        assert after.learner.value_carry["h"].shape == (12, 5)


SHARDED = """
import dataclasses, sys
import jax, numpy as np
import trpo
from trpo.training import layout
sys.path.insert(0, "tests")
from test_memory import remembering

assert jax.device_count() == 4
value = trpo.ValueConfig(hidden=(6,), trunk="gru", memory=5, epochs=2, minibatch=0)
found = []
for devices in (1, 4):
    env = trpo.EnvConfig("jax-probe:memory", count=8, devices=devices)
    config = remembering("jax-probe:memory", 3, value=value, env=env, fisher_subsample=2)
    found.append(trpo.train("jax-probe:memory", config=config, quiet=True).learner)
carry = found[1].value_carry["h"]
print(carry.sharding)
assert len({str(shard.index) for shard in carry.addressable_shards}) == 4
for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1])):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
env = trpo.EnvConfig("jax-probe:memory", count=8, devices=4)
trpo.train("jax-probe:memory", config=remembering("jax-probe:memory", 2, env=env), quiet=True)
"""


@pytest.mark.slow
def test_memory_is_divided_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags_for_devices(4))
    result = run_process([sys.executable, "-c", SHARDED])
    assert result.returncode == 0, result.stderr
