"""Verdicts on the lower bounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.tabular import bounds
from trpo.theory.claims.lower_bound.adversary import CONTROL, DISCOUNTS, STEPS
from trpo.theory.claims.lower_bound.measure import Evidence
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.arrays import join
from trpo.theory.shared.laws import rms, slope

_ROUNDING = 1e-9
"""Relative rounding of a penalty; that of L − η is taken off the ratio already."""


def checks(e: Evidence) -> tuple[Check, ...]:
    """Check that every bound holds, that the search could have refuted it, and its order near π."""
    return *_bound_checks(e), *_power_checks(e), *_order_checks(e)


def _bound_checks(e: Evidence) -> Iterator[Check]:
    for name in bounds.BOUNDS:
        far, close, found = e.far.ratio(name), e.close.ratio(name), e.searched(name)
        own = np.median(e.found[name].ratio(name)) if name in e.found else np.median(found)
        says = "|L_π(π̃) − η(π̃)| / penalty ≤ 1 for unrelated policies, and for steps of size 10⁻³ to 1 in the logits"
        law = f"largest {far.max():.3f} (unrelated), {close.max():.3f} (steps); median {np.median(far):.1e} (unrelated)"
        yield at_most(f"{name}: random pairs", says, join([far, close]), 1 + _ROUNDING, law)
        by_discount = ", ".join(f"{b:.3f} at γ = {g:g}" for g, b in zip(DISCOUNTS, e.best(name), strict=True))
        law = f"largest {by_discount}; median of the climbs {own:.3f}"
        yield at_most(f"{name}: search", "the same where gradient ascent on the ratio led", found, 1 + _ROUNDING, law)


def _power_checks(e: Evidence) -> Iterator[Check]:
    found = e.found[CONTROL].ratio(CONTROL)
    tight = {name: e.hand.cases.ratio(name) for name in ("theorem_1", "average_tv")}
    top = min(ratio.max() for ratio in tight.values())
    at = e.hand.cases.discount == DISCOUNTS[-1]
    odds = e.hand.cases.penalty["theorem_1"][at] / e.hand.cases.gap[at] - 1
    power = float(slope(e.hand.alpha[at], odds)) if np.all(odds > 0) else np.nan
    says = "2ε_π̃γ/(1−γ)² max_s D_TV², not a bound for two arbitrary policies: largest |L − η| / penalty"
    law = (
        f"{100 * np.mean(found > 1):.0f} % of the climbs against it end above 1; it is "
        f"of order {e.near.slope(CONTROL):.3f} in the step, so the ratio has no bound"
    )
    yield at_least("control: the search can refute", says, found.max(), 10, law, over=found)
    says = (
        "every penalty, and L − η, against formulas for a pair with TV α and α or α/2, ε = 1, ε_π̃ = 2α, "
        "max_s KL(π ‖ π̃) = −½ log(1 − 2α): relative error"
    )
    law = "rounding: " + ", ".join(f"{name} {np.max(x):.0e}" for name, x in e.hand.error.items())
    error = join([np.stack([*hand.error.values()], axis=-1) for hand in (e.hand, e.lagging)])
    yield at_most("by hand", says, error, 1e-9, law)
    says = "largest |L − η| / penalty by hand, for theorem_1 and average_tv: (1 − γ)/(1 − γ + γα) → 1"
    law = f"1/ratio − 1 = γα/(1 − γ): measured slope {power:.4f} in α at γ = {DISCOUNTS[-1]:g}"
    yield within("no smaller constant", says, top, 0.999, 1 + _ROUNDING, law, over=e.hand.alpha)


def _order_checks(e: Evidence) -> Iterator[Check]:
    orders = {name: e.near.slope(name) for name in bounds.BOUNDS} | {"L − η": e.near.slope()}
    error, unit = np.abs(e.near.extrapolated - e.near.coefficient), rms(e.near.coefficient)
    says = "penalties and L − η ∝ t²: the slope in log-log that is furthest from 2 (root mean square over MDPs)"
    law = "slopes " + ", ".join(f"{name} {order:.4f}" for name, order in orders.items())
    yield within("touches to second order", says, np.array([*orders.values()]), 1.97, 2.03, law, over=error)
    says = "[L_π − η]/t² → −Σ_s ρ'(s) Ā'(s), sign included; root mean square error relative to that of the coefficient"
    law = f"agrees to {rms(error) / unit:.1e} (median error {np.median(error) / unit:.1e})"
    yield at_most("coefficient of L − η", says, rms(error) / unit, 1e-2, law, over=error)


def findings(e: Evidence) -> tuple[str, ...]:
    """Say how tight the bounds are where the search led, and where it did not."""
    first = e.best("theorem_1").max()
    powers = {name: float(slope(1 - DISCOUNTS[2:], e.best(name)[2:])) for name in ("pinsker", "average_kl")}
    gamma = e.far.discount
    share = e.far.ratio("theorem_1")
    low, high = (np.median(share[part]) for part in (gamma < 0.75, gamma > 0.95))
    return (
        f"The search refutes Theorem 1 with its constant divided by {1 / first:.3f} (best of {STEPS} steps of ascent "
        f"from each start); the pair by hand does so from {1 / e.hand.cases.ratio('theorem_1').max():.5f} on, and "
        "by any factor above 1 if α is short enough: the constant 4 is the best possible.",
        "The best ratio that the search found for the KL forms falls as γ → 1 (0.9 to 0.99): like "
        + " and ".join(f"(1 − γ)^{power:.2f} for {name}" for name, power in powers.items())
        + "; Theorem 1 and average_tv have pairs near 1 at every γ.",
        f"For unrelated random policies Theorem 1's penalty is {1 / low:.0f} times |L − η| in the median at γ < 0.75 "
        f"and {1 / high:.0f} times at γ > 0.95: typical MDPs are far from the worst case, and the further "
        "the closer γ is to 1. TRPO's steps follow the bound's form, not its constant.",
        "Constants and sources: eq. 8 and 9 have 4εγ/(1−γ)² with ε = max_{s,a} |A_π|; `pinsker` is half of eq. 9; "
        "Achiam et al. write KL(π̃ ‖ π) in their corollary, where KL(π ‖ π̃) is used here, and both are right, "
        "since D_TV is symmetric.",
    )
