"""Oracles: a dense solve, SciPy's iterates, lineax and jax.scipy. PITFALLS rows 4 and 11."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse.linalg

import trpo

N = 8


def system(seed: int = 0, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """A well-conditioned symmetric positive definite matrix and a right-hand side."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(N, N)))
    return ((q * np.linspace(1.0, 30.0, N)) @ q.T).astype(dtype), rng.normal(size=N).astype(dtype)


@partial(jax.jit, static_argnames="iterations")
def solve(a: jax.Array, b: jax.Array, iterations: int, tolerance: float = 0.0) -> tuple[jax.Array, trpo.CGInfo]:
    return trpo.conjugate_gradient(lambda v: a @ v, b, iterations, tolerance)


def scipy_iterates(a: np.ndarray, b: np.ndarray, number: int) -> list[np.ndarray]:
    iterates: list[np.ndarray] = []
    scipy.sparse.linalg.cg(a, b, rtol=0.0, maxiter=number, callback=lambda x: iterates.append(x.copy()))
    return iterates


def test_n_iterations_solve_the_system(x64: None) -> None:
    a, b = system()
    x, info = solve(a, b, N)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-9)
    assert info.iterations == N


@pytest.mark.parametrize("k", range(1, 7))
def test_iterates_are_scipys_one_by_one(k: int, x64: None) -> None:
    """PITFALLS row 4: aliased vectors would show at the second iterate."""
    a, b = system(1)
    x, info = solve(a, b, k)
    np.testing.assert_allclose(x, scipy_iterates(a, b, k)[-1], rtol=1e-10)
    assert info.iterations == k
    # Row 11's other half: the reported residual is the true one, and reaching the limit is no failure.
    np.testing.assert_allclose(info.residual, np.linalg.norm(b - a @ x) / np.linalg.norm(b), rtol=1e-6)


def test_agrees_with_lineax_and_jax(x64: None) -> None:
    a, b = system(2)
    x, _ = solve(a, b, 3 * N, 1e-26)
    operator = lx.MatrixLinearOperator(jnp.asarray(a), lx.positive_semidefinite_tag)
    with jax.numpy_rank_promotion("allow"):
        theirs = lx.linear_solve(operator, jnp.asarray(b), lx.CG(rtol=1e-12, atol=1e-12)).value
        jaxs, _ = jax.scipy.sparse.linalg.cg(lambda v: a @ v, jnp.asarray(b), tol=1e-13)
    np.testing.assert_allclose(x, theirs, rtol=1e-9)
    np.testing.assert_allclose(x, jaxs, rtol=1e-9)


def test_stops_at_the_relative_tolerance(x64: None) -> None:
    a, b = system(3)
    x, info = solve(a, b, N, 1e-2)
    residuals = [np.linalg.norm(b - a @ each) ** 2 / (b @ b) for each in scipy_iterates(a, b, N)]
    expected = 1 + next(i for i, r in enumerate(residuals) if r <= 1e-2)
    assert info.iterations == expected < N
    assert info.residual**2 <= 1e-2
    np.testing.assert_allclose(x, scipy_iterates(a, b, N)[expected - 1], rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-3, 1e8, 1e30])
def test_direction_does_not_depend_on_the_scale_of_b(scale: float) -> None:
    """PITFALLS row 11, in float32."""
    a, b = system(4, np.float32)
    reference, info = solve(a, b, 6, 1e-10)
    x, scaled = solve(a, (b * np.float32(scale)).astype(np.float32), 6, 1e-10)
    np.testing.assert_allclose(np.asarray(x, np.float64) / scale, reference, rtol=1e-4, atol=1e-6)
    assert scaled.iterations == info.iterations
    np.testing.assert_allclose(scaled.residual, info.residual, rtol=0.05, atol=1e-6)


def test_a_solve_goes_on_to_the_rounding_of_its_type() -> None:
    """However short the directions become, curvature is that of a unit vector; and b may be zero in places."""
    a, b = system(6, np.float32)
    b[2] = 0.0
    x, info = solve(a, b, 2 * N, 1e-11)
    np.testing.assert_allclose(x, np.linalg.solve(a.astype(np.float64), b), rtol=1e-4, atol=1e-6)
    assert N <= info.iterations < 2 * N
    assert info.residual < 1e-5


@pytest.mark.parametrize("size", [3e-38, 8e-38, 9e37, 3.3e38])
def test_b_may_be_anywhere_in_the_range(size: float) -> None:
    x, info = trpo.conjugate_gradient(lambda v: 2 * v, jnp.full(3, size), 3)
    np.testing.assert_allclose(x, np.full(3, np.float32(size) / 2), rtol=1e-6)
    assert info.iterations == 1
    # A solution that is beyond the range is not begun.
    x, info = trpo.conjugate_gradient(lambda v: 1e-3 * v, jnp.full(3, 3.3e38), 3)
    np.testing.assert_array_equal(x, np.zeros(3))
    assert info.residual == 1


@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("where", ["partly outside", "outside"])
def test_the_reported_residual_of_a_singular_system_is_true(where: str, rank: int) -> None:
    """Where b is not in the range of A, rounding alone decides how far a step along the rest goes."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        a = ((q * (np.arange(6) < rank)) @ q.T).astype(np.float32)
        b = (q[:, -1] if where == "outside" else rng.normal(size=6)).astype(np.float32)
        x, info = solve(a, b, 50)
        true = np.linalg.norm(b - a.astype(np.float64) @ np.asarray(x, np.float64)) / np.linalg.norm(b)
        assert info.iterations < 10
        assert info.residual > 0.3 * true
        if where == "partly outside":
            np.testing.assert_allclose(info.residual, true, rtol=0.1)
            assert true < 10


def test_zero_right_hand_side_gives_zero() -> None:
    a, _ = system(0, np.float32)
    x, info = solve(a, np.zeros(N, np.float32), 5)
    np.testing.assert_array_equal(x, np.zeros(N))
    assert info.iterations == 0
    assert info.residual == 0


def test_non_positive_curvature_keeps_the_last_iterate(x64: None) -> None:
    """b is spread over three eigenvalues, one negative: the Krylov space meets it at the third direction."""
    a = np.diag([3.0, 2.0, -0.1])
    b = np.array([1.0, 1.0, 0.05])
    x, info = solve(a, b, 10)
    direction_curvatures = scipy_iterates(a, b, 2)
    np.testing.assert_allclose(x, direction_curvatures[int(info.iterations) - 2], rtol=1e-9)
    assert 2 <= info.iterations < 10
    np.testing.assert_allclose(info.residual, np.linalg.norm(b - a @ x) / np.linalg.norm(b), rtol=1e-9)
    nothing, _ = solve(-np.eye(3), b, 10)
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_non_finite_products_keep_the_last_iterate() -> None:
    a, b = system(5, np.float32)
    bad = a.copy()
    bad[0, 0] = np.nan
    x, _ = solve(bad, b, 5)
    np.testing.assert_array_equal(x, np.zeros(N))
    bad[0, 0] = np.inf
    x, _ = solve(bad, b, 5)
    np.testing.assert_array_equal(x, np.zeros(N))
    x, info = solve(a, np.where(np.arange(N) == 2, np.nan, b).astype(np.float32), 5)
    assert np.all(np.isfinite(x))
    assert info.iterations == 0


def test_vectors_may_be_any_pytree(x64: None) -> None:
    a, b = system(6)
    split = lambda v: {"x": v[:3], "y": (v[3:5].reshape(2, 1), v[5:])}  # noqa: E731
    join = lambda t: jnp.concatenate([t["x"], t["y"][0].ravel(), t["y"][1]])  # noqa: E731
    x, _ = jax.jit(lambda b: trpo.conjugate_gradient(lambda v: split(a @ join(v)), b, 4, 0.0))(split(jnp.asarray(b)))
    assert jax.tree.structure(x) == jax.tree.structure(split(b))
    np.testing.assert_allclose(join(x), solve(a, b, 4)[0], rtol=1e-10)


@pytest.mark.parametrize("iterations", [0, -3])
def test_too_few_iterations_are_refused(iterations: int) -> None:
    with pytest.raises(ValueError, match=f"iterations={iterations}.*at least 1"):
        trpo.conjugate_gradient(lambda v: v, jnp.ones(2), iterations)
