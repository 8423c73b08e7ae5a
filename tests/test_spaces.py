"""Spaces: what the simulator receives for a policy's action, and descriptions that survive in a file."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from trpo.envs import ActionSpec, EnvSpec, UnsupportedSpaceError, to_env_action
from trpo.envs.names import make_envs
from trpo.envs.spec import action_spec, check_observation_space

INF = float("inf")


def box(low: Any, high: Any, dtype: Any = np.float32) -> ActionSpec:
    return action_spec(spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype))


def converted(spec: ActionSpec, rows: Any, rescale: bool = False, dtype: Any = np.float32) -> np.ndarray:
    return to_env_action(spec, np.asarray(rows, dtype), rescale)


# ---------------------------------------------------------------- Box


def test_box_is_clipped_to_each_dimension_s_own_bounds() -> None:
    spec = box([-1, 0], [1, 5])
    given = np.array([[-3.0, -3.0], [0.25, 2.5], [3.0, 9.0]], np.float32)
    before = given.copy()
    np.testing.assert_array_equal(to_env_action(spec, given, False), [[-1, 0], [0.25, 2.5], [1, 5]])
    np.testing.assert_array_equal(given, before)  # the policy's own action stays as it was sampled


def test_rescaling_maps_minus_one_to_one_onto_finite_bounds() -> None:
    spec = box([-2, 0], [2, 10])
    expected = [[-2, 0], [0, 5], [2, 10], [1, 7.5], [2, 10], [-2, 0]]
    rows = [[-1, -1], [0, 0], [1, 1], [0.5, 0.5], [7, 7], [-7, -7]]
    np.testing.assert_array_equal(converted(spec, rows, rescale=True), expected)


def test_dimensions_without_two_finite_bounds_are_never_rescaled() -> None:
    spec = box([-2, -INF, 1, -INF], [2, INF, INF, 3])
    rows = [[0.5, 0.5, 0.5, 0.5], [-9, -9, -9, -9], [9, 9, 9, 9]]
    expected = [[1, 0.5, 1, 0.5], [-2, -9, 1, -9], [2, 9, 9, 3]]
    np.testing.assert_array_equal(converted(spec, rows, rescale=True), expected)
    expected[0][0] = 0.5
    np.testing.assert_array_equal(converted(spec, rows, rescale=False), expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_nan_becomes_zero_and_infinity_the_bound(rescale: bool) -> None:
    got = converted(box([-2, 1], [2, 3]), [[np.nan, np.nan], [INF, -INF]], rescale)
    assert got[0, 0] == 0
    assert 1 <= got[0, 1] <= 3  # 0 is out of bounds here
    np.testing.assert_array_equal(got[1], [2, 1])


def test_actions_have_the_environment_s_type_and_shape() -> None:
    wide = box(np.full((2, 3), -1), np.full((2, 3), 1), np.float64)
    got = converted(wide, [np.arange(6) / 10])
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.arange(6, dtype=np.float32).reshape(1, 2, 3) / np.float32(10))
    assert converted(box([0], [1]), [[0.5]], dtype=np.float64).dtype == np.float32
    scalar = action_spec(spaces.Box(-1.0, 1.0, ()))
    assert scalar.size == 1
    assert converted(scalar, [[5.0], [0.5]]).shape == (2,)


def test_integer_boxes_are_rounded_not_truncated() -> None:
    spec = box([0, 0], [4, 255], np.uint8)
    got = converted(spec, [[0.6, 254.6], [3.4, 300.0], [-2.0, 0.4]])
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, [[1, 255], [3, 255], [0, 0]])


@pytest.mark.parametrize("rescale", [False, True])
def test_random_actions_always_lie_in_the_space(rescale: bool) -> None:
    random = np.random.default_rng(0)
    for low, high, dtype in [([-0.4] * 17, [0.4] * 17, np.float32), ([-1e6, 0], [1e-6, INF], np.float64)]:
        space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
        rows = random.normal(size=(50, len(low))) * 10 ** random.uniform(-3, 3, (50, 1))
        for action in converted(action_spec(space), rows, rescale):
            assert space.contains(action)


# ---------------------------------------------------------------- discrete kinds


def test_discrete_actions_begin_at_start() -> None:
    space = spaces.Discrete(3, start=-1)
    got = to_env_action(action_spec(space), np.array([0, 1, 2]), True)
    assert got.tolist() == [-1, 0, 1]
    assert all(space.contains(a) for a in got)


def test_multi_discrete_has_start_and_may_be_two_dimensional() -> None:
    space = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]]))
    spec = action_spec(space)
    assert spec.sizes == (2, 3, 4, 5)
    got = to_env_action(spec, np.array([[0, 0, 0, 0], [1, 2, 3, 4]]), True)
    np.testing.assert_array_equal(got, [[[0, 10], [-3, 1]], [[1, 12], [0, 5]]])
    assert all(space.contains(a) for a in got)


def test_multi_binary_of_any_shape() -> None:
    for shape in (3, (2, 2)):
        space = spaces.MultiBinary(shape)
        spec = action_spec(space)
        bits = np.random.default_rng(0).integers(0, 2, (5, spec.size)).astype(np.int32)
        got = to_env_action(spec, bits, True)
        np.testing.assert_array_equal(got.reshape(5, -1), bits)
        assert all(space.contains(a) for a in got)


# ---------------------------------------------------------------- files


def everything() -> list[ActionSpec]:
    return [
        box([-1, -INF, 0, -INF], [1, INF, INF, 2], np.float64),
        action_spec(spaces.Box(-1.0, 1.0, ())),
        box(np.zeros((2, 2)), np.full((2, 2), 9), np.int64),
        action_spec(spaces.Discrete(1)),
        action_spec(spaces.Discrete(4, start=2)),
        action_spec(spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]]))),
        action_spec(spaces.MultiBinary((2, 2))),
    ]


@pytest.mark.parametrize("spec", everything(), ids=lambda spec: f"{spec.kind}{spec.shape}")
def test_a_spec_survives_strict_json(spec: ActionSpec) -> None:
    for shape in (None, (), (7,), (1, 7)):
        whole = EnvSpec("Some-v0", 7, spec, shape)
        text = json.dumps(whole.to_json(), allow_nan=False)
        assert EnvSpec.from_json(json.loads(text)) == whole


def test_specs_without_an_observation_shape_can_be_read() -> None:
    data = EnvSpec("Some-v0", 7, action_spec(spaces.Discrete(2)), (7,)).to_json()
    del data["observation_shape"]
    assert EnvSpec.from_json(data).observation_shape is None


# ---------------------------------------------------------------- what is not supported


def text_env(observation: gym.Space, action: gym.Space) -> Any:
    class Env(gym.Env):
        def __init__(self) -> None:
            self.observation_space, self.action_space = observation, action

    return Env


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Dict(a=spaces.Dict(b=spaces.Text(5))), "['a']['b']"),
        (spaces.Dict(a=spaces.Discrete(2), c=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])), "['c'][1]"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence"),
        (spaces.Tuple([spaces.Graph(spaces.Discrete(2), None)]), "[0]"),
        (spaces.Text(4), "Text"),
    ],
    ids=str,
)
def test_unsupported_observations_name_the_part_and_the_cure(space: gym.Space, part: str) -> None:
    with pytest.raises(UnsupportedSpaceError) as caught:
        make_envs(text_env(space, spaces.Discrete(2)), 1)
    for words in (part, "supported are", "MultiBinary"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "space",
    [spaces.Dict(a=spaces.Discrete(2)), spaces.Tuple([spaces.Discrete(2)]), spaces.Text(4)],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_actions_name_the_space_and_the_cure(space: gym.Space) -> None:
    with pytest.raises(UnsupportedSpaceError) as caught:
        make_envs(text_env(spaces.Box(0, 1, (2,)), space), 1)
    for words in (str(space), "action space", "supported are", "MultiDiscrete"):
        assert words in str(caught.value)


def test_supported_observations_pass() -> None:
    fine = [spaces.Box(0, 255, (3, 4, 4), np.uint8), spaces.Discrete(3), spaces.MultiDiscrete([2, 2])]
    for space in [*fine, spaces.MultiBinary(2), spaces.Tuple(fine), spaces.Dict(a=spaces.Dict(b=fine[0]))]:
        check_observation_space(space)
