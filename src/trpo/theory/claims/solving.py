"""The local problem has a closed-form solution, and truncated conjugate gradient gets close to it at a known rate."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from trpo.theory.claims import _solving as measure
from trpo.theory.claims._solving import ITERATIONS, Local, Solves, Systems, Updates, chebyshev
from trpo.theory.claims._solving_figure import draw
from trpo.theory.records import Check, Outcome, Picture, at_most, within
from trpo.theory.shared import laws

TITLE = "Solving it"

EXPLANATION = """
Nearby, the surrogate is a plane and the mean KL a bowl. So the problem of eq. 14 becomes: a linear gain,
an ellipsoid of permitted steps.

    maximise gᵀΔ   subject to   ½ ΔᵀFΔ ≤ δ

A problem this simple has its solution on paper. At the best step the gradient must be at right angles to the
ellipsoid's surface, g = νFΔ with ν > 0 (the conditions of Karush, Kuhn and Tucker; as the problem is convex, they are
sufficient), and the step must end on the surface:

    Δ* = √(2δ / gᵀF⁻¹g) F⁻¹g,   gain gᵀΔ* = √(2δ gᵀF⁻¹g)

This is where the natural gradient F⁻¹g comes from. For the soft-max policy it is something to be looked at: F⁻¹g is the
advantage itself (Kakade 2001), each logit up by an amount in proportion to A_π(s, a), and the attainable gain is
√(2δ E[A²]). The visitation is in F and in g, and cancels: every state counts. Here the last logit of each state is held
at 0, so that F can be inverted, and F⁻¹g is A_π(s, a) − A_π(s, last).

A network has no such formula and its F is never formed. TRPO runs k iterations of conjugate gradient (appendix C; 10 in
the paper), each for one product F v, to get some s ≈ F⁻¹g, and then makes s as long as the boundary allows: β =
√(2δ / sᵀF s). What does stopping early cost? Scaled to the boundary, s reaches the fraction gᵀs / √(sᵀF s · gᵀF⁻¹g)
of the attainable gain. The iterate s_k is the F-orthogonal projection of F⁻¹g, so that fraction is an angle, and with
e_k = F⁻¹g − s_k and κ the condition number of F

    fraction = √(1 − ‖e_k‖²_F / ‖F⁻¹g‖²_F),   ‖e_k‖_F / ‖F⁻¹g‖_F ≤ 1/T_k((κ+1)/(κ−1)) ≤ 2 ((√κ−1)/(√κ+1))^k

T_k is the Chebyshev polynomial. The bound cannot be improved: for every k and κ there is an F and a g for which it is
an equality, and the library's conjugate gradient is run on exactly those too. Anything wrong with it would show
there. Note how forgiving the square is: with an error of 30 % of the solution, 95 % of the gain is reached.

Conjugate gradient is exact after n iterations on paper only. In floating point its directions slowly cease to be
orthogonal, so that at large κ the n-th iterate still has an error, which later iterations remove. The check at k = n is
therefore made where κ ≤ 100; the Chebyshev bound and the monotone rise are checked everywhere.

Damping, (F + λI) s = g, makes κ smaller and the solve faster, but solves a different problem: as λ grows, s turns into
the ordinary gradient. The loss is of second order while λ is small, with a known coefficient. In the variance the
eigenvalue λ_i of F has the share of ‖F⁻¹g‖²_F that lies along its eigenvector as its weight:

    1 − fraction = ½ λ² Var[1/λ_i] + O(λ³)

It might be hoped that stopping after k iterations makes some damping worth its price. It does not: F and F + λI have
the same Krylov spaces, and of all the vectors in such a space the undamped iterate has the largest fraction (middle
panel). Damping is for what is not in this picture: an F estimated from few samples, with eigenvalues that are nearly or
exactly 0, in single precision. In any case λ should change the direction only, not the size of the step. TRPO here
measures sᵀF s without λ, and its full step has ½ ΔᵀFΔ = δ whatever λ and k are.

That is δ for the bowl, not for the true KL (right panel). The true KL of the best step follows from the third cumulant,
which for the soft-max is the skewness of the advantage:

    D̄(Δ*) / δ = 1 + (√(2δ)/3) · E[A³]/E[A²]^(3/2) + O(δ)

If good actions are rarer than bad ones (positive skewness), the full step leaves the trust region. The line search
is there for this, and afterwards the true mean KL is at most δ.
"""

CODE = (
    "trpo.conjugate_gradient:conjugate_gradient",
    "trpo.rules.step:natural_direction",
    "trpo.rules.step:step_length",
    "trpo.rules.trpo:TRPO.update",
    "trpo.line_search:line_search",
    "trpo.theory.claims._solving:hardest",
)

TESTS = (
    "test_claim_solving.py::test_the_claim_holds",
    "test_claim_solving.py::test_damping_inside_the_step_length_is_found",
    "test_claim_solving.py::test_a_step_length_without_its_factor_is_found",
    "test_claim_solving.py::test_a_wrong_conjugate_gradient_is_found",
    "test_conjugate_gradient.py",
    "test_line_search.py",
)

_EPS = float(np.finfo(float).eps)
_ORTHOGONAL = 2
"""Iterations before the directions' loss of orthogonality can be noticed at any κ here."""
_TAME = 30.0
"""Largest max|A|/√E[A²] for which the series of the KL is used at the four smallest δ."""


class Solved(NamedTuple):
    """Systems, and what conjugate gradient made of them."""

    systems: Systems
    """Of the MDPs, then the made-up ones, then the hardest ones."""
    mdps: int
    random: int
    """How many of each of the first two."""
    undamped: list[Solves]
    """For each of ``ITERATIONS``."""


class Damped(NamedTuple):
    """The same with damping, without the hardest ones; ``[lambdas, m]``."""

    damping: np.ndarray
    """λ: those relative to λ_max, then those relative to λ_min."""
    truncated: Solves
    converged: Solves


def _solve(size: int, seed: int) -> Solved:
    mdps = measure.join([measure.of_mdps(group) for group in measure.groups_of(size, seed)])
    random = measure.synthetic(np.random.default_rng([seed, 9]))
    hard = [measure.hardest(kappa, k) for kappa in measure.KAPPAS[1:] for k in ITERATIONS if k < measure.SIZE]
    systems = measure.join([mdps, random, *hard])
    found = measure.solve(systems, ITERATIONS, np.zeros((1, len(systems.rows))))
    return Solved(systems, len(mdps.rows), len(random.rows), [measure.judge(systems, x[0]) for x in found])


def _solve_damped(solved: Solved) -> Damped:
    systems = solved.systems.take(slice(solved.mdps + solved.random))
    relative = measure.RELATIVE_DAMPINGS[:, None] * systems.largest
    small = np.array(measure.SMALL_DAMPINGS)[:, None] * systems.smallest
    damping = np.concatenate([relative, small])
    found = measure.solve(systems, (measure.TRUNCATED, measure.CONVERGED), damping)
    return Damped(damping, *(measure.judge(systems, x) for x in found))


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the solution, the solver's rate and the rule's step on at least ``size`` random MDPs."""
    solved = _solve(size, seed)
    damped = _solve_damped(solved)
    group = measure.in_one_shape(measure.groups_of(size, seed))
    local, rule = measure.local(group), measure.updates(group, (measure.TRUNCATED, measure.FULL))
    checks = (*_solution(solved, local, seed), *_conjugate_gradient(solved), *_damping(solved, damped))
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        random = slice(solved.mdps, solved.mdps + solved.random)
        pictures = (draw(figures, random, solved.undamped, damped[1:], rule[measure.FULL], local),)
    return Outcome((*checks, *_rule(local, rule)), _findings(solved, local, rule), pictures)


def _solution(m: Solved, local: Local, seed: int) -> tuple[Check, ...]:
    """Karush–Kuhn–Tucker by dense algebra, and no better step among random ones."""
    s = m.systems.take(slice(m.mdps))
    nu = np.sqrt(s.attainable / (2 * measure.DELTA))
    step = s.solution / nu[:, None]
    product = measure.times(s.matrix, step)
    residual = np.abs(s.gradient - nu[:, None] * product).max(axis=-1) / np.abs(s.gradient).max(axis=-1)
    radius = np.abs(0.5 * measure.dot(step, product) / measure.DELTA - 1)
    gain = np.abs(measure.dot(s.gradient, step) / np.sqrt(2 * measure.DELTA * s.attainable) - 1)
    worst = np.maximum(np.maximum(residual, radius), gain)
    cosine, chance = measure.random_steps(np.random.default_rng([seed, 10]), local, s)
    return (
        at_most(
            "Karush–Kuhn–Tucker",
            "Δ* = √(2δ/gᵀF⁻¹g) F⁻¹g with F⁻¹g = A(s, a) − A(s, last): g = νFΔ*, ν = √(gᵀF⁻¹g/2δ) > 0, ½Δ*ᵀFΔ* = δ, "
            "gᵀΔ* = √(2δ E[A²]), by the oracle's dense F and g; relative",
            m.mdps,
            worst.max() if np.all(nu > 0) else np.inf,
            1e-9,
            f"rounding: g {residual.max():.1e}, radius {radius.max():.1e}, gain {gain.max():.1e}; "
            f"ε κ is up to {_EPS * s.kappa.max():.0e}",
        ),
        at_most(
            "nothing feasible is better",
            "gᵀΔ/gᵀΔ* − 1 for random Δ on the boundary ½ΔᵀFΔ = δ, half of them close to Δ*",
            cosine.size,
            cosine.max() - 1,
            1e-12,
            f"best random step {cosine.max():.9f} of the attainable gain",
        ),
        within(
            "as random as can be",
            "Δ uniform on the boundary: E[(gᵀΔ/gᵀΔ*)²] = 1/n; the mean's deviation in its exact standard deviations",
            chance.size,
            chance.mean() * np.sqrt(chance.size),
            -4,
            4,
            "n cos² has the variance 2(n − 1)/(n + 2): N^-1/2 with nothing fitted",
        ),
    )


def _conjugate_gradient(m: Solved) -> tuple[Check, ...]:
    """The error law of the library's conjugate gradient."""
    s, count = m.systems, len(m.systems.rows)
    ordinary = np.arange(count) < m.mdps + m.random
    gaps = np.array([np.abs(x.fraction**2 - 1 + x.error) for x in m.undamped])
    early = (np.array(ITERATIONS)[:, None] <= _ORTHOGONAL) | (s.kappa <= 100)
    angle = gaps[early]
    over = np.array([np.sqrt(x.lost) - chebyshev(s.kappa, k) for k, x in zip(ITERATIONS, m.undamped, strict=True)])
    hard = [k for _ in measure.KAPPAS[1:] for k in ITERATIONS if k < measure.SIZE]
    tight = [abs(over[ITERATIONS.index(k), m.mdps + m.random + i]) for i, k in enumerate(hard)]
    lost = np.array([x.lost for x in m.undamped])
    falls = np.diff(lost, axis=0)
    at_n = np.array([lost[ITERATIONS.index(n), i] if n in ITERATIONS else np.nan for i, n in enumerate(s.rows)])
    exact_at_n = ordinary & (s.kappa <= 100)
    solvable = ordinary & (s.kappa <= 1e5) | (np.arange(count) < m.mdps)
    end = np.sqrt(m.undamped[-1].error[solvable])
    return (
        at_most(
            "the fraction is an angle",
            f"|fraction² − 1 + ‖e_k‖²_F/‖F⁻¹g‖²_F| with undamped curvature, where k ≤ {_ORTHOGONAL} or κ ≤ 100",
            angle.size,
            angle.max(),
            1e-6,
            f"rounding: median {np.median(angle):.0e}, largest {angle.max():.0e}; elsewhere up to {gaps.max():.0e}, as "
            "directions lose their orthogonality",
        ),
        at_most(
            "Chebyshev bound",
            "√(1 − fraction²) − 1/T_k((κ + 1)/(κ − 1)) for every system and every k",
            over.size,
            over.max(),
            1e-13,
            "fraction ≥ √(1 − 1/T_k²) ≥ √(1 − 4((√κ − 1)/(√κ + 1))^2k), without exception",
        ),
        at_most(
            "the bound is attained",
            "|√(1 − fraction²) − 1/T_k| at iteration k on the system that is hardest for k and κ = 10 … 1e8",
            len(hard),
            max(tight),
            1e-12,
            f"fraction = √(1 − 1/T_k²) with nothing fitted; largest deviation {max(tight):.1e}",
        ),
        at_most(
            "more is never worse",
            "increase of 1 − fraction² from one k to the next",
            falls.size,
            falls.max(),
            1e-13,
            f"monotone; largest increase {max(falls.max(), 0.0):.0e}",
        ),
        at_most(
            "exact at k = n",
            "1 − fraction² after n = 4, 8, 16 or 32 iterations, where κ ≤ 100",
            int(exact_at_n.sum()),
            at_n[exact_at_n].max(),
            1e-6,
            f"median {np.median(at_n[exact_at_n]):.0e}; beyond κ = 100 rounding delays the end: "
            f"{at_n[ordinary & (s.kappa > 100)].max():.0e} at worst",
        ),
        at_most(
            "exact in the end",
            f"‖F⁻¹g − s‖_F/‖F⁻¹g‖_F after {measure.CONVERGED} iterations, all MDPs and other spectra with κ ≤ 1e4",
            end.size,
            end.max(),
            1e-10,
            f"rounding: median {np.median(end):.0e}, largest {end.max():.0e}",
        ),
    )


def _damping(m: Solved, damped: Damped) -> tuple[Check, ...]:
    """What damping costs."""
    s = m.systems.take(slice(m.mdps))
    lost = damped.converged.lost[:, : m.mdps]
    damping = damped.damping[:, : m.mdps]
    many = m.mdps + m.random
    tame = m.systems.kappa[:many] <= 1e3
    helps = m.undamped[ITERATIONS.index(measure.TRUNCATED)].lost[:many] - damped.truncated.lost
    spread = (damping + s.smallest) / (damping + s.largest) * s.kappa
    over = np.sqrt(lost) - (spread - 1) / (spread + 1)
    # Σ_i w_i/λ_i and Σ_i w_i/λ_i² without eigenvectors: x*ᵀx*/gᵀx* and x*ᵀF⁻¹x*/gᵀx*.
    twice = measure.inverse_times(s, s.solution)
    first, second = (measure.dot(s.solution, v) / s.attainable for v in (s.solution, twice))
    small = len(measure.SMALL_DAMPINGS)
    coefficient = lost[-small:] / np.array(measure.SMALL_DAMPINGS)[:, None] ** 2
    predicted = (second - first**2) * s.smallest**2
    error = np.abs(2 * coefficient[0] - coefficient[1] - predicted)
    power = laws.slope(np.array(measure.SMALL_DAMPINGS), laws.rms(lost[-small:], axis=1))
    return (
        at_most(
            "damping costs λ²",
            "(1 − fraction²)/λ² → Var[1/λ_i] as λ → 0, in units of 1/λ_min², extrapolated from "
            "λ = 0.001 and 0.002 λ_min",
            m.mdps,
            error.max(),
            1e-4,
            f"coefficient agrees to {error.max():.1e} (median {np.median(error):.0e}); slope {power:.4f} in log-log",
        ),
        at_most(
            "damping's price is bounded",
            "√(1 − fraction²) − (m − 1)/(m + 1) with m = κ (λ_min + λ)/(λ_max + λ), which no λ exceeds (Kantorovich)",
            over.size,
            over.max(),
            1e-8,
            "fraction ≥ 2√m/(1 + m) for λ from 1e-6 to 10 λ_max; m ≤ κ",
        ),
        at_most(
            "damping never gains",
            f"fraction² with any λ minus fraction² without, after {measure.TRUNCATED} iterations: both solutions "
            "are in one Krylov space, and the undamped one is the best of it; where κ ≤ 1000",
            int(tame.sum()) * len(damping),
            helps[:, tame].max(),
            1e-6,
            f"largest advantage of damping {max(helps[:, tame].max(), 0.0):.0e} (rounding), largest loss "
            f"{-helps.min():.2f}; at larger κ the advantage is {max(helps.max(), 0.0):.0e} at most",
        ),
    )


def _rule(local: Local, rule: dict[int, Updates]) -> tuple[Check, ...]:
    """The rule's own steps."""
    full, settings = rule[measure.FULL], list(rule.values())
    curvature = np.array([local.square(u.full) / (2 * u.max_kl[:, None]) - 1 for u in settings])
    best = local.best * np.sqrt(2 * measure.DELTA / local.attainable)[:, None, None]
    off = np.sqrt(local.square(full.full[0] - best) / (2 * measure.DELTA))
    taken = [local.kl(u.full * u.fraction[..., None, None]) for u in settings]
    ratio = max((kl / u.max_kl[:, None]).max() for kl, u in zip(taken, settings, strict=True))
    reported = max(np.abs(u.mean_kl / kl - 1).max() for kl, u in zip(taken, settings, strict=True))
    series, error, slope = measure.skewness_law(local, full, _TAME)
    return (
        at_most(
            "the step ends on the ellipsoid",
            "½ΔᵀFΔ = δ for TRPO's full step Δ, for every λ from 0 to 1, 10 and 64 iterations, δ from 6e-7 to 0.04; "
            "relative",
            curvature.size,
            np.abs(curvature).max(),
            1e-9,
            f"rounding: median {np.median(np.abs(curvature)):.0e}; neither λ nor k is in the length of the step",
        ),
        at_most(
            "TRPO takes the best step",
            "‖Δ − Δ*‖_F/‖Δ*‖_F of TRPO's full step without damping, 64 iterations",
            off.size,
            off.max(),
            1e-8,
            f"rounding: median {np.median(off):.0e}, largest {off.max():.0e}",
        ),
        at_most(
            "the true KL of the full step",
            "(D̄(Δ)/δ − 1)/√(2δ) → ⅓ E[A³]/E[A²]^(3/2), extrapolated from the four smallest δ, in units of "
            f"a = max|A|/√E[A²]; where a ≤ {_TAME:g}",
            series,
            error.max(),
            1e-5,
            f"coefficient agrees to {error.max():.1e} (median {np.median(error):.0e}); |D̄/δ − 1| has slope {slope:.3f} "
            "in δ (0.5 expected)",
        ),
        at_most(
            "the line search enforces δ",
            "largest D̄(θ, θ')/δ − 1 of the accepted steps, by the oracle",
            curvature.size,
            ratio - 1,
            1e-9,
            f"no exception; the library's D̄ agrees with the oracle's to {reported:.0e}",
        ),
    )


def _findings(m: Solved, local: Local, rule: dict[int, Updates]) -> tuple[str, ...]:
    ten = m.undamped[ITERATIONS.index(10)].fraction
    made_up = slice(m.mdps, m.mdps + m.random)
    by_kappa = ", ".join(
        f"{np.median(ten[made_up][m.systems.kappa[made_up] == kappa]):.3f} at κ = {kappa:g}"
        for kappa in measure.KAPPAS[2:]
    )
    steps = rule[measure.FULL]
    default = int(np.flatnonzero(measure.RULE_DAMPINGS == 0.1)[0])
    kl = local.kl(steps.full) / steps.max_kl[:, None]
    gain = np.sum(local.weight[..., None] * (local.policy * local.advantage)[..., :-1] * steps.full, (-2, -1))
    reached = gain[default] / np.sqrt(2 * measure.DELTA * local.attainable)
    outside = kl[0] > 1
    sign = np.mean(outside == (local.skewness > 0))
    low, high = np.quantile(kl[0], [0.05, 0.95])
    return (
        f"Ten iterations, on 32 eigenvalues evenly spaced on a logarithmic axis, reach these fractions of the "
        f"attainable gain in the median: {by_kappa}.",
        f"With the default damping λ = 0.1, far above most eigenvalues of these tables of logits (median λ_max "
        f"{np.median(m.systems.largest[: m.mdps]):.2f}), TRPO's full step reaches {np.median(reached):.2f} of the "
        f"attainable gain in the median, {reached.min():.2f} at worst; the size of the step is not affected.",
        f"At δ = {measure.DELTA:g} the best step's true KL is {low:.2f} to {high:.2f} δ in 90 % of the MDPs "
        f"({kl[0].min():.2f} to {kl[0].max():.2f} in all) and exceeds δ in {100 * outside.mean():.0f} %; the sign of "
        f"the advantage's skewness tells which in {100 * sign:.0f} %.",
    )
