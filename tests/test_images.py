"""Images: which parts of an observation are some, what they go through, and runs that train on them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits

import trpo
from trpo.envs.device import Step
from trpo.envs.host.gymnasium import space_of
from trpo.envs.images import Image, image_of, is_normalised
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Leaf
from trpo.envs.spec import EnvSpec
from trpo.policies.convolutions import NATURE, SMALL, Convolutions, convolve
from trpo.policies.encoders import Flatten, Join
from trpo.policies.make import make_policy
from trpo.rollout import HostPolicy, HostSource, Seat
from trpo.rollout.host import run_fragment
from trpo.training.agent import Agent
from trpo.training.learner import Hyper, estimate, prepare
from trpo.training.sizes import count_parameters

IMAGES: list[tuple[Leaf, Image]] = [
    (Box((84, 84, 3), "uint8", 0, 255), Image(84, 84, 3, False, 255)),
    (Box((4, 84, 84), "uint8", 0, 255), Image(84, 84, 4, True, 255)),
    (Box((210, 160, 3), "uint8", 0, 255), Image(210, 160, 3, False, 255)),
    (Box((3, 210, 160), "uint8", 0, 255), Image(210, 160, 3, True, 255)),
    (Box((7, 7, 3), "uint8", 0, 10), Image(7, 7, 3, False, 10)),
    (Box((96, 96), "uint8", 0, 255), Image(96, 96, 1, False, 255)),
    (Box((64, 64, 3), "float32", 0, 255), Image(64, 64, 3, False, 255)),
    (Box((10, 10, 4), "float32", 0, 1), Image(10, 10, 4, False, 1)),
    (Bits((10, 10, 10), "bool"), Image(10, 10, 10, False, 1)),
    (Box((8, 8, 111), "bool", 0, 1), Image(8, 8, 111, False, 1)),
]
OTHERS = [
    Box((84, 84, 3)),
    Box((7, 7, 3), "float32", -1, 1),
    Box((3, 3, 2), "uint8", 0, 255),
    Box((96, 96), "float32", 0, 255),
    Box((128,), "uint8", 0, 255),
    Box((10, 10, 4), "int32", 0, 9),
    Bits((10, 10)),
    Choice(9),
    Choices((3, 2), (0, 0), (2,)),
]


@pytest.mark.parametrize(("leaf", "image"), IMAGES, ids=str)
def test_what_is_an_image_and_where_its_channels_are(leaf: Leaf, image: Image) -> None:
    assert image_of(leaf) == image
    assert not is_normalised(leaf)
    assert type(trpo.make_encoder(leaf)) is Convolutions


@pytest.mark.parametrize("leaf", OTHERS, ids=str)
def test_what_is_none(leaf: Leaf) -> None:
    """Of these, floating-point numbers are normalised, and nothing else is."""
    assert image_of(leaf) is None
    assert is_normalised(leaf) == (leaf.dtype == "float32")
    assert type(trpo.make_encoder(leaf)) is Flatten


def by_definition(encoder: Convolutions, image: np.ndarray) -> np.ndarray:
    """Features of one image ``[height, width, channels]``, by sums over windows in double precision."""
    x = np.asarray(image, np.float64) / encoder.image.unit
    for kernel, bias, stride in zip(encoder.kernels, encoder.biases, encoder.strides, strict=True):
        k, side = np.asarray(kernel, np.float64), len(kernel)
        windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (0, 1))[::stride, ::stride]
        x = np.maximum(np.einsum("hwcij,ijco->hwo", windows, k) + np.asarray(bias), 0)
    return np.maximum(x.ravel() @ np.asarray(encoder.weight, np.float64) + np.asarray(encoder.bias), 0)


@pytest.mark.parametrize(("shape", "layers"), [((36, 40, 2), NATURE), ((3, 10, 10), SMALL), ((7, 7), SMALL)])
def test_an_encoder_is_its_definition_for_any_leading_axes(shape: tuple[int, ...], layers: Any) -> None:
    leaf = Box(shape, "uint8", 0, 255)
    encoder: Any = trpo.make_encoder(leaf, key=jax.random.key(1))
    moved = [x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)) for x in (*encoder.biases, encoder.bias)]
    encoder = dataclasses.replace(encoder, biases=tuple(moved[:-1]), bias=moved[-1])
    x = np.random.default_rng(0).integers(0, 256, (3, 2, *shape), np.uint8)
    assert [(*k.shape[:2], k.shape[3]) for k in encoder.kernels] == [(side, side, n) for side, _, n in layers[0]]
    assert encoder.size == layers[1]
    found = np.asarray(jax.jit(lambda x: encoder(x))(x))
    image = x if len(shape) == 3 else x[..., None]
    image = np.moveaxis(image, 2, -1) if encoder.image.first else image
    expected = [[by_definition(encoder, one) for one in row] for row in image]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(x[0, 0]), found[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(x[1]), found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "channels", "side", "stride"), [(10, 9, 3, 3, 1), (13, 12, 2, 4, 3)])
def test_a_convolution_and_its_derivatives_are_those_of_the_compiler(
    height: int, width: int, channels: int, side: int, stride: int
) -> None:
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(random.normal(size=(2, height, width, channels)))
        k = jnp.asarray(random.normal(size=(side, side, channels, 5)))

        def compilers(x: Any, k: Any, stride: int) -> Any:
            return jax.lax.conv_general_dilated(
                x, k, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        found, expected = (
            [
                lambda x, k, f=f: f(x, k, stride),
                jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k, stride))), argnums=(0, 1)),
                lambda x, k, f=f: jax.jvp(lambda x, k: f(x, k, stride), (x, k), (x**2, k**2))[1],
            ]
            for f in (convolve, compilers)
        )
        for ours, theirs in zip(found, expected, strict=True):
            for a, b in zip(jax.tree.leaves(ours(x, k)), jax.tree.leaves(theirs(x, k)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_weights_are_orthogonal_and_sizes_are_told_without_them() -> None:
    leaf = Box((40, 40, 1), "uint8", 0, 255)
    encoder: Any = trpo.make_encoder(leaf, key=jax.random.key(0))
    for weight in (*encoder.kernels, encoder.weight):
        matrix = np.asarray(weight).reshape(-1, weight.shape[-1])
        np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), math.sqrt(2), rtol=1e-4)
    spec, config = EnvSpec("image", leaf, Choice(3)), trpo.Config()
    learner = Agent.create(spec, config).learner
    both = sum(x.size for x in jax.tree.leaves((learner.policy, learner.value.params)))
    assert count_parameters(spec, config) == both


def test_what_images_go_through_is_a_setting() -> None:
    image, vector = Box((10, 10, 2), "uint8", 0, 255), Box((3,))
    space = Dict((("camera", image), ("joints", vector), ("goal", Choice(4))))
    encoder: Any = trpo.make_encoder(space, key=jax.random.key(0))
    assert [type(part) for part in encoder.parts] == [Convolutions, Flatten, Flatten]
    assert encoder.size == 128 + 3 + 4
    assert trpo.make_encoder(space, encoding="flat").size == 207
    assert trpo.make_encoder(space, "joints goal").size == 7
    part = trpo.make_encoder(space, "camera[:5]")  # a part of an image is a row of numbers
    assert isinstance(part, Join)
    x = {"camera": np.full((2, 10, 10, 2), 51, np.uint8), "joints": np.ones((2, 3), np.float32)}
    np.testing.assert_allclose(part(x), np.full((2, 5), 0.2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"encoder='cnn': no part of .* may be an image; use auto, or flat"):
        trpo.make_encoder(space, "joints", "cnn")
    assert type(trpo.make_encoder(Box((10, 10, 2)), encoding="cnn")) is Convolutions  # normalised numbers


def test_statistics_are_of_floating_point_numbers_alone() -> None:
    space = Dict((("camera", Box((10, 10, 2), "uint8", 0, 255)), ("count", Box((2,), "int32")), ("mask", Bits((3,)))))
    spec = EnvSpec("parts", Dict((*space.items, ("which", Choice(4)), ("x", Box((3,))))), Choice(2))
    agent = Agent.create(spec, trpo.Config(policy=trpo.PolicyConfig(averaging=0.0)))
    found = agent.learner.observations
    assert [name for name, part in found.items() if part is not None] == ["x"]
    seen = agent.actor().see(spec.observation.zeros(5))
    assert {k: (v.dtype, v.shape) for k, v in seen.items()} == {
        "camera": (np.uint8, (5, 10, 10, 2)),
        "count": (np.float32, (5, 2)),
        "mask": (np.float32, (5, 3)),
        "which": (np.float32, (5, 4)),
        "x": (np.float32, (5, 3)),
    }


# ---------------------------------------------------------------- training

SPACE = gym.spaces.Box(0, 255, (2, 7, 7), np.uint8)


class Side(gym.Env):
    """One step: which half of a noisy image is bright says which action has the reward 1, the other −1."""

    observation_space, action_space = SPACE, gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._side = int(self.np_random.integers(2))
        image = self.np_random.integers(0, 128, SPACE.shape, np.uint8)
        image[:, :, 4 * self._side : 4 * self._side + 3] += 127
        return image, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(SPACE.shape, np.uint8), 1.0 if action == self._side else -1.0, True, False, {}


SEEN = EnvSpec("side", Box((7, 7, 2), "uint8", 0, 255), Choice(2))


@dataclasses.dataclass(frozen=True)
class JaxSide:
    """The same in JAX."""

    spec: EnvSpec = SEEN
    cheap_reset: bool = True

    def reset(self, key: Any) -> tuple[Any, Any]:
        one, two = jax.random.split(key)
        side = jax.random.randint(one, (), 0, 2)
        noise = jax.random.randint(two, (7, 7, 2), 0, 128)
        bright = (jnp.arange(7).reshape(1, 7, 1) // 4) == side
        return side, (noise + 127 * bright).astype(jnp.uint8)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        reward, ended = jnp.where(action == state, 1.0, -1.0), jnp.asarray(True)
        return state, Step(jnp.zeros((7, 7, 2), jnp.uint8), reward, ended, ~ended)


SMALL_RUN = trpo.Config(
    steps=32 * 8 * 8,
    fragment=8,
    env=trpo.EnvConfig(count=32),
    rule=trpo.RuleConfig(max_kl=0.05),
    policy=trpo.PolicyConfig(hidden=(), averaging=0.0),
    value=trpo.ValueConfig(hidden=(), epochs=1, minibatch=256),
    problem=trpo.ProblemConfig(block=100),
)


def made(env: Any) -> Any:
    return env if isinstance(env, JaxSide) else lambda: Side()


@pytest.mark.slow
@pytest.mark.parametrize("env", [Side, JaxSide()], ids=["host", "device"])
def test_runs_on_images_learn(env: Any) -> None:
    agent = trpo.train(made(env), config=SMALL_RUN, quiet=True)
    assert agent.evaluate(episodes=64).mean_return > 0.9


@pytest.mark.parametrize("env", [Side, JaxSide()], ids=["host", "device"])
def test_runs_on_images_keep_bytes_and_are_loaded(env: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL_RUN, steps=32, fragment=4, env=trpo.EnvConfig(count=8))
    config = dataclasses.replace(config, problem=trpo.ProblemConfig(block=20))
    agent = trpo.train(made(env), config=config, out=tmp_path / "run", quiet=True)
    assert agent.learner.observations is None
    image = agent.spec.observation.zeros()
    one, many = agent.act(image), agent.act(np.stack([image, image]))
    assert one.shape == ()
    assert many.tolist() == [one, one]
    assert agent.act(image.tolist()) == one
    with pytest.raises(ValueError, match="whole numbers that uint8 holds"):
        agent.act(image + 0.5)
    again = trpo.load(tmp_path / "run", env=made(env))
    assert_same_bits(again.learner, agent.learner)
    assert again.act(image) == one


def test_the_host_s_and_the_device_s_gymnax_images_have_bounds() -> None:
    gymnax = pytest.importorskip("gymnax")
    assert gymnax is not None
    agent = trpo.make_agent("gymnax:Breakout-MinAtar")
    assert image_of(agent.spec.observation) == Image(10, 10, 4, False, 1)


def test_a_flat_image_is_never_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """A line at the start of a run, and a warning from the caller's own loop."""

    class Large(Side):
        observation_space = gym.spaces.Box(0, 255, (40, 40, 3), np.uint8)

        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
            super().reset(**kwargs)
            return np.zeros((40, 40, 3), np.uint8), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            return np.zeros((40, 40, 3), np.uint8), 0.0, True, False, {}

    flat = trpo.PolicyConfig(hidden=(3,), encoder="flat")
    one = {"steps": 2, "fragment": 1, "env": trpo.EnvConfig(count=2), "value": trpo.ValueConfig(sees=":8")}
    config = trpo.Config(**one, policy=flat)
    said = (
        r"policy: observation is put in a row of 4,800 elements, .* 4,800 × 3 = 14,400 weights; .*policy.encoder=auto"
    )
    agent = trpo.make_agent(lambda: Large(), config)
    with pytest.warns(UserWarning, match=said) as caught:
        next(trpo.iterations(lambda: Large(), agent, config))
    assert len(caught) == 1
    trpo.train(lambda: Large(), config=config)
    assert "policy: observation is put in a row of 4,800 elements" in " ".join(capfd.readouterr().err.split())


# ---------------------------------------------------------------- runs from before images had encoders


def test_a_run_from_before_goes_on_as_it_was(tmp_path: Path) -> None:
    """Integers and images were normalised and put in a row; a config without the setting means that."""
    old = dataclasses.replace(
        SMALL_RUN,
        steps=512,
        fragment=4,
        normalise_all=True,
        policy=dataclasses.replace(SMALL_RUN.policy, encoder="flat"),
        value=dataclasses.replace(SMALL_RUN.value, encoder="flat"),
    )
    run = tmp_path / "run"
    agent = trpo.train(lambda: Side(), config=old, out=run, quiet=True)
    assert agent.learner.observations.mean.shape == (2, 7, 7)
    assert isinstance(agent.module.encoder, Flatten)
    assert agent.module.encoder.unit == 1.0
    data = json.loads((run / "config.json").read_text())
    del data["config"]["normalise_all"], data["config"]["problem"], data["config"]["env"]["drop"]
    for part in ("policy", "value"):
        del data["config"][part]["encoder"]
    (run / "config.json").write_text(json.dumps(data))
    before = agent.evaluate(episodes=16)
    loaded = trpo.load(run, env=lambda: Side())
    assert loaded.evaluate(episodes=16) == before
    trpo.resume(run, steps=768, env=lambda: Side(), quiet=True)
    assert json.loads((run / "config.json").read_text())["config"]["normalise_all"] is True


def test_normalised_images_are_not_scaled_again() -> None:
    spec = EnvSpec("image", Box((7, 7, 2), "uint8", 0, 255), Choice(2))
    policy = make_policy(spec, trpo.PolicyConfig(), jax.random.key(0), scaled=False)
    assert policy.encoder.image.unit == 1.0


def test_spaces_without_arrays_of_one_shape_are_refused_with_the_cure() -> None:
    text, sequence = gym.spaces.Text(9), gym.spaces.Sequence(gym.spaces.Box(0, 1, (2,)))
    graph = gym.spaces.Graph(gym.spaces.Box(0, 1, (2,)), None)
    for part, cure in ((text, "; leave it out (--env.drop a/b);"), (sequence, "--env.drop a/b"), (graph, "padded")):
        space = gym.spaces.Dict({"a": gym.spaces.Dict({"b": part})})
        with pytest.raises(ValueError, match=r"^observation space at \['a'\]\['b'\]: .*$") as error:
            space_of(space)
        assert cure in str(error.value)
    with pytest.raises(ValueError, match="wrap the environment so that it shows numbers"):
        space_of(text)


class Counting(gym.Env):
    """The image says how many steps an episode has had; a third of the episodes terminate, the others are cut."""

    observation_space, action_space = gym.spaces.Box(0, 255, (5, 5, 1), np.uint8), gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        super().reset(**kwargs)
        self._time, self._end = 0, int(self.np_random.integers(1, 5))
        return self._seen(), {}

    def _seen(self) -> np.ndarray:
        return np.full((5, 5, 1), 10 * self._end + self._time, np.uint8)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        over = self._time == self._end
        return self._seen(), 1.0, over and self._end == 3, over and self._end != 3, {}


def test_successors_that_are_kept_once_are_the_dense_ones() -> None:
    """Advantages of the same fragment either way; with more truncated episodes than rows, which then grow."""
    envs = trpo.make_envs(lambda: Counting(), 3)
    config = trpo.Config(
        env=trpo.EnvConfig(count=3), fragment=12, policy=SMALL_RUN.policy, value=trpo.ValueConfig(hidden=())
    )
    agent = trpo.make_agent(envs, config)
    program, learner, hyper = agent.program(), agent.learner, Hyper.of(config)
    # A scale of returns, so that V is not 0.
    returns = learner.value.returns.merge(jnp.arange(3.0), jnp.ones(3))
    learner = dataclasses.replace(learner, value=dataclasses.replace(learner.value, returns=returns))
    actor, noise, _ = prepare(program, learner.policy, learner.observations, jax.random.key(0), 0)
    policy, noise = HostPolicy(agent.policy, actor), np.asarray(noise)

    def fragment(rows: int) -> Any:
        seat = Seat(envs.reset([1, 2, 3]), (), np.ones(3, bool))
        return run_fragment(envs, policy, seat, noise, rows=rows)[0]

    dense, once = fragment(0), fragment(3)
    assert dense.truncated.sum() > 6
    assert dense.terminated.any()
    assert len(once.next_observation.step) in (6, 12, 24)
    one, two = (estimate(program, hyper, learner, jax.tree.map(jnp.asarray, each), 0) for each in (dense, once))
    assert np.ptp(one.value) > 0
    np.testing.assert_allclose(two.advantage, one.advantage, rtol=1e-5, atol=1e-6)
    source = HostSource(envs)
    source.restart([1, 2, 3])
    rows = [len(source.collect(policy, noise).next_observation.step) for _ in range(4)]
    assert rows[0] >= 6
    assert len(set(rows[1:])) == 1
