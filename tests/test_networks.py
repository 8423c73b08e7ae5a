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
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Leaf, Space, Tuple, UnsupportedSpaceError
from trpo.envs.spec import EnvSpec
from trpo.policies.encoders import ENCODERS, Encoder
from trpo.policies.function import to_numpy
from trpo.policies.heads import HEADS, Head, make_head
from trpo.policies.make import make_policy

KEY = jax.random.key(7)
NUMBERS = trpo.make_encoder(Box((4,)))
MODULES = {
    "gaussian": lambda: trpo.Policy(NUMBERS, trpo.mlp(KEY, (4, 8, 6, 2)), trpo.GaussianHead(jnp.array([-0.5, 0.3]))),
    "state-dependent": lambda: trpo.Policy(
        NUMBERS, trpo.mlp(KEY, (4, 8, 4), "relu"), trpo.StateDependentGaussianHead(jnp.array([0.1, 0.2]))
    ),
    "categorical": lambda: trpo.Policy(NUMBERS, trpo.mlp(KEY, (4, 8, 3)), trpo.CategoricalHead(3)),
    "multi": lambda: trpo.Policy(NUMBERS, trpo.mlp(KEY, (4, 8, 5), "relu"), trpo.MultiCategoricalHead((2, 3))),
    "bernoulli": lambda: trpo.Policy(NUMBERS, trpo.mlp(KEY, (4, 8, 3)), trpo.BernoulliHead(3)),
    "value": lambda: trpo.ValueFunction(NUMBERS, trpo.mlp(KEY, (4, 8, 1))),
}


def of(module: Any, x: Any) -> Any:
    """What a module without memory makes of observations."""
    return module((), (x, None))[0]


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


@pytest.mark.parametrize(("sees", "seen", "gain"), [("", 4, 0.2), (":2", 2, math.sqrt(2))])
def test_auto_gain_counts_the_elements_that_are_seen(sees: str, seen: int, gain: float) -> None:
    config = trpo.Config(
        policy=trpo.PolicyConfig(hidden=(3, 3), hidden_layer_scale="auto", sees=sees),
        value=trpo.ValueConfig(hidden=(3, 3), hidden_layer_scale="auto", sees=sees),
    )
    agent = trpo.make_agent("CartPole-v1", config)
    for params in (agent.learner.policy, agent.learner.value.params):
        first = next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
        assert first.shape == (seen, 3)
        np.testing.assert_allclose(np.linalg.svd(first, compute_uv=False), gain, rtol=1e-5)


@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize(("dimensions", "length"), [(1, 0.25), (3, 0.25), (6, 0.25), (9, 0.3), (16, 0.4)])
def test_auto_bound_on_sigma_gives_noise_the_same_least_length_in_every_dimension(
    dimensions: int, length: float, state_dependent: bool
) -> None:
    """√(Σ σᵢ²) = 0.25 where σ is as small as it can be, σᵢ ≥ 0.1, and at the start σ is what is configured."""
    config = trpo.PolicyConfig(initial_std=0.4, min_std="auto", state_dependent_std=state_dependent)
    policy = make_policy(EnvSpec("test", Box((3,)), Box((dimensions,), low=-1.0, high=1.0)), config, KEY)
    np.testing.assert_allclose(np.exp(of(policy, jnp.zeros(3)).log_std), 0.4, rtol=1e-5)
    head = dataclasses.replace(policy.head, log_std=jnp.full(dimensions, -30.0))
    least = of(dataclasses.replace(policy, head=head), jnp.zeros(3))
    np.testing.assert_allclose(np.linalg.norm(np.exp(least.log_std)), length, rtol=1e-5)


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
    host = to_numpy(module)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(host))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    whole = of(module, jnp.asarray(x))
    ours = of(host, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == np.float32
        assert a.shape[:2] == (2, 5)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    one = of(host, x[1, 3])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b[1, 3], rtol=1e-5, atol=1e-6)


def test_heads() -> None:
    x, log_std = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), jnp.array([-0.5, 0.3])
    tiny = jnp.full(2, -50.0)

    def std(head: Any) -> np.ndarray:
        return np.exp(head(jnp.asarray(x[:, : head.size])).log_std)

    np.testing.assert_allclose(std(trpo.GaussianHead(log_std)), np.tile(np.exp([-0.5, 0.3]), (3, 1)), rtol=1e-6)
    expected = np.tile(0.2 + np.exp([-0.5, 0.3]), (3, 1))
    np.testing.assert_allclose(std(trpo.GaussianHead(log_std, 0.2)), expected, rtol=1e-6)
    np.testing.assert_allclose(std(trpo.GaussianHead(tiny, 0.2)), 0.2, rtol=1e-6)
    each = np.exp(x[:, 2:] + np.array([[-0.5, 0.3]]))
    np.testing.assert_allclose(std(trpo.StateDependentGaussianHead(log_std)), each, rtol=1e-6)
    np.testing.assert_allclose(std(trpo.StateDependentGaussianHead(log_std, 0.3)), 0.3 + each, rtol=1e-6)
    for head in (trpo.GaussianHead(log_std), trpo.StateDependentGaussianHead(log_std)):
        np.testing.assert_array_equal(head(jnp.asarray(x[:, : head.size])).mean, x[:, :2])
    assert trpo.MultiCategoricalHead((1, 3))(jnp.asarray(x)).sizes == (1, 3)
    assert of(MODULES["value"](), jnp.asarray(x)).shape == (3,)


ACTIONS = {Box: Box((2, 3)), Choice: Choice(3, 1), Choices: Choices((2, 3), (0, 1), (2,)), Bits: Bits((3,))}
"""A space of every kind."""


@pytest.mark.parametrize("kind", ACTIONS, ids=lambda kind: kind.__name__)
def test_every_kind_of_action_has_a_head_whose_actions_the_environment_takes(kind: type[Leaf]) -> None:
    assert ACTIONS.keys() == HEADS.keys()
    space = ACTIONS[kind]
    head = make_head(space, initial_std=0.5, min_std=0.0, state_dependent_std=False, distribution="auto")
    assert isinstance(head, Head)
    distribution = head(jnp.zeros((4, head.size)))
    action = space.to_env(np.asarray(distribution.sample(KEY)))
    assert action.shape == (4, *space.shape)
    assert action.dtype == space.dtype
    assert distribution.entropy().shape == (4,)


def test_a_space_without_a_head_is_named() -> None:
    class Odd(Box):
        """A kind of space that no table knows."""

    with pytest.raises(UnsupportedSpaceError, match=r"no head for actions of a Odd; there are heads for Box, Choice"):
        make_head(Tuple((Odd((1,)),)))


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("kind", ACTIONS, ids=lambda kind: kind.__name__)
def test_every_kind_of_observation_has_an_encoder(kind: type[Leaf]) -> None:
    assert ACTIONS.keys() == ENCODERS.keys()
    space = ACTIONS[kind]
    encoder = trpo.make_encoder(space)
    assert isinstance(encoder, Encoder)
    x = space.numbers(space.zeros(2, 5))
    assert encoder(x).shape == (2, 5, encoder.size)
    assert type(encoder(x)) is np.ndarray
    assert encoder.size == math.prod(space.number_shape)


ARM = Dict(
    (("joints", Box((4,))), ("hand", Dict((("grip", Choice(3)), ("camera", Box((2, 2), "uint8"))))), ("t", Box(())))
)
PAIR = Tuple((Box((2,)), Bits((3,))))


def named(space: Space) -> tuple[Any, dict[str, np.ndarray]]:
    """Numbers of an observation, two steps of three environments, and every leaf's in one row by its path."""
    random = np.random.default_rng(0)
    x = space.map(lambda leaf: random.normal(size=(2, 3, *leaf.number_shape)))
    rows = {}
    for path, _ in space.leaves():
        part = x
        for key in path:
            part = part[key]
        rows["/".join(map(str, path))] = part.reshape(2, 3, -1)
    return x, rows


@pytest.mark.parametrize(
    ("space", "sees", "expected"),
    [
        (ARM, "", ["joints", "hand/grip", "hand/camera", "t"]),
        (ARM, "t joints", ["joints", "t"]),  # in the space's order
        (ARM, "hand", ["hand/grip", "hand/camera"]),
        (ARM, "hand/camera[1:3] joints[:2]", [("joints", 0, 2), ("hand/camera", 1, 3)]),
        (ARM, "joints[3:] t", [("joints", 3, 4), "t"]),
        (PAIR, "1[:1]", [("1", 0, 1)]),
        (Box((4,)), ":3", [("", 0, 3)]),
        (Box((4,)), "2:3 :1", [("", 0, 1), ("", 2, 3)]),
        (ARM, "joints[2:] t joints[:1]", [("joints", 0, 1), ("joints", 2, 4), "t"]),
        (Box((2, 3)), "[2:5]", [("", 2, 5)]),
        (Choice(4), "[1:]", [("", 1, 4)]),
    ],
)
def test_what_is_seen(space: Space, sees: str, expected: list[Any]) -> None:
    x, rows = named(space)
    parts = [rows[part] if isinstance(part, str) else rows[part[0]][..., part[1] : part[2]] for part in expected]
    encoder = trpo.make_encoder(space, sees)
    np.testing.assert_array_equal(encoder(x), np.concatenate(parts, -1))
    assert encoder.size == encoder(x).shape[-1]
    one = space.map(lambda leaf, part: part[1, 2], x)
    np.testing.assert_array_equal(encoder(one), encoder(x)[1, 2])


@pytest.mark.parametrize(
    ("space", "sees", "message"),
    [
        (ARM, "jaw", r"sees='jaw': an observation has no part 'jaw'; it has joints, hand/grip, hand/camera, t"),
        (ARM, "t join", r"no part 'join'; it has"),
        (ARM, "grip", r"no part 'grip'; it has"),
        (ARM, ":3", r"no part ':3'; it has"),
        (ARM, "joints[2:5]", r"'joints\[2:5\]' is not within the 4 elements of that part"),
        (ARM, "joints[2:2]", r"is not within the 4 elements"),
        (ARM, "joints[1]", r"must be NAME, NAME\[BEGIN:END\] or :END, such as joints\[:7\]"),
        (Box((3,)), ":4", r"':4' is not within the 3 elements"),
        (Box((3,)), ":-1", r"must be NAME"),
        (Box((3,)), "x", r"no part 'x'"),
    ],
)
def test_what_cannot_be_seen_is_said(space: Space, sees: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trpo.make_encoder(space, sees)


def test_the_value_function_may_see_more_than_the_policy() -> None:
    config = trpo.Config(policy=trpo.PolicyConfig(hidden=(3,), sees=":2"), value=trpo.ValueConfig(hidden=(3,)))
    agent = trpo.make_agent("CartPole-v1", config)
    a, b = np.array([[0.3, -0.4, 0.1, 0.9], [0.3, -0.4, 5.0, -7.0]], np.float32)
    p, q = (agent.policy(agent.learner.policy, (), (x, None))[0] for x in (a, b))
    np.testing.assert_array_equal(p.logits, q.logits)
    v, w = (agent.program().value_of(agent.learner.value.params, x) for x in (a, b))
    assert abs(float(v - w)) > 1e-3


# ---------------------------------------------------------------- modules as functions


@pytest.mark.parametrize("name", MODULES)
def test_as_policy_round_trip(name: str) -> None:
    module = MODULES[name]()
    function, params = trpo.as_policy(module)
    assert function.start(3) == ()
    x = jnp.ones((3, 4))
    for a, b in zip(jax.tree.leaves(function(params, (), (x, None))[0]), jax.tree.leaves(of(module, x)), strict=True):
        np.testing.assert_array_equal(a, b)
    # Every floating-point array of the module is a parameter (PITFALLS row 19: log σ among them).
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(module))


def test_any_callable_is_a_policy_without_memory() -> None:
    network = trpo.mlp(KEY, (4, 8, 3))
    function, params = trpo.as_policy(network)
    x = jnp.ones((3, 4))
    outputs, carry = function(params, function.start(3), (x, jnp.ones(3, bool)))
    assert carry == ()
    np.testing.assert_array_equal(outputs, network(x))
    assert trpo.memoryless(function) is function


def test_equal_structures_share_one_compilation() -> None:
    traces = []

    def apply(function: Any, params: Any, x: jax.Array) -> Any:
        traces.append(1)
        return function(params, (), (x, None))[0]

    compiled = jax.jit(apply, static_argnums=0)
    for seed in range(3):
        policy = trpo.Policy(NUMBERS, trpo.mlp(jax.random.key(seed), (4, 8, 3)), trpo.CategoricalHead(3))
        compiled(*trpo.as_policy(policy), jnp.ones((2, 4)))
    assert len(traces) == 1
    other = trpo.Policy(NUMBERS, trpo.mlp(KEY, (4, 8, 3), "relu"), trpo.CategoricalHead(3))
    compiled(*trpo.as_policy(other), jnp.ones((2, 4)))
    assert len(traces) == 2
