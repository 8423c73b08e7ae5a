"""Climbing the lower bound itself: it touches η at π, so its maximum cannot be worse than π."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from trpo.tabular import chain, exact
from trpo.tabular.mdp import MDP
from trpo.theory.claims import _minorization as runs
from trpo.theory.claims import _minorization_checks as checks
from trpo.theory.claims import _minorization_figures as drawings
from trpo.theory.records import Outcome, Picture
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.laws import slope

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

That η never falls is, for tables of probabilities, less than it seems: MM improves Σ_a π̃ A_π in every state, and then
the performance-difference identity alone says that η rises, whatever C is. What only the right C ensures is the size
of the promise in eq. 10, and that it holds for policies whose states share parameters, where a step that is good on
average is bad for some states. Hence the other checks: that every gain is as large as M promised, iteration by
iteration, and that M lies below η along lines of all kinds, also in MDPs built to make the bound tight.

So the theory has its algorithm, and a guarantee that holds for every MDP. The price is in the first figure. C is a
worst case over all MDPs; the M that it leaves is so narrow that at the scale of η it looks like a needle, and one has
to magnify it to see that it is a curve with a maximum. The step to that maximum is minute, D falls with 1/C², and MM
needs hundreds or thousands of iterations where a greedy improvement needs a few (second figure). The natural gradient
and TRPO turn in much the same direction and go further: their KL is larger than the bound's by orders of magnitude,
about as the square of the horizon 1/(1 − γ) (last figure). About such steps the bound promises nothing.

That is the way from theory to TRPO: keep the form of the step, the trade of surrogate against KL, and give up
the constant. Instead of a price C per nat, set the number of nats δ, and ask for it on average over states, not in each
(eq. 11, 12). The guarantee is lost, and the next chapter asks what takes its place.
"""
CODE = (
    "trpo.rules.mm:MM.update",
    "trpo.rules.mm:MM._log_ratio",
    "trpo.tabular.bounds:lower_bound",
    "trpo.theory.claims._weak_duality:suboptimality",
)
TESTS = (
    "test_claim_minorization.py::test_holds",
    "test_claim_minorization.py::test_a_penalty_of_first_order_is_noticed",
    "test_claim_minorization.py::test_too_small_a_constant_is_noticed",
    "test_claim_minorization.py::test_the_other_direction_of_the_kl_is_noticed",
    "test_claim_minorization.py::test_a_missing_penalty_is_noticed",
    "test_claim_minorization.py::test_another_step_is_noticed",
    "test_claim_minorization.py::test_the_hard_mdps_are_as_hard_as_they_claim",
    "test_mm.py::test_the_maximiser_is_that_of_scipy",
    "test_mm.py::test_it_never_decreases_the_return",
)

SHAPES = ((2, 2, 2), (5, 2, 3), (4, 3, 3))
NAMED = 1
"""Index of the shape that the chain has as well; all rules run on its MDPs, TRPO alone on the others."""
SHARPEST = 1.5
"""Standard deviation of the sharpest initial logits."""
CAP = 10_000
"""Most iterations of MM for one MDP."""
RIVAL_UPDATES = 150
TARGETS = (0.01, 0.1)
"""δ of the rivals."""
LONGER = (1e-2, 1e-3, 1e-4)
"""Multiples of the theory's C with which the maximiser is checked on longer steps."""


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check that the bound touches η, that MM finds its maximum, and that η then never falls."""
    groups = ensemble(size, seed, SHAPES, SHARPEST)
    chunks = [runs.mm_chunk() for _ in groups]
    named = chain(discount=0.9)
    climbed = [
        _climb(_with(group, named) if i == NAMED else group, chunk, all_rules=i == NAMED)
        for i, (group, chunk) in enumerate(zip(groups, chunks, strict=True))
    ]
    pairs = list(zip(groups, chunks, strict=True))
    longer = {scale: [checks.scaled(group, chunk, scale) for group, chunk in pairs] for scale in LONGER}
    found = [
        *checks.contact(groups, np.random.default_rng([seed, 6])),
        *checks.maximum(climbed, longer),
        checks.step_law(groups, chunks),
        *checks.monotone(climbed),
    ]
    pictures: list[Picture] = []
    if figures is not None:
        pictures = [
            drawings.bound(named, figures),
            drawings.progress(climbed, NAMED, figures),
            drawings.steps(climbed, TARGETS[0], figures),
        ]
    return Outcome(tuple(found), _findings(climbed, longer), tuple(pictures))


def _with(group: Group, named: MDP) -> Group:
    """Append a named MDP, which starts from the uniform policy."""
    mdp = jax.tree.map(lambda many, one: np.concatenate([many, np.asarray(one)[None]]), group.mdp, named)
    uniform = np.zeros((1, *group.logits.shape[1:]))
    return Group(mdp, np.concatenate([group.logits, uniform]), np.concatenate([group.other_logits, uniform]))


def _climb(group: Group, chunk: runs.Chunk, all_rules: bool) -> runs.Climbed:
    optimum = exact.policy_iteration(group.mdp, group.policy)
    best = optimum.expected_return
    climb = runs.climb(chunk, group.mdp, group.logits, best, CAP, checks.rounding(group.mdp))
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
    return runs.Climbed(group, best, climb, rivals, trpo_kl, optimum.iterations)


def _broken(factor: np.ndarray, few: Group, found: runs.Iteration) -> int:
    """On how many MDPs did η gain less than M promised?"""
    short = found.claim[:, :-1] - np.diff(found.expected_return, axis=1)
    return int((short > 1e3 * checks.rounding(few.mdp)[:, None]).any(axis=1).sum())


def _findings(climbed: list[runs.Climbed], longer: dict[float, list[Any]]) -> tuple[str, ...]:
    iterations = np.concatenate([part.climb.iterations for part in climbed])
    horizon = np.concatenate([1 / (1 - part.group.mdp.discount) for part in climbed])
    late = iterations.size - np.isfinite(iterations).sum()
    # Medians don't mind the few climbs that were cut short.
    bins = np.array_split(np.argsort(horizon), 5)
    typical = np.array([np.median(iterations[i]) for i in bins]), np.array([np.median(horizon[i]) for i in bins])
    growth = float(slope(typical[1], np.minimum(typical[0], CAP)))
    found = [
        f"MM closes 99 % of the gap η* − η₀ after a median of {np.median(iterations):,.0f} iterations "
        f"(quartiles {np.quantile(iterations, 0.25, method='lower'):,.0f} and "
        f"{np.quantile(iterations, 0.75, method='higher'):,.0f}); {late} of {iterations.size} MDPs had not got there "
        f"after {CAP:,}, and were still rising. The median grows with the horizon 1/(1 − γ) to the power {growth:.1f}."
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
    ratio = np.concatenate([p.kl_ratio for p in climbed])
    found.append(
        f"TRPO's first step with δ = {TARGETS[0]:g} has a max_s KL {np.median(ratio):,.0f} times as large as that of "
        f"the bound's maximiser from the same policy (median; 5th to 95th percentile {np.quantile(ratio, 0.05):,.0f} "
        f"to {np.quantile(ratio, 0.95):,.0f}); the bound promises nothing for it, and η rose all the same in "
        f"{sum(int((p.rivals[f'TRPO, δ = {TARGETS[0]:g}'][:, 1] < 1).sum()) for p in climbed)} of {ratio.size} cases."
    )
    parts = [f"{sum(_broken(*run) for run in many)} with C·{scale:g}" for scale, many in longer.items()]
    found.append(
        f"What depends on C is the promise (eq. 10). Of {sum(run[0].size for run in longer[LONGER[0]])} MDPs it was "
        f"broken at least once in {runs.CHUNK} iterations on {', '.join(parts)}; with C itself never."
    )
    return tuple(found)
