"""PPO: the clipped surrogate by its definition, an update by hand, and runs that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from problems import batch_of, setting

import trpo
from trpo.envs.spaces import Box
from trpo.objectives import clipped_surrogate
from trpo.problem import Rows
from trpo.rules.protocol import Result
from trpo.training.agent import Agent
from trpo.trees import shuffled

NAME = "gaussian-tanh"


def test_the_clipped_surrogate_is_its_definition() -> None:
    """Eq. 7 of Schulman et al. 2017, ratio by ratio: a gain ends at 1 ± ε, a loss does not."""
    log_ratio, advantage = np.log([0.5, 0.9, 1.0, 1.1, 2.0]), np.array([1.0, -1.0])
    for a in advantage:
        for lr in log_ratio:
            distribution = trpo.Categorical(jnp.asarray([lr, np.log(1e-9)]))
            old = distribution.log_prob(jnp.asarray(0)) - jnp.asarray(lr, jnp.float32)
            found = clipped_surrogate(distribution, jnp.asarray(0), old, jnp.asarray(a), jnp.asarray(1.0), 0.2)
            ratio = np.exp(lr)
            expected = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def by_hand(rule: Any, policy: Any, params: Any, batch: Any, order: np.ndarray) -> Any:
    """The update as a loop over minibatches: log-density, clipping and Adam (Kingma and Ba 2015) written out."""
    flat = jax.tree.map(lambda x: np.asarray(x, np.float64).reshape(-1, *x.shape[batch.weight.ndim :]), batch)
    theta, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params))

    def log_prob(theta: Any, rows: Any) -> Any:
        d = policy(unravel(theta), flat.observation[rows])
        z = (flat.action[rows] - d.mean) / jnp.exp(d.log_std)
        return jnp.sum(-0.5 * z**2 - d.log_std - 0.5 * jnp.log(2 * jnp.pi), -1)

    old, m, v = log_prob(theta, slice(None)), 0.0, 0.0
    for t, rows in enumerate(order, 1):
        weight = flat.weight[rows] / flat.weight[rows].sum()

        def loss(theta: Any, rows: Any = rows, weight: Any = weight) -> Any:
            ratio, a = jnp.exp(log_prob(theta, rows) - old[rows]), flat.advantage[rows]
            return jnp.sum(weight * jnp.where(a > 0, jnp.minimum(ratio, 1.2), jnp.maximum(ratio, 0.8)) * a)

        g = jax.grad(loss)(theta)
        g = g * min(1.0, rule.max_gradient_norm / float(jnp.linalg.norm(g)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta + rule.learning_rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-5)
    return unravel(theta)


def test_an_update_is_adam_on_the_clipped_surrogate_of_shuffled_minibatches() -> None:
    with jax.enable_x64(True):
        policy, params, _ = setting(NAME)
        batch, params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (batch_of(NAME), params))
        rule = trpo.PPO(epochs=3, minibatch=7, learning_rate=0.02, max_gradient_norm=0.3)
        problem = trpo.sampled_problem(policy, params, batch)
        new, state, info = rule.update(problem, params, rule.init(params))
        n = batch.weight.size
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
        order = np.concatenate([np.asarray(shuffled(key, n))[: n // 7 * 7].reshape(-1, 7) for key in keys])
        expected = by_hand(rule, policy, params, batch, order)
        for ours, theirs in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)
        assert info.result == Result.ACCEPTED
        assert info.surrogate_gain > 0
        np.testing.assert_allclose(info.mean_kl, problem.mean_kl(new), rtol=1e-10)
        # The next batch is taken in another order, and the step size falls as it is told to.
        after, _, _ = rule.update(problem, params, state)
        assert not all(map(jnp.array_equal, jax.tree.leaves(after), jax.tree.leaves(new)))
        ended = trpo.PPO(decay_updates=1.0)
        still, _, _ = ended.update(problem, params, state)
        assert all(map(jnp.array_equal, jax.tree.leaves(still), jax.tree.leaves(params)))


def test_what_is_not_finite_keeps_the_policy_and_the_moments() -> None:
    policy, params, _ = setting(NAME)
    batch = batch_of(NAME)
    problem = trpo.sampled_problem(policy, params, batch)
    rule = trpo.PPO(epochs=1, minibatch=1000, learning_rate=3e38, max_gradient_norm=1e38)
    new, state, info = rule.update(problem, params, rule.init(params))
    assert info.result == Result.NONFINITE_TRIAL
    assert all(map(jnp.array_equal, jax.tree.leaves(new), jax.tree.leaves(params)))
    assert all(map(jnp.array_equal, jax.tree.leaves(state.optimiser), jax.tree.leaves(rule.init(params).optimiser)))


def test_of_a_policy_with_memory_a_minibatch_is_whole_columns() -> None:
    spec = trpo.EnvSpec("memory", Box((3,)), Box((2,)))
    config = trpo.Config(policy=trpo.PolicyConfig(hidden=(4,), trunk="gru", memory=5))
    agent = Agent.create(spec, config)
    policy, params = agent.policy, agent.learner.policy
    random = np.random.default_rng(0)
    shape = (6, 4)
    batch = trpo.Batch(
        observation=jnp.asarray(random.normal(size=(*shape, 3)), jnp.float32),
        action=jnp.asarray(random.normal(size=(*shape, 2)), jnp.float32),
        advantage=jnp.asarray(random.normal(size=shape), jnp.float32),
        weight=jnp.full(shape, 1 / 24),
        carry=jax.tree.map(lambda x: x + 0.3, policy.start(4)),
        reset=jnp.asarray(random.random(shape) < 0.2),
    )
    problem = trpo.sampled_problem(policy, params, batch)
    rows = problem.rows
    assert isinstance(rows, Rows)
    assert rows.count == 4
    whole = problem.distributions(params)
    distributions, each = rows.part(jnp.asarray([2, 0]))
    part = distributions(params)
    np.testing.assert_allclose(part.mean, whole.mean[:, jnp.asarray([2, 0])], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(each["weight"], 1 / 12, rtol=1e-6)
    rule = trpo.PPO(epochs=2, minibatch=12)
    _, _, info = rule.update(problem, params, rule.init(params))
    assert info.result == Result.ACCEPTED
    assert info.surrogate_gain > 0


@pytest.mark.parametrize("env", ["jax-probe:both", pytest.param("CartPole-v1", marks=pytest.mark.slow)])
def test_a_run_uses_it_and_goes_on(env: str, tmp_path: Path) -> None:
    config = trpo.Config(
        steps=512,
        fragment=32,
        env=trpo.EnvConfig(count=4),
        rule=trpo.RuleConfig(name="ppo", decay_steps=1024, epochs=2),
        policy=trpo.PolicyConfig(hidden=(8,)),
        value=trpo.ValueConfig(hidden=(8,), epochs=1),
    )
    through = trpo.train(env, config=config, steps=1024, out=tmp_path / "through", quiet=True)
    trpo.train(env, config=config, out=tmp_path / "parts", quiet=True)
    again = trpo.resume(tmp_path / "parts", steps=1024, quiet=True)
    for ours, theirs in zip(jax.tree.leaves(again.learner), jax.tree.leaves(through.learner), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ValueError, match=r"rollout='vine': must be single-path with rule\.name=ppo"):
        trpo.Config(rollout="vine", rule=trpo.RuleConfig(name="ppo"))
    with pytest.raises(ValueError, match=r"rule\.decay_steps=5: must be 0, as the rule is not ppo"):
        trpo.RuleConfig(decay_steps=5)
    with pytest.raises(ValueError, match=r"rule\.clip=0\.3: rule 'trpo' does not use it"):
        trpo.Config(rule=trpo.RuleConfig(clip=0.3))
