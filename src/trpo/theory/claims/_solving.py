"""What the solving claim measures: linear systems with known solutions, and the library's answers to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo import linear_solve, rules
from trpo.tabular import exact, exact_problem
from trpo.theory.claims import _minimal_logits as minimal
from trpo.theory.ensemble import Group, ensemble

SHAPES = ((2, 3, 2), (4, 3, 3), (8, 3, 4))
"""(states, actions, branching): F has S(A − 1) = 4, 8, 16 rows."""
SHARPEST = 4.0
"""Condition numbers beyond 1e10 have no accurate dense solution to compare with."""
SIZE = 32
"""n of the made-up spectra; the others are padded with zeros up to it, which conjugate gradient does not notice."""
KAPPAS = (1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e8)
"""Condition numbers of the made-up spectra."""
ITERATIONS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 31, 32)
CONVERGED = 160
"""Iterations after which conjugate gradient has converged in float64 where it is asked to."""
DELTAS = 0.04 * 0.25 ** np.arange(9)
"""Radii δ, in nats."""
RULE_DAMPINGS = (0.0, 1e-4, 1e-2, 0.1, 1.0)
"""λ of the rule's own steps; 0.1 is its default."""
DELTA = 0.01


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

    def take(self, index: Any) -> Systems:
        """Return the systems at ``index``."""
        return Systems(*(part[index] for part in self))


def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return xᵀy over the last axis."""
    return np.einsum("...i,...i->...", x, y)


def times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return F v."""
    return np.einsum("...ij,...j->...i", matrix, vector)


def join(parts: list[Systems]) -> Systems:
    """Concatenate."""
    return Systems(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _padded(matrix: np.ndarray, gradient: np.ndarray, solution: np.ndarray) -> Systems:
    count, n = gradient.shape
    room = SIZE - n
    eigenvalues = np.linalg.eigvalsh(matrix)
    return Systems(
        np.pad(matrix, ((0, 0), (0, room), (0, room))),
        np.pad(gradient, ((0, 0), (0, room))),
        np.pad(solution, ((0, 0), (0, room))),
        eigenvalues[:, -1] / eigenvalues[:, 0],
        eigenvalues[:, 0],
        np.full(count, n),
    )


def groups_of(size: int, seed: int) -> list[Group]:
    """Draw the random MDPs; a few come in one shape only, since compiling costs more than computing."""
    return ensemble(size, seed, SHAPES if size >= 256 else SHAPES[1:2], SHARPEST)


def advantage_of(group: Group) -> np.ndarray:
    """A_π, centred once more: its mean under π is rounding error, which small probabilities would magnify."""
    advantage = exact.advantage(group.mdp, group.policy)
    return advantage - exact.expected_advantage(advantage, group.policy)[..., None]


def of_mdps(group: Group) -> Systems:
    """F and g of MDPs over the minimal logits; there x*(s, a) = A(s, a) − A(s, last), whatever the weights."""
    weight, advantage = exact.state_weight(group.mdp, group.policy), advantage_of(group)
    solution = minimal.reduce(advantage).reshape(group.size, -1)
    matrix = minimal.fisher(weight, group.policy)
    return _padded(matrix, minimal.gradient(weight, group.policy, advantage), solution)


def synthetic(rng: np.random.Generator, draws: int) -> Systems:
    """Eigenvalues 1 … κ, evenly spaced in their logarithm, in a random basis; every one matters equally to the gain."""
    parts = []
    for kappa in KAPPAS:
        values = np.geomspace(1, kappa, SIZE)
        basis = np.linalg.qr(rng.standard_normal((draws, SIZE, SIZE)))[0]
        part = rng.standard_normal((draws, SIZE))
        matrix = (basis * values) @ basis.swapaxes(-1, -2)
        parts.append(_padded(matrix, times(basis, part * np.sqrt(values)), times(basis, part / np.sqrt(values))))
        parts[-1] = parts[-1]._replace(kappa=np.full(draws, kappa), smallest=np.ones(draws))
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
    return _padded(np.diag(values)[None], np.sqrt(share * values)[None], np.sqrt(share / values)[None])


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

    slope, curvature = dot(systems.gradient, direction), square(direction)
    best = (slope / curvature)[..., None]
    attainable = square(systems.solution)
    return Solves(
        slope / np.sqrt(curvature * systems.attainable),
        square(systems.solution - best * direction) / attainable,
        square(systems.solution - direction) / attainable,
    )


def solve(systems: Systems, iterations: int, damping: np.ndarray | None = None) -> np.ndarray:
    """Run the library's conjugate gradient on (F + λI) s = g, for λ of shape ``[lambdas, m]``; no early stop."""
    shift = np.zeros((1, len(systems.rows))) if damping is None else damping

    def one(matrix: Any, b: Any, shift: Any) -> Any:
        return linear_solve.conjugate_gradient(lambda v: matrix @ v + shift * v, b, iterations, 0.0)[0]

    over_systems = jax.vmap(one)
    run = jax.jit(jax.vmap(over_systems, in_axes=(None, None, 0)))
    result = np.asarray(run(*(jnp.asarray(x) for x in (systems.matrix, systems.gradient, shift))))
    return result[0] if damping is None else result


class Updates(NamedTuple):
    """TRPO's own updates of one group of MDPs; axes ``[setting, n]`` (NumPy)."""

    step: np.ndarray
    """θ' − θ, ``[setting, n, N]``."""
    fraction: np.ndarray
    """What the line search took of the full step; 0 if it was refused."""
    mean_kl: np.ndarray
    """At θ', by the library."""
    theta: np.ndarray
    """θ, ``[n, N]``."""


def updates(group: Group, iterations: int, damping: np.ndarray, max_kl: np.ndarray) -> Updates:
    """Run the unmodified rule on the exact problem of each MDP, for each pair of settings."""
    theta = minimal.reduce(group.logits)

    def one(mdp: Any, theta: Any, damping: Any, max_kl: Any) -> Any:
        rule = rules.TRPO(
            max_kl=max_kl,
            damping=damping,
            cg_iterations=iterations,
            cg_tolerance=0.0,
            max_step_norm=1e9,
            max_backtracks=100,
        )
        new, _, info = rule.update(exact_problem(mdp, theta, minimal.categorical), theta, rule.init(theta))
        return new - theta, info.step_fraction, info.mean_kl

    run = jax.jit(jax.vmap(jax.vmap(one, in_axes=(0, 0, None, None)), in_axes=(None, None, 0, 0)))
    inputs = jax.tree.map(jnp.asarray, (group.mdp, theta, damping, max_kl))
    step, fraction, mean_kl = (np.asarray(x) for x in run(*inputs))
    flat = theta.reshape(group.size, -1)
    return Updates(step.reshape(len(damping), group.size, -1), fraction, mean_kl, flat)
