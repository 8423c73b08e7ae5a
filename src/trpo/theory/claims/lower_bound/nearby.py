"""The lower bounds near π: powers and exact leading coefficients of penalties and of L_π(π̃) − η(π̃); a pair by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims.lower_bound.adversary import Bound, Cases, compare
from trpo.theory.shared import laws
from trpo.theory.shared.arrays import join
from trpo.theory.shared.ensemble import Group

STEPS = 0.2 / 2.0 ** np.arange(7)
"""τ: the logits move by τ(1 − γ), because that, and not τ, is what must be small for the expansion in the step."""


class Expansion(NamedTuple):
    """Steps of size τ(1 − γ) from π: one row for each MDP, one column for each τ.

    Everything is in units of 4εγ/(1−γ)² max_s (dTV/dτ)², so Theorem 1's penalty is τ² to leading order.
    """

    gap: np.ndarray
    """L_π(π̃) − η(π̃), with its sign."""
    coefficient: np.ndarray
    """Of τ² in ``gap``, exactly."""
    penalty: dict[str, np.ndarray]

    @property
    def extrapolated(self) -> np.ndarray:
        """gap/τ² extrapolated to τ → 0 from three halvings (errors of first and second order removed)."""
        f = self.gap[:, 2:5] / STEPS[2:5] ** 2
        once = 2 * f[:, 1:] - f[:, :-1]
        return (4 * once[:, 1] - once[:, 0]) / 3

    def slope(self, name: str | None = None) -> float:
        """The power of τ in the root mean square over MDPs, of a penalty or of the gap."""
        return float(laws.slope(STEPS[2:], laws.rms((self.gap if name is None else self.penalty[name])[:, 2:], axis=0)))


def expand(group: Group, penalties: dict[str, Bound], rng: np.random.Generator) -> Expansion:
    """Take steps of every size in a random direction in each MDP."""
    mdp, old = group.mdp, group.policy
    direction = rng.standard_normal(group.logits.shape) * (1 - mdp.discount)[:, None, None]
    mean = (old * direction).sum(axis=-1, keepdims=True)
    change = old * (direction - mean)  # dπ/dτ
    epsilon = np.abs(exact.advantage(mdp, old)).max(axis=(-2, -1))
    first = 0.5 * np.abs(change).sum(axis=-1).max(axis=-1)
    unit = 4 * epsilon * mdp.discount / (1 - mdp.discount) ** 2 * first**2
    gaps, values = [], []
    for step in STEPS:
        new = exact.softmax(group.logits + step * direction)
        gaps.append((exact.surrogate(mdp, old, new) - exact.expected_return(mdp, new)) / unit)
        values.append({name: bound(mdp, old, new) / unit for name, bound in penalties.items()})
    penalty = {name: np.stack([value[name] for value in values], axis=-1) for name in penalties}
    return Expansion(np.stack(gaps, axis=-1), _gap_coefficient(mdp, old, change) / unit, penalty)


def _gap_coefficient(mdp: MDP, old: np.ndarray, change: np.ndarray) -> np.ndarray:
    """−Σ_s (dρ/dτ)(s) (dĀ/dτ)(s): L − η = Σ_s (ρ_π − ρ_π̃) Ā, and both factors are of first order."""
    moved = np.einsum("ns,nsa,nsat->nt", exact.visitation(mdp, old), change, mdp.transition)
    resolvent = np.eye(mdp.states) - mdp.discount[:, None, None] * exact.state_transition(mdp, old)
    ahead = np.linalg.solve(resolvent, (change * exact.advantage(mdp, old)).sum(axis=-1)[..., None])[..., 0]
    return -mdp.discount * (moved * ahead).sum(axis=-1)


class ByHand(NamedTuple):
    """A family of MDPs and pairs whose numbers can be written down, and what the oracle says of them."""

    cases: Cases
    alpha: np.ndarray
    error: dict[str, np.ndarray]
    """Relative error of each penalty, and of the gap, against the formulas."""


def by_hand(discounts: np.ndarray, alphas: np.ndarray, penalties: dict[str, Bound], lag: float = 1.0) -> ByHand:
    """Evaluate the pair that comes as close to Theorem 1 as one likes.

    Two states; V_π = 0 in both. In the first, π takes two actions that stay, with advantages −1 and 1, by the toss of a
    coin; a third one, never taken, has advantage 1 and leads to the second state, for good. There, π tosses a coin
    between advantages −1 and 1. π̃ moves α from the first action to the third, and in the second state β = lag·α ≤ α
    from the better action to the worse one. Then TV is α and β, ε = 1, ε_π̃ = 2α, d_π = (1, 0), and

        L_π(π̃) − η(π̃) = 2γα(α + β) / [(1 − γ)(1 − γ + γα)].
    """
    gamma, alpha = (grid.ravel() for grid in np.meshgrid(discounts, alphas, indexing="ij"))
    beta, n = lag * alpha, gamma.size
    transition = np.zeros((2, 3, 2))
    transition[0, :2, 0] = transition[0, 2, 1] = transition[1, :, 1] = 1
    reward, start = np.array([[-1.0, 1.0, 1.0], [-1.0, 1.0, 0.0]]), np.array([1.0, 0.0])
    transition, reward, start = (np.broadcast_to(x, (n, *x.shape)) for x in (transition, reward, start))
    mdp = MDP(transition, reward, start, gamma)
    old = np.broadcast_to([0.5, 0.5, 0.0], (n, 2, 3))
    half, zero = np.full(n, 0.5), np.zeros(n)
    new = np.stack([np.stack([half - alpha, half, alpha], -1), np.stack([half + beta, half - beta, zero], -1)], axis=1)
    cases = compare(mdp, old, new, penalties)
    horizon, kl = gamma / (1 - gamma) ** 2, -0.5 * np.log1p(-2 * alpha)
    formula = {
        "theorem_1": 4 * horizon * alpha**2,
        "theorem_1_kl": 4 * horizon * kl,
        "pinsker": 2 * horizon * kl,
        "average_tv": 4 * horizon * alpha**2,
        "average_kl": 4 * horizon * alpha * np.sqrt(kl / 2),
        "icml_version": 4 * horizon * alpha**3,
    }
    error = {name: np.abs(cases.penalty[name] / formula[name] - 1) for name in penalties}
    gap = 2 * gamma * alpha * (alpha + beta) / ((1 - gamma) * (1 - gamma + gamma * alpha))
    return ByHand(cases, alpha, error | {"L − η": np.abs(cases.gap / gap - 1)})


def pairs(group: Group, penalties: dict[str, Bound], rng: np.random.Generator) -> tuple[Cases, Cases]:
    """Compare all penalties with the gap for unrelated policies, and for steps of several sizes from π."""
    far = compare(group.mdp, group.policy, group.other_policy, penalties)
    close = []
    for size in 10.0 ** np.arange(-3, 1):
        new = exact.softmax(group.logits + size * rng.standard_normal(group.logits.shape))
        close.append(compare(group.mdp, group.policy, new, penalties))
    return far, join(close)
