"""The two fits of V, against a plain Optax loop and dense least squares."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from helpers import assert_same_bits

import trpo
from trpo.trees import shuffled
from trpo.value_fits.fit import ValueBatch, ValueInfo, ValueState, explained_variance, fit_value, predict

N, D = 24, 3


def linear(params: dict, observation: jax.Array) -> jax.Array:
    return observation @ params["w"] + params["b"]


def data(seed: int = 0, dtype: Any = np.float32, scale: float = 1.0) -> ValueBatch:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D))
    target = scale * (x @ [1.0, -2.0, 0.5] + 0.7 + 0.1 * rng.normal(size=N))
    weight = rng.uniform(0.5, 1.5, N)
    return ValueBatch(*(jnp.asarray(v, dtype) for v in (x, target, weight / weight.sum())))


def start(method: Any, dtype: Any = np.float32) -> ValueState:
    params = {"w": jnp.asarray([0.3, -0.1, 0.2], dtype), "b": jnp.asarray(0.0, dtype)}
    return ValueState(params, method.init(params), trpo.RunningStatistics.zeros((), dtype))


@partial(jax.jit, static_argnames="normalise")
def fit(method: Any, state: ValueState, batch: ValueBatch, seed: int = 0, normalise: bool = True) -> Any:
    return fit_value(method, linear, state, batch, jax.random.key(seed), normalise)


explained = jax.jit(explained_variance)


def loss(params: dict, batch: ValueBatch) -> float:
    return float(jnp.sum(batch.weight * (linear(params, batch.observation) - batch.target) ** 2))


def test_adam_on_the_whole_batch_is_a_plain_optax_loop(x64: None) -> None:
    """Two fits in a row, so that the moments are seen to carry over."""
    method = trpo.AdamFit(learning_rate=0.01, epochs=4, minibatch=0)
    state = start(method, np.float64)
    params, adam = state.params, optax.adam(0.01)
    moments = adam.init(params)
    objective = jax.jit(jax.grad(lambda p, b: 0.5 * jnp.sum(b.weight * (linear(p, b.observation) - b.target) ** 2)))
    for seed in range(2):
        batch = data(seed, np.float64)
        state, info = fit(method, state, batch, normalise=False)
        for _ in range(4):
            updates, moments = adam.update(objective(params, batch), moments, params)
            params = optax.apply_updates(params, updates)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)
        np.testing.assert_allclose(info.loss, loss(params, batch), rtol=1e-10)


@pytest.mark.parametrize("minibatch", [9, 60])
@pytest.mark.parametrize(("strata", "columns"), [(1, 0), (3, 0), (3, 2)])
def test_adam_on_minibatches_is_a_plain_optax_loop_too(strata: int, columns: int, minibatch: int, x64: None) -> None:
    """Weights sum to 1 within every minibatch, rows left over are left out; strata change where rows are, not which.

    Of 60 rows a stratum has room for less than all, of 9 for all.
    """
    few, n = data(dtype=np.float64), 10 * N
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf * (1 + 0.1 * i) for i in range(10)]), few)
    weight = batch.weight * 100.0 ** -(jnp.arange(n) % 7)
    batch = ValueBatch(batch.observation, batch.target, weight / weight.sum())
    method = trpo.AdamFit(learning_rate=0.01, epochs=2, minibatch=minibatch)
    state, key = start(method, np.float64), jax.random.key(4)
    adam, params = optax.adam(0.01), state.params
    moments = adam.init(params)
    objective = jax.jit(jax.grad(lambda p, x, y, w: 0.5 * jnp.sum(w * (linear(p, x) - y) ** 2)))
    for epoch in jax.random.split(key, 2):
        order = np.array(shuffled(epoch, n))[: n // minibatch * minibatch]
        for rows in np.split(order, n // minibatch):
            x, y, w = (np.asarray(leaf)[rows] for leaf in jax.tree.leaves(batch))
            updates, moments = adam.update(objective(params, x, y, w / w.sum()), moments, params)
            params = optax.apply_updates(params, updates)

    def divided(leaf: jax.Array) -> jax.Array:
        groups = (
            leaf.reshape(-1, strata, columns, *leaf.shape[1:])
            if columns
            else leaf.reshape(1, strata, -1, *leaf.shape[1:])
        )
        return jnp.moveaxis(groups, 1, 0).reshape(strata, -1, *leaf.shape[1:])

    if strata > 1:
        batch = dataclasses.replace(jax.tree.map(divided, batch), columns=columns)
    found, _ = jax.jit(lambda b: method.minimise(linear, state.params, state.optimiser, b, key))(batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_every_epoch_uses_each_row_once_in_a_new_order() -> None:
    """V notes which rows it is asked about; rows carry their number as the only feature."""
    seen: list[np.ndarray] = []

    def noting(params: jax.Array, observation: jax.Array) -> jax.Array:
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), observation[:, 0], ordered=True)
        return params * observation[:, 0]

    batch = ValueBatch(jnp.arange(8.0)[:, None], jnp.arange(8.0), jnp.full(8, 1 / 8))
    method = trpo.AdamFit(learning_rate=0.1, epochs=3, minibatch=2)
    params = jnp.zeros(())
    jax.block_until_ready(
        jax.jit(lambda key: method.minimise(noting, params, method.init(params), batch, key))(jax.random.key(0))
    )
    jax.effects_barrier()
    epochs = np.concatenate([rows for rows in seen if len(rows) == 2]).reshape(3, 8)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(8), (3, 1)))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.arange(8))


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 1024, 2**16, 2**16 + 1])
def test_shuffling_is_a_permutation(n: int) -> None:
    rows = np.asarray(shuffled(jax.random.key(3), n))
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


def test_a_long_permutation_ascends_as_often_as_not() -> None:
    """The standard deviation of the share of ascents is 1 / √(12 n) = 0.0011."""
    order = np.asarray(shuffled(jax.random.key(0), 2**16 + 1))
    assert np.mean(np.diff(order) > 0) == pytest.approx(0.5, abs=0.006)


def test_every_permutation_is_equally_likely() -> None:
    draws = np.asarray(jax.vmap(lambda k: shuffled(k, 4))(jax.random.split(jax.random.key(0), 24_000)))
    _, counts = np.unique(draws @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # Many rows: where an index lands does not depend on it, nor on where its neighbour lands.
    n = 2**12
    many = np.asarray(jax.vmap(lambda k: shuffled(k, n))(jax.random.split(jax.random.key(1), 50)))
    correlation = [scipy.stats.spearmanr(row[:-1], row[1:]).statistic for row in many]
    places = [scipy.stats.spearmanr(row, np.arange(n)).statistic for row in many]
    for sample in (correlation, places):  # standard error of one 1/√n
        assert abs(np.mean(sample)) < 4 / np.sqrt(50 * n)
        assert np.std(sample) == pytest.approx(1 / np.sqrt(n), rel=0.5)


def test_minibatches_reduce_the_loss_and_depend_on_the_key_only() -> None:
    method = trpo.AdamFit(learning_rate=0.03, epochs=30, minibatch=8)
    batch = data()
    state, info = fit(method, start(method), batch)
    assert_same_bits(fit(method, start(method), batch)[0], state)
    assert not np.array_equal(fit(method, start(method), batch, seed=1)[0].params["w"], state.params["w"])
    before = explained(linear(start(method).params, batch.observation), batch.target, batch.weight)
    after = explained(predict(linear, state, batch.observation), batch.target, batch.weight)
    assert after > 0.9 > before
    assert info.finite


def test_gauss_newton_solves_linear_least_squares(x64: None) -> None:
    method = trpo.GaussNewtonFit(max_change=100.0, damping=0.0, steps=3)
    batch = data(dtype=np.float64)
    state, info = fit(method, start(method, np.float64), batch, normalise=False)
    root = np.sqrt(np.asarray(batch.weight))
    design = np.column_stack([batch.observation, np.ones(N)])
    solution, *_ = np.linalg.lstsq(design * root[:, None], np.asarray(batch.target) * root)
    np.testing.assert_allclose(np.append(state.params["w"], state.params["b"]), solution, rtol=1e-7)
    np.testing.assert_allclose(info.loss, np.asarray(batch.weight) @ (batch.target - design @ solution) ** 2, rtol=1e-9)


def test_one_gauss_newton_step_respects_its_trust_region(x64: None) -> None:
    """Σ w ΔV² / 2σ² = ε when the full step is longer, with σ² the loss before; half of that for the next ε."""
    batch = data(dtype=np.float64)
    for epsilon in (1e-3, 1e-2):
        method = trpo.GaussNewtonFit(max_change=epsilon, damping=0.0, steps=1)
        before = start(method, np.float64)
        after, _ = fit(method, before, batch, normalise=False)
        change = linear(after.params, batch.observation) - linear(before.params, batch.observation)
        sigma_squared = loss(before.params, batch)
        np.testing.assert_allclose(jnp.sum(batch.weight * change**2) / (2 * sigma_squared), epsilon, rtol=1e-9)


@pytest.mark.parametrize(("begin", "halvings"), [(0.1, 5), (0.01, None)])
def test_a_gauss_newton_step_is_halved_until_the_loss_falls(begin: float, halvings: int | None, x64: None) -> None:
    """V = p³ and G = 1: the step (1 − p³) / 3p² is far too long; after eight halvings without success, none."""
    batch = ValueBatch(jnp.ones((2, 1)), jnp.ones(2), jnp.full(2, 0.5))
    method = trpo.GaussNewtonFit(max_change=float("inf"), damping=0.0, steps=1, cg_iterations=1)
    after, _ = method.minimise(
        lambda p, x: p["p"] ** 3 * x[:, 0], {"p": jnp.asarray(begin)}, (), batch, jax.random.key(0)
    )
    step = 0.0 if halvings is None else (1 - begin**3) / (3 * begin**2) / 2**halvings
    np.testing.assert_allclose(after["p"], begin + step, rtol=1e-12)


def test_damping_is_added_to_the_gauss_newton_matrix(x64: None) -> None:
    batch, method = data(dtype=np.float64), trpo.GaussNewtonFit(max_change=float("inf"), damping=0.5, steps=1)
    before = start(method, np.float64).params
    after, _ = method.minimise(linear, before, (), batch, jax.random.key(0))
    design, weight = np.c_[np.ones(N), batch.observation], np.asarray(batch.weight)
    error = np.asarray(batch.target - linear(before, batch.observation))
    step = np.linalg.solve((design.T * weight) @ design + 0.5 * np.eye(D + 1), design.T @ (weight * error))
    np.testing.assert_allclose(np.r_[after["b"] - before["b"], after["w"] - before["w"]], step, rtol=1e-9)


def test_the_unit_of_values_is_the_deviation_of_returns_or_a_tenth_of_their_size() -> None:
    def scale(*returns: float) -> float:
        x = jnp.asarray(returns, jnp.float32)
        return float(ValueState({}, (), trpo.RunningStatistics.zeros(()).merge(x, jnp.ones(len(x)))).scale)

    assert scale(3.0, 5.0) == pytest.approx(1.0)
    assert scale(-7.0, -7.0) == pytest.approx(0.7)
    assert scale(19.0, 21.0) == pytest.approx(0.1 * np.hypot(20.0, 1.0))
    assert scale(0.0, 0.0) == scale() == 0.0


@pytest.mark.parametrize(
    "method", [trpo.AdamFit(minibatch=0), trpo.AdamFit(minibatch=8), trpo.GaussNewtonFit()], ids=repr
)
class TestEveryFit:
    @pytest.mark.parametrize("where", ["target", "observation"])
    def test_non_finite_data_keep_the_state_bit_for_bit(self, method: Any, where: str) -> None:
        """PITFALLS row 13."""
        state, _ = fit(method, start(method), data(1))  # a state with history
        batch = data()
        target = batch.target.at[3].set(jnp.nan if where == "target" else 0.0)
        observation = batch.observation.at[5, 0].set(jnp.inf if where == "observation" else 0.0)
        after, info = fit(method, state, ValueBatch(observation, target, batch.weight))
        assert_same_bits(after, state)
        assert not info.finite

    def test_rows_of_weight_zero_do_not_matter(self, method: Any) -> None:
        """PITFALLS row 15."""
        batch = data()
        absent = jnp.arange(N) % 5 == 0
        weight = jnp.where(absent, 0.0, batch.weight)
        weight = weight / weight.sum()
        clean = ValueBatch(batch.observation, batch.target, weight)
        dirty = ValueBatch(
            jnp.where(absent[:, None], jnp.nan, batch.observation), jnp.where(absent, jnp.nan, batch.target), weight
        )
        one, info = fit(method, start(method), clean)
        two, _ = fit(method, start(method), dirty)
        assert info.finite
        assert_same_bits(one, two)

    def test_the_unit_of_reward_does_not_matter(self, method: Any) -> None:
        """Rewards × 1000: V × 1000 over two fits, to rounding."""
        predictions = []
        for scale in (1.0, 1000.0):
            state = start(method)
            for seed in range(2):
                state, info = fit(method, state, data(seed, scale=scale), seed)
                assert info.finite
            predictions.append(np.asarray(predict(linear, state, data().observation)) / scale)
        np.testing.assert_allclose(predictions[1], predictions[0], rtol=1e-3, atol=1e-3)
        assert np.abs(predictions[0]).max() > 0.05

    def test_info(self, method: Any) -> None:
        batch = data()
        state, info = fit(method, start(method), batch)
        assert isinstance(info, ValueInfo)
        std = np.sqrt(np.var(np.asarray(batch.target)))
        np.testing.assert_allclose(state.scale, std, rtol=1e-5)
        error = predict(linear, state, batch.observation) - batch.target
        np.testing.assert_allclose(info.loss, jnp.sum(batch.weight * error**2) / std**2, rtol=1e-4)
        np.testing.assert_allclose(
            predict(linear, state, batch.observation, normalise=False),
            linear(state.params, batch.observation),
            rtol=1e-6,
        )


def test_explained_variance_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    value, target = rng.normal(size=(2, 50)).astype(np.float32)
    weight = np.where(np.arange(50) % 3 == 0, 0, rng.uniform(size=50)).astype(np.float32)
    weight /= weight.sum()

    def variance(x: np.ndarray) -> float:
        return np.average((x - np.average(x, weights=weight)) ** 2, weights=weight)

    expected = 1 - variance(target - value) / variance(target)
    np.testing.assert_allclose(explained(value, target, weight), expected, rtol=1e-4)
    for unit in (1e-30, 1e30):  # whose squares are not in float32's range
        scaled = explained(np.float32(unit) * value, np.float32(unit) * target, weight)
        np.testing.assert_allclose(scaled, expected, rtol=1e-4)
    assert explained(target, target, weight) == 1
    np.testing.assert_allclose(explained(np.full(50, 3, np.float32), target, weight), 0, atol=1e-5)
    assert explained(value, np.full(50, 2, np.float32), weight) == 0
    dirty = np.where(weight > 0, target, np.nan).astype(np.float32)
    assert explained(value, dirty, weight) == explained(value, target, weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trpo.AdamFit(epochs=0), r"value\.epochs=0: must be ≥ 1; 10 is usual"),
        (lambda: trpo.AdamFit(minibatch=-1), r"value\.minibatch=-1: must be ≥ 0; 0 uses the whole batch"),
        (lambda: trpo.AdamFit(learning_rate=0.0), r"value\.learning_rate=0\.0: must be > 0 and finite; 1e-3 is usual"),
        (lambda: trpo.AdamFit(learning_rate=float("nan")), r"value\.learning_rate=nan: must be > 0"),
        (lambda: trpo.GaussNewtonFit(steps=0), r"value\.steps=0, .*must be ≥ 1"),
        (lambda: trpo.GaussNewtonFit(cg_iterations=0), r"value\.cg_iterations=0: must be ≥ 1"),
    ],
)
def test_mistakes_name_argument_value_range_and_cure(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
