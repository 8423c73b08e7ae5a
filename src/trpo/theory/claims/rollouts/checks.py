"""Verdicts and findings of the claim "rollouts"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.rollouts.measure import KS, LENGTH, LENGTHS, OFF, Cases, Measured
from trpo.theory.records import Check, at_most
from trpo.theory.shared.laws import rounding, slope, spread
from trpo.theory.shared.noise import bias_check, noise_checks

NARROW = 3.0
"""Largest ρ and 1/ρ below which 2 to 16 actions show the law of many."""


def checks(m: Measured) -> tuple[Check, ...]:
    """Judge branches, their tails, common random numbers and sampled actions."""
    return (*_listed(m.cases), *_branches(m), *_common(m.cases), *_sampled(m.cases))


def _listed(cases: Cases) -> Iterator[Check]:
    says = (
        "With every state a root of weight d_π(s), all actions and Q_π itself, the vine's problem gives "
        "Σ_s d_π Σ_a π̃ A_π and u · its gradient (relative to the size of what is summed)"
    )
    yield at_most("exact Q, exact problem", says, cases.listed, 1e-12, rounding(cases.listed))


def _branches(m: Measured) -> Iterator[Check]:
    closed = f"all actions of N roots from d_π, followed for {LENGTH} steps"
    for name, what in (("surrogate", "the surrogate at π̃"), ("gradient", "the gradient along u")):
        statement = f"{closed} and closed with V_π: {what} → the exact one"
        yield from noise_checks(name, what, m.noises[name], statement)
        name = f"{name}, another V"
        statement = (
            f"closed with a V that is off by N(0, {OFF:g}²): {what} → that of the exact Q of {LENGTH} steps and this V"
        )
        yield bias_check(name, what, m.noises[name], statement)
    tail = m.cases.tail
    says = (
        "What is left as N → ∞, closed with that V: |u · (bias of the gradient)| ≤ γⁿ max |V − V_π| E_s E_a |u − E u|, "
        "n = 1 … 16; with V_π it is 0 for every n (largest share of the bound)"
    )
    shares = ", ".join(f"{x:.3f}" for x in np.median(tail, axis=0))
    law = f"median share of the bound at n = {', '.join(map(str, LENGTHS))}: {shares}"
    yield at_most("bias of the tail", says, tail, 1 + 1e-9, law)


def _common(cases: Cases) -> Iterator[Check]:
    says = "Where all actions do the same, all Q̂ of a root are the same, bit for bit: the largest difference"
    yield at_most("common random numbers", says, cases.same, 0.0, f"largest {cases.same.max():g}")


def _sampled(cases: Cases) -> Iterator[Check]:
    for i, proposal in enumerate(("π", "uniform")):
        keep = (cases.largest[:, i] < NARROW) & np.isfinite(cases.coefficient[:, i])
        bias, coefficient = cases.bias[keep, i], cases.coefficient[keep, i]
        # K times the bias is a polynomial in 1/K: two extrapolations.
        first = 2 * (bias * KS)[:, 1:] - (bias * KS)[:, :-1]
        off = np.abs((4 * first[:, 2] - first[:, 1]) / 3 - coefficient)
        rate = float(slope(KS[-2:].astype(float), np.median(np.abs(bias), axis=0)[-2:]))
        says = (
            "K actions, self-normalised, Q exact: K times the bias → −E_q[ρ²(Q − E_π̃ Q)], ρ = π̃/q, where ρ and "
            f"1/ρ < {NARROW:g}; bias over all draws, extrapolated from K = 2 … 16 (in units of E_q ρ²|Q − E_π̃ Q|)"
        )
        law = f"median bias ∝ K^{rate:.2f} from K = 8 to 16; deviations {spread(off, 4)}"
        yield at_most(f"self-normalised, from {proposal}", says, off, 0.05, law)


def findings(m: Measured) -> tuple[str, ...]:
    """Say what common random numbers are worth, and what a vine is worth at equal steps."""
    common, paths = (x[np.isfinite(x)] for x in (m.cases.common, m.cases.paths))
    low, middle, high = np.quantile(common, [0.05, 0.5, 0.95])
    few, half, many = np.quantile(paths, [0.05, 0.5, 0.95])
    return (
        f"Common random numbers: a root's part of the surrogate has {middle:.2f} of the variance that independent "
        f"branches would give it (5 % to 95 % of the MDPs: {low:.2f} … {high:.2f}); in "
        f"{100 * np.mean(common > 1):.0f} % it is more.",
        "At equal branch steps, all actions of one root against single actions, with the exact V as baseline, in as "
        f"many roots as there are actions: {half:.2f} of the variance ({few:.2f} … {many:.2f}), less in "
        f"{100 * np.mean(paths < 1):.0f} % of the MDPs. Where states differ more than actions do, single paths win.",
    )
