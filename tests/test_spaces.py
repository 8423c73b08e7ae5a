"""Spaces: what the simulator receives for a policy's action, and descriptions that survive in a file."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trpo.envs import Bits, Box, Choice, Choices, Dict, EnvSpec, Space, Tuple, UnsupportedSpaceError
from trpo.envs.host.gymnasium import space_of
from trpo.envs.names import make_envs
from trpo.envs.spaces import flat
from trpo.policies.encoders import make_encoder

INF = float("inf")


def actions_of(space: gym.Space) -> Any:
    return space_of(space, of_actions=True)


def box(low: Any, high: Any, dtype: Any = np.float32) -> Box:
    return actions_of(spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype))


def converted(space: Space, rows: Any, rescale: bool = False, dtype: Any = np.float32) -> np.ndarray:
    return EnvSpec("", space, space).with_options(rescale, flatten=False).action.to_env(np.asarray(rows, dtype))


# ---------------------------------------------------------------- Box


def test_box_is_clipped_to_each_dimension_s_own_bounds() -> None:
    spec = box([-1, 0], [1, 5])
    given = np.array([[-3.0, -3.0], [0.25, 2.5], [3.0, 9.0]], np.float32)
    before = given.copy()
    np.testing.assert_array_equal(spec.to_env(given), [[-1, 0], [0.25, 2.5], [1, 5]])
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
    scalar = actions_of(spaces.Box(-1.0, 1.0, ()))
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
        for action in converted(actions_of(space), rows, rescale):
            assert space.contains(action)


# ---------------------------------------------------------------- discrete kinds


def test_discrete_actions_begin_at_start() -> None:
    space = spaces.Discrete(3, start=-1)
    got = actions_of(space).to_env(np.array([0, 1, 2]))
    assert got.tolist() == [-1, 0, 1]
    assert all(space.contains(a) for a in got)


def test_multi_discrete_has_start_and_may_be_two_dimensional() -> None:
    space = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]]))
    spec = actions_of(space)
    assert spec.sizes == (2, 3, 4, 5)
    got = spec.to_env(np.array([[0, 0, 0, 0], [1, 2, 3, 4]]))
    np.testing.assert_array_equal(got, [[[0, 10], [-3, 1]], [[1, 12], [0, 5]]])
    assert all(space.contains(a) for a in got)


def test_multi_binary_of_any_shape() -> None:
    for shape in (3, (2, 2)):
        space = spaces.MultiBinary(shape)
        spec = actions_of(space)
        bits = np.random.default_rng(0).integers(0, 2, (5, spec.size)).astype(np.int32)
        got = spec.to_env(bits)
        np.testing.assert_array_equal(got.reshape(5, -1), bits)
        assert all(space.contains(a) for a in got)


# ---------------------------------------------------------------- files


SPACES: list[gym.Space] = [
    spaces.Box(np.array([-1, -INF, 0, -INF]), np.array([1, INF, INF, 2]), dtype=np.float64),
    spaces.Box(-1.0, 1.0, ()),
    spaces.Box(0, 9, (2, 2), np.int64),
    spaces.Box(-(2**40), 2**40, (3,), np.int64),
    spaces.Box(0, 2**32 - 1, (3,), np.uint32),
    spaces.Box(0, 65535, (3,), np.uint16),
    spaces.Box(0, 255, (4, 3, 1), np.uint8),
    spaces.Discrete(1),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]])),
    spaces.MultiBinary((2, 2)),
]
TREES: list[gym.Space] = [
    spaces.Dict(b=spaces.Box(-1.0, 1.0, (2, 3)), a=spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiBinary(2)])),
    spaces.Tuple([spaces.Dict(z=spaces.Discrete(2), y=spaces.Dict(x=SPACES[2])), SPACES[0], SPACES[-2]]),
]


@pytest.mark.parametrize("space", [*SPACES, *TREES], ids=str)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_spec_survives_strict_json(space: gym.Space, rescale: bool) -> None:
    seen = space_of(space)
    for action in (seen, *([] if space in TREES else [actions_of(space)])):
        whole = EnvSpec("Some-v0", seen, action).with_options(rescale, flatten=False)
        read = EnvSpec.from_json(json.loads(json.dumps(whole.to_json(), allow_nan=False)))
        assert read == whole
        assert hash(read) == hash(whole)  # they are static arguments of compiled functions


# ---------------------------------------------------------------- spaces of observations


def test_spaces_are_described_leaf_by_leaf() -> None:
    space = spaces.Dict(
        far=spaces.Box(np.array([-1, -2]), np.array([INF, INF]), dtype=np.float64),
        near=spaces.Tuple([spaces.MultiBinary(3), spaces.Discrete(4, start=2)]),
        pixels=spaces.Box(0, 255, (3, 2), np.uint8),
        wheels=spaces.MultiDiscrete([2, 5]),
    )
    assert space_of(space) == Dict(
        (
            ("far", Box((2,), "float32", (-1.0, -2.0), INF)),
            ("near", Tuple((Bits((3,), "int8"), Choice(4, 2, "int32")))),
            ("pixels", Box((3, 2), "uint8", 0.0, 255.0)),
            ("wheels", Choices((2, 5), (0, 0), (2,), "int32")),
        )
    )


@pytest.mark.parametrize(
    ("low", "high", "given", "kept"),
    [
        (0, 255, "uint8", "uint8"),
        (-5, 5, "int8", "int8"),
        (0, 9, "uint16", "uint16"),
        (-5, 5, "int32", "int32"),
        (-(2**31), 2**31 - 1, "int64", "int32"),
        (-(2**31) - 1, 0, "int64", "float32"),
        (0, 2**31, "int64", "float32"),
        (0, 2**31 - 1, "uint32", "int32"),
        (0, 2**31, "uint32", "float32"),
        (-1, 1, "float16", "float32"),
        (-1, 1, "float64", "float32"),
    ],
)
def test_observations_keep_a_type_that_has_room_for_them(low: int, high: int, given: str, kept: str) -> None:
    space = spaces.Box(np.full(2, low, given), np.full(2, high, given), dtype=np.dtype(given).type)
    assert space_of(space).dtype == kept  # type: ignore[attr-defined]
    assert actions_of(space).dtype == given


@pytest.mark.parametrize("space", [*SPACES, *TREES], ids=str)
def test_samples_fit_and_their_numbers_are_gymnasium_s(space: gym.Space) -> None:
    """Also in batches of any rank; and what has another shape or lacks a part does not fit."""
    described = space_of(space)
    space.seed(3)
    samples = [space.sample() for _ in range(6)]
    assert all(described.fits(sample) == () for sample in samples)
    columns = described.zeros(2, 3)
    for i, sample in enumerate(samples):
        described.map(lambda leaf, column, part, i=i: column.__setitem__((i // 3, i % 3), part), columns, sample)
    assert described.fits(columns) == (2, 3)
    expected = np.stack([np.float32(spaces.flatten(space, sample)).ravel() for sample in samples])
    np.testing.assert_array_equal(flat(described, columns).reshape(6, -1), expected)
    flattened = EnvSpec("", described, described).flattened().observation
    assert flattened == Box((expected.shape[1],))
    if all(leaf.shape for _, leaf in described.leaves()):  # anything is an array of numbers
        assert described.fits(described.map(lambda leaf, part: np.zeros((*leaf.shape, 2, 7)), columns)) is None
    if isinstance(columns, dict):
        assert described.fits({name: columns[name] for name in list(columns)[1:]}) is None


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("space", [space for space in SPACES if np.all(getattr(space, "high", 0) != INF)], ids=str)
def test_a_policy_s_actions_lie_in_the_space(space: gym.Space, rescale: bool) -> None:
    action = EnvSpec("", Box((1,)), actions_of(space)).with_options(rescale, flatten=False).action
    random = np.random.default_rng(0)
    given: Any
    if isinstance(action, Choice):
        given = random.integers(action.n, size=20)
    elif isinstance(action, Box):
        given = 5 * random.normal(size=(20, action.size)).astype(np.float32)
    else:
        sizes = action.sizes if isinstance(action, Choices) else (2,) * action.size  # type: ignore[attr-defined]
        given = np.stack([random.integers(n, size=20) for n in sizes], axis=-1)
    rows = action.to_env(given)
    assert action.fits(rows) == (20,)
    assert all(space.contains(row) for row in rows)


# ---------------------------------------------------------------- every action is in its space

WIDE = float(np.finfo(np.float32).max)
TYPES = ("uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bool")


@st.composite
def action_spaces(draw: Any) -> gym.Space:
    """Spaces of actions of any type, with bounds that are absent, at the ends of the type, huge, or ordinary."""
    kind = draw(st.sampled_from(["box", "box", "box", "discrete", "multi", "bits"]))
    start = st.integers(-(2**62), 2**62)
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 5)), start=draw(start))
    if kind == "multi":
        return spaces.MultiDiscrete(draw(st.lists(st.integers(1, 5), min_size=2, max_size=2)), start=[draw(start), -1])
    if kind == "bits":
        return spaces.MultiBinary(draw(st.sampled_from([2, (2, 2)])))
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    if dtype.kind == "b":
        return spaces.Box(0, 1, (2,), bool)
    if dtype.kind == "f":
        wide = float(np.finfo(dtype).max)
        bound = st.one_of(st.floats(-wide, wide, width=8 * dtype.itemsize), st.sampled_from([wide, -wide, 0.0]))
        none = st.sampled_from([INF])
    else:
        limits = np.iinfo(dtype)
        bound = st.one_of(st.integers(limits.min, limits.max), st.sampled_from([limits.min, limits.max, 0, 3]))
        none = st.sampled_from([INF] if dtype.kind == "i" else [limits.max])
    first, second = draw(bound), draw(bound)
    low, high = min(first, second), max(first, second)
    low = -INF if dtype.kind != "u" and draw(st.booleans()) else low
    high = draw(none) if draw(st.booleans()) else high
    return spaces.Box(low, high, (2,), dtype.type)


NUMBERS = st.one_of(st.floats(-3, 3, width=32), st.floats(width=32), st.sampled_from([-1.0, 1.0, 0.0]))


@given(action_spaces(), st.booleans(), st.lists(NUMBERS, min_size=8, max_size=8), st.integers(0, 2**32 - 1))
@example(space=spaces.Box(-(2**63) + 512, -(2**63) + 512, (2,), np.int64), rescale=False, numbers=[0.0] * 8, seed=0)
@settings(max_examples=300, deadline=None)
def test_whatever_a_policy_chooses_is_in_the_space(space: gym.Space, rescale: bool, numbers: Any, seed: int) -> None:
    """NaN and infinities too; and after a journey through a file."""
    action = EnvSpec("", Box((1,)), actions_of(space)).with_options(rescale, flatten=False).action
    assert EnvSpec.from_json(json.loads(json.dumps(EnvSpec("", Box((1,)), action).to_json()))).action == action
    random = np.random.default_rng(seed)
    if isinstance(action, Box):
        chosen = np.array(numbers, np.float32).reshape(4, 2)
    elif isinstance(action, Choice):
        chosen = random.integers(action.n, size=4).astype(np.int32)
    else:
        sizes = action.sizes if isinstance(action, Choices) else (2,) * action.size  # type: ignore[attr-defined]
        chosen = np.stack([random.integers(n, size=4) for n in sizes], axis=-1).astype(np.int32)
    for row in action.to_env(chosen):
        assert space.contains(row), (row, row.dtype)
        assert np.all(np.isfinite(row))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, INF, (2,), np.int64),
        spaces.Box(-INF, INF, (2,), np.int32),
        spaces.Box(0, np.iinfo(np.int32).max, (2,), np.int32),
        spaces.Box(-INF, 3, (2,), np.int8),
        spaces.Box(0, 2**32 - 1, (2,), np.uint32),
        spaces.Box(-WIDE, WIDE, (2,)),
        spaces.Box(-WIDE, WIDE, (2,), np.float64),
        spaces.Box(-2.0, float(np.finfo(np.float64).max), (2,), np.float64),
        spaces.Box(-INF, INF, (2,), np.float16),
    ],
    ids=str,
)
def test_what_has_no_two_bounds_is_not_rescaled(space: gym.Space) -> None:
    """Neither the ends of floats nor those of integers of 32 bits are bounds; nor what Gymnasium puts for infinity."""
    for rescale in (False, True):
        got = converted(actions_of(space), [[0.0, 1.0], [2.4, 1.6]], rescale)
        expected = [[0.0, 1.0], [2.4, 1.6]] if got.dtype.kind == "f" else [[0, 1], [2, 2]]
        np.testing.assert_allclose(got, np.asarray(expected, got.dtype), rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "middle"),
    [
        (spaces.Box(0, 255, (1,), np.uint8), 128),
        (spaces.Box(0, 100, (1,), np.uint32), 50),  # 0 is the end of the type, and a bound
        (spaces.Box(0, 2**62, (1,), np.int64), 2**61),
        (spaces.Box(-1e30, 3e30, (1,)), 1e30),
    ],
    ids=str,
)
def test_large_and_small_bounds_are_bounds(space: gym.Space, middle: float) -> None:
    got = converted(actions_of(space), [[0.0], [-1.0], [1.0]], rescale=True)[:, 0]
    low, high = (float(x[0]) for x in (space.low, space.high))  # type: ignore[attr-defined]
    np.testing.assert_allclose(got.astype(float), [middle, low, high], rtol=1e-6)


def test_bounds_that_no_double_is_lose_nothing() -> None:
    space = spaces.Box(2**62 + 1, 2**62 + 10, (1,), np.int64)
    assert actions_of(space).low == 2**62 + 1
    got = converted(actions_of(space), [[-5.0], [5.0], [np.nan]], rescale=True)
    assert all(space.contains(row) for row in got)
    old = Box((1,), "int64", low=0.0, high=float(2**63 - 1))  # as a file of before has it
    assert converted(old, [[INF], [-1.0], [0.4]], rescale=True)[:, 0].tolist() == [2**63 - 1024, 0, 0]


# ---------------------------------------------------------------- what is not supported


@pytest.mark.parametrize(
    ("observation", "action", "what"),
    [
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), r"its observation space Box\(.*\(0,\), float32\) is empty"),
        (spaces.Box(0, 1, (2, 0)), spaces.Discrete(2), "its observation space"),
        (spaces.Dict({}), spaces.Discrete(2), r"its observation space Dict\(\) is empty"),
        (spaces.Tuple([]), spaces.Discrete(2), r"its observation space Tuple\(\) is empty"),
        (spaces.Dict(a=spaces.Box(0, 1, (0,))), spaces.Discrete(2), "its observation space"),
        (spaces.Discrete(2), spaces.Box(0, 1, (0,)), r"environment 'Env': its action space Box.* is empty"),
        (spaces.Discrete(2), spaces.MultiDiscrete(np.zeros(0, int)), "its action space"),
    ],
    ids=str,
)
@pytest.mark.parametrize("flatten", [False, True])
def test_empty_spaces_are_refused_by_name(observation: gym.Space, action: gym.Space, what: str, flatten: bool) -> None:
    with pytest.raises(UnsupportedSpaceError, match=what):
        make_envs(text_env(observation, action), 1, flatten=flatten)


def test_a_part_of_an_observation_may_be_empty() -> None:
    space = Dict((("nothing", Box((0,))), ("something", Box((2,)))))
    encoder = make_encoder(space)
    assert encoder.size == 2
    seen = {"nothing": np.zeros((3, 0)), "something": np.ones((3, 2))}
    np.testing.assert_array_equal(encoder(seen), np.ones((3, 2)))
    np.testing.assert_array_equal(flat(space, seen), np.ones((3, 2)))


def test_numbers_of_choices_beyond_32_bits_are_refused_as_observations() -> None:
    for space in (spaces.Discrete(3, start=2**31), spaces.MultiDiscrete([2, 2], start=[0, -(2**40)])):
        with pytest.raises(UnsupportedSpaceError, match="32 bits"):
            space_of(spaces.Dict(a=space))
        assert actions_of(space)


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
    [spaces.Dict(a=spaces.Discrete(2), b=spaces.Text(4)), spaces.Tuple([spaces.Text(4)]), spaces.Text(4)],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_actions_name_the_space_and_the_cure(space: gym.Space) -> None:
    with pytest.raises(UnsupportedSpaceError) as caught:
        make_envs(text_env(spaces.Box(0, 1, (2,)), space), 1)
    for words in (str(spaces.Text(4)), "action space", "supported are", "MultiDiscrete"):
        assert words in str(caught.value)


@pytest.mark.parametrize("space", [spaces.Dict(a=spaces.Dict()), spaces.Tuple([spaces.Box(0, 1, (0,))])], ids=str)
def test_actions_without_elements_are_refused(space: gym.Space) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"action space .* is empty"):
        make_envs(text_env(spaces.Box(0, 1, (2,)), space), 1)
