"""Verdicts of the claim about sample reuse."""

from __future__ import annotations

import numpy as np

from trpo.theory.claims import _sample_reuse as reuse
from trpo.theory.claims._sample_reuse import ANCHORED, BEGINS, ENDS, MOST, UPDATES
from trpo.theory.claims._sample_reuse_cells import BATCHES, LAW, LEARNER_UPDATES, PAIRED, Cell, Measured
from trpo.theory.records import Check, at_least, at_most, within
from trpo.theory.shared import laws


def effect(difference: np.ndarray) -> tuple[float, float, float]:
    """Return mean, its standard error and their ratio z of paired differences, one an MDP."""
    mean, error = float(np.mean(difference)), float(np.std(difference) / np.sqrt(difference.size))
    return mean, error, mean / max(error, 1e-300)


def _required(cases: int) -> float:
    """Return how many standard errors a paired test must show: few MDPs can only be asked not to contradict."""
    return 3.0 if cases >= 256 else -1.0


def trust_region_checks(m: Measured) -> list[Check]:
    """Check what holds whatever the batch: the bound, the surrogate, the learner."""
    fractions = reuse.schedule().fraction[: BEGINS[-1]]
    kl = np.concatenate([cell.kl[:, : BEGINS[-1]] for cell in m.cells.values()])
    law = np.concatenate([1 - law.slack for law in m.laws.values()])
    later = np.concatenate([cell.surrogate[:, : BEGINS[-1]] for cell in m.cells.values()])
    first = np.isin(np.arange(BEGINS[-1]), BEGINS[:-1])
    before = np.where(first, 0.0, np.roll(later, 1, axis=1))
    rise = (later - before).min()
    ends = ", ".join(f"{np.median(kl[:, end]):.4f}" for end in ENDS)
    return [
        at_most(
            "within δ of the sampling policy",
            "Within a cumulative δ: D̄(π, π_k) ≤ (k/K) δ after each update, K = 1, 2, 4, 8, on exact problems and on "
            "batches of all sizes (largest ratio of the two sides)",
            kl.size,
            max((kl / fractions).max(), law.max()),
            1 + 1e-9,
            f"a bound, to rounding; after K = 1, 2, 4, 8 updates the median is {ends} δ",
        ),
        at_least(
            "L never falls",
            "L(π_k) ≥ L(π_(k−1)) on its own batch for each of those updates (smallest change, in units of the largest "
            "|advantage|)",
            later.size,
            rise,
            -1e-13,
            f"smallest rise {rise:.1e}: no update was refused" if rise > 0 else f"smallest change {rise:.1e}",
        ),
        at_most(
            "as the learner does it",
            f"K = {LEARNER_UPDATES} updates by the learner's own loop: the same θ (relative difference), within δ "
            "(D̄/δ − 1)",
            len(m.learner),
            max(m.learner[:, 0].max(), (m.learner[:, 1] - 1).max()),
            1e-8,
            f"θ equal to {m.learner[:, 0].max():.1e}; D̄/δ at most {m.learner[:, 1].max():.6f}",
        ),
    ]


def law_checks(m: Measured) -> list[Check]:
    """Check the closed forms of exact tabular problems."""
    small = m.laws[LAW[0]]
    off = np.concatenate([law.off_line for law in m.laws.values()])
    # Steps of the other sign overshoot δ by as much and are cut back by the line search.
    cut = small.predicted_slack[:, 0] > 0
    ratio = np.median(small.slack[cut] / small.predicted_slack[cut], axis=0)
    sizes = np.array(sorted(m.laws))[:-1]
    shape_error = np.array([_relative_rms(m.laws[d].shape, m.laws[d].predicted_shape) for d in sizes])
    shape = np.array([np.median(m.laws[d].shape) for d in sizes])
    best = min(min(law.short.min(), law.shape.min()) for law in m.laws.values())
    by_k = ", ".join(f"{100 * v:.2g} %" for v in np.median(m.laws[PAIRED[0]].short, axis=0))
    return [
        at_most(
            "one straight line",
            "A table of logits: θ_k − θ_old = t A(s, a) for every k (part off the line, relative, in the norm of F)",
            off.size,
            off.max(),
            1e-3,
            f"off by {np.median(off):.0e} in the median, {off.max():.0e} at most (damping and truncated solves)",
        ),
        at_most(
            "room left by K updates",
            f"1 − D̄/δ → −κ₃t³/6δ · (1 − √(1 − 1/K))³ where κ₃ < 0, t = √(2δ/κ₂), δ = {LAW[0]:g} (median of the "
            "ratio, its distance from 1 for the worst K)",
            int(cut.sum()),
            np.abs(ratio - 1).max(),
            0.1,
            "ratio " + ", ".join(f"{v:.3f}" for v in ratio) + " at K = 1, 2, 4, 8: the room falls "
            f"{(1 - np.sqrt(0.5)) ** -3:.0f}-fold, 8-fold and 8-fold again, K⁻³",
        ),
        at_least(
            "below the best of L",
            "No solution beats the constrained maximiser π/(u(λ_s − A)) at D̄ = δ (smallest relative shortfall)",
            sum(law.short.size for law in m.laws.values()),
            best,
            -1e-10,
            f"median shortfall at δ = {PAIRED[0]:g}: {by_k} for K = 1, 2, 4, 8",
        ),
        at_most(
            "what no K can add",
            "Shortfall of the line's end at D̄ = δ from that maximiser → δ (Σ d Var A² − κ₃²/κ₂)/(4κ₂²) "
            f"(relative error of the coefficient, root mean square over MDPs, δ = {LAW[0]:g})",
            small.shape.size,
            shape_error[0],
            0.1,
            f"slope {float(laws.slope(sizes, shape)):.3f} in log-log, error of the coefficient "
            + ", ".join(f"{v:.1%}" for v in shape_error)
            + " at δ = "
            + ", ".join(f"{d:g}" for d in sizes),
        ),
    ]


def _relative_rms(found: np.ndarray, predicted: np.ndarray) -> float:
    return float(laws.rms(found - predicted) / laws.rms(predicted))


def anchor_checks(m: Measured) -> list[Check]:
    """Check how far re-anchored updates go."""
    total = {d: law.total for d, law in m.laws.items()}
    second = min(law[:, 1].min() for law in total.values())
    sizes = np.array(sorted(total))[:-1]
    count = np.arange(1.0, MOST + 1)
    power = {d: laws.slope(count, total[d]) for d in sizes}
    off = np.array([laws.rms(power[d] - 2) for d in sizes])
    rate = float(laws.slope(sizes, off))
    at_most_kl = ", ".join(f"{np.median(law[:, MOST - 1]):.1f} δ at δ = {d:g}" for d, law in sorted(total.items()))
    return [
        at_least(
            "re-anchored updates leave",
            "KL counted from the present policy, a table: D̄ from the sampling policy exceeds δ at the second update "
            "already (smallest D̄/δ)",
            sum(len(law) for law in total.values()),
            second,
            1.0 + 1e-9,
            f"D̄/δ after two: at least {second:.2f}; after eight, median {at_most_kl}",
        ),
        at_most(
            "as K²",
            f"D̄ from the sampling policy after K re-anchored updates grows as K² δ (exponent fitted to K = 1 … {MOST} "
            f"at δ = {LAW[0]:g}: root mean square distance from 2)",
            off.size * power[LAW[0]].size,
            off[0],
            0.02,
            f"exponent {laws.spread(power[LAW[0]])}; its distance from 2 is {off[-1]:.2f} at δ = {sizes[-1]:g} and "
            f"falls with slope {rate:.2f} in δ",
        ),
        within(
            "as K²: the rest",
            "what is left of the exponent goes with √δ, the third cumulant: slope in log-log",
            power[LAW[0]].size,
            rate,
            0.4,
            0.6,
            "rms distance from 2: "
            + ", ".join(f"{v:.4f}" for v in off)
            + " at δ = "
            + ", ".join(map("{:g}".format, sizes)),
        ),
    ]


def paired_checks(m: Measured) -> list[Check]:
    """Check which of two numbers of updates gives the larger return."""
    n = len(m.cells["table", 0, PAIRED[0]].gain)
    exactly = [effect(extra(m.cells[kind, 0, d], 2)) for kind in ("table", "shared") for d in PAIRED]
    large = [effect(extra(m.cells[kind, BATCHES[-1], d], 2)) for kind in ("table", "shared") for d in PAIRED]
    aimed = effect(aim(m.cells["shared", 0, PAIRED[1]]))
    harmed = effect(harm(m))
    units = "in units of the linear model's promise √(2δκ₂)/(1 − γ)"
    return [
        at_least(
            "two updates beat one, exactly",
            f"Mean of η(K = 2) − η(K = 1) over exact problems, {units}: in standard errors, smallest of table and "
            "shared parameters, δ = 0.01 and 0.1",
            n,
            min(z for _, _, z in exactly),
            _required(n),
            "; ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error, _ in exactly),
        ),
        at_least(
            "and on large batches",
            f"The same on batches of {BATCHES[-1]} samples with the noise of one-sample returns",
            n // 2,
            min(z for _, _, z in large),
            _required(n),
            "; ".join(f"{mean:+.4f} ± {error:.4f}" for mean, error, _ in large),
        ),
        at_least(
            "aiming anew",
            "Shared parameters, exact, δ = 0.1: mean of η after K = 8 less η of the first direction followed to "
            "D̄ = δ, in standard errors",
            n,
            aimed[2],
            _required(n),
            f"{aimed[0]:+.4f} ± {aimed[1]:.4f} of the promise",
        ),
        at_least(
            "where re-anchoring harms",
            f"Batches of {BATCHES[0]} to {BATCHES[2]} samples, δ = 0.1: share of batches that lower η after eight "
            "re-anchored updates less that after one, in standard errors over MDPs",
            n // 2,
            harmed[2],
            3.0 if n >= 256 else -3.0,
            f"{100 * harmed[0]:+.1f} ± {100 * harmed[1]:.1f} percentage points",
        ),
    ]


def extra(cell: Cell, count: int) -> np.ndarray:
    """Gain of ``count`` updates over that of one, within δ."""
    return cell.gain[:, ENDS[UPDATES.index(count)]] - cell.gain[:, ENDS[0]]


def aim(cell: Cell) -> np.ndarray:
    """Gain of K = 8 over that of the first direction, followed to D̄ = δ."""
    return cell.gain[:, ENDS[-1]] - cell.line


def harm(m: Measured) -> np.ndarray:
    """Share of lowered returns after eight re-anchored updates less that after one, for each MDP."""
    parts = [m.cells[kind, samples, PAIRED[1]] for kind in ("table", "shared") for samples in BATCHES[:3]]
    return np.mean([lowered(part, ANCHORED[-1]) - lowered(part, ENDS[0]) for part in parts], axis=0)


def lowered(cell: Cell, update: int | np.integer) -> np.ndarray:
    """Whether η was lower after the update than before the batch."""
    return (cell.gain[:, update] < 0).astype(float)
