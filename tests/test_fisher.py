"""F v against the dense Hessian of the mean KL, for every distribution and kind of network. PITFALLS rows 5, 14, 15."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import LEADING, SETTINGS, batch_of, setting, uneven_weight

import trpo
from trpo.fisher import linearise

every_setting = pytest.mark.parametrize("name", SETTINGS)


@functools.cache
def dense(name: str) -> dict[str, np.ndarray]:
    """By automatic differentiation only, in float64: the Hessian, and the Fisher matrix that products assemble."""
    with jax.enable_x64(True):
        policy, params, observation = setting(name, np.float64)
        weight = uneven_weight(np.float64)
        flat, unravel = ravel_pytree(params)

        def distributions(vector: jax.Array) -> Any:
            return policy(unravel(vector), observation)

        def mean_kl(vector: jax.Array) -> jax.Array:
            kl = distributions(flat).kl_to(distributions(vector))
            return jnp.sum(weight * kl)

        def assembled(vector: jax.Array) -> jax.Array:
            return jax.vmap(trpo.fisher_vp(distributions, vector, weight))(jnp.eye(vector.size))

        hessian, products = jax.jit(lambda v: (jax.hessian(mean_kl)(v), assembled(v)))(flat)
        return {"hessian": np.asarray(hessian), "products": np.asarray(products)}


@every_setting
def test_product_is_the_dense_hessian_of_the_mean_kl(name: str) -> None:
    """PITFALLS rows 5 and 14 (the recurrent policy needs no double backward: the Hessian is the test's, not ours)."""
    matrices = dense(name)
    scale = np.abs(matrices["hessian"]).max()
    assert scale > 1e-3
    np.testing.assert_allclose(matrices["products"], matrices["hessian"], rtol=1e-8, atol=1e-11 * scale)


@every_setting
def test_symmetric_and_positive_semi_definite(name: str) -> None:
    products = dense(name)["products"]
    np.testing.assert_allclose(products, products.T, atol=1e-13 * np.abs(products).max())
    assert np.linalg.eigvalsh((products + products.T) / 2).min() >= -1e-13 * np.abs(products).max()


def test_a_state_that_does_not_count_may_have_an_infinite_fisher_matrix() -> None:
    """Of a deviation whose inverse square overflows."""
    x, log_std = jnp.arange(6.0).reshape(3, 2), jnp.array([[0.0], [-60.0], [0.5]])

    def product(rows: Any) -> np.ndarray:
        weight = jnp.array([0.25, 0.0, 0.75])[rows]

        def policy(w: jax.Array) -> trpo.DiagGaussian:
            return trpo.DiagGaussian(x[rows] @ w, log_std[rows])

        return np.asarray(jax.jit(trpo.fisher_vp(policy, jnp.ones((2, 1)), weight))(jnp.array([[1.0], [2.0]])))

    np.testing.assert_allclose(product(np.arange(3)), product(np.array([0, 2])), rtol=1e-6)


@pytest.mark.parametrize("name", ["state-dependent-relu", "masked-dict", "recurrent-gru"])
def test_float32_products_curvature_and_slope(name: str) -> None:
    """Pytree vectors in float32; vᵀF v without a transpose; the slope of D̄ is zero at the sampling policy."""
    policy, params, _ = setting(name)
    batch = batch_of(name)
    flat, unravel = ravel_pytree(params)
    vector = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)

    @jax.jit
    def compute(params: Any, batch: trpo.Batch, vector: jax.Array) -> tuple:
        model = trpo.sampled_problem(policy, params, batch).linearise(params)
        v = unravel(vector)
        return model.fisher_vp(v), *model.kl_along(v), model.kl_gradient()

    product, slope, curvature, kl_gradient = compute(params, batch, vector)
    assert jax.tree.structure(product) == jax.tree.structure(params)
    hessian = dense(name)["hessian"]
    scale = np.abs(hessian @ vector).max()
    np.testing.assert_allclose(ravel_pytree(product)[0], hessian @ vector, rtol=1e-3, atol=2e-5 * scale)
    np.testing.assert_allclose(curvature, vector @ hessian @ vector, rtol=1e-4)
    assert abs(float(slope)) <= 1e-6 * max(scale, 1.0) * np.linalg.norm(vector)
    np.testing.assert_allclose(ravel_pytree(kl_gradient)[0], 0, atol=2e-6)


def test_slope_and_curvature_away_from_the_sampling_policy(x64: None) -> None:
    """At a second update of a batch the KL has a slope: ∇D̄ᵀv by the dense gradient, vᵀF v with F of the *current* π."""
    policy, params, observation = setting("masked-dict", np.float64)
    batch = batch_of("masked-dict", np.float64)
    flat, unravel = ravel_pytree(params)
    rng = np.random.default_rng(1)
    there, vector = flat + 0.1 * rng.normal(size=flat.size), jnp.asarray(rng.normal(size=flat.size))

    @jax.jit
    def compute(there: jax.Array) -> tuple:
        problem = trpo.sampled_problem(policy, params, batch)
        model = problem.linearise(unravel(there))

        def kl_from_there(v: jax.Array) -> jax.Array:
            here = policy(unravel(there), observation)
            return jnp.sum(batch.weight * here.kl_to(policy(unravel(v), observation)))

        old = policy(params, observation)
        gradient = jax.grad(lambda v: jnp.sum(batch.weight * old.kl_to(policy(unravel(v), observation))))(there)
        return (*model.kl_along(unravel(vector)), model.kl_gradient(), gradient, jax.hessian(kl_from_there)(there))

    slope, curvature, kl_gradient, gradient, hessian = compute(there)
    np.testing.assert_allclose(ravel_pytree(kl_gradient)[0], gradient, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(slope, gradient @ vector, rtol=1e-8)
    np.testing.assert_allclose(curvature, vector @ hessian @ vector, rtol=1e-8)


def test_one_primal_pass_serves_every_product() -> None:
    calls = []

    def distributions(params: jax.Array) -> trpo.Categorical:
        calls.append(1)
        return trpo.Categorical(jnp.sin(params)[None])

    linear = linearise(distributions, jnp.arange(3.0))
    for _ in range(3):
        linear.fisher_vp(jnp.ones(3), jnp.ones(1))
    assert len(calls) == 1


def test_states_of_weight_zero_do_not_matter() -> None:
    """PITFALLS row 15, at the level of products; NaN content is the business of ``sampled_problem`` (test_problem)."""
    policy, params, observation = setting("gaussian-tanh")
    weight = uneven_weight()
    vector = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def product(observation: jax.Array) -> Any:
        return trpo.fisher_vp(lambda p: policy(p, observation), params, weight)(vector)

    moved = jnp.where((weight == 0)[..., None], 50.0, observation)
    for a, b in zip(jax.tree.leaves(product(observation)), jax.tree.leaves(product(moved)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_subsample_is_fixed_and_is_the_fisher_matrix_of_those_states(x64: None) -> None:
    policy, params, observation = setting("gaussian-tanh", np.float64)
    batch = batch_of("gaussian-tanh", np.float64)
    every = 3
    number = batch.weight.size // every
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def assemble(batch: trpo.Batch) -> tuple:
        model = trpo.sampled_problem(policy, params, batch, every).linearise(params)
        rows = jax.vmap(lambda v: ravel_pytree(model.fisher_vp(unravel(v)))[0])(jnp.eye(flat.size))
        v = unravel(jnp.ones(flat.size))
        return rows, model.product_weight, model.gradient, model.kl_along(v)[1]

    subsampled, weight, gradient, curvature = assemble(batch)
    for _ in range(3):
        again = trpo.sampled_problem(policy, params, batch, every).product_weight
        np.testing.assert_array_equal(weight, again)
    assert weight.size == number
    np.testing.assert_allclose(jnp.sum(weight), 1.0, rtol=1e-12)
    # Which states? Ask each one: perturb its observation and see whether the product changes.
    used = np.zeros(LEADING, bool)
    for index in np.ndindex(LEADING):
        moved = trpo.Batch(batch.observation.at[index].add(1.0), batch.action, batch.advantage, batch.weight)
        used[index] = not np.array_equal(assemble(moved)[0], subsampled)
    assert used.sum() == number - np.sum(np.asarray(weight) == 0)
    assert len(set(np.nonzero(used)[1])) > 1  # not all from one environment
    # The Hessian of the mean KL over exactly those states.
    w = jnp.where(used, batch.weight, 0.0)
    w = w / w.sum()
    old = policy(params, observation)
    hessian = jax.jit(jax.hessian(lambda v: jnp.sum(w * old.kl_to(policy(unravel(v), observation)))))(flat)
    np.testing.assert_allclose(subsampled, hessian, rtol=1e-8, atol=1e-11)
    # Gradient and curvature along a step still use all states.
    full = dense("gaussian-tanh")["hessian"]
    np.testing.assert_allclose(curvature, np.ones(flat.size) @ full @ np.ones(flat.size), rtol=1e-8)
    reference = jax.jit(lambda b: trpo.sampled_problem(policy, params, b).linearise(params).gradient)(batch)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], ravel_pytree(reference)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("every", "of_each"), [(4, 3), (12, 1), (13, None), (100, None)])
def test_a_subsample_is_as_many_states_of_every_environment_at_other_times(every: int, of_each: int | None) -> None:
    """Each state has parameters of its own here, so that the product says which are used; at least one is."""
    shape = (12, 5)

    def policy(theta: jax.Array, state: jax.Array) -> trpo.Categorical:
        return trpo.Categorical(theta[state])

    zeros, theta = jnp.zeros(shape), jnp.zeros((60, 2))
    batch = trpo.Batch(jnp.arange(60).reshape(shape), zeros.astype(int), zeros, jnp.full(shape, 1 / 60))
    model = trpo.sampled_problem(policy, theta, batch, every).linearise(theta)
    product = model.fisher_vp(theta.at[:, 0].set(1.0))[:, 0].reshape(shape)
    used = np.asarray(product) > 0
    assert float(product.sum()) == pytest.approx(0.25)  # their weights sum to 1
    if of_each is None:
        assert used.sum() == max(1, 60 // every)
    else:
        assert used.sum(0).tolist() == [of_each] * 5
        assert len({tuple(times) for times in used.T}) > 1
