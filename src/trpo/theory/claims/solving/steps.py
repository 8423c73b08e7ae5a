"""Exact local problems in the minimal logits: the oracle's view of them, and the steps of the library's rule."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo import rules
from trpo.tabular import MDP, exact, exact_problem
from trpo.theory.claims.solving.systems import COMPILER, Systems, padded
from trpo.theory.shared import minimal_logits as minimal
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group
from trpo.theory.shared.laws import rms, slope

TRUNCATED, FULL = 10, 64
"""cg_iterations of the rule's own steps: its default, and enough for n = 16."""
DELTA = 0.01
RULE_DAMPINGS = np.array([0.0, 1e-4, 1e-2, 0.1, 1.0])
"""λ of the rule's own steps at δ = ``DELTA``; 0.1 is its default."""
DELTAS = 0.04 * 0.25 ** np.arange(9)
"""Radii δ of its undamped steps, in nats."""
TAME = 30.0
"""Largest max|A|/√E[A²] for which the series of the KL is used at the four smallest δ."""


def _over_actions(step: np.ndarray) -> np.ndarray:
    return np.concatenate([step, np.zeros_like(step[..., :1])], axis=-1)


class Local(NamedTuple):
    """The oracle's view of each MDP at θ, from d_π, π and A alone."""

    weight: np.ndarray
    policy: np.ndarray
    advantage: np.ndarray

    @classmethod
    def of(cls, group: Group) -> Local:
        """Take A_π, centred once more: its mean under π is rounding error, which small probabilities would magnify."""
        advantage = exact.advantage(group.mdp, group.policy)
        centred = advantage - exact.expected_advantage(advantage, group.policy)[..., None]
        return cls(exact.state_weight(group.mdp, group.policy), group.policy, centred)

    def moment(self, k: int) -> np.ndarray:
        """E[A^k]; the second is gᵀF⁻¹g."""
        return np.sum(self.weight[..., None] * self.policy * self.advantage**k, axis=(-2, -1))

    @property
    def skewness(self) -> np.ndarray:
        """E[A³]/E[A²]^(3/2)."""
        return self.moment(3) / self.moment(2) ** 1.5

    def square(self, step: np.ndarray) -> np.ndarray:
        """ΔᵀFΔ = Σ_s d(s) ½ Σ_ab π(a|s) π(b|s) (Δ_sa − Δ_sb)²: without cancellation, however sharp the policy."""
        u = _over_actions(step)
        pairs = self.policy[..., :, None] * self.policy[..., None, :]
        variance = 0.5 * np.sum(pairs * (u[..., :, None] - u[..., None, :]) ** 2, axis=(-2, -1))
        return np.sum(self.weight * variance, axis=-1)

    def kl(self, step: np.ndarray) -> np.ndarray:
        """D̄(θ, θ + Δ) = Σ_s d(s) log E_a[exp(Δ_sa − EΔ)], accurate for small steps too."""
        u = _over_actions(step)
        v = u - np.sum(self.policy * u, axis=-1, keepdims=True)
        return np.sum(self.weight * np.log1p(np.sum(self.policy * (np.expm1(v) - v), axis=-1)), axis=-1)

    @property
    def gradient(self) -> np.ndarray:
        """g, ``[mdps, S, A − 1]``."""
        return (self.weight[..., None] * self.policy * self.advantage)[..., :-1]

    @property
    def best(self) -> np.ndarray:
        """F⁻¹g, ``[mdps, S, A − 1]``."""
        return minimal.reduce(self.advantage)


def of_mdps(group: Group) -> Systems:
    """F and g of MDPs over the minimal logits; there x*(s, a) = A(s, a) − A(s, last), whatever the weights."""
    local = Local.of(group)
    g, solution = (x.reshape(group.size, -1) for x in (local.gradient, local.best))
    return padded(minimal.fisher(local.weight, group.policy), g, solution)


def in_one_shape(groups: list[Group]) -> Group:
    """Give every MDP the states of the largest one; the new ones are never reached, so that their weight is 0.

    All MDPs then need one compiled program instead of one for each shape.
    """
    most = max(group.mdp.states for group in groups)

    def enlarged(group: Group) -> Group:
        room = most - group.mdp.states
        rows = ((0, 0), (0, room), (0, 0))
        transition, new = np.pad(group.mdp.transition, (*rows, (0, room))), np.arange(group.mdp.states, most)
        transition[:, new, :, new] = 1.0
        mdp = MDP(transition, np.pad(group.mdp.reward, rows), np.pad(group.mdp.start, rows[:2]), group.mdp.discount)
        return Group(mdp, np.pad(group.logits, rows), np.pad(group.other_logits, rows))

    return join([enlarged(group) for group in groups])


class Updates(NamedTuple):
    """TRPO's own updates, for pairs (λ, δ) on the leading axis (NumPy)."""

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
        found[k] = Updates(max_kl, full, fraction, mean_kl)
    return found


def random_steps(
    rng: np.random.Generator, local: Local, systems: Systems, draws: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return gᵀΔ/gᵀΔ* for random Δ on the boundary, uniform and as many near Δ*, ``[2·draws, m]``.

    And for the uniform ones how unusual they are: (n cos² − 1) over its standard deviation √(2(n − 1)/(n + 2)).
    """
    # x_a = ξ_a/√(d π_a) has covariance (d diag π)⁻¹; the differences to the last action then have covariance F⁻¹.
    scale = np.sqrt(np.where(local.weight > 0, local.weight, 1.0)[..., None] * local.policy)
    noise = minimal.reduce(rng.standard_normal((draws, *local.policy.shape)) / scale)
    noise = np.where(local.weight[..., None] > 0, noise, 0.0)
    size = local.square(noise)
    near = local.best + 0.1 * np.sqrt(local.moment(2) / size)[..., None, None] * noise

    def cosine(step: np.ndarray) -> np.ndarray:
        return np.sum(local.gradient * step, axis=(-2, -1)) / np.sqrt(local.square(step) * local.moment(2))

    uniform, n = cosine(noise), systems.rows
    chance = (n * uniform**2 - 1) / np.sqrt(2 * (n - 1) / (n + 2))
    return np.concatenate([uniform, cosine(near)]), chance


def skewness_law(local: Local, updates: Updates) -> tuple[np.ndarray, float]:
    """Compare the true KL of full steps with the advantage's skewness, at the four smallest δ.

    Return the errors of the coefficient in units of max|A|/√E[A²], where that is at most ``TAME``, and the power of δ
    in the root mean square of D̄/δ − 1.
    """
    size = np.abs(local.advantage).max(axis=(-2, -1)) / np.sqrt(local.moment(2))
    kept = size <= TAME
    excess = local.kl(updates.full[-len(DELTAS) :]) / DELTAS[:, None] - 1
    c = (excess / np.sqrt(2 * DELTAS)[:, None])[-4:, kept]
    # √δ halves from one to the next: extrapolate away √δ, δ and δ^(3/2).
    for factor in (2, 4, 8):
        c = (factor * c[1:] - c[:-1]) / (factor - 1)
    power = float(slope(DELTAS[-4:], rms(excess[-4:, kept], axis=1)))
    return np.abs(c[0] - local.skewness[kept] / 3) / size[kept], power
