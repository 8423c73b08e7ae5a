"""What the parameter-ball claim measures: equal steps, and equal rules in two coordinate systems."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from trpo.rules import NaturalGradient
from trpo.tabular import MDP, exact, exact_problem
from trpo.theory.shared import minimal_logits as minimal
from trpo.theory.shared.arrays import join, limit_weights
from trpo.theory.shared.ensemble import SHAPES, Group, ensemble
from trpo.trees import namespace

SIZES = 0.1 * 0.5 ** np.arange(5)
"""Sizes of the steps: the largest change that the exact natural step makes to any log π(a|s), in nats."""
RADIUS = 1.0
"""‖Δθ‖ of the steps that are compared by their KL, in logits."""
PLAIN = 1e12
"""A damping λ for which (F + λI)⁻¹g is parallel to g to twelve digits."""
BEND = 0.5
"""How far the coordinates are from linear; below 1 they stay one-to-one."""


class Chart(eqx.Module):
    """θ = h(φ) = θ₀ + M [φ − φ₀ + c (sin φ − sin φ₀)]: smooth, one-to-one for |c| < 1 and invertible M, h(φ₀) = θ₀."""

    matrix: Any
    """M, ``[*mdps, n, n]``."""
    phi: Any
    """φ₀, ``[*mdps, n]``."""
    theta: Any
    """θ₀."""
    bend: Any
    """c, ``[*mdps]``; 0 and M = I is θ itself."""

    def __call__(self, phi: Any) -> Any:
        """θ = h(φ)."""
        xp = namespace(phi)
        moved = phi - self.phi + self.bend[..., None] * (xp.sin(phi) - xp.sin(self.phi))
        return self.theta + xp.einsum("...ij,...j->...i", self.matrix, moved)

    def jacobian(self) -> np.ndarray:
        """J = ∂θ/∂φ at φ₀."""
        return self.matrix * (1 + self.bend[..., None] * np.cos(self.phi))[..., None, :]

    def second(self, direction: np.ndarray) -> np.ndarray:
        """½ h''(φ₀)[v, v]: by how much a straight line in φ is bent in θ."""
        bent = -0.5 * self.bend[..., None] * np.sin(self.phi) * direction**2
        return np.einsum("...ij,...j->...i", self.matrix, bent)


def plain_chart(theta: np.ndarray) -> Chart:
    """The logits themselves."""
    n, size = theta.shape
    return Chart(np.broadcast_to(np.eye(size), (n, size, size)), theta, theta, np.zeros(n))


def random_chart(rng: np.random.Generator, theta: np.ndarray) -> Chart:
    """Bent coordinates with M = U diag(⅓ … 3) V, U and V random rotations, and random φ₀."""
    n, size = theta.shape
    left, right = (np.linalg.qr(rng.standard_normal((n, size, size)))[0] for _ in range(2))
    matrix = (left * np.geomspace(1 / 3, 3, size)) @ right
    return Chart(matrix, rng.uniform(-np.pi, np.pi, (n, size)), theta, np.full(n, BEND))


class Steps(NamedTuple):
    """The library's steps in one chart, for every MDP and size (NumPy)."""

    natural: np.ndarray
    """Parameters after ``NaturalGradient(damping=0)``, ``[n, size, N]``."""
    plain: np.ndarray
    """Parameters after the same with ``damping=PLAIN``: a step along the gradient."""
    kl: np.ndarray
    """Mean KL of the plain gradient's step of length ``RADIUS``, ``[n]``."""
    curvature: np.ndarray
    """ĝᵀFĝ along the unit gradient."""


def library_steps(group: Group, charts: tuple[Chart, ...], delta: np.ndarray) -> list[Steps]:
    """Run the library's rule at every δ in every chart."""
    _, states, actions = group.logits.shape
    iterations = 4 * states * (actions - 1)

    def one(mdp: MDP, chart: Chart, max_kl: Any) -> tuple[Any, ...]:
        problem = exact_problem(
            mdp, chart.phi, lambda phi: minimal.categorical(chart(phi).reshape(states, actions - 1))
        )

        def update(radius: Any, damping: Any) -> Any:
            rule = NaturalGradient(radius, damping, iterations, cg_tolerance=0.0, max_step_norm=1e30)
            return rule.update(problem, chart.phi, ())[0]

        dampings = jnp.array([0.0, PLAIN])
        natural, plain = jax.vmap(lambda damping: jax.vmap(lambda d: update(d, damping))(max_kl))(dampings)
        model = problem.linearise(chart.phi)
        unit = model.gradient / jnp.linalg.norm(model.gradient)
        return natural, plain, problem.mean_kl(chart.phi + RADIUS * unit), model.kl_along(unit)[1]

    compiled = jax.jit(jax.vmap(one))
    results = (compiled(*jax.tree.map(jnp.asarray, (group.mdp, chart, delta))) for chart in charts)
    return [Steps(*(np.asarray(part) for part in result)) for result in results]


class Compared(NamedTuple):
    """Every MDP of one group or of all."""

    natural: np.ndarray
    """Distance between the natural steps in the two charts, as a fraction of the step, ``[n, size]``."""
    plain: np.ndarray
    """The same of the plain gradient's steps."""
    oracle: np.ndarray
    """The same of exact natural steps, solved as least squares by dense algebra."""
    natural_error: np.ndarray
    """Of the measured leading coefficient of the distance, relative to the predicted one, ``[n]``."""
    plain_error: np.ndarray
    advantage_error: np.ndarray
    """Of the natural step against π̃ ∝ π exp(βA), in fractions of the step."""
    condition: np.ndarray
    """Of F in bent coordinates."""
    kl: np.ndarray
    curvature: np.ndarray
    doubt: np.ndarray
    """Σ_s d(s) (1 − max_a π(a|s)): how often the policy does not take its favourite action."""


def _compare(rng: np.random.Generator, group: Group) -> Compared:
    """Take the same steps in two charts and compare the policies that result with each other and with theory."""
    n, states, actions = group.logits.shape
    theta = minimal.reduce(group.logits).reshape(n, -1)
    charts = plain_chart(theta), random_chart(rng, theta)
    policy = group.policy
    weight, advantage = exact.state_weight(group.mdp, policy), exact.advantage(group.mdp, policy)
    root = np.sqrt(weight[..., None] * policy)
    target = (root * advantage).reshape(n, -1)
    # The exact natural step changes log π by βA: its quadratic KL is ½ β² E[A²].
    largest = np.abs(advantage).max(axis=(-2, -1))
    norm = np.sqrt(SIZES**2 * (target**2).sum(axis=-1, keepdims=True)) / largest[:, None]
    steps = library_steps(group, charts, 0.5 * norm**2)

    def log_ratio(parameters: np.ndarray, chart: Chart) -> np.ndarray:
        """√(d π) log(π̃/π), divided by the step's size: its norm is the distance from π to second order."""
        each = jax.tree.map(lambda leaf: leaf[:, None], chart)
        new = minimal.log_policy(each(parameters).reshape(n, -1, states, actions - 1))
        old = minimal.log_policy(theta.reshape(n, 1, states, actions - 1))
        return (root[:, None] * (new - old)).reshape(n, len(SIZES), -1) / norm[..., None]

    natural, plain = ([log_ratio(p, c) for p, c in zip(ps, charts, strict=True)] for ps in _pairs(steps))
    basis = minimal.root_fisher(weight, policy)
    bases = [basis @ chart.jacobian() for chart in charts]
    # F x = g are the normal equations of the least-squares problem B x ≈ √(dπ) A, whose solution in this form keeps
    # its accuracy where F itself is singular in floating-point numbers.
    solutions = [np.einsum("nij,nj->ni", np.linalg.pinv(b, rcond=1e-15), target) for b in bases]
    oracle = []
    for chart, b, x in zip(charts, bases, solutions, strict=True):
        length = norm / np.linalg.norm(np.einsum("nij,nj->ni", b, x), axis=-1, keepdims=True)
        oracle.append(log_ratio(chart.phi[:, None] + length[..., None] * x[:, None], chart))
    direction = np.linalg.solve(charts[1].jacobian(), _lift(advantage)[..., None])[..., 0]
    bent = np.einsum("nij,nj->ni", basis, charts[1].second(direction)) / (target**2).sum(axis=-1, keepdims=True)
    scaled = (natural[1] - natural[0]) / norm[..., None]
    gradients = [np.einsum("nij,ni->nj", b, target) for b in bases]
    tangents = [_unit(np.einsum("nij,nj->ni", b, g)) for b, g in zip(bases, gradients, strict=True)]
    first = _unit(target)[:, None] - _limit(natural[0])[:, None]
    return Compared(
        np.linalg.norm(natural[1] - natural[0], axis=-1),
        np.linalg.norm(plain[1] - plain[0], axis=-1),
        np.linalg.norm(oracle[1] - oracle[0], axis=-1),
        np.linalg.norm(_limit(scaled) - bent, axis=-1) / np.linalg.norm(bent, axis=-1),
        np.linalg.norm(_limit(plain[1] - plain[0]) - (tangents[1] - tangents[0]), axis=-1),
        np.linalg.norm(first, axis=(-2, -1)),
        np.linalg.cond(bases[1]) ** 2,
        steps[0].kl,
        steps[0].curvature,
        (weight * (1 - policy.max(axis=-1))).sum(axis=-1),
    )


def _limit(values: np.ndarray) -> np.ndarray:
    """Return the limit of ``values[:, k, …]`` as the size goes to 0."""
    return np.einsum("nk...,k->n...", values, limit_weights(SIZES))


def _pairs(steps: list[Steps]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [s.natural for s in steps], [s.plain for s in steps]


def _lift(advantage: np.ndarray) -> np.ndarray:
    """A as a step in θ: relative to the last action, whose logit is fixed."""
    return (advantage[..., :-1] - advantage[..., -1:]).reshape(len(advantage), -1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def generator(seed: int) -> np.random.Generator:
    """Return the claim's own source of randomness."""
    return np.random.default_rng([seed, 1])


def measure(rng: np.random.Generator, size: int, seed: int) -> Compared:
    """Compare the charts on ``size`` random MDPs."""
    # Compiling costs more than computing, hence few shapes.
    groups = ensemble(size, seed, SHAPES[1::2] if size >= 256 else SHAPES[1:2])
    return join([_compare(rng, group) for group in groups])
