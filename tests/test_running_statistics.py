"""Merging against NumPy's moments of the concatenation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo

merge = jax.jit(lambda statistics, x, present: statistics.merge(x, present))


def merged(parts: list[np.ndarray], masks: list[np.ndarray] | None = None) -> trpo.RunningStatistics:
    shape = parts[0].shape[1:]
    statistics = trpo.RunningStatistics.zeros(shape, parts[0].dtype)
    for i, part in enumerate(parts):
        present = np.ones(len(part)) if masks is None else masks[i]
        statistics = merge(statistics, part, present.astype(part.dtype))
    return statistics


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_order_and_size_of_batches_do_not_matter(order: tuple[int, ...], offset: float, x64: None) -> None:
    data = np.random.default_rng(0).normal(offset, [1.0, 3.0], (60, 2))
    parts = np.split(data, [1, 41])
    statistics = merged([parts[i] for i in order])
    assert statistics.count == 60
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.variance, data.var(0), rtol=1e-9)


def test_float32_survives_a_large_offset() -> None:
    """Mean 10⁴ and deviation 1: E[x²] − E[x]² would lose everything."""
    data = np.random.default_rng(1).normal(1e4, 1.0, (40, 50, 2)).astype(np.float32)
    statistics = merged(list(data))
    np.testing.assert_allclose(statistics.mean, data.astype(np.float64).mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(statistics.variance, data.astype(np.float64).var((0, 1)), rtol=1e-2)


def test_absent_rows_count_for_nothing_whatever_they_hold(x64: None) -> None:
    data = np.random.default_rng(2).normal(size=(30, 2))
    mask = (np.arange(30) % 3 > 0).astype(float)
    dirty = np.where(mask[:, None] > 0, data, np.nan)
    statistics = merged([dirty[:10], dirty[10:]], [mask[:10], mask[10:]])
    assert statistics.count == 20
    np.testing.assert_allclose(statistics.mean, data[mask > 0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, data[mask > 0].var(0), rtol=1e-12)
    again = merge(statistics, np.full((5, 2), np.nan), np.zeros(5))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_leading_axes(x64: None) -> None:
    data = np.random.default_rng(3).normal(size=(6, 5, 2, 2))
    statistics = merge(trpo.RunningStatistics.zeros((2, 2), jnp.float64), data, np.ones((6, 5)))
    np.testing.assert_allclose(statistics.mean, data.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, data.var((0, 1)), rtol=1e-12)


def test_nothing_seen_normalises_to_itself() -> None:
    x = jnp.array([[0.5, -2.0]])
    np.testing.assert_array_equal(trpo.RunningStatistics.zeros((2,)).normalise(x, 10.0), x)


def test_normalise_centres_scales_and_clips() -> None:
    data = np.random.default_rng(4).normal([3.0, -1.0], [2.0, 0.1], (500, 2)).astype(np.float32)
    statistics = merged([data])
    z = np.asarray(statistics.normalise(jnp.asarray(data), 1.5))
    expected = np.clip((data - data.mean(0)) / data.std(0), -1.5, 1.5)
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(z).max() == np.float32(1.5)


@pytest.mark.parametrize("scale", [1e-32, 1e-18, 1e-7, 1.0, 1e7, 1e18, 1e36])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_unit_of_data_does_not_matter(scale: float, order: tuple[int, ...]) -> None:
    """PITFALLS row 36: squares of the outer ones are not in float32's range; parts differ in size, too."""
    data = np.random.default_rng(7).normal(0.5, 1, (60, 3)) * np.repeat([1e-3, 1, 10], 20)[:, None]
    parts = np.split((data * scale).astype(np.float32), 3)
    statistics = merged([parts[i] for i in order])
    np.testing.assert_allclose(statistics.mean, data.mean(0) * scale, rtol=1e-5)
    np.testing.assert_allclose(statistics.std, data.std(0) * scale, rtol=1e-5)
    z = statistics.normalise((data * scale).astype(np.float32), 5.0)
    np.testing.assert_allclose(z, np.clip((data - data.mean(0)) / data.std(0), -5, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e18, -1e36])
def test_one_huge_number_is_a_number(size: float) -> None:
    data = np.random.default_rng(8).normal(size=(40, 2)).astype(np.float32)
    data[7, 0] = size
    for parts in (np.split(data, 4), np.split(data[::-1], 4)):
        statistics = merged(parts)
        np.testing.assert_allclose(statistics.mean, data.astype(np.float64).mean(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.std, data.astype(np.float64).std(0), rtol=1e-5)
        assert np.isfinite(statistics.normalise(data, 10.0)).all()


def test_what_varies_after_it_was_zero_has_its_own_scale() -> None:
    small = np.float32(1e-25) * np.where(np.arange(60)[:, None] % 2, 1, -1).astype(np.float32)
    statistics = merged([np.zeros((20, 1), np.float32), small])
    np.testing.assert_allclose(statistics.std, 1e-25 * np.sqrt(0.75), rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 1000.0, -0.1, 1e-7, 1e-30, 1e30])
def test_an_element_that_never_varied_is_only_centred(constant: float) -> None:
    data = np.random.default_rng(5).normal(size=(64, 2)).astype(np.float32)
    data[:, 1] = constant
    statistics = merged(list(np.split(data, 8)))
    z = np.asarray(statistics.normalise(jnp.array([[0.0, constant], [0.0, 1.5 * constant]]), 1e38))
    np.testing.assert_allclose(z[:, 1], [0.0, 0.5 * constant], atol=2e-7 * abs(constant))


def test_numpy_path_is_the_jax_path() -> None:
    data = np.random.default_rng(6).normal([3.0, -1.0], [2.0, 0.1], (100, 2)).astype(np.float32)
    statistics = merged([data])
    host = jax.tree.map(np.asarray, statistics)
    ours = host.normalise(data, 2.0)
    assert type(ours) is np.ndarray
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, statistics.normalise(jnp.asarray(data), 2.0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(host.variance, statistics.variance, rtol=1e-6)
