"""Paths of the library's TRPO through exact local problems, and the oracle's account of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.rules.protocol import Result
from trpo.rules.trpo import TRPO
from trpo.tabular import bounds, exact
from trpo.tabular.bridge import exact_problem
from trpo.theory.claims._log_linear import Shared, log_linear, share, table
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.types import Params, Scalar

SHAPES = ((4, 3, 3), (12, 3, 4))
TABLE_SHAPE = (4, 3, 3)
MEAN = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""δ of the paths with D̄ ≤ δ."""
LARGEST = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""δ of the paths with D_max ≤ δ."""
TABLE = (1e-2, 1e-1, 1.0)
SMALL = MEAN[:3]
"""Here the laws for δ → 0 are measured."""
PAPER = 1e-2
LEAST_GAP = 1e-3
"""Of max|r|/(1 − γ): a random policy closer to the optimum has nowhere to walk."""
STEPS = 20
"""Iterations of each path."""
DAMPING = 1e-8
"""λ: next to nothing, the Fisher matrix is exact."""
LONGEST = 5.0
"""Bound on a step's norm: after 20 steps even a saturated policy's probabilities are still normal numbers."""
_BISECTIONS = 40


def paths(shared: Shared) -> Callable[[float, bool], tuple[np.ndarray, ...]]:
    """Return a function (δ, limit_max) ↦ θ, result, D̄ and D_max along TRPO's paths; compiles once.

    With ``limit_max`` each of TRPO's steps is shortened until max_s KL ≤ δ.
    """

    def path(mdp: Any, offset: Any, features: Any, max_kl: Scalar, limit_max: Any) -> Any:
        rule = TRPO(
            max_kl=max_kl,
            damping=DAMPING,
            cg_iterations=shared.parameters,
            cg_tolerance=1e-20,
            max_step_norm=LONGEST,
        )

        def step(theta: Params, nothing: None) -> Any:
            problem = exact_problem(mdp, theta, lambda parameters: log_linear(offset, features, parameters))
            new, _, info = rule.update(problem, theta, ())
            new = jnp.where(limit_max, _shortened(problem, theta, new, max_kl, limit_max), new)
            return new, (new, info.result, info.mean_kl, info.max_state_kl)

        return jax.lax.scan(step, jnp.zeros(shared.parameters), None, length=STEPS)[1]

    compiled = jax.jit(jax.vmap(path, in_axes=(0, 0, 0, None, None)))
    data = jax.tree.map(jnp.asarray, (shared.group.mdp, shared.group.logits, shared.features))

    def run(max_kl: float, limit_max: bool) -> tuple[np.ndarray, ...]:
        found = compiled(*data, max_kl, limit_max)
        # Time first, MDPs second.
        return tuple(np.asarray(x).swapaxes(0, 1) for x in found)

    return run


def _shortened(problem: Any, theta: Params, new: Params, max_kl: Scalar, wanted: Any) -> Params:
    """Return the longest part of the step with max_s KL ≤ δ, by bisection."""

    def fits(t: Scalar) -> Any:
        return problem.evaluate(theta + t * (new - theta)).max_state_kl <= max_kl

    def halve(i: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = ends
        # The whole step comes first; if that fits, both ends stay there.
        middle = jnp.where(i == 0, 1.0, (low + high) / 2)
        inside = fits(middle)
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    low, _ = jax.lax.fori_loop(0, jnp.where(wanted, _BISECTIONS, 0), halve, (jnp.zeros(()), jnp.ones(())))
    return jnp.where(low == 1.0, new, theta + low * (new - theta))


class Walk(NamedTuple):
    """One path for each MDP; leading axes ``[STEPS, n]`` unless said otherwise. η in units of the first gap."""

    accepted: np.ndarray
    unmoved: np.ndarray
    """Whether θ is the same bit for bit after the step."""
    library_mean: np.ndarray
    """D̄ as the library has it."""
    library_max: np.ndarray
    mean: np.ndarray
    """D̄ by the oracle."""
    largest: np.ndarray
    """D_max by the oracle."""
    least_weight: np.ndarray
    """min_s d_π(s)."""
    gain: np.ndarray
    """η(π̃) − η(π)."""
    promised: np.ndarray
    """L_π(π̃) − η(π)."""
    worst_state: np.ndarray
    """min_s Σ_a π̃(a|s) A_π(s, a) / max |A_π|."""
    gap: np.ndarray
    """η* − η after the step."""
    theorem: np.ndarray
    """4εγ/(1−γ)² D_max (eq. 9)."""
    average: np.ndarray
    """2ε_π̃γ/(1−γ)² √(D̄/2) (Achiam et al. 2017)."""

    def select(self, index: Any) -> Walk:
        """Return some of the steps."""
        return Walk(*(x[index] for x in self))


def walk(shared: Shared, found: tuple[np.ndarray, ...], gap: np.ndarray) -> Walk:
    """Judge a path: ``found`` is what ``paths`` returned, ``gap`` is η* − η at θ = 0."""
    theta, result, library_mean, library_max = found
    theta = np.concatenate([np.zeros_like(theta[:1]), theta])
    policy = shared.policy(theta)
    mdp = jax.tree.map(lambda x: np.broadcast_to(x, (len(theta), *x.shape)), shared.group.mdp)
    v = exact.value(mdp, policy)
    eta = (mdp.start * v).sum(axis=-1)
    advantage = (exact.action_value_of(mdp, v) - v[..., None])[:-1]
    weight = exact.state_weight(mdp, policy)[:-1]
    old, new = policy[:-1], policy[1:]
    expected = exact.expected_advantage(advantage, new)
    divergence = exact.kl(old, new)
    mean, largest = (weight * divergence).sum(axis=-1), divergence.max(axis=-1)
    epsilon = np.abs(advantage).max(axis=(-2, -1))
    horizon = mdp.discount[:-1] / (1 - mdp.discount[:-1]) ** 2
    return Walk(
        accepted=result == Result.ACCEPTED,
        unmoved=np.all(theta[1:].view(np.int64) == theta[:-1].view(np.int64), axis=-1),
        library_mean=library_mean,
        library_max=library_max,
        mean=mean,
        largest=largest,
        least_weight=weight.min(axis=-1),
        gain=np.diff(eta, axis=0) / gap,
        promised=(weight * expected).sum(axis=-1) / (1 - mdp.discount[:-1]) / gap,
        worst_state=expected.min(axis=-1) / epsilon,
        gap=1 - (eta[1:] - eta[0]) / gap,
        theorem=4 * epsilon * horizon * largest / gap,
        average=2 * np.abs(expected).max(axis=-1) * horizon * np.sqrt(0.5 * np.maximum(mean, 0)) / gap,
    )


def slope_at_start(shared: Shared) -> np.ndarray:
    """Return lim Δη/√D̄ along (F + λI)⁻¹∇η at θ = 0, all by the oracle: gᵀs √(2/sᵀFs), shape ``[n]``."""
    group = shared.group
    n, d = group.size, shared.parameters
    features = shared.features.reshape(n, -1, d)
    transposed = features.swapaxes(1, 2)
    gradient = transposed @ exact.policy_gradient(group.mdp, group.logits).reshape(n, -1, 1)
    fisher = transposed @ exact.fisher(exact.state_weight(group.mdp, group.policy), group.policy) @ features
    # The library's gradient is (1 − γ)∇η, which changes the length of s but not its direction.
    s = np.linalg.solve(fisher + DAMPING * np.eye(d), gradient)
    dot = lambda a, b: (a * b).sum(axis=(-2, -1))  # noqa: E731
    return dot(gradient, s) * np.sqrt(2 / dot(s, fisher @ s))


def theory_agrees(shared: Shared, found: tuple[np.ndarray, ...], judged: Walk, gap: np.ndarray) -> float:
    """Return how far ``Walk``'s two bounds are from ``trpo.tabular.bounds`` at accepted first steps, relatively."""
    old, new = shared.group.policy, shared.policy(found[0][0])
    taken = judged.accepted[0]
    pairs = (
        (judged.theorem[0], bounds.theorem_1_kl(shared.group.mdp, old, new) / gap),
        (judged.average[0], bounds.average_kl(shared.group.mdp, old, new) / gap),
    )
    return max(float(np.max(np.abs(here - there)[taken] / there[taken])) for here, there in pairs)


class Study(NamedTuple):
    """Every path, by δ; MDPs of all shapes along the last axis."""

    mean: dict[float, Walk]
    largest: dict[float, Walk]
    table: dict[float, Walk]
    shapes: dict[int, Walk]
    """At δ = 0.01, by number of states."""
    coefficient: dict[float, np.ndarray]
    """First Δη/√D̄ over its limit for δ → 0."""
    theory_error: float
    """Relative difference between the bounds here and those of ``trpo.tabular.bounds``."""


def worth_a_walk(group: Group) -> tuple[Group, np.ndarray]:
    """Return the MDPs whose policy is not optimal already, and η* − η."""
    gap = exact.policy_iteration(group.mdp).expected_return - exact.expected_return(group.mdp, group.policy)
    scale = np.abs(group.mdp.reward).max(axis=(-2, -1)) / (1 - group.mdp.discount)
    keep = np.flatnonzero(gap > LEAST_GAP * scale)
    return group.take(keep), gap[keep]


def _join(walks: list[Walk]) -> Walk:
    return Walk(*(np.concatenate(parts, axis=1) for parts in zip(*walks, strict=True)))


def study(size: int, seed: int) -> Study:
    """Walk through at least ``size`` MDPs at every δ."""
    rng = np.random.default_rng((seed, 7))
    mean: dict[float, list[Walk]] = {max_kl: [] for max_kl in MEAN}
    largest: dict[float, list[Walk]] = {max_kl: [] for max_kl in LARGEST}
    tables: dict[float, list[Walk]] = {max_kl: [] for max_kl in TABLE}
    coefficient: dict[float, list[np.ndarray]] = {max_kl: [] for max_kl in SMALL}
    shapes, errors = {}, []

    for drawn in ensemble(size + size // 16, seed, SHAPES):
        group, gap = worth_a_walk(drawn)
        shared = share(group, rng)
        run, limit = paths(shared), slope_at_start(shared)
        for max_kl in MEAN:
            found = run(max_kl, False)
            here = walk(shared, found, gap)
            mean[max_kl].append(here)
            errors.append(theory_agrees(shared, found, here, gap))
            if max_kl in SMALL:
                coefficient[max_kl].append(here.gain[0] * gap / np.sqrt(here.mean[0]) / limit)
        for max_kl in LARGEST:
            largest[max_kl].append(walk(shared, run(max_kl, True), gap))
        shapes[group.mdp.states] = mean[PAPER][-1]
        if group.logits.shape[1:] == TABLE_SHAPE[:2]:
            complete = table(group)
            run = paths(complete)
            for max_kl in TABLE:
                tables[max_kl].append(walk(complete, run(max_kl, False), gap))
    by_mean, by_largest, by_table = (
        {max_kl: _join(walks) for max_kl, walks in kind.items()} for kind in (mean, largest, tables)
    )
    return Study(
        by_mean,
        by_largest,
        by_table,
        shapes,
        {max_kl: np.concatenate(parts) for max_kl, parts in coefficient.items()},
        max(errors),
    )
