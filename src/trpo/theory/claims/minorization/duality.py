"""A proof that no policy has a larger lower bound than the one that was found, whoever found it (NumPy)."""

from __future__ import annotations

import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP


def _less_its_log(x: np.ndarray, log_1px: np.ndarray) -> np.ndarray:
    """φ(x) = x − log(1 + x), which is x²/2 − x³/3 + … ≥ 0."""
    series = x**2 * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x / 6))))
    return np.where(np.abs(x) < 1e-3, series, x - log_1px)


def suboptimality(mdp: MDP, price: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return at most which share of the gain in M that is possible an update missed; 1 if it gained nothing.

    A small share proves a maximum, whoever found it, by weak duality. For any ν_s ≥ 0 with Σ_s ν_s = C and any
    λ_s > max_a b_sa,

        max_π̃ [Σ π̃ b − C max_s KL_s] ≤ Σ_s max_π̃ [Σ_a π̃ b − ν_s KL_s] ≤ Σ_s ν_s [φ(λ_s/ν_s − 1) + Σ_a π φ(−b/λ_s)]

    with b = d_π(s) A_π(s, a), φ(x) = x − log(1 + x). Good multipliers are read off π̃, where b = λ_s − ν_s π/π̃.
    ``price`` is C in units of (1 − γ)η, ``[n]``; ``before`` and ``after`` are logits of π and π̃.
    """
    policy = exact.softmax(before)
    b = exact.state_weight(mdp, policy)[..., None] * exact.advantage(mdp, policy)
    step = after - before
    log_ratio = step - np.log1p((policy * np.expm1(step)).sum(axis=-1, keepdims=True))
    x = np.expm1(log_ratio)
    kl = (policy * _less_its_log(x, log_ratio)).sum(axis=-1)
    gain = (policy * x * b).sum(axis=(-2, -1)) - price * kl.max(axis=-1)
    nu, gap = _multipliers(policy, b, log_ratio)
    total = nu.sum(axis=-1, keepdims=True)
    # Any multipliers give a ceiling; these are for an update that did not move.
    nu = np.where(total > 0, nu / np.where(total > 0, total, 1.0), 1 / nu.shape[-1]) * price[..., None]
    top = b.max(axis=-1)
    above = nu * gap  # λ − max b
    priced = nu > 0
    safe_nu, level = np.where(priced, nu, 1.0), np.where(priced, top + above, np.inf)
    room = np.where(priced[..., None], (top[..., None] - b + above[..., None]) / level[..., None], 1.0)
    inner = (policy * _less_its_log(-b / level[..., None], np.log(room))).sum(axis=-1)
    ratio = np.where(priced, level / safe_nu, 1.0)
    inner = inner + _less_its_log(ratio - 1, np.log(ratio))
    ceiling = np.where(priced, nu * inner, np.maximum(top, 0.0)).sum(axis=-1)
    return 1 - gain / ceiling


def _multipliers(policy: np.ndarray, b: np.ndarray, log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read ν and (λ − max b)/ν off π̃: the slope of b against π/π̃, and π/π̃ at the best action."""
    inverse = np.expm1(-log_ratio)  # π/π̃ − 1
    # These weights are π for short steps, and let no action dominate that π̃ has all but given up.
    weight = policy * np.exp(2 * log_ratio)
    weight = weight / weight.sum(axis=-1, keepdims=True)
    centred = inverse - (weight * inverse).sum(axis=-1, keepdims=True)
    spread = (weight * centred**2).sum(axis=-1)
    slope = -(weight * b * centred).sum(axis=-1) / np.where(spread > 0, spread, 1.0)
    best = np.take_along_axis(-log_ratio, b.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return np.where(spread > 0, np.maximum(slope, 0.0), 0.0), np.exp(best)
