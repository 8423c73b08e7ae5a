"""What the claim "minorization" checks."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from trpo.tabular import bounds, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims import _minorization as runs
from trpo.theory.claims._weak_duality import suboptimality
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.ensemble import Group
from trpo.theory.shared.laws import rms, slope, spread

SMALL = 1e-3 * 2.0 ** np.arange(4)
FAR = np.geomspace(0.03, 10.0, 8)
"""Distances along lines of logits."""
HARD = np.array([0.5, 0.7, 0.9, 0.95, 0.99])
"""γ of the MDPs in which the bound is nearly tight."""
LENGTHS = np.array([0.1, 0.05, 0.025])
"""√(2D)·max|b|/σ, at which the law of the step is measured."""


def rounding(mdp: MDP) -> np.ndarray:
    """How large a rounding error of η may be: values are at most |r|/(1 − γ), and a solve multiplies by 1/(1 − γ)."""
    return np.finfo(float).eps * np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount) ** 2


def theory_price(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """C in units of (1 − γ)η."""
    return (1 - mdp.discount) * bounds.penalty_coefficient(mdp, policy)


def detour(discount: np.ndarray) -> tuple[Group, np.ndarray]:
    """Return MDPs in which the bound is nearly as tight as it can be, a policy, and the direction in which it is.

    All values are 0, and all advantages ±1. In state 0 one moves from an action with −1 to one with +1, which leads to
    state 1 for ever; there one moves from +1 to −1. The surrogate counts only what is gained in state 0. For short
    steps L − η is [(1 − γ)/(1 − γ + γp)]² · 2p/(1 + 2p) of C · max_s KL, p being the probability of leaving under π.
    The other states can't be reached and have no rewards: ε is a maximum, so that they make no difference.
    """
    n, states = discount.size, 20
    leave = np.minimum(1 - discount, 0.4)
    policy, shift = np.full((n, states, 3), 1 / 3), np.zeros((n, states, 3))
    policy[:, 0] = np.stack([np.full(n, 0.5), 0.5 - leave, leave], axis=-1)
    policy[:, 1] = 0.5, 0.25, 0.25
    shift[:, 0], shift[:, 1] = (-1.0, 0.0, 1.0), (-1.0, 0.5, 0.5)
    transition = np.broadcast_to(np.eye(states)[:, None, :], (n, states, 3, states)).copy()
    transition[:, 0, 2] = np.eye(states)[1]
    reward = np.zeros((n, states, 3))
    reward[:, 0], reward[:, 1] = (-1.0, 1.0, 1.0), (1.0, -1.0, -1.0)
    mdp = MDP(transition, reward, np.broadcast_to(np.eye(states)[0], (n, states)), discount)
    return Group(mdp, np.log(policy), np.log(policy)), shift / policy


def contact(groups: list[Group], rng: np.random.Generator) -> list[Check]:
    """M at π, near it, and far from it, along random lines and along the gradient."""
    touch, below, slopes = [], [], []
    lines = [(group, rng.standard_normal(group.logits.shape)) for group in groups]
    lines += [(group, exact.policy_gradient(group.mdp, group.logits)) for group in groups]
    for group, direction in (*lines, detour(HARD)):
        mdp, policy, unit = group.mdp, group.policy, rounding(group.mdp)
        touch.append(np.abs(bounds.lower_bound(mdp, policy, policy) - exact.expected_return(mdp, policy)) / unit)
        direction = direction / np.linalg.norm(direction, axis=(-2, -1), keepdims=True)
        room = []
        for t in np.concatenate([SMALL, FAR, -SMALL, -FAR]):
            new = exact.softmax(group.logits + t * direction)
            room.append(exact.expected_return(mdp, new) - bounds.lower_bound(mdp, policy, new))
        distance = np.stack(room, axis=-1)
        below.append((distance / unit[:, None]).min(axis=-1))
        # A bound that is violated has no slope, and fails above.
        slopes.append(slope(SMALL, np.maximum(distance[:, : SMALL.size], np.finfo(float).tiny)))
    worst, nearest, orders = max(x.max() for x in touch), np.concatenate(below), np.concatenate(slopes)
    return [
        at_most(
            "touches",
            "|M_π(π) − η(π)|, in units of the rounding error 2⁻⁵²·max|r|/(1 − γ)²",
            sum(group.size for group in groups),
            worst,
            16.0,
            f"nothing but rounding: {worst:.2g} units",
        ),
        at_least(
            "lies below",
            "η(π̃) − M_π(π̃) on lines of logits, random ones, the gradient's, and those along which the bound is "
            "tightest, from t = ±0.001 to ±10, in the same units",
            orders.size * 2 * (SMALL.size + FAR.size),
            nearest.min(),
            -16.0,
            f"nearest {nearest.min():.3g} units above 0",
        ),
        within(
            "contact is of second order",
            "η − M ∝ t² near π, so that M has η's value and gradient: slope in log-log between t = 0.001 and 0.008",
            orders.size,
            orders[np.abs(orders - 2).argmax()],
            1.95,
            2.05,
            f"slope {spread(orders)}",
        ),
    ]


def scaled(group: Group, chunk: runs.Chunk, scale: Any) -> tuple[np.ndarray, Group, runs.Iteration]:
    """Run MM on the first MDPs of a group, at most ``WIDTH``, with multiples of the theory's C."""
    few = group.take(np.arange(min(group.size, runs.WIDTH)))
    factor = scale(few) if callable(scale) else np.full(few.size, scale)
    filled = np.resize(np.arange(few.size), runs.WIDTH)
    found = chunk(few.take(filled).mdp, factor[filled], few.logits[filled])
    return factor, few, jax.tree.map(lambda leaf: leaf[: few.size], found)


def maximum(climbed: list[runs.Climbed], longer: dict[float, list[Any]]) -> list[Check]:
    """Hold every first and every last update of every climb against its ceiling, and longer steps as well."""
    theory, others = [], []
    for part in climbed:
        before, after, whose = part.climb.steps
        mdp = part.group.take(whose).mdp
        theory.append(suboptimality(mdp, theory_price(mdp, exact.softmax(before)), before, after))
    for factor, few, found in (run for many in longer.values() for run in many):
        price = factor * theory_price(few.mdp, few.policy)
        others.append(suboptimality(few.mdp, price, few.logits, found.logits[:, 0]))
    checks = []
    for name, which, found in (
        ("maximum", "the theory's C; first and last update of every climb", np.concatenate(theory)),
        ("maximum, longer steps", "C/100, C/1000 and C/10,000", np.concatenate(others)),
    ):
        checks.append(
            at_most(
                name,
                "1 − (gain in M)/ceiling, where by weak duality no policy at all gains more than the "
                "ceiling Σ_s ν_s[φ(λ_s/ν_s − 1) + "
                f"E_π φ(−b/λ_s)], φ(x) = x − log(1 + x); {which}",
                found.size,
                found.max(),
                1e-5,
                f"median {np.median(found):.1e}, 99th percentile {np.quantile(found, 0.99):.1e}; MM solves to 1e-6",
            )
        )
    return checks


def _moments(group: Group) -> tuple[np.ndarray, ...]:
    """Return b's largest entry over σ_s, Σ_s σ_s and κ."""
    b = exact.state_weight(group.mdp, group.policy)[..., None] * exact.advantage(group.mdp, group.policy)
    sigma = np.sqrt((group.policy * b**2).sum(axis=-1))
    third = (group.policy * b**3).sum(axis=-1)
    largest = (np.abs(b).max(axis=-1) / sigma).max(axis=-1)
    return largest, sigma.sum(axis=-1), 2 / 3 * (third / sigma**2).sum(axis=-1)


def step_law(groups: list[Group], chunks: list[runs.Chunk]) -> Check:
    """Compare D with (Σσ)²/2C² · (1 − κ/C)⁻²: both coefficients are right if what remains falls with 1/C²."""
    errors, raw = [], []
    for group, chunk in zip(groups, chunks, strict=True):
        for length in LENGTHS:

            def scale(few: Group, length: float = length) -> np.ndarray:
                largest, total, _ = _moments(few)
                return largest * total / length / theory_price(few.mdp, few.policy)

            factor, few, found = scaled(group, chunk, scale)
            _, total, kappa = _moments(few)
            price, kl = factor * theory_price(few.mdp, few.policy), found.max_kl[:, 0]
            raw.append(2 * kl * price**2 / total**2 - 1)
            errors.append(2 * kl * (price - kappa) ** 2 / total**2 - 1)
    remains = [rms(np.concatenate(errors[i :: LENGTHS.size])) for i in range(LENGTHS.size)]
    leading = [rms(np.concatenate(raw[i :: LENGTHS.size])) for i in range(LENGTHS.size)]
    order, first = (float(slope(LENGTHS, np.array(values))) for values in (remains, leading))
    return within(
        "law of the step",
        "max_s KL = (Σ_s σ_s)²/2C² · (1 + 2κ/C + O(1/C²)): order in 1/C of what the two terms leave",
        sum(min(group.size, runs.WIDTH) for group in groups),
        order,
        1.85,
        2.15,
        f"relative error falls with slope {first:.2f} after the first term and {order:.2f} after both",
    )


def monotone(climbed: list[runs.Climbed]) -> list[Check]:
    climbs = [part.climb for part in climbed]
    gain, surplus = (np.concatenate([getattr(c, name) for c in climbs]) for name in ("least_gain", "least_surplus"))
    differ = np.concatenate([c.disagreement for c in climbs])
    ratio = np.concatenate([c.gain_ratio for c in climbs])
    iterations = sum(c.total for c in climbs)
    unit = "in units of the rounding error 2⁻⁵²·max|r|/(1 − γ)²"
    return [
        at_least(
            "η never falls",
            f"η(π_{{i+1}}) − η(π_i) in every iteration on every MDP, {unit}",
            iterations,
            gain.min(),
            -16.0,
            f"it rises in each of {iterations:,} iterations, by at least {gain.min():.2g} units",
        ),
        at_least(
            "every gain is as large as promised",
            f"η(π_{{i+1}}) − η(π_i) − [M_i(π_{{i+1}}) − M_i(π_i)] in every iteration (eq. 10), {unit}",
            iterations,
            surplus.min(),
            -16.0,
            f"the gains of a climb are {spread(ratio)} times those promised: L gains 2CD, of which M gives CD away",
        ),
        at_most(
            "the library's own account",
            f"|promise by the oracle − (surrogate_gain − C·max_state_kl)/(1 − γ) by the library|, {unit}",
            iterations,
            differ.max(),
            256.0,
            f"nothing but rounding: {spread(differ, 1)} units",
        ),
    ]
