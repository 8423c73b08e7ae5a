"""Climbing the lower bound itself: it touches η at π, so its maximum cannot be worse than π."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo.tabular import bounds, chain, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims import _minorization as runs
from trpo.theory.claims import _minorization_figures as drawings
from trpo.theory.ensemble import Group, ensemble
from trpo.theory.laws import rms, slope, spread
from trpo.theory.records import Check, Outcome, Picture, at_least, at_most, within

TITLE = "Minorization-maximization"
EXPLANATION = """
The lower bound of the last chapter is more than a warning. Subtract the penalty from the surrogate, and what is left
is a function of π̃ that lies below the return everywhere and equals it at π (eq. 9):

    M_π(π̃) = L_π(π̃) − C · max_s KL(π ‖ π̃) ≤ η(π̃),   M_π(π) = η(π),   C = 4εγ/(1 − γ)²,   ε = max |A_π|

Take any π̃ where M is higher than at π. Then η(π̃) ≥ M_π(π̃) > M_π(π) = η(π): the policy has improved, without η ever
being computed at the new policy. Maximise M, compute new advantages, start again (algorithm 1):

    π_{i+1} = argmax_π̃ M_i(π̃),   η(π_{i+1}) − η(π_i) ≥ M_i(π_{i+1}) − M_i(π_i) ≥ 0   (eq. 10)

This is minorization-maximization (MM), of which expectation-maximization is the best known case: build a function
that touches the objective from below, jump to its maximum, repeat. The gradient of M at π is that of η, since the
penalty is of second order; so MM stops only where η has no gradient either.

`trpo.MM` carries this out to the letter on finite MDPs, with C computed anew in every iteration. That the jump ends
at the maximum isn't taken on trust: weak duality gives, for each update, a ceiling that no policy whatsoever can
exceed, and the jump reaches it. The maximiser can also be written down for large C. With b_sa = d_π(s) A_π(s,a), which
has mean 0, standard deviation σ_s and third moment μ_s under π(·|s), every state moves by the same KL

    D = (Σ_s σ_s)² / 2C² · (1 + 2κ/C + O(1/C²)),   κ = ⅔ Σ_s μ_s/σ_s²   (here C is in units of (1 − γ)η)

and both coefficients are compared with what the library does.

So the theory has its algorithm, and a guarantee that holds for every MDP. The price is in the first figure. C is a
worst case over all MDPs; the M that it leaves is so narrow that at the scale of η it looks like a vertical line, and
one has to magnify it thousands of times to see that it is a curve with a maximum. The step to that maximum is
therefore minute, D falls with 1/C², and thousands of iterations are needed for what a greedy step does in
two or three. The natural gradient and TRPO with a mean KL of δ = 0.01 or 0.1 need ten or so: they take the same kind of
step, and make it a hundred times longer or more, which means a KL larger by a factor of ten thousand or more
(last figure). No bound that holds for all MDPs permits such steps.

That is the way from theory to TRPO: keep the form of the step, the trade of surrogate against KL, and give up
the constant. Instead of a price C per nat, set the number of nats δ, and ask for it on average over states, not in each
(eq. 11, 12). The guarantee is lost, and the next chapter asks what takes its place.
"""
CODE = (
    "trpo.rules.mm:MM.update",
    "trpo.rules.mm:MM._log_ratio",
    "trpo.tabular.bounds:lower_bound",
    "trpo.theory.claims._minorization:suboptimality",
)
TESTS = (
    "test_claim_minorization.py::test_holds",
    "test_claim_minorization.py::test_a_penalty_of_first_order_is_noticed",
    "test_claim_minorization.py::test_a_mean_in_place_of_the_largest_advantage_is_noticed",
    "test_claim_minorization.py::test_the_other_direction_of_the_kl_is_noticed",
    "test_claim_minorization.py::test_a_missing_penalty_is_noticed",
    "test_claim_minorization.py::test_the_wrong_sign_is_noticed",
    "test_claim_minorization.py::test_a_step_short_of_the_maximum_is_noticed",
    "test_mm.py::test_the_maximiser_is_that_of_scipy",
    "test_mm.py::test_it_never_decreases_the_return",
)

SHAPES = ((2, 2, 2), (5, 2, 3), (4, 3, 3))
NAMED = 1
"""Index of the shape that the chain has as well; all rules run on its MDPs, TRPO alone on the others."""
SHARPEST = 1.5
"""Standard deviation of the sharpest initial logits."""
CAP = 20_000
"""Most iterations of MM for one MDP."""
RIVAL_UPDATES = 150
TARGETS = (0.01, 0.1)
"""δ of the rivals."""
SMALL = 1e-3 * 2.0 ** np.arange(4)
FAR = np.geomspace(0.03, 10.0, 8)
"""Distances along lines of logits."""
LENGTHS = np.array([0.1, 0.05, 0.025])
"""√(2D)·max|b|/σ, at which the law of the step is measured."""


class _Climbed(NamedTuple):
    """A group of MDPs, and what MM and its rivals did there."""

    group: Group
    best: np.ndarray
    """η*."""
    climb: runs.Climb
    rivals: dict[str, np.ndarray]
    """(η* − η_i)/(η* − η_0) of each rival, ``[n, RIVAL_UPDATES]``."""
    trpo_kl: np.ndarray
    """max_s KL of TRPO's first step with the smaller δ."""
    improvements: np.ndarray
    """Of policy iteration."""


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check that the bound touches η, that MM finds its maximum, and that η then never falls."""
    groups = ensemble(size, seed, SHAPES, SHARPEST)
    chunks = [runs.mm_chunk() for _ in groups]
    named = chain()
    climbed = [
        _climb(_with(group, named) if i == NAMED else group, chunk, all_rules=i == NAMED)
        for i, (group, chunk) in enumerate(zip(groups, chunks, strict=True))
    ]
    checks = [
        *_contact(groups, np.random.default_rng([seed, 6])),
        *_maximum(climbed, groups, chunks),
        _step_law(groups, chunks),
        *_monotone(climbed),
    ]
    pictures: list[Picture] = []
    if figures is not None:
        pictures = [
            drawings.bound(named, figures),
            drawings.progress(climbed, NAMED, figures),
            drawings.steps(climbed, TARGETS[0], figures),
        ]
    return Outcome(tuple(checks), _findings(climbed, groups, chunks), tuple(pictures))


def _with(group: Group, named: MDP) -> Group:
    """Append a named MDP, which starts from the uniform policy."""
    mdp = jax.tree.map(lambda many, one: np.concatenate([many, np.asarray(one)[None]]), group.mdp, named)
    uniform = np.zeros((1, *group.logits.shape[1:]))
    return Group(mdp, np.concatenate([group.logits, uniform]), np.concatenate([group.other_logits, uniform]))


def _rounding(mdp: MDP) -> np.ndarray:
    """How large a rounding error of η may be: values are at most |r|/(1 − γ), and a solve multiplies by 1/(1 − γ)."""
    return np.finfo(float).eps * np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount) ** 2


def _price(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """C in units of (1 − γ)η."""
    return (1 - mdp.discount) * bounds.penalty_coefficient(mdp, policy)


def _climb(group: Group, chunk: runs.Chunk, all_rules: bool) -> _Climbed:
    optimum = exact.policy_iteration(group.mdp, group.policy)
    best = optimum.expected_return
    climb = runs.climb(chunk, group.mdp, group.logits, best, CAP, _rounding(group.mdp))
    rivals = {}
    for name, rule in runs.RIVALS.items():
        if name != "TRPO" and not all_rules:
            continue
        updates = runs.rival_runs(rule, RIVAL_UPDATES)
        for target in TARGETS:
            eta, max_kl, _ = updates(target, group.mdp, group.logits)
            rivals[f"{name}, δ = {target:g}"] = (best[:, None] - eta) / (best - eta[:, 0])[:, None]
            if (name, target) == ("TRPO", TARGETS[0]):
                trpo_kl = max_kl[:, 0]
    return _Climbed(group, best, climb, rivals, trpo_kl, optimum.iterations)


def _contact(groups: list[Group], rng: np.random.Generator) -> list[Check]:
    """M at π, near it, and far from it, along random lines and along the gradient."""
    touch, below, slopes = [], [], []
    for group in groups:
        mdp, policy, unit = group.mdp, group.policy, _rounding(group.mdp)
        touch.append(np.abs(bounds.lower_bound(mdp, policy, policy) - exact.expected_return(mdp, policy)) / unit)
        for direction in (rng.standard_normal(group.logits.shape), exact.policy_gradient(mdp, group.logits)):
            direction = direction / np.linalg.norm(direction, axis=(-2, -1), keepdims=True)
            room = []
            for t in np.concatenate([SMALL, FAR, -SMALL, -FAR]):
                new = exact.softmax(group.logits + t * direction)
                room.append(exact.expected_return(mdp, new) - bounds.lower_bound(mdp, policy, new))
            distance = np.stack(room, axis=-1)
            below.append((distance / unit[:, None]).min(axis=-1))
            slopes.append(slope(SMALL, distance[:, : SMALL.size]))
    worst, nearest, orders = max(x.max() for x in touch), np.concatenate(below), np.concatenate(slopes)
    lines = orders.size
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
            "η(π̃) − M_π(π̃) on lines of logits, random ones and the gradient's, from t = ±0.001 to ±10, in the same units",
            lines * 2 * (SMALL.size + FAR.size),
            nearest.min(),
            -16.0,
            f"nearest {nearest.min():.3g} units above 0",
        ),
        within(
            "contact is of second order",
            "η − M ∝ t² near π, so that M has η's value and gradient: slope in log-log between t = 0.001 and 0.008",
            lines,
            orders[np.abs(orders - 2).argmax()],
            1.95,
            2.05,
            f"slope {spread(orders)}",
        ),
    ]


def _scaled(group: Group, chunk: runs.Chunk, scale: Any) -> tuple[np.ndarray, Group, runs.Iteration]:
    """Run ``CHUNK`` iterations on the first MDPs of a group, with multiples of the theory's C."""
    few = group.take(np.resize(np.arange(group.size), runs.WIDTH))
    factor = scale(few) if callable(scale) else np.full(runs.WIDTH, scale)
    return factor, few, chunk(few.mdp, factor, few.logits)


def _maximum(climbed: list[_Climbed], groups: list[Group], chunks: list[runs.Chunk]) -> list[Check]:
    """Hold every first and every last update of every climb against its ceiling, and longer steps as well."""
    theory, longer = [], []
    for part, group, chunk in zip(climbed, groups, chunks, strict=True):
        before, after, whose = part.climb.steps
        mdp = part.group.take(whose).mdp
        theory.append(runs.suboptimality(mdp, _price(mdp, exact.softmax(before)), before, after)[0])
        for scale in (1e-2, 1e-4):
            factor, few, found = _scaled(group, chunk, scale)
            price = factor * _price(few.mdp, few.policy)
            longer.append(runs.suboptimality(few.mdp, price, few.logits, found.logits[:, 0])[0][: group.size])
    checks = []
    for name, which, found in (
        ("maximum", "the theory's C; first and last update of every climb", np.concatenate(theory)),
        ("maximum, longer steps", "C/100 and C/10,000", np.concatenate(longer)),
    ):
        checks.append(
            at_most(
                name,
                "(ceiling − M gained)/M gained, where by duality no policy at all exceeds Σ_s ν_s[φ(λ_s/ν_s − 1) + "
                f"E_π φ(−b/λ_s)], φ(x) = x − log(1 + x); {which}",
                found.size,
                found.max(),
                1e-5,
                f"median {np.median(found):.1e}, 99th percentile {np.quantile(found, 0.99):.1e}; MM's tolerance is 1e-6",
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


def _step_law(groups: list[Group], chunks: list[runs.Chunk]) -> Check:
    """Compare D with (Σσ)²/2C² · (1 − κ/C)⁻²: both coefficients are right if what remains falls with 1/C²."""
    errors, raw = [], []
    for group, chunk in zip(groups, chunks, strict=True):
        for length in LENGTHS:

            def scale(few: Group, length: float = length) -> np.ndarray:
                largest, total, _ = _moments(few)
                return largest * total / length / _price(few.mdp, few.policy)

            factor, few, found = _scaled(group, chunk, scale)
            _, total, kappa = _moments(few)
            price, kl = factor * _price(few.mdp, few.policy), found.max_kl[:, 0]
            raw.append((2 * kl * price**2 / total**2 - 1)[: group.size])
            errors.append((2 * kl * (price - kappa) ** 2 / total**2 - 1)[: group.size])
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
        f"relative error falls with slope {first:.2f} after the first term and {order:.2f} after both, to {remains[-1]:.1e}",
    )


def _monotone(climbed: list[_Climbed]) -> list[Check]:
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


def _findings(climbed: list[_Climbed], groups: list[Group], chunks: list[runs.Chunk]) -> tuple[str, ...]:
    iterations = np.concatenate([part.climb.iterations for part in climbed])
    horizon = np.concatenate([1 / (1 - part.group.mdp.discount) for part in climbed])
    arrived = np.isfinite(iterations) & (iterations > 0)
    late = iterations.size - np.isfinite(iterations).sum()
    growth = np.polyfit(np.log(horizon[arrived]), np.log(iterations[arrived]), 1)[0]
    found = [
        f"MM closes 99 % of the gap η* − η₀ after a median of {np.median(iterations):,.0f} iterations "
        f"(quartiles {np.quantile(iterations, 0.25, method='lower'):,.0f} and "
        f"{np.quantile(iterations, 0.75, method='higher'):,.0f}); {late} of {iterations.size} MDPs had not got there "
        f"after {CAP:,}, and were still rising. Among the others the number grows like "
        f"(1 − γ)^−{growth:.1f}."
    ]
    part = climbed[NAMED]
    counts = {name: (left <= 1 - runs.CLOSED).argmax(axis=-1) for name, left in part.rivals.items()}
    missing = {name: int((left.min(axis=-1) > 1 - runs.CLOSED).sum()) for name, left in part.rivals.items()}
    listed = "; ".join(
        f"{name}: {np.median(n):.0f} (at most {n.max()}{f', {missing[name]} not at all' if missing[name] else ''})"
        for name, n in counts.items()
    )
    mm = part.climb.iterations
    found.append(
        f"Median updates for the same on the {mm.size} MDPs with {part.group.mdp.states} states and "
        f"{part.group.mdp.actions} actions, from the same start: MM {np.median(mm):,.0f}; {listed}; policy iteration "
        f"settles after {np.median(part.improvements):.0f} (at most {part.improvements.max()})."
    )
    ratio = np.concatenate([p.trpo_kl / p.climb.first_kl for p in climbed])
    found.append(
        f"TRPO's first step with δ = {TARGETS[0]:g} has a max_s KL {np.median(ratio):,.0f} times as large as the bound's "
        f"maximiser from the same policy (median; 5th to 95th percentile {np.quantile(ratio, 0.05):,.0f} to "
        f"{np.quantile(ratio, 0.95):,.0f}): the bound forbids it, and η rose all the same in "
        f"{sum(int((p.rivals[f'TRPO, δ = {TARGETS[0]:g}'][:, 1] < 1).sum()) for p in climbed)} of {ratio.size} cases."
    )
    falls, cases = 0, 0
    for group, chunk in zip(groups, chunks, strict=True):
        _, few, run = _scaled(group, chunk, 1e-2)
        drop = np.diff(run.expected_return, axis=1) < -1e3 * _rounding(few.mdp)[:, None]
        falls, cases = falls + int(drop[: group.size].any(axis=1).sum()), cases + min(group.size, runs.WIDTH)
    found.append(
        f"With C/100 in place of C, η fell at least once in {runs.CHUNK} iterations on {falls} of {cases} MDPs: the "
        "constant is a worst case that random MDPs don't come near."
    )
    return tuple(found)
