"""What the solving claim measures: linear systems with known solutions, and the library's answers to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo import rules
from trpo.conjugate_gradient import conjugate_gradient
from trpo.tabular import MDP, exact, exact_problem
from trpo.theory.claims import _minimal_logits as minimal
from trpo.theory.shared.ensemble import Group, ensemble

SHAPES = ((2, 3, 2), (4, 3, 3), (8, 3, 3))
"""(states, actions, branching): F has S(A − 1) = 4, 8, 16 rows."""
SHARPEST = 4.0
"""Condition numbers then reach some 1e7; far beyond, there is no accurate dense solution to compare with."""
SIZE = 32
"""n of the made-up spectra; smaller systems are padded with zeros, which conjugate gradient does not notice."""
KAPPAS = (1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e8)
"""Condition numbers of the made-up spectra."""
DRAWS = 8
"""Systems for each κ."""
CONVERGED = 120
"""Iterations after which conjugate gradient has converged in float64, up to κ = 1e7 or so."""
ITERATIONS = (1, 2, 4, 8, 10, 16, 32, CONVERGED)
RELATIVE_DAMPINGS = 10.0 ** np.arange(-6, 2)
"""λ/λ_max for conjugate gradient."""
SMALL_DAMPINGS = (1e-3, 2e-3)
"""λ/λ_min, where the effect of damping is quadratic."""
TRUNCATED, FULL = 10, 64
"""cg_iterations of the rule's own steps: its default, and enough for n = 16."""
DELTA = 0.01
RULE_DAMPINGS = np.array([0.0, 1e-4, 1e-2, 0.1, 1.0])
"""λ of the rule's own steps at δ = ``DELTA``; 0.1 is its default."""
DELTAS = 0.04 * 0.25 ** np.arange(9)
"""Radii δ of its undamped steps, in nats."""
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
    """Draw the random MDPs."""
    return ensemble(size, seed, SHAPES, SHARPEST)


def in_one_shape(groups: list[Group]) -> Group:
    """Give every MDP the states of the largest one; the new ones are never reached, so that their weight is 0.

    All MDPs then need one compiled program instead of one for each shape.
    """
    most = max(group.mdp.states for group in groups)

    def padded(group: Group) -> Group:
        room = most - group.mdp.states
        rows = ((0, 0), (0, room), (0, 0))
        transition = np.pad(group.mdp.transition, (*rows, (0, room)))
        for s in range(group.mdp.states, most):
            transition[:, s, :, s] = 1.0
        mdp = MDP(transition, np.pad(group.mdp.reward, rows), np.pad(group.mdp.start, rows[:2]), group.mdp.discount)
        return Group(mdp, np.pad(group.logits, rows), np.pad(group.other_logits, rows))

    parts = [padded(group) for group in groups]
    return Group(
        *(jax.tree.map(lambda *leaves: np.concatenate(leaves), *column) for column in zip(*parts, strict=True))
    )


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


def synthetic(rng: np.random.Generator, draws: int = DRAWS) -> Systems:
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


def solve(systems: Systems, iterations: tuple[int, ...], damping: np.ndarray) -> np.ndarray:
    """Run the library's conjugate gradient on (F + λI) s = g without stopping early, for λ of shape ``[lambdas, m]``.

    Returns:
        s, ``[iterations, lambdas, m, SIZE]``.
    """

    def one(matrix: Any, b: Any, shift: Any) -> Any:
        def product(v: Any) -> Any:
            return matrix @ v + shift * v

        return jnp.stack([conjugate_gradient(product, b, k, 0.0)[0] for k in iterations])

    mapped = jax.vmap(jax.vmap(one, in_axes=(0, 0, 0), out_axes=1), in_axes=(None, None, 0), out_axes=1)
    run = jax.jit(mapped, compiler_options=COMPILER)
    return np.asarray(run(*(jnp.asarray(x) for x in (systems.matrix, systems.gradient, damping))))


class Updates(NamedTuple):
    """TRPO's own updates, for pairs (λ, δ) on the leading axis (NumPy)."""

    damping: np.ndarray
    max_kl: np.ndarray
    full: np.ndarray
    """The full step βs: θ' − θ over what the line search took of it; ``[settings, mdps, S, A − 1]``."""
    fraction: np.ndarray
    """What it took, ``[settings, mdps]``; 0 if it refused."""
    mean_kl: np.ndarray
    """D̄ at θ', by the library."""


def updates(group: Group, iterations: tuple[int, ...]) -> dict[int, Updates]:
    """Run the unmodified rule on the exact problem of each MDP; by cg_iterations."""
    theta = minimal.reduce(group.logits)
    damping = np.concatenate([RULE_DAMPINGS, np.zeros(len(DELTAS))])
    max_kl = np.concatenate([np.full(len(RULE_DAMPINGS), DELTA), DELTAS])

    def one(mdp: Any, theta: Any, damping: Any, max_kl: Any) -> Any:
        problem = exact_problem(mdp, theta, minimal.categorical)
        results = []
        for k in iterations:
            rule = rules.TRPO(max_kl, damping, k, cg_tolerance=0.0, max_step_norm=1e9, max_backtracks=100)
            new, _, info = rule.update(problem, theta, rule.init(theta))
            results.append((new - theta, info.step_fraction, info.mean_kl))
        return results

    mapped = jax.vmap(jax.vmap(one, in_axes=(0, 0, None, None)), in_axes=(None, None, 0, 0))
    run = jax.jit(mapped, compiler_options=COMPILER)
    inputs = jax.tree.map(jnp.asarray, (group.mdp, theta, damping, max_kl))
    found = {}
    for k, result in zip(iterations, run(*inputs), strict=True):
        step, fraction, mean_kl = (np.asarray(x) for x in result)
        full = step / np.where(fraction > 0, fraction, 1.0)[..., None, None]
        found[k] = Updates(damping, max_kl, full, fraction, mean_kl)
    return found


class Local(NamedTuple):
    """The oracle's view of each MDP at θ, from d_π, π and A alone."""

    weight: np.ndarray
    policy: np.ndarray
    advantage: np.ndarray

    @property
    def attainable(self) -> np.ndarray:
        """gᵀF⁻¹g = E[A²]."""
        return np.sum(self.weight[..., None] * self.policy * self.advantage**2, axis=(-2, -1))

    @property
    def skewness(self) -> np.ndarray:
        """E[A³]/E[A²]^(3/2)."""
        third = np.sum(self.weight[..., None] * self.policy * self.advantage**3, axis=(-2, -1))
        return third / self.attainable**1.5

    def _over_actions(self, step: np.ndarray) -> np.ndarray:
        return np.concatenate([step, np.zeros_like(step[..., :1])], axis=-1)

    def square(self, step: np.ndarray) -> np.ndarray:
        """ΔᵀFΔ = Σ_s d(s) ½ Σ_ab π(a|s) π(b|s) (Δ_sa − Δ_sb)²: without cancellation, however sharp the policy."""
        u = self._over_actions(step)
        pairs = self.policy[..., :, None] * self.policy[..., None, :]
        variance = 0.5 * np.sum(pairs * (u[..., :, None] - u[..., None, :]) ** 2, axis=(-2, -1))
        return np.sum(self.weight * variance, axis=-1)

    def kl(self, step: np.ndarray) -> np.ndarray:
        """D̄(θ, θ + Δ) = Σ_s d(s) log E_a[exp(Δ_sa − EΔ)], accurate for small steps too."""
        u = self._over_actions(step)
        v = u - np.sum(self.policy * u, axis=-1, keepdims=True)
        return np.sum(self.weight * np.log1p(np.sum(self.policy * (np.expm1(v) - v), axis=-1)), axis=-1)

    @property
    def best(self) -> np.ndarray:
        """F⁻¹g, ``[mdps, S, A − 1]``."""
        return minimal.reduce(self.advantage)


def local(group: Group) -> Local:
    """Return the oracle's view."""
    return Local(exact.state_weight(group.mdp, group.policy), group.policy, advantage_of(group))


def inverse_times(systems: Systems, vector: np.ndarray) -> np.ndarray:
    """Return F⁻¹ v by dense elimination; the padding stays 0."""
    padding = np.arange(SIZE) >= systems.rows[:, None]
    matrix = systems.matrix + padding[:, None, :] * np.eye(SIZE)
    return np.linalg.solve(matrix, vector[..., None])[..., 0]


def random_steps(
    rng: np.random.Generator, local: Local, systems: Systems, draws: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return gᵀΔ/gᵀΔ* for random Δ on the boundary, and how unusual those uniform on it are.

    Returns:
        The ratio for ``draws`` uniform steps and as many near Δ*, ``[2·draws, m]``; and for the uniform ones
        (n cos² − 1) over its standard deviation √(2(n − 1)/(n + 2)).
    """
    # x_a = ξ_a/√(d π_a) has covariance (d diag π)⁻¹; the differences to the last action then have covariance F⁻¹.
    scale = np.sqrt(np.where(local.weight > 0, local.weight, 1.0)[..., None] * local.policy)
    noise = minimal.reduce(rng.standard_normal((draws, *local.policy.shape)) / scale)
    noise = np.where(local.weight[..., None] > 0, noise, 0.0)
    size = local.square(noise)
    near = local.best + 0.1 * np.sqrt(local.attainable / size)[..., None, None] * noise
    gradient = (local.weight[..., None] * local.policy * local.advantage)[..., :-1]

    def cosine(step: np.ndarray) -> np.ndarray:
        return np.sum(gradient * step, axis=(-2, -1)) / np.sqrt(local.square(step) * local.attainable)

    uniform, n = cosine(noise), systems.rows
    chance = (n * uniform**2 - 1) / np.sqrt(2 * (n - 1) / (n + 2))
    return np.concatenate([uniform, cosine(near)]), chance


def skewness_law(local: Local, updates: Updates, tame: float) -> tuple[int, np.ndarray, float]:
    """Compare the true KL of full steps with the advantage's skewness.

    Returns:
        How many MDPs have max|A|/√E[A²] ≤ ``tame``; the errors of the coefficient in that unit; the power of δ in the
        root mean square of D̄/δ − 1, from the four smallest δ.
    """
    many = len(DELTAS)
    size = np.abs(local.advantage).max(axis=(-2, -1)) / np.sqrt(local.attainable)
    kept = size <= tame
    excess = local.kl(updates.full[-many:]) / DELTAS[:, None] - 1
    c = (excess / np.sqrt(2 * DELTAS)[:, None])[-4:, kept]
    # √δ halves from one to the next: extrapolate away √δ, δ and δ^(3/2).
    for factor in (2, 4, 8):
        c = (factor * c[1:] - c[:-1]) / (factor - 1)
    slope = np.polyfit(np.log(DELTAS[-4:]), np.log(np.sqrt(np.mean(excess[-4:, kept] ** 2, axis=1))), 1)[0]
    return int(kept.sum()), np.abs(c[0] - local.skewness[kept] / 3) / size[kept], float(slope)
