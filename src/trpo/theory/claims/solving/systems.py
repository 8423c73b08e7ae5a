"""Linear systems with known solutions, and the library's answers to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.conjugate_gradient import conjugate_gradient
from trpo.theory.shared.arrays import join

SIZE = 32
"""n of the made-up spectra; smaller systems are padded with zeros, which conjugate gradient does not notice."""
KAPPAS = (1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e8)
"""Condition numbers of the made-up spectra."""
DRAWS = 8
"""Systems for each κ."""
COMPILER = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
"""Every program here runs once, for a fraction of the time that optimising it would take."""


class Systems(NamedTuple):
    """F x = g for many F and g, padded to ``SIZE`` rows (NumPy)."""

    matrix: np.ndarray
    """F, ``[m, SIZE, SIZE]``."""
    gradient: np.ndarray
    """g, ``[m, SIZE]``."""
    solution: np.ndarray
    """x* = F⁻¹ g."""
    kappa: np.ndarray
    """Condition number of F (of what is not padding), ``[m]``."""
    smallest: np.ndarray
    """λ_min of F."""
    rows: np.ndarray
    """n."""

    @property
    def attainable(self) -> np.ndarray:
        """‖x*‖²_F = gᵀF⁻¹g: the attainable gain is √(2δ) times its root."""
        return dot(self.gradient, self.solution)

    @property
    def largest(self) -> np.ndarray:
        """λ_max of F."""
        return self.smallest * self.kappa


def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return xᵀy over the last axis."""
    return np.einsum("...i,...i->...", x, y)


def times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return F v."""
    return np.einsum("...ij,...j->...i", matrix, vector)


def padded(matrix: np.ndarray, gradient: np.ndarray, solution: np.ndarray) -> Systems:
    """Return systems of n rows with what is known of them."""
    count, n = gradient.shape
    values, room = np.linalg.eigvalsh(matrix), ((0, 0), (0, SIZE - n))
    kappa, rows = values[:, -1] / values[:, 0], np.full(count, n)
    enlarged = np.pad(matrix, (*room, room[1])), np.pad(gradient, room), np.pad(solution, room)
    return Systems(*enlarged, kappa, values[:, 0], rows)


def synthetic(rng: np.random.Generator, draws: int = DRAWS) -> Systems:
    """Eigenvalues 1 … κ, evenly spaced in their logarithm, in a random basis; every one matters equally to the gain."""
    parts = []
    for kappa in KAPPAS:
        values = np.geomspace(1, kappa, SIZE)
        basis = np.linalg.qr(rng.standard_normal((draws, SIZE, SIZE)))[0]
        part = rng.standard_normal((draws, SIZE))
        matrix = (basis * values) @ basis.swapaxes(-1, -2)
        made = padded(matrix, times(basis, part * np.sqrt(values)), times(basis, part / np.sqrt(values)))
        parts.append(made._replace(kappa=np.full(draws, kappa), smallest=np.ones(draws)))
    return join(parts)


def hardest(kappa: float, k: int) -> Systems:
    """The system on which k iterations attain the Chebyshev bound for κ exactly.

    Its k + 1 eigenvalues are where the Chebyshev polynomial T_k, moved to [1, κ], is ±1, and the shares of ‖x*‖²_F are
    in proportion to the Lagrange polynomials |ℓ_j(0)|: then min_p Σ_j w_j p(λ_j)² over polynomials of degree k with
    p(0) = Σ_j ℓ_j(0) p(λ_j) = 1 is 1/(Σ_j |ℓ_j(0)|)² = 1/T_k((κ + 1)/(κ − 1))².
    """
    values = 0.5 * (kappa + 1) + 0.5 * (kappa - 1) * np.cos(np.pi * np.arange(k + 1) / k)[::-1]
    values[0], values[-1] = 1.0, kappa
    others = ~np.eye(k + 1, dtype=bool)
    lagrange = [np.prod(values[o] / (values[o] - values[j])) for j, o in enumerate(others)]
    share = np.abs(lagrange) / np.sum(np.abs(lagrange))
    return padded(np.diag(values)[None], np.sqrt(share * values)[None], np.sqrt(share / values)[None])


def chebyshev(kappa: np.ndarray, k: Any) -> np.ndarray:
    """1/T_k((κ + 1)/(κ − 1)) = 2q^k/(1 + q^2k) with q = (√κ − 1)/(√κ + 1): the bound on ‖e_k‖_F/‖x*‖_F."""
    q = (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1)
    return 2 * q**k / (1 + q ** (2 * np.asarray(k)))


class Solves(NamedTuple):
    """How good directions are, for each system (trailing axis)."""

    fraction: np.ndarray
    """gᵀs/√(sᵀFs · gᵀF⁻¹g): the part of the attainable gain that s reaches, scaled to the boundary."""
    lost: np.ndarray
    """1 − fraction², as min_c ‖x* − c s‖²_F/‖x*‖²_F: exact even where the fraction rounds to 1."""
    error: np.ndarray
    """‖x* − s‖²_F/‖x*‖²_F, s as it is."""


def judge(systems: Systems, direction: np.ndarray) -> Solves:
    """Measure directions ``[..., m, SIZE]`` by dense algebra."""

    def square(v: np.ndarray) -> np.ndarray:
        return dot(v, times(systems.matrix, v))

    slope, curvature, all_of_it = dot(systems.gradient, direction), square(direction), square(systems.solution)
    best = (slope / curvature)[..., None]
    return Solves(
        fraction=slope / np.sqrt(curvature * systems.attainable),
        lost=square(systems.solution - best * direction) / all_of_it,
        error=square(systems.solution - direction) / all_of_it,
    )


def solve(systems: Systems, iterations: tuple[int, ...], damping: np.ndarray) -> np.ndarray:
    """Return conjugate gradient's s of (F + λI)s = g, ``[iterations, lambdas, m, SIZE]``, for λ ``[lambdas, m]``."""

    def one(matrix: Any, b: Any, shift: Any) -> Any:
        def product(v: Any) -> Any:
            return matrix @ v + shift * v

        return jnp.stack([conjugate_gradient(product, b, k, 0.0)[0] for k in iterations])

    mapped = jax.vmap(jax.vmap(one, in_axes=(0, 0, 0), out_axes=1), in_axes=(None, None, 0), out_axes=1)
    run = jax.jit(mapped, compiler_options=COMPILER)
    return np.asarray(run(*(jnp.asarray(x) for x in (systems.matrix, systems.gradient, damping))))


def inverse_times(systems: Systems, vector: np.ndarray) -> np.ndarray:
    """Return F⁻¹ v by dense elimination; the padding stays 0."""
    padding = np.arange(SIZE) >= systems.rows[:, None]
    matrix = systems.matrix + padding[:, None, :] * np.eye(SIZE)
    return np.linalg.solve(matrix, vector[..., None])[..., 0]
