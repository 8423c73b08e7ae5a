"""What the Fisher claim measures: the library on random MDPs, and the cumulants that it is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo import fisher
from trpo.distributions import Categorical
from trpo.tabular import MDP, exact, exact_problem
from trpo.theory.shared.arrays import limit
from trpo.theory.shared.ensemble import SHAPES, Group, ensemble

STEPS = 0.64 * 0.5 ** np.arange(9)
"""t; Δ is standard normal, so t is the typical change of a logit."""
SMALL = STEPS <= 0.04
"""Where the laws are measured: the series' next terms are small and rounding is smaller still."""
WAYS = (
    "LocalModel.fisher_vp",
    "trpo.fisher_vp",
    "scores from log_prob",
    "∇² of the library's D̄",
    "∇² of the oracle's D̄",
    "ΔᵀFΔ of kl_along",
)


class Measured(NamedTuple):
    """What the library said of one group of MDPs (NumPy, leading axis of MDPs)."""

    fishers: np.ndarray
    """F by every one of ``WAYS``, ``[n, way, SA, SA]``."""
    start: np.ndarray
    """D̄, max_s KL and the largest entry of ∇D̄ at θ_old, ``[n, 3]``."""
    curvature: np.ndarray
    """ΔᵀFΔ, ``[n]``."""
    forward: np.ndarray
    """D̄(θ_old, θ_old + tΔ) for every t, ``[n, t]``."""
    backward: np.ndarray
    """The same with the policies exchanged."""
    gradient: np.ndarray
    """∇D̄ at θ_old + tΔ for small t, ``[n, t, S, A]``."""


class Part(NamedTuple):
    """One group's direction, what the theory predicts of it, and what was measured."""

    group: Group
    delta: np.ndarray
    weight: np.ndarray
    measured: Measured

    @property
    def policy(self) -> np.ndarray:
        """π(a|s)."""
        return self.group.policy

    def centred(self) -> np.ndarray:
        """Δ_sa − E_π Δ."""
        return self.delta - (self.policy * self.delta).sum(axis=-1, keepdims=True)

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Σ_s d_π(s) Σ_a π(a|s) x."""
        return np.einsum("ns,nsa,nsa->n", self.weight, self.policy, x)


def measure(size: int, seed: int) -> list[Part]:
    """Measure ``size`` random MDPs, each in a random direction."""
    rng = np.random.default_rng([seed, 2])
    parts = []
    # Compiling costs more than computing: a few MDPs come in one shape only.
    for group in ensemble(size, seed, SHAPES if size >= 256 else SHAPES[1:2]):
        delta = rng.standard_normal(group.logits.shape)
        weight = exact.state_weight(group.mdp, group.policy)
        parts.append(Part(group, delta, weight, _library(group, delta, weight)))
    return parts


def _library(group: Group, delta: np.ndarray, weight: np.ndarray) -> Measured:
    """Run the library on every MDP of ``group``."""
    _, states, actions = group.logits.shape
    size = states * actions

    def one(mdp: MDP, theta: Any, direction: Any, weight: Any) -> tuple[Any, ...]:
        problem = exact_problem(mdp, theta)
        model = problem.linearise(theta)
        policy = exact.softmax(theta)

        def matrix(product: Callable[[Any], Any]) -> Any:
            return jax.vmap(product)(jnp.eye(size).reshape(size, states, actions)).reshape(size, size)

        def log_probabilities(params: Any) -> Any:
            distribution = problem.distributions(params)
            return jnp.stack([distribution.log_prob(jnp.full(states, a)) for a in range(actions)], axis=-1)

        def oracle_kl(params: Any) -> Any:
            return jnp.sum(weight * exact.kl(policy, exact.softmax(params)))

        def moved(t: Any) -> tuple[Any, Any]:
            new = problem.distributions(theta + t * direction)
            return problem.mean_kl(theta + t * direction), jnp.sum(weight * new.kl_to(problem.old))

        score = jax.jacobian(log_probabilities)(theta).reshape(states, actions, size)
        fishers = (
            matrix(model.fisher_vp),
            matrix(fisher.fisher_vp(problem.distributions, theta, problem.weight)),
            jnp.einsum("s,sa,sai,saj->ij", problem.weight, policy, score, score),
            jax.hessian(problem.mean_kl)(theta).reshape(size, size),
            jax.hessian(oracle_kl)(theta).reshape(size, size),
        )
        start = problem.evaluate(theta)
        forward, backward = jax.lax.map(moved, jnp.asarray(STEPS))
        return (
            jnp.stack(fishers),
            jnp.stack([start.mean_kl, start.max_state_kl, jnp.max(jnp.abs(model.kl_gradient()))]),
            model.kl_along(direction)[1],
            forward,
            backward,
            jax.lax.map(lambda t: problem.linearise(theta + t * direction).kl_gradient(), jnp.asarray(STEPS[SMALL])),
        )

    arguments = jax.tree.map(jnp.asarray, (group.mdp, group.logits, delta, weight))
    return Measured(*(np.asarray(part) for part in jax.jit(jax.vmap(one))(*arguments)))


def fisher_error(part: Part) -> np.ndarray:
    """The largest |F − F_oracle| of every MDP and way, ``[n, way]``, and last the error of ΔᵀFΔ, in units of rounding.

    The unit of entry (s, a, b) is machine epsilon times d(s) √(π(a|s) π(b|s)), the size of the terms that it is
    computed from, times 1/(1 − γ), by which solving for the visitation magnifies rounding.
    """
    _, states, actions = part.delta.shape
    oracle = exact.fisher(part.weight, part.policy)
    root = np.sqrt(part.weight[..., None] * part.policy).reshape(len(oracle), -1)
    own_state = np.kron(np.eye(states), np.ones((actions, actions))) > 0
    unit = np.where(own_state, root[:, :, None] * root[:, None, :], 1.0)
    error = (np.abs(part.measured.fishers - oracle[:, None]) / unit[:, None]).max(axis=(-2, -1))
    along = np.abs(part.measured.curvature - part.mean(part.centred() ** 2)) / part.mean(part.delta**2)
    rounding = np.finfo(float).eps / (1 - part.group.mdp.discount)
    return np.column_stack([error, along]) / rounding[:, None]


class Series(NamedTuple):
    """Remainders and coefficients along t, in units of each MDP's ΔᵀFΔ/6.

    A cubic coefficient of that size would match the parabola at t = 3, a change of a few logits.
    """

    kl: np.ndarray
    cubic: np.ndarray
    """D̄ − ½t²ΔᵀFΔ."""
    quartic: np.ndarray
    """What is left after the third cumulant as well."""
    gap: np.ndarray
    """D̄(old, new) − D̄(new, old)."""
    kappa: np.ndarray
    """Σ_s d(s) κ₃(s)/6, the prediction."""
    forward: np.ndarray
    """Cubic coefficient of D̄(old, new), extrapolated to t → 0."""
    backward: np.ndarray
    gradient: np.ndarray
    """Error of the second-order coefficient of ∇D̄, in units of Σ_s d(s) max_a Δ²."""


def compare(part: Part) -> Series:
    """Compare the library's KL along t with the cumulants."""
    m, c = part.measured, part.centred()
    unit = part.mean(c**2) / 6
    kappa = part.mean(c**3) / 6 / unit
    # From the definition: ΔᵀFΔ by products loses digits where a policy is all but deterministic, the KL does not.
    parabola = 0.5 * part.mean(c**2)[:, None] * STEPS**2
    forward, backward = (m.forward - parabola) / unit[:, None], (m.backward - parabola) / unit[:, None]
    small = STEPS[SMALL]
    # ∇D̄(θ_old + tΔ) = t F Δ + ½ t² d(s) π(a|s) (c² − κ₂) + O(t³)
    probability = part.weight[..., None] * part.policy
    bend = (m.gradient - small[:, None, None] * (probability * c)[:, None]) / small[:, None, None] ** 2
    predicted = 0.5 * probability * (c**2 - (part.policy * c**2).sum(axis=-1, keepdims=True))
    bend_unit = (part.weight * (part.delta**2).max(axis=-1)).sum(axis=-1)
    return Series(
        m.forward / unit[:, None],
        forward,
        forward - kappa[:, None] * STEPS**3,
        (m.forward - m.backward) / unit[:, None],
        kappa,
        limit(forward[:, SMALL] / small**3, small),
        limit(backward[:, SMALL] / small**3, small),
        np.abs(limit(np.moveaxis(bend, 1, -1), small) - predicted).max(axis=(-2, -1)) / bend_unit,
    )


def library_kl(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return KL of the first policy to the second, by the library, in each state."""
    return np.asarray(Categorical(jnp.asarray(logits)).kl_to(Categorical(jnp.asarray(other))))


def coins() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, and the relative errors and ratio of the library's two KLs between a fair coin and one that shows q."""
    q = 10.0 ** -np.arange(1, 13)
    fair = np.zeros((q.size, 2))
    unfair = np.stack([np.log1p(-q), np.log(q)], axis=-1)
    there, back = library_kl(fair, unfair), library_kl(unfair, fair)
    exactly = -0.5 * np.log(4 * q * (1 - q)), np.log(2) + q * np.log(q) + (1 - q) * np.log1p(-q)
    error = np.maximum(np.abs(there / exactly[0] - 1), np.abs(back / exactly[1] - 1))
    return q, error, there / back
