"""Verdicts and findings of the solving claim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trpo.theory.claims.solving import steps
from trpo.theory.claims.solving.measure import CONVERGED, HARDEST, ITERATIONS, SMALL_DAMPINGS, Damped, Measured, Solved
from trpo.theory.claims.solving.systems import KAPPAS, Systems, chebyshev, dot, inverse_times, times
from trpo.theory.records import Check, at_most, within
from trpo.theory.shared.arrays import take
from trpo.theory.shared.laws import rms, slope

_EPS = float(np.finfo(float).eps)
_ORTHOGONAL = 2
"""Iterations before the directions' loss of orthogonality can be noticed at any κ here."""


def checks(m: Measured) -> tuple[Check, ...]:
    """Judge solution, solver, damping and rule."""
    solution = _solution(take(m.solved.systems, slice(m.solved.mdps)), m.cosine.ravel(), m.chance.ravel())
    return (*solution, *solver_checks(m.solved), *_damping(m.solved, m.damped), *rule_checks(m.local, m.updates))


def _solution(s: Systems, cosine: np.ndarray, chance: np.ndarray) -> Iterator[Check]:
    """Karush–Kuhn–Tucker by dense algebra, and no better step among random ones."""
    nu = np.sqrt(s.attainable / (2 * steps.DELTA))
    step = s.solution / nu[:, None]
    product = times(s.matrix, step)
    residual = np.abs(s.gradient - nu[:, None] * product).max(axis=-1) / np.abs(s.gradient).max(axis=-1)
    radius = np.abs(0.5 * dot(step, product) / steps.DELTA - 1)
    gain = np.abs(dot(s.gradient, step) / np.sqrt(2 * steps.DELTA * s.attainable) - 1)
    says = (
        "Δ* = √(2δ/gᵀF⁻¹g) F⁻¹g with F⁻¹g = A(s, a) − A(s, last): g = νFΔ*, ν = √(gᵀF⁻¹g/2δ) > 0, ½Δ*ᵀFΔ* = δ, "
        "gᵀΔ* = √(2δ E[A²]), by the oracle's dense F and g; relative"
    )
    law = (
        f"rounding: g {residual.max():.1e}, radius {radius.max():.1e}, gain {gain.max():.1e}; "
        f"ε κ is up to {_EPS * s.kappa.max():.0e}"
    )
    worst = np.where(nu > 0, np.maximum(np.maximum(residual, radius), gain), np.inf)
    yield at_most("Karush–Kuhn–Tucker", says, worst, 1e-9, law)
    says = "gᵀΔ/gᵀΔ* − 1 for random Δ on the boundary ½ΔᵀFΔ = δ, half of them close to Δ*"
    law = f"best random step {cosine.max():.9f} of the attainable gain"
    yield at_most("nothing feasible is better", says, cosine - 1, 1e-12, law)
    says = "Δ uniform on the boundary: E[(gᵀΔ/gᵀΔ*)²] = 1/n; the mean's deviation in its exact standard deviations"
    law = "n cos² has the variance 2(n − 1)/(n + 2): N^-1/2 with nothing fitted"
    yield within("as random as can be", says, chance.mean() * np.sqrt(chance.size), -4, 4, law, over=chance)


def solver_checks(m: Solved) -> Iterator[Check]:
    """Check the error law of the library's conjugate gradient."""
    s, many, lost = m.systems, m.mdps + m.random, m.undamped.lost
    ordinary = np.arange(len(s.rows)) < many
    gaps = np.abs(m.undamped.fraction**2 - 1 + m.undamped.error)
    angle = gaps[(np.array(ITERATIONS)[:, None] <= _ORTHOGONAL) | (s.kappa <= 100)]
    over = np.sqrt(lost) - np.array([chebyshev(s.kappa, k) for k in ITERATIONS])
    tight = np.array([abs(over[ITERATIONS.index(k), many + i]) for i, (_, k) in enumerate(HARDEST)])
    falls = np.diff(lost, axis=0)
    at_n = np.array([lost[ITERATIONS.index(n), i] if n in ITERATIONS else np.nan for i, n in enumerate(s.rows)])
    tame, wild = at_n[ordinary & (s.kappa <= 100)], at_n[ordinary & (s.kappa > 100)]
    solvable = ordinary & (s.kappa <= 1e5) | (np.arange(len(s.rows)) < m.mdps)
    end = np.sqrt(m.undamped.error[-1, solvable])
    says = f"|fraction² − 1 + ‖e_k‖²_F/‖F⁻¹g‖²_F| with undamped curvature, where k ≤ {_ORTHOGONAL} or κ ≤ 100"
    law = f"rounding: {_sizes(angle)}; elsewhere up to {gaps.max():.0e}, as directions lose their orthogonality"
    yield at_most("the fraction is an angle", says, angle, 1e-6, law)
    says = "√(1 − fraction²) − 1/T_k((κ + 1)/(κ − 1)) for every system and every k"
    law = "fraction ≥ √(1 − 1/T_k²) ≥ √(1 − 4((√κ − 1)/(√κ + 1))^2k), without exception"
    yield at_most("Chebyshev bound", says, over.ravel(), 1e-13, law)
    says = "|√(1 − fraction²) − 1/T_k| at iteration k on the system that is hardest for k and κ = 10 … 1e8"
    law = f"fraction = √(1 − 1/T_k²) with nothing fitted; largest deviation {tight.max():.1e}"
    yield at_most("the bound is attained", says, tight, 1e-12, law)
    says = "increase of 1 − fraction² from one k to the next"
    law = f"monotone; largest increase {max(falls.max(), 0.0):.0e}"
    yield at_most("more is never worse", says, falls.ravel(), 1e-13, law)
    says = "1 − fraction² after n = 4, 8, 16 or 32 iterations, where κ ≤ 100"
    law = f"median {np.median(tame):.0e}; beyond κ = 100 rounding delays the end: {wild.max():.0e} at worst"
    yield at_most("exact at k = n", says, tame, 1e-6, law)
    says = f"‖F⁻¹g − s‖_F/‖F⁻¹g‖_F after {CONVERGED} iterations, all MDPs and other spectra with κ ≤ 1e4"
    law = f"rounding: {_sizes(end)}"
    yield at_most("exact in the end", says, end, 1e-10, law)


def _sizes(error: np.ndarray) -> str:
    return f"median {np.median(error):.0e}, largest {error.max():.0e}"


def _damping(m: Solved, damped: Damped) -> Iterator[Check]:
    """What damping costs."""
    s = take(m.systems, slice(m.mdps))
    lost, damping = damped.converged.lost[:, : m.mdps], damped.damping[:, : m.mdps]
    many = m.mdps + m.random
    helps = m.undamped.lost[ITERATIONS.index(steps.TRUNCATED), :many] - damped.truncated.lost
    tame = helps[:, m.systems.kappa[:many] <= 1e3]
    spread = (damping + s.smallest) / (damping + s.largest) * s.kappa
    over = np.sqrt(lost) - (spread - 1) / (spread + 1)
    # Σ_i w_i/λ_i and Σ_i w_i/λ_i² without eigenvectors: x*ᵀx*/gᵀx* and x*ᵀF⁻¹x*/gᵀx*.
    first, second = (dot(s.solution, v) / s.attainable for v in (s.solution, inverse_times(s, s.solution)))
    small = lost[-SMALL_DAMPINGS.size :]
    coefficient = small / SMALL_DAMPINGS[:, None] ** 2
    error = np.abs(2 * coefficient[0] - coefficient[1] - (second - first**2) * s.smallest**2)
    says = "(1 − fraction²)/λ² → Var[1/λ_i] as λ → 0, in units of 1/λ_min², extrapolated from λ = 0.001 and 0.002 λ_min"
    law = (
        f"coefficient agrees to {error.max():.1e} (median {np.median(error):.0e}); slope "
        f"{slope(SMALL_DAMPINGS, rms(small, axis=1)):.4f} in log-log"
    )
    yield at_most("damping costs λ²", says, error, 1e-4, law)
    says = "√(1 − fraction²) − (m − 1)/(m + 1) with m = κ (λ_min + λ)/(λ_max + λ), which no λ exceeds (Kantorovich)"
    law = "fraction ≥ 2√m/(1 + m) for λ from 1e-6 to 10 λ_max; m ≤ κ"
    yield at_most("damping's price is bounded", says, over.ravel(), 1e-8, law)
    says = (
        f"fraction² with any λ minus fraction² without, after {steps.TRUNCATED} iterations: both solutions "
        "are in one Krylov space, and the undamped one is the best of it; where κ ≤ 1000"
    )
    law = (
        f"largest advantage of damping {max(tame.max(), 0.0):.0e} (rounding), largest loss "
        f"{-helps.min():.2f}; at larger κ the advantage is {max(helps.max(), 0.0):.0e} at most"
    )
    yield at_most("damping never gains", says, tame.ravel(), 1e-6, law)


def rule_checks(local: steps.Local, updates: dict[int, steps.Updates]) -> Iterator[Check]:
    """Check the rule's own steps."""
    full, settings = updates[steps.FULL], list(updates.values())
    curvature = np.array([local.square(u.full) / (2 * u.max_kl[:, None]) - 1 for u in settings]).ravel()
    best = local.best * np.sqrt(2 * steps.DELTA / local.moment(2))[:, None, None]
    off = np.sqrt(local.square(full.full[0] - best) / (2 * steps.DELTA))
    taken = [local.kl(u.full * u.fraction[..., None, None]) for u in settings]
    ratio = np.array([kl / u.max_kl[:, None] for kl, u in zip(taken, settings, strict=True)]).ravel()
    reported = max(np.abs(u.mean_kl / kl - 1).max() for kl, u in zip(taken, settings, strict=True))
    error, power = steps.skewness_law(local, full)
    says = (
        "½ΔᵀFΔ = δ for TRPO's full step Δ, for every λ from 0 to 1, 10 and 64 iterations, δ from 6e-7 to 0.04; relative"
    )
    law = f"rounding: median {np.median(np.abs(curvature)):.0e}; neither λ nor k is in the length of the step"
    yield at_most("the step ends on the ellipsoid", says, np.abs(curvature), 1e-9, law)
    says = "‖Δ − Δ*‖_F/‖Δ*‖_F of TRPO's full step without damping, 64 iterations"
    law = f"rounding: {_sizes(off)}"
    yield at_most("TRPO takes the best step", says, off, 1e-8, law)
    says = (
        "(D̄(Δ)/δ − 1)/√(2δ) → ⅓ E[A³]/E[A²]^(3/2), extrapolated from the four smallest δ, in units of "
        f"a = max|A|/√E[A²]; where a ≤ {steps.TAME:g}"
    )
    law = (
        f"coefficient agrees to {error.max():.1e} (median {np.median(error):.0e}); |D̄/δ − 1| has slope {power:.3f} "
        "in δ (0.5 expected)"
    )
    yield at_most("the true KL of the full step", says, error, 1e-5, law)
    says = "largest D̄(θ, θ')/δ − 1 of the accepted steps, by the oracle"
    law = f"no exception; the library's D̄ agrees with the oracle's to {reported:.0e}"
    yield at_most("the line search enforces δ", says, ratio - 1, 1e-9, law)


def findings(m: Measured) -> tuple[str, ...]:
    """Say what ten iterations reach, what damping costs the rule, and how the true KL differs."""
    solved, local, full = m.solved, m.local, m.updates[steps.FULL]
    made_up = slice(solved.mdps, solved.mdps + solved.random)
    ten, kappas = solved.undamped.fraction[ITERATIONS.index(10), made_up], solved.systems.kappa[made_up]
    by_kappa = ", ".join(f"{np.median(ten[kappas == kappa]):.3f} at κ = {kappa:g}" for kappa in KAPPAS[2:])
    kl = local.kl(full.full[0]) / full.max_kl[0]
    gain = np.sum(local.gradient * full.full[np.flatnonzero(steps.RULE_DAMPINGS == 0.1)[0]], axis=(-2, -1))
    reached = gain / np.sqrt(2 * steps.DELTA * local.moment(2))
    low, high = np.quantile(kl, [0.05, 0.95])
    return (
        f"Ten iterations, on 32 eigenvalues evenly spaced on a logarithmic axis, reach these fractions of the "
        f"attainable gain in the median: {by_kappa}.",
        f"With the default damping λ = 0.1, far above most eigenvalues of these tables of logits (median λ_max "
        f"{np.median(solved.systems.largest[: solved.mdps]):.2f}), TRPO's full step reaches {np.median(reached):.2f} "
        f"of the attainable gain in the median, {reached.min():.2f} at worst; the size of the step is not affected.",
        f"At δ = {steps.DELTA:g} the best step's true KL is {low:.2f} to {high:.2f} δ in 90 % of the MDPs "
        f"({kl.min():.2f} to {kl.max():.2f} in all) and exceeds δ in {100 * np.mean(kl > 1):.0f} %; the sign of "
        f"the advantage's skewness tells which in {100 * np.mean((kl > 1) == (local.skewness > 0)):.0f} %.",
    )
