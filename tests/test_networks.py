"""Initialisation, the NumPy pass, and modules as pure functions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo
from trpo.envs.spec import ActionSpec, EnvSpec
from trpo.policies.function import to_numpy
from trpo.training.agent import make_policy

KEY = jax.random.key(7)
MODULES = {
    "gaussian": lambda: trpo.GaussianPolicy(trpo.mlp(KEY, (4, 8, 6, 2)), jnp.array([-0.5, 0.3])),
    "state-dependent": lambda: trpo.StateDependentGaussianPolicy(
        trpo.mlp(KEY, (4, 8, 4), "relu"), jnp.array([0.1, 0.2])
    ),
    "categorical": lambda: trpo.CategoricalPolicy(trpo.mlp(KEY, (4, 8, 3))),
    "multi": lambda: trpo.MultiCategoricalPolicy(trpo.mlp(KEY, (4, 8, 5), "relu"), (2, 3)),
    "bernoulli": lambda: trpo.BernoulliPolicy(trpo.mlp(KEY, (4, 8, 3))),
    "value": lambda: trpo.ValueFunction(trpo.mlp(KEY, (4, 8, 1))),
}


@pytest.mark.parametrize("hidden_scale", [math.sqrt(2), 0.5])
@pytest.mark.parametrize("sizes", [(3, 8, 2), (8, 3, 3), (5, 2)])
def test_weights_are_orthogonal_with_the_stated_gains(sizes: tuple[int, ...], hidden_scale: float) -> None:
    network = trpo.mlp(KEY, sizes, last_scale=0.01, hidden_scale=hidden_scale)
    gains = [hidden_scale] * (len(sizes) - 2) + [0.01]
    assert [w.shape for w in network.weights] == list(itertools.pairwise(sizes))
    for weight, gain in zip(network.weights, gains, strict=True):
        w = np.asarray(weight, np.float64)
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-6 * gain**2)
    assert not any(np.any(b) for b in network.biases)
    other = trpo.mlp(jax.random.key(8), sizes)
    assert not np.array_equal(other.weights[0], network.weights[0])
    again = trpo.mlp(KEY, sizes, last_scale=0.01, hidden_scale=hidden_scale)
    np.testing.assert_array_equal(again.weights[0], network.weights[0])


def test_gain_is_the_spread_of_a_hidden_units_input() -> None:
    """Inputs of unit variance enter units of the first layer with variance g²; Monte Carlo, five standard errors."""
    network = trpo.mlp(KEY, (40, 16, 2), hidden_scale=3**-0.5)
    x = np.random.default_rng(0).normal(size=(20_000, 40))
    entering = x @ np.asarray(network.weights[0], np.float64)
    np.testing.assert_allclose(np.var(entering, axis=0), 1 / 3, rtol=5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize(("inputs", "gain"), [(1, math.sqrt(2)), (17, math.sqrt(2)), (64, math.sqrt(2)), (65, 0.2)])
def test_auto_gain_is_small_with_more_inputs_than_units(inputs: int, gain: float) -> None:
    network = trpo.mlp(KEY, (inputs, 64, 64, 2), hidden_scale="auto")
    for weight in network.weights[:2]:
        np.testing.assert_allclose(np.linalg.svd(weight, compute_uv=False), gain, rtol=1e-5)


@pytest.mark.parametrize(("seen", "gain"), [(0, 0.2), (2, math.sqrt(2))])
def test_auto_gain_counts_the_elements_that_are_seen(seen: int, gain: float) -> None:
    config = trpo.Config(
        observed_elements=seen,
        policy=trpo.PolicyConfig(hidden=(3, 3), hidden_layer_scale="auto"),
        value=trpo.ValueConfig(hidden=(3, 3), hidden_layer_scale="auto"),
    )
    agent = trpo.make_agent("CartPole-v1", config)
    for params in (agent.learner.policy, agent.learner.value.params):
        first = next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
        assert first.shape == (seen or 4, 3)
        np.testing.assert_allclose(np.linalg.svd(first, compute_uv=False), gain, rtol=1e-5)


@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize(("dimensions", "length"), [(1, 0.25), (3, 0.25), (6, 0.25), (9, 0.3), (16, 0.4)])
def test_auto_bound_on_sigma_gives_noise_the_same_least_length_in_every_dimension(
    dimensions: int, length: float, state_dependent: bool
) -> None:
    """√(Σ σᵢ²) = 0.25 where σ is as small as it can be, σᵢ ≥ 0.1, and at the start σ is what is configured."""
    config = trpo.PolicyConfig(initial_std=0.4, min_std="auto", state_dependent_std=state_dependent)
    action = ActionSpec("box", (dimensions,), "float32", low=(-1.0,) * dimensions, high=(1.0,) * dimensions)
    policy = make_policy(EnvSpec("test", 3, action), config, KEY)
    np.testing.assert_allclose(np.exp(policy(jnp.zeros(3)).log_std), 0.4, rtol=1e-5)
    least = dataclasses.replace(policy, log_std=jnp.full(dimensions, -30.0))
    np.testing.assert_allclose(np.linalg.norm(np.exp(least(jnp.zeros(3)).log_std)), length, rtol=1e-5)


def test_auto_bound_on_sigma_above_its_start_is_refused() -> None:
    config = trpo.PolicyConfig(initial_std=0.2, min_std="auto")
    assert config.std_bound(2) == pytest.approx(0.25 / math.sqrt(2))
    with pytest.raises(ValueError, match=r"policy.min_std=0.25: must be ≥ 0 and below policy.initial_std=0.2"):
        trpo.make_agent("Pendulum-v1", trpo.Config(policy=config))


def test_agents_have_the_configured_gains() -> None:
    config = trpo.Config(
        policy=trpo.PolicyConfig(hidden_layer_scale=0.5, last_layer_scale=0.1),
        value=trpo.ValueConfig(hidden_layer_scale=0.25),
    )
    agent = trpo.make_agent("CartPole-v1", config)
    for params, expected in ((agent.learner.policy, [0.5, 0.5, 0.1]), (agent.learner.value.params, [0.25, 0.25, 1.0])):
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        gains = [np.linalg.svd(w, compute_uv=False) for w in weights]
        for gain, value in zip(gains, expected, strict=True):
            np.testing.assert_allclose(gain, value, rtol=1e-5)


def test_layers_draw_independently() -> None:
    network = trpo.mlp(KEY, (4, 4, 4, 4))
    assert not np.allclose(network.weights[0], network.weights[1], atol=1e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_forward_pass_by_hand(activation: str, x64: None) -> None:
    network = trpo.mlp(KEY, (3, 5, 2), activation, dtype=jnp.float64)
    network = jax.tree.map(lambda leaf: leaf + 0.1, network)
    x = np.random.default_rng(0).normal(size=(6, 3))
    (w1, w2), (b1, b2) = map(np.asarray, network.weights), map(np.asarray, network.biases)
    hidden = np.tanh(x @ w1 + b1) if activation == "tanh" else np.clip(x @ w1 + b1, 0, None)
    np.testing.assert_allclose(network(jnp.asarray(x)), hidden @ w2 + b2, rtol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_numpy_pass_is_the_jax_pass_for_any_leading_axes(name: str) -> None:
    module = jax.tree.map(lambda leaf: leaf + 0.05, MODULES[name]())
    function, params = trpo.as_function(module)
    host = to_numpy(params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(host))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    whole = function(params, jnp.asarray(x))
    ours = function(host, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == np.float32
        assert a.shape[:2] == (2, 5)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    one = function(host, x[1, 3])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b[1, 3], rtol=1e-5, atol=1e-6)


def test_heads() -> None:
    x = jnp.ones((3, 4))
    gaussian = MODULES["gaussian"]()(x)
    np.testing.assert_allclose(gaussian.log_std, np.tile([-0.5, 0.3], (3, 1)), rtol=1e-6)
    dependent = MODULES["state-dependent"]()
    outputs = np.asarray(dependent.network(x))
    np.testing.assert_allclose(dependent(x).mean, outputs[:, :2], rtol=1e-6)
    np.testing.assert_allclose(dependent(x).log_std, outputs[:, 2:] + np.array([[0.1, 0.2]]), rtol=1e-6)
    floored = dataclasses.replace(MODULES["gaussian"](), min_std=0.2)
    expected = 0.2 + np.exp([-0.5, 0.3])
    np.testing.assert_allclose(np.exp(floored(x).log_std), np.tile(expected, (3, 1)), rtol=1e-6)
    low = dataclasses.replace(floored, log_std=jnp.full(2, -50.0))
    np.testing.assert_allclose(np.exp(low(x).log_std), 0.2, rtol=1e-6)
    floored = dataclasses.replace(dependent, min_std=0.3)
    np.testing.assert_allclose(
        np.exp(floored(x).log_std), 0.3 + np.exp(outputs[:, 2:] + np.array([[0.1, 0.2]])), rtol=1e-6
    )
    assert MODULES["multi"]()(x).sizes == (2, 3)
    assert MODULES["value"]()(x).shape == (3,)


@pytest.mark.parametrize("name", MODULES)
def test_as_function_round_trip(name: str) -> None:
    module = MODULES[name]()
    function, params = trpo.as_function(module)
    x = jnp.ones((3, 4))
    for a, b in zip(jax.tree.leaves(function(params, x)), jax.tree.leaves(module(x)), strict=True):
        np.testing.assert_array_equal(a, b)
    # Every floating-point array of the module is a parameter (PITFALLS row 19: log σ among them).
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(module))


def test_equal_structures_share_one_compilation() -> None:
    traces = []

    def apply(function: Any, params: Any, x: jax.Array) -> Any:
        traces.append(1)
        return function(params, x)

    compiled = jax.jit(apply, static_argnums=0)
    for seed in range(3):
        policy = trpo.CategoricalPolicy(trpo.mlp(jax.random.key(seed), (4, 8, 3)))
        compiled(*trpo.as_function(policy), jnp.ones((2, 4)))
    assert len(traces) == 1
    compiled(*trpo.as_function(trpo.CategoricalPolicy(trpo.mlp(KEY, (4, 8, 3), "relu"))), jnp.ones((2, 4)))
    assert len(traces) == 2
