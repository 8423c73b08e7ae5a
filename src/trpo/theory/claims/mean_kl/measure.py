"""Paths of the library's TRPO through exact local problems, and the oracle's account of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.rules.protocol import Result
from trpo.rules.trpo import TRPO
from trpo.tabular import bounds, exact
from trpo.tabular.bridge import exact_problem
from trpo.theory.shared.arrays import join
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
FALL = 1e-9
"""η is lowered if it falls by more than this, in units of the first gap."""
_BISECTIONS = 40


class Shared(NamedTuple):
    """MDPs of one shape with policies π_θ(a|s) ∝ π(a|s) exp(φ(s, a)·θ); θ = 0 is the group's random policy π."""

    group: Group
    features: np.ndarray
    """φ, shape ``[n, S, A, d]``."""

    @property
    def parameters(self) -> int:
        """How many parameters: d."""
        return self.features.shape[-1]

    def policy(self, theta: np.ndarray) -> np.ndarray:
        """Return π_θ(a|s) for θ of shape ``[*leading, n, d]`` by the oracle's soft-max, ``[*leading, n, S, A]``."""
        return exact.softmax(self.group.logits + np.einsum("nsad,...nd->...nsa", self.features, theta, optimize=True))


def share(group: Group, rng: np.random.Generator) -> Shared:
    """Give the policies d = S·A/4 parameters with random features, normal with E‖φ(s, a)‖² = 1."""
    d = group.logits[0].size // 4
    return Shared(group, rng.standard_normal((*group.logits.shape, d)) / np.sqrt(d))


def table(group: Group) -> Shared:
    """Give every (s, a) a parameter of its own: the complete table of logits."""
    states, actions = group.logits.shape[1:]
    identity = np.eye(states * actions).reshape(states, actions, -1)
    return Shared(group, np.broadcast_to(identity, (group.size, *identity.shape)))


def log_linear(offset: Any, features: Any, theta: Any) -> Categorical:
    """Return the library's distribution for all states of one MDP: logits = offset + φ·θ (JAX)."""
    return Categorical(offset + jnp.tensordot(features, theta, axes=1))


def paths(shared: Shared) -> Callable[[float, bool], tuple[np.ndarray, ...]]:
    """Return a function (δ, limit_max) ↦ θ, result, D̄ and D_max along TRPO's paths; compiles once.

    With ``limit_max`` each of TRPO's steps is shortened until max_s KL ≤ δ.
    """

    def path(mdp: Any, offset: Any, features: Any, max_kl: Scalar, limit_max: Any) -> Any:
        rule = TRPO(max_kl, DAMPING, shared.parameters, cg_tolerance=1e-20, max_step_norm=LONGEST)

        def step(theta: Params, nothing: None) -> Any:
            problem = exact_problem(mdp, theta, lambda parameters: log_linear(offset, features, parameters))
            new, _, info = rule.update(problem, theta, ())
            new = jnp.where(limit_max, _shortened(problem, theta, new, max_kl, limit_max), new)
            return new, (new, info.result, info.mean_kl, info.max_state_kl)

        return jax.lax.scan(step, jnp.zeros(shared.parameters), None, length=STEPS)[1]

    compiled = jax.jit(jax.vmap(path, in_axes=(0, 0, 0, None, None)))
    data = jax.tree.map(jnp.asarray, (shared.group.mdp, shared.group.logits, shared.features))

    # Time first, MDPs second.
    return lambda *bound: tuple(np.asarray(x).swapaxes(0, 1) for x in compiled(*data, *bound))


def _shortened(problem: Any, theta: Params, new: Params, max_kl: Scalar, wanted: Any) -> Params:
    """Return the longest part of the step with max_s KL ≤ δ, by bisection."""

    def halve(i: Any, ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = ends
        # The whole step comes first; if that fits, both ends stay there.
        middle = jnp.where(i == 0, 1.0, (low + high) / 2)
        inside = problem.evaluate(theta + middle * (new - theta)).max_state_kl <= max_kl
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

    @property
    def falls(self) -> np.ndarray:
        """Of each accepted step: whether it lowers η."""
        return self.gain[self.accepted] < -FALL

    @property
    def moved(self) -> np.ndarray:
        """Which steps were accepted and are not lost in rounding."""
        return self.accepted & (self.mean > 1e-10)


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


def theory_error(shared: Shared, found: tuple[np.ndarray, ...], judged: Walk, gap: np.ndarray) -> np.ndarray:
    """Return how far ``Walk``'s two bounds are from ``trpo.tabular.bounds`` at accepted first steps, relatively."""
    mdp, old, new = shared.group.mdp, shared.group.policy, shared.policy(found[0][0])
    here = np.stack([judged.theorem[0], judged.average[0]])
    there = np.stack([bounds.theorem_1_kl(mdp, old, new), bounds.average_kl(mdp, old, new)]) / gap
    taken = judged.accepted[0]
    return (np.where(taken, np.abs(here - there), 0) / np.where(taken, there, 1)).max(axis=0)


class Walks(NamedTuple):
    """Paths with shared parameters, by δ; MDPs along the second axis of every array."""

    mean: dict[float, Walk]
    largest: dict[float, Walk]
    coefficient: np.ndarray
    """First Δη/√D̄ over its limit for δ → 0, a row for each δ of ``SMALL``."""
    theory_error: np.ndarray
    """Relative difference between the bounds and those of ``trpo.tabular.bounds``, a row for each δ of ``MEAN``."""


class Study(NamedTuple):
    """Every path; MDPs of all shapes along the last axis."""

    walks: Walks
    table: dict[float, Walk]
    shapes: dict[int, Walk]
    """At δ = 0.01, by number of states."""


def worth_a_walk(group: Group) -> tuple[Group, np.ndarray]:
    """Return the MDPs whose policy is not optimal already, and η* − η."""
    gap = exact.policy_iteration(group.mdp).expected_return - exact.expected_return(group.mdp, group.policy)
    scale = np.abs(group.mdp.reward).max(axis=(-2, -1)) / (1 - group.mdp.discount)
    keep = np.flatnonzero(gap > LEAST_GAP * scale)
    return group.take(keep), gap[keep]


def _walks(shared: Shared, gap: np.ndarray) -> Walks:
    run, limit = paths(shared), slope_at_start(shared)
    found = {max_kl: run(max_kl, False) for max_kl in MEAN}
    mean = {max_kl: walk(shared, path, gap) for max_kl, path in found.items()}
    largest = {max_kl: walk(shared, run(max_kl, True), gap) for max_kl in LARGEST}
    coefficient = [mean[max_kl].gain[0] * gap / np.sqrt(mean[max_kl].mean[0]) / limit for max_kl in SMALL]
    errors = [theory_error(shared, path, mean[max_kl], gap) for max_kl, path in found.items()]
    return Walks(mean, largest, np.stack(coefficient), np.stack(errors))


def measure(size: int, seed: int) -> Study:
    """Walk through at least ``size`` MDPs at every δ."""
    rng = np.random.default_rng((seed, 7))
    found, tables = {}, []
    for drawn in ensemble(size + size // 16, seed, SHAPES):
        group, gap = worth_a_walk(drawn)
        found[group.mdp.states] = _walks(share(group, rng), gap)
        if group.logits.shape[1:] == TABLE_SHAPE[:2]:
            run = paths(complete := table(group))
            tables.append({max_kl: walk(complete, run(max_kl, False), gap) for max_kl in TABLE})
    shapes = {states: walks.mean[PAPER] for states, walks in found.items()}
    return Study(join(list(found.values()), axis=1), join(tables, axis=1), shapes)
