"""Verdicts and findings of the claim about sample reuse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.sample_reuse.measure import BATCHES, KINDS, LAW, LEARNER_UPDATES, PAIRED, Cell, Measured
from trpo.theory.claims.sample_reuse.updates import ANCHORED, BEGINS, ENDS, MOST, UPDATES, schedule
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared.arrays import join
from trpo.theory.shared.laws import rms, slope, spread


def checks(m: Measured) -> tuple[Check, ...]:
    """Judge the bound, the closed forms, re-anchored updates and what is gained."""
    return (*_trust_region(m), *_laws(m), *_anchors(m), *_paired(m))


def _trust_region(m: Measured) -> Iterator[Check]:
    """Check what holds whatever the batch: the bound, the surrogate, the learner."""
    within_delta = slice(BEGINS[-1])
    kl = join([cell.kl[:, within_delta] for cell in m.cells.values()])
    ratio = (kl / schedule().fraction[within_delta]).ravel()
    everywhere = join([ratio, *((1 - exactly.slack).ravel() for exactly in m.laws.values())])
    later = join([cell.surrogate[:, within_delta] for cell in m.cells.values()])
    first = np.isin(np.arange(BEGINS[-1]), BEGINS[:-1])
    rise = (later - np.where(first, 0.0, np.roll(later, 1, axis=1))).ravel()
    ends, apart = ", ".join(f"{np.median(kl[:, end]):.4f}" for end in ENDS), m.learner
    says = (
        "Within a cumulative δ: D̄(π, π_k) ≤ (k/K) δ after each update, K = 1, 2, 4, 8, on exact problems and on "
        "batches of all sizes (largest ratio of the two sides)"
    )
    law = f"a bound, to rounding; after K = 1, 2, 4, 8 updates the median is {ends} δ"
    yield at_most("within δ of the sampling policy", says, everywhere, 1 + 1e-9, law, over=ratio)
    says = (
        "L(π_k) ≥ L(π_(k−1)) on its own batch for each of those updates (smallest change, in units of the largest "
        "|advantage|)"
    )
    least = rise.min()
    law = f"smallest rise {least:.1e}: no update was refused" if least > 0 else f"smallest change {least:.1e}"
    yield at_least("L never falls", says, rise, -1e-13, law)
    says = (
        f"K = {LEARNER_UPDATES} updates by the learner's own loop: the same θ (relative difference), within δ (D̄/δ − 1)"
    )
    law = f"θ equal to {apart[:, 0].max():.1e}; D̄/δ at most {apart[:, 1].max():.6f}"
    yield at_most("as the learner does it", says, np.maximum(apart[:, 0], apart[:, 1] - 1), 1e-8, law)


def _laws(m: Measured) -> Iterator[Check]:
    """Check the closed forms of exact tabular problems."""
    small, laws = m.laws[LAW[0]], m.laws.values()
    off, short = (join([getattr(law, name).ravel() for law in laws]) for name in ("off_line", "short"))
    # Steps of the other sign overshoot δ by as much and are cut back by the line search.
    cut = small.predicted_slack[:, 0] > 0
    ratio = np.median(small.slack[cut] / small.predicted_slack[cut], axis=0)
    sizes = np.array(sorted(m.laws))[:-1]
    shape_error = [float(rms(m.laws[d].shape - (known := m.laws[d].predicted_shape)) / rms(known)) for d in sizes]
    power = float(slope(sizes, np.array([np.median(m.laws[d].shape) for d in sizes])))
    by_k = ", ".join(f"{100 * v:.2g} %" for v in np.median(m.laws[PAIRED[0]].short, axis=0))
    says = "A table of logits: θ_k − θ_old = t A(s, a) for every k (part off the line, relative, in the norm of F)"
    law = f"off by {np.median(off):.0e} in the median, {off.max():.0e} at most (damping and truncated solves)"
    yield at_most("one straight line", says, off, 1e-3, law)
    says = (
        f"1 − D̄/δ → −κ₃t³/6δ · (1 − √(1 − 1/K))³ where κ₃ < 0, t = √(2δ/κ₂), δ = {LAW[0]:g} (median of the "
        "ratio, its distance from 1 for the worst K)"
    )
    law = (
        f"ratio {', '.join(f'{v:.3f}' for v in ratio)} at K = 1, 2, 4, 8: the room falls "
        f"{(1 - np.sqrt(0.5)) ** -3:.0f}-fold, 8-fold and 8-fold again, K⁻³"
    )
    yield at_most("room left by K updates", says, np.abs(ratio - 1), 0.1, law, over=small.slack[cut])
    says = "No solution beats the constrained maximiser π/(u(λ_s − A)) at D̄ = δ (smallest relative shortfall)"
    law = f"median shortfall at δ = {PAIRED[0]:g}: {by_k} for K = 1, 2, 4, 8"
    yield at_least("below the best of L", says, join([short, *(law.shape for law in laws)]), -1e-10, law, over=short)
    says = (
        "Shortfall of the line's end at D̄ = δ from that maximiser → δ (Σ d Var A² − κ₃²/κ₂)/(4κ₂²) "
        f"(relative error of the coefficient, root mean square over MDPs, δ = {LAW[0]:g})"
    )
    law = (
        f"slope {power:.3f} in log-log, error of the coefficient {', '.join(f'{v:.1%}' for v in shape_error)} at "
        f"δ = {', '.join(f'{d:g}' for d in sizes)}"
    )
    yield at_most("what no K can add", says, shape_error[0], 0.1, law, over=small.shape)


def _anchors(m: Measured) -> Iterator[Check]:
    """Check how far re-anchored updates go."""
    total = {d: law.total for d, law in sorted(m.laws.items())}
    second, sizes = join([law[:, 1] for law in total.values()]), np.array(list(total))[:-1]
    powers = np.array([slope(np.arange(1.0, MOST + 1), total[d]) for d in sizes])
    off = rms(powers - 2, axis=1)
    rate = float(slope(sizes, off))
    at_most_kl = ", ".join(f"{np.median(law[:, MOST - 1]):.1f} δ at δ = {d:g}" for d, law in total.items())
    says = (
        "KL counted from the present policy, a table: D̄ from the sampling policy exceeds δ at the second update "
        "already (smallest D̄/δ)"
    )
    law = f"D̄/δ after two: at least {second.min():.2f}; after eight, median {at_most_kl}"
    yield at_least("re-anchored updates leave", says, second, 1.0 + 1e-9, law)
    says = (
        f"D̄ from the sampling policy after K re-anchored updates grows as K² δ (exponent fitted to K = 1 … {MOST} "
        f"at δ = {LAW[0]:g}: root mean square distance from 2)"
    )
    law = (
        f"exponent {spread(powers[0])}; its distance from 2 is {off[-1]:.2f} at δ = {sizes[-1]:g} and "
        f"falls with slope {rate:.2f} in δ"
    )
    yield at_most("as K²", says, off[0], 0.02, law, over=powers.ravel())
    says = "what is left of the exponent goes with √δ, the third cumulant: slope in log-log"
    law = f"rms distance from 2: {', '.join(f'{v:.4f}' for v in off)} at δ = {', '.join(f'{d:g}' for d in sizes)}"
    yield within("as K²: the rest", says, rate, 0.4, 0.6, law, over=powers[0])


def _paired(m: Measured) -> Iterator[Check]:
    """Check which of two numbers of updates gives the larger return."""
    gained = {b: [_effect(_extra(m.cells[kind, b, d], 2)) for kind in KINDS for d in PAIRED] for b in (0, BATCHES[-1])}
    exactly, large = gained.values()
    small, turned = (
        [m.cells[kind, b, PAIRED[1]] for kind in KINDS for b in BATCHES[:3]],
        m.cells["shared", 0, PAIRED[1]],
    )
    aimed = _effect(turned.gain[:, ENDS[-1]] - turned.line)
    harmed = _effect(np.mean([_lowered(part, ANCHORED[-1]) - _lowered(part, ENDS[0]) for part in small], axis=0))
    all_of, half = (m.cells["table", samples, PAIRED[0]].gain for samples in (0, BATCHES[-1]))
    # Few MDPs can only be asked not to contradict.
    enough = len(all_of) >= 256
    required = 3.0 if enough else -1.0
    says = (
        "Mean of η(K = 2) − η(K = 1) over exact problems, in units of the linear model's promise √(2δκ₂)/(1 − γ): "
        "in standard errors, smallest of table and shared parameters, δ = 0.01 and 0.1"
    )
    law = "; ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error, _ in exactly)
    yield at_least("two updates beat one, exactly", says, min(z for _, _, z in exactly), required, law, over=all_of)
    says = f"The same on batches of {BATCHES[-1]} samples with the noise of one-sample returns"
    law = "; ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error, _ in large)
    yield at_least("and on large batches", says, min(z for _, _, z in large), required, law, over=half)
    says = (
        "Shared parameters, exact, δ = 0.1: mean of η after K = 8 less η of the first direction followed to "
        "D̄ = δ, in standard errors"
    )
    law = f"{aimed[0]:+.4f} ± {aimed[1]:.4f} of the promise"
    yield at_least("aiming anew", says, aimed[2], required, law, over=all_of)
    says = (
        f"Batches of {BATCHES[0]} to {BATCHES[2]} samples, δ = 0.1: share of batches that lower η after eight "
        "re-anchored updates less that after one, in standard errors over MDPs"
    )
    law = f"{100 * harmed[0]:+.1f} ± {100 * harmed[1]:.1f} percentage points"
    yield at_least("where re-anchoring harms", says, harmed[2], 3.0 if enough else -3.0, law, over=half)


def _effect(difference: np.ndarray) -> tuple[float, float, float]:
    """Return mean, its standard error and their ratio z of paired differences, one an MDP."""
    mean, error = float(np.mean(difference)), float(np.std(difference) / np.sqrt(difference.size))
    return mean, error, mean / max(error, 1e-300)


def _extra(cell: Cell, count: int) -> np.ndarray:
    """Gain of ``count`` updates over that of one, within δ."""
    return cell.gain[:, ENDS[UPDATES.index(count)]] - cell.gain[:, ENDS[0]]


def _lowered(cell: Cell, update: int | np.integer) -> np.ndarray:
    """Whether η was lower after the update than before the batch."""
    return (cell.gain[:, update] < 0).astype(float)


def findings(m: Measured) -> tuple[str, ...]:
    """Say what is gained and what is risked at the larger δ."""

    def gains(samples: int, columns: np.ndarray = ENDS) -> str:
        return ", ".join(f"{v:.3f}" for v in m.cells["shared", samples, PAIRED[1]].gain[:, columns].mean(axis=0))

    small, exactly = m.cells["shared", BATCHES[0], PAIRED[1]], m.cells["shared", 0, PAIRED[1]]
    little, longer = _effect(_extra(small, 8) - _extra(small, 2)), exactly.line - exactly.gain[:, ENDS[0]]
    harmed = []
    for update in (ENDS[0], ENDS[-1], ANCHORED[-1]):
        shares = [np.mean([_lowered(m.cells[kind, b, PAIRED[1]], update) for kind in KINDS]) for b in BATCHES]
        harmed.append(", ".join(f"{100 * share:.0f} %" for share in shares))
    return (
        f"Mean gain of η within δ = 0.1, shared parameters, K = 1, 2, 4, 8: {gains(0)} of the promise exactly, "
        f"{gains(BATCHES[-1])} with {BATCHES[-1]} samples, {gains(BATCHES[0])} with {BATCHES[0]}.",
        f"Of the {np.mean(_extra(exactly, 8)):.3f} that K = 8 adds exactly, {longer.mean():.3f} come from filling the "
        f"trust region and {np.mean(exactly.gain[:, ENDS[-1]] - exactly.line):.3f} from aiming anew.",
        f"With {BATCHES[0]} samples the updates after the second add {little[0]:+.4f} ± {little[1]:.4f}.",
        f"Re-anchored, K = 1, 2, 4, 8 gain {gains(0, ANCHORED)} exactly and {gains(BATCHES[0], ANCHORED)} with "
        f"{BATCHES[0]} samples: more on average, on these small MDPs, for a KL that is tens of times δ. A larger δ "
        "would have done so too: on a table's straight line it is the same.",
        f"Batches of {', '.join(map(str, BATCHES))} samples that lower η at δ = 0.1: {harmed[0]} after one update, "
        f"{harmed[1]} after eight within δ, {harmed[2]} after eight re-anchored ones.",
    )
