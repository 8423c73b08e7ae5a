"""Verdicts and findings of the claim "minorization"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.minorization import climb as runs
from trpo.theory.claims.minorization.measure import CAP, LENGTHS, LONGER, TARGETS, Contact, Measured, missed
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.arrays import join
from trpo.theory.shared.laws import rms, slope, spread

_UNITS = "in units of the rounding error 2⁻⁵²·max|r|/(1 − γ)²"


def checks(m: Measured) -> tuple[Check, ...]:
    """Judge the bound, its maxima, the law of the step, and the climbs."""
    climbs = [part.climb for part in m.climbed]
    return (*contact_checks(m.contact, m.size), *_maximum(m), _law(*m.law), *_monotone(climbs))


def contact_checks(found: Contact, size: int) -> Iterator[Check]:
    """Check M at the policies of ``size`` MDPs, near them, and far from them."""
    says = f"|M_π(π) − η(π)|, {_UNITS}"
    law = f"nothing but rounding: {found.touch.max():.2g} units"
    yield at_most("touches", says, found.touch, 16.0, law, over=size)
    says = (
        "η(π̃) − M_π(π̃) on lines of logits, random ones, the gradient's, and those along which the bound is "
        "tightest, from t = ±0.001 to ±10, in the same units"
    )
    law = f"nearest {found.room.min():.3g} units above 0"
    yield at_least("lies below", says, found.room.ravel(), -16.0, law)
    says = "η − M ∝ t² near π, so that M has η's value and gradient: slope in log-log between t = 0.001 and 0.008"
    law = f"slope {spread(found.order)}"
    yield within("contact is of second order", says, found.order, 1.95, 2.05, law)


def _maximum(m: Measured) -> Iterator[Check]:
    """Hold every first and every last update of every climb against its ceiling, and longer steps as well."""
    theory = join([missed(part.climb, part.group) for part in m.climbed])
    others = join([run.missed for many in m.longer.values() for run in many])
    for name, which, found in (
        ("maximum", "the theory's C; first and last update of every climb", theory),
        ("maximum, longer steps", "C/100, C/1000 and C/10,000", others),
    ):
        says = (
            "1 − (gain in M)/ceiling, where by weak duality no policy at all gains more than the "
            f"ceiling Σ_s ν_s[φ(λ_s/ν_s − 1) + E_π φ(−b/λ_s)], φ(x) = x − log(1 + x); {which}"
        )
        law = f"median {np.median(found):.1e}, 99th percentile {np.quantile(found, 0.99):.1e}; MM solves to 1e-6"
        yield at_most(name, says, found, 1e-5, law)


def _law(raw: np.ndarray, rest: np.ndarray) -> Check:
    """Compare D with its first term and with both: both coefficients are right if what remains falls with 1/C²."""
    first, order = (float(slope(LENGTHS, rms(values, axis=0))) for values in (raw, rest))
    says = "max_s KL = (Σ_s σ_s)²/2C² · (1 + 2κ/C + O(1/C²)): order in 1/C of what the two terms leave"
    law = f"relative error falls with slope {first:.2f} after the first term and {order:.2f} after both"
    return within("law of the step", says, order, 1.85, 2.15, law, over=rest)


def _monotone(climbs: list[runs.Climb]) -> Iterator[Check]:
    """Check every iteration of every climb."""
    gain, surplus, differ = (join([getattr(c, f).ravel() for c in climbs]) for f in ("gain", "surplus", "disagreement"))
    ratio, largest = join([c.gain_ratio for c in climbs]), join([c.largest_disagreement for c in climbs])
    says = f"η(π_{{i+1}}) − η(π_i) in every iteration on every MDP, {_UNITS}"
    law = f"it rises in each of {gain.size:,} iterations, by at least {gain.min():.2g} units"
    yield at_least("η never falls", says, gain, -16.0, law)
    says = f"η(π_{{i+1}}) − η(π_i) − [M_i(π_{{i+1}}) − M_i(π_i)] in every iteration (eq. 10), {_UNITS}"
    law = f"the gains of a climb are {spread(ratio)} times those promised: L gains 2CD, of which M gives CD away"
    yield at_least("every gain is as large as promised", says, surplus, -16.0, law)
    says = f"|promise by the oracle − (surrogate_gain − C·max_state_kl)/(1 − γ) by the library|, {_UNITS}"
    law = f"nothing but rounding: {spread(largest, 1)} units"
    yield at_most("the library's own account", says, differ, 256.0, law)


def findings(m: Measured) -> tuple[str, ...]:
    """Say how long MM takes, how long its rivals do, and what a smaller C would do."""
    climbed, part = m.climbed, m.named
    iterations = join([p.climb.iterations for p in climbed])
    horizon = join([1 / (1 - p.group.mdp.discount) for p in climbed])
    late = iterations.size - np.isfinite(iterations).sum()
    # Medians don't mind the few climbs that were cut short.
    bins = np.array_split(np.argsort(horizon), 5)
    typical, middle = (np.array([np.median(x[i]) for i in bins]) for x in (iterations, horizon))
    growth = float(slope(middle, np.minimum(typical, CAP)))
    listed = []
    for name, left in part.rivals.items():
        count, missing = (left <= 1 - runs.CLOSED).argmax(axis=-1), int((left.min(axis=-1) > 1 - runs.CLOSED).sum())
        never = f", {missing} not at all" if missing else ""
        listed.append(f"{name}: {np.median(count):.0f} (at most {count.max()}{never})")
    mm, mdp, ratio = part.climb.iterations, part.group.mdp, join([p.kl_ratio for p in climbed])
    rose = sum(int((p.rivals[f"TRPO, δ = {TARGETS[0]:g}"][:, 1] < 1).sum()) for p in climbed)
    parts = [f"{sum(int(run.broken.sum()) for run in many)} with C·{scale:g}" for scale, many in m.longer.items()]
    return (
        f"MM closes 99 % of the gap η* − η₀ after a median of {np.median(iterations):,.0f} iterations "
        f"(quartiles {np.quantile(iterations, 0.25, method='lower'):,.0f} and "
        f"{np.quantile(iterations, 0.75, method='higher'):,.0f}); {late} of {iterations.size} MDPs had not got there "
        f"after {CAP:,}, and were still rising. The median grows with the horizon 1/(1 − γ) to the power {growth:.1f}.",
        f"Median updates for the same on the {mm.size} MDPs with {mdp.states} states and {mdp.actions} actions, from "
        f"the same start: MM {np.median(mm):,.0f}; {'; '.join(listed)}; policy iteration settles after "
        f"{np.median(part.improvements):.0f} (at most {part.improvements.max()}).",
        f"TRPO's first step with δ = {TARGETS[0]:g} has a max_s KL {np.median(ratio):,.0f} times as large as that of "
        f"the bound's maximiser from the same policy (median; 5th to 95th percentile {np.quantile(ratio, 0.05):,.0f} "
        f"to {np.quantile(ratio, 0.95):,.0f}); the bound promises nothing for it, and η rose all the same in "
        f"{rose} of {ratio.size} cases.",
        f"What depends on C is the promise (eq. 10). Of {sum(run.few.size for run in m.longer[LONGER[0]])} MDPs it was "
        f"broken at least once in {runs.CHUNK} iterations on {', '.join(parts)}; with C itself never.",
    )
