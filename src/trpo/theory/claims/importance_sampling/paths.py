"""What single paths estimate, with the weight γᵗ and without it: exact weights of states and their laws (NumPy)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP, chain, cliff, grid
from trpo.theory.shared.arrays import stack
from trpo.theory.shared.paths import state_frequencies

DISCOUNTS = np.array([0.5, 0.9, 0.95, 0.99])
LENGTHS = np.array([1, 3, 10, 30, 100, 300, 1000])
"""Steps T of an episode."""


def discounted_weights(discount: np.ndarray, steps: int) -> np.ndarray:
    """Return γᵗ/Σγᵗ for t < ``steps``, shape ``[n, steps]``: what makes a path's states a sample of d_π."""
    weight = discount[:, None] ** np.arange(steps)
    return weight / weight.sum(axis=-1, keepdims=True)


def equal_weights(discount: np.ndarray, steps: int) -> np.ndarray:
    """Return 1/T for every step: the weights of practice."""
    return np.full((*discount.shape, steps), 1 / steps)


def cut_visitation(mdp: MDP, policy: np.ndarray, steps: int) -> np.ndarray:
    """Return Σ_{t<T} γᵗ P(s_t = s)/Σ_{t<T} γᵗ, ``[n, S]``: ρ_π less γᵀ times that of the MDP begun where paths end."""
    end = (mdp.start[:, None] @ np.linalg.matrix_power(exact.state_transition(mdp, policy), steps))[:, 0]
    later = MDP(mdp.transition, mdp.reward, _simplex(end), mdp.discount)
    power = (mdp.discount**steps)[:, None]
    return (exact.state_weight(mdp, policy) - power * exact.state_weight(later, policy)) / (1 - power)


def stationary(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Return d_∞ with d_∞ P_π = d_∞, shape ``[n, S]``; complex policies too."""
    p = exact.state_transition(mdp, policy)
    # d (I − P) = 0 and Σ d = 1 in one system: d (I − P + 1 1ᵀ) = 1ᵀ.
    return np.linalg.solve((np.eye(mdp.states) - p + 1).swapaxes(-1, -2), np.ones((*p.shape[:-1], 1)))[..., 0]


def deviation(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Return μ D with D = (I − P_π + 1 d_∞ᵀ)⁻¹ − 1 d_∞ᵀ: the excess of visits over d_∞ in an endless episode."""
    p, limit = exact.state_transition(mdp, policy), stationary(mdp, policy)
    system = np.eye(mdp.states) - p + limit[:, None, :]
    return np.linalg.solve(system.swapaxes(-1, -2), mdp.start[..., None])[..., 0] - limit


def _simplex(p: np.ndarray) -> np.ndarray:
    """Take away the rounding errors that many steps leave in a distribution."""
    return p / p.sum(axis=-1, keepdims=True)


class PathBias(NamedTuple):
    """Gradients by weight of states, at every γ of ``DISCOUNTS`` and T of ``LENGTHS``; leading axis ``[n]``."""

    kept_angle: np.ndarray
    """Degrees between ∇η and the gradient from paths cut at T with weights γᵗ, ``[n, γ, T]``."""
    dropped_angle: np.ndarray
    """The same without γᵗ."""
    limit_angle: np.ndarray
    """The same for T → ∞, ``[n, γ]``."""
    kept_bias: np.ndarray
    """‖(1−γ)∇η − (1−γ) Σ_{t<T} γᵗ …‖ relative to ‖(1−γ)∇η‖."""
    dropped_bias: np.ndarray
    """‖(1−γ)∇η − gradient weighted with d_T‖ relative to the same."""
    cut_error: np.ndarray
    """Relative error of: bias of the cut = γ^T times the gradient of the MDP begun at P(s_T = ·); NaN below 1e-4."""
    excess: np.ndarray
    """‖gradient weighted with d_T − its limit‖, ``[n, γ, T]``."""
    excess_error: np.ndarray
    """Relative error of T · that = gradient weighted with μD, at the longest T, ``[n, γ]``."""
    mixing: np.ndarray
    """‖P(s_T = ·) − d_∞‖₁ at the longest T, ``[n, γ]``: the same for all γ."""


def _norm(x: np.ndarray) -> np.ndarray:
    """‖x‖ over the last two axes."""
    return np.sqrt((x**2).sum(axis=(-2, -1)))


def angle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return degrees between vectors of shape ``[..., S, A]``, accurate near 0 as well."""
    x, y = (z / np.maximum(_norm(z), 1e-300)[..., None, None] for z in (x, y))
    return np.degrees(2 * np.arctan2(_norm(x - y), _norm(x + y)))


def _weighted(weight: np.ndarray, per_state: np.ndarray) -> np.ndarray:
    """Return w(s) f(s, a), ``[n, S, A]`` or ``[n, T, S, A]``, for weights ``[n, S]`` or ``[n, T, S]``."""
    return weight[..., None] * (per_state if weight.ndim == 2 else per_state[:, None])


def path_bias(mdp: MDP, policy: np.ndarray) -> PathBias:
    """Compute what dropping γᵗ and cutting at T do to the gradient of the soft-max logits, exactly."""
    limit, excess = stationary(mdp, policy), deviation(mdp, policy)
    visited = state_frequencies(mdp, policy, int(LENGTHS[-1]) + 1)
    # P(s_T = s), and d_T(s) = (1/T) Σ_{t<T} P(s_t = s).
    last, mean = visited[:, LENGTHS], np.cumsum(visited, axis=1)[:, LENGTHS - 1] / LENGTHS[:, None]
    columns = []
    for gamma in DISCOUNTS:
        one = MDP(mdp.transition, mdp.reward, mdp.start, np.full_like(mdp.discount, gamma))
        per_state = policy * exact.advantage(one, policy)
        gradient = _weighted(exact.state_weight(one, policy), per_state)
        size = np.maximum(_norm(gradient), 1e-300)[:, None]
        discounted = np.cumsum(gamma ** np.arange(LENGTHS[-1] + 1)[:, None] * visited, axis=1)[:, LENGTHS - 1]
        kept = _weighted((1 - gamma) * discounted, per_state)
        missing = gradient[:, None] - kept
        later = [MDP(one.transition, one.reward, p, one.discount) for p in np.moveaxis(_simplex(last), 1, 0)]
        begun = np.stack([_weighted(exact.state_weight(x, policy), per_state) for x in later], axis=1)
        power = gamma ** LENGTHS.astype(float)
        predicted = power[:, None, None] * begun
        dropped, final = _weighted(mean, per_state), _weighted(limit, per_state)
        beyond, expected = LENGTHS[:, None, None] * (dropped - final[:, None]), _weighted(excess, per_state)
        cut_error = _norm(missing - predicted) / np.maximum(_norm(predicted), 1e-300)
        columns.append(
            PathBias(
                kept_angle=angle(gradient[:, None], kept),
                dropped_angle=angle(gradient[:, None], dropped),
                limit_angle=angle(gradient, final),
                kept_bias=_norm(missing) / size,
                dropped_bias=_norm(gradient[:, None] - dropped) / size,
                cut_error=np.where(power > 1e-4, cut_error, np.nan),
                excess=_norm(beyond) / LENGTHS,
                excess_error=_norm(beyond[:, -1] - expected) / np.maximum(_norm(expected), 1e-300),
                mixing=np.abs(last[:, -1] - limit).sum(axis=-1),
            )
        )
    return stack(columns, axis=1)


def named_angles() -> dict[str, np.ndarray]:
    """Return the angle to ∇η without γᵗ in the named MDPs with the uniform policy, at the longest T, by γ."""
    angles = {}
    for name, mdp in (("chain", chain()), ("cliff", cliff()), ("grid", grid())):
        one: MDP = jax.tree.map(lambda x: x[None], mdp)
        angles[name] = path_bias(one, np.full(one.reward.shape, 1 / one.actions)).dropped_angle[0, :, -1]
    return angles


def asymmetry(mdp: MDP, logits: np.ndarray, h: float = 1e-30) -> tuple[np.ndarray, np.ndarray]:
    """Return ‖J − Jᵀ‖/‖J‖ of the Jacobian J of two gradient fields in θ, by complex steps, shape ``[n]`` each.

    A field is the gradient of some function only if J is symmetric everywhere. The fields are w(s) π(a|s) A_π(s, a)
    with w = d_π, and with w = d_∞, what weights without γᵗ tend to.
    """
    n, states, actions = logits.shape
    jacobian = np.zeros((2, n, states * actions, states * actions))
    for j in range(states * actions):
        shifted = logits.astype(complex)
        shifted[:, j // actions, j % actions] += 1j * h
        policy = exact.softmax(shifted)
        per_state = policy * exact.advantage(mdp, policy)
        for i, weight in enumerate((exact.state_weight(mdp, policy), stationary(mdp, policy))):
            jacobian[i, :, :, j] = (weight[..., None] * per_state).imag.reshape(n, -1) / h
    kept, dropped = _norm(jacobian - jacobian.swapaxes(-1, -2)) / _norm(jacobian)
    return kept, dropped


class Shared(NamedTuple):
    """Degrees between directions with weights d_π and with d_∞, for a policy whose states share parameters, ``[n]``."""

    plain: np.ndarray
    """Of the gradients."""
    natural: np.ndarray
    """Of the natural gradients F⁻¹g."""


def shared_parameters(rng: np.random.Generator, mdp: MDP, policy: np.ndarray, features: int = 3) -> Shared:
    """Compare the two weightings when logits are θ_sa + φ(s)·W_a with random features φ and only W learns."""
    n, states, actions = policy.shape
    phi = rng.standard_normal((n, states, features))
    advantage = exact.advantage(mdp, policy)
    plain, natural = [], []
    for weight in (exact.state_weight(mdp, policy), stationary(mdp, policy)):
        gradient = np.einsum("ns,nsk,nsa->nka", weight, phi, policy * advantage)
        fisher = np.einsum("ns,nsk,nsl,nsab->nkalb", weight, phi, phi, exact.state_fisher(policy))
        flat = fisher.reshape(n, features * actions, -1)
        step = np.linalg.pinv(flat, rcond=1e-10, hermitian=True) @ gradient.reshape(n, -1, 1)
        plain.append(gradient)
        natural.append(step.reshape(n, features, actions))
    return Shared(angle(*plain), angle(*natural))
