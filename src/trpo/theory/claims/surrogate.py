"""The surrogate matches the return in value and gradient; what it misses is of second order, and known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo.problem import sampled_problem
from trpo.tabular import exact
from trpo.tabular.bridge import exact_problem
from trpo.theory.claims._derivatives import complex_step_gradient, second_order
from trpo.theory.claims._surrogate_figures import error_law, line
from trpo.theory.claims._tabular_batch import enumerated_batch, table_policy
from trpo.theory.records import Check, Outcome, Picture, at_most, within
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.laws import rms, slope

TITLE = "Surrogate"
EXPLANATION = """
The identity of the previous chapter needs ρ_π̃, the states that a candidate policy would visit. The surrogate L_π
(equation 3) puts the states that the present policy visits in their place, which is what data of π can tell:

    L_π(π̃) = η(π) + Σ_s ρ_π(s) Σ_a π̃(a|s) A_π(s, a)

It ignores that a changed policy changes which states are met. It is linear in π̃(a|s), can be estimated for any π̃
from the same data, and at π̃ = π it matches η in value and gradient (equation 4):

    L_π(π) = η(π),   ∇_θ L_π(π_θ) = ∇_θ η(π_θ) = Σ_s ρ_π(s) Σ_a ∇π_θ(a|s) A_π(s, a)   at π_θ = π

The second part is the policy gradient theorem. So gradient ascent on L_π is, for one infinitesimal step, gradient
ascent on η. For a finite step it isn't, and all of TRPO is about how far L_π may be followed.

How fast the two part company is known exactly. By the identity η − L_π is Σ_s (ρ_π̃ − ρ_π)(s) Ā(s) with Ā(s) = Σ_a
π̃(a|s) A_π(s, a). Both factors vanish at π̃ = π, so along π_θ+td the difference is of second order, and its
coefficient is a product of first derivatives:

    η − L_π = t² Σ_s dρ(s) dĀ(s) + O(t³),   dρ = γ (I − γP_πᵀ)⁻¹ (dP_π)ᵀ ρ_π,   dĀ(s) = Σ_a dπ(a|s) A_π(s, a)

What L_π misses is the shift of the visitation times the advantage of the new actions.

The library never sees an MDP, only a local problem: here the one that `exact_problem` builds of it, whose surrogate
is (1 − γ)(L_π − η(π)). Its gradient is compared with the policy gradient theorem and with a derivative of η that
uses neither theorem nor automatic differentiation: η at θ + ih for imaginary h = 1e-30, whose imaginary part over h
is the derivative to rounding error, because nothing is subtracted. The form that is used on data, with the
importance ratio π̃/π in place of the sum over actions (equation 14), goes through the library's `sampled_problem`
with every (s, a) listed once, weighted by its probability. Values matter as well as gradients: with Q in place of A
the gradient would stay the same, yet L_π(π) would no longer be η(π).

The first figure shows η and L_π along a line of policies, with their common tangent: near π the surrogate is as
good as the return, further out it promises what the return doesn't keep. In the second figure every MDP's error is
divided by its exact coefficient; all fall on t².
"""
CODE = (
    "trpo.tabular.bridge:exact_problem",
    "trpo.tabular.bridge:expected_surrogate",
    "trpo.problem:LocalProblem.linearise",
    "trpo.problem:sampled_problem",
    "trpo.objectives:importance_sampled_surrogate",
    "trpo.tabular.exact:surrogate",
    "trpo.tabular.exact:policy_gradient",
)
TESTS = (
    "test_claim_surrogate.py::test_holds",
    "test_claim_surrogate.py::test_uniform_weights_are_noticed",
    "test_claim_surrogate.py::test_unnormalised_visitation_is_noticed",
    "test_claim_surrogate.py::test_action_values_for_advantages_are_noticed",
    "test_claim_surrogate.py::test_rewards_for_advantages_are_noticed",
    "test_claim_surrogate.py::test_importance_ratio_dropped_is_noticed",
    "test_claim_surrogate.py::test_log_probability_for_ratio_is_noticed",
    "test_claim_surrogate.py::test_wrong_coefficient_is_noticed",
)

STEPS = np.geomspace(0.1, 0.01, 5)
"""t, along random directions d of standard normal logits."""
MEASURABLE = 1e-5
"""Least exact coefficient, relative to max|r|/(1 − γ): below it t² times it drowns in the rounding errors of η."""


class _Study(NamedTuple):
    """What the library and the oracle say on each MDP, in the oracle's units; leading axis ``[n]``."""

    scale: np.ndarray
    """max|r|/(1 − γ), the largest return possible."""
    value_error: np.ndarray
    """L_π(π) − η(π) of the library."""
    elsewhere_error: np.ndarray
    """Library's L_π(π̃) − equation 3 at an unrelated π̃."""
    sampled_elsewhere_error: np.ndarray
    """The same of the enumerated sampled problem."""
    gradient_norm: np.ndarray
    gradient_scale: np.ndarray
    """‖ρ_π π (|Q| + |V|)‖: what the gradient is a difference of."""
    theorem_error: np.ndarray
    """‖library's gradient − policy gradient theorem‖."""
    complex_error: np.ndarray
    """‖library's gradient − complex-step derivative of η‖."""
    sampled_error: np.ndarray
    """‖enumerated sampled problem's gradient − complex-step derivative‖."""
    slope: np.ndarray
    """∇η·d."""
    change: np.ndarray
    """η − η(π) at θ + td, ``[n, k]`` over ``STEPS``."""
    forward: np.ndarray
    """η − L_π at θ + td."""
    backward: np.ndarray
    """At θ − td."""
    coefficient: np.ndarray
    """Σ_s dρ(s) dĀ(s)."""
    coefficient_scale: np.ndarray
    """Σ_s |dρ(s)| |dĀ(s)|."""


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(axis=(-2, -1)))


def _library(group: Group, direction: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return gradients and surrogates of the library's exact and enumerated sampled problem, in units of η."""
    steps = jnp.asarray([0.0, *STEPS, *-STEPS])

    weight, advantage = exact.state_weight(group.mdp, group.policy), exact.advantage(group.mdp, group.policy)

    def study(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        mdp, logits, other, direction, weight, policy, advantage = arguments
        problem = exact_problem(mdp, logits)
        sampled = sampled_problem(table_policy, logits, enumerated_batch(weight, policy, advantage))
        answer = (
            problem.linearise(logits).gradient,
            sampled.linearise(logits).gradient,
            jax.vmap(lambda t: problem.surrogate(logits + t * direction))(steps),
            problem.surrogate(other),
            sampled.surrogate(other),
        )
        return jax.tree.map(lambda x: x / (1 - mdp.discount), answer)

    arguments = (group.mdp, group.logits, group.other_logits, direction, weight, group.policy, advantage)
    answers = jax.jit(jax.vmap(study))(jax.tree.map(jnp.asarray, arguments))
    return tuple(np.asarray(x) for x in answers)


def _study(group: Group, direction: np.ndarray) -> _Study:
    mdp, policy = group.mdp, group.policy
    gradient, sampled_gradient, along, elsewhere, sampled_elsewhere = _library(group, direction)
    eta = exact.expected_return(mdp, policy)
    gain = exact.surrogate(mdp, policy, group.other_policy) - eta
    theorem, derivative = exact.policy_gradient(mdp, group.logits), complex_step_gradient(mdp, group.logits)
    steps = np.array([*STEPS, *-STEPS])
    returns = [exact.expected_return(mdp, exact.softmax(group.logits + t * direction)) for t in steps]
    change = np.stack(returns, axis=-1) - eta[:, None]
    missed = change - along[:, 1:]
    d_rho, d_advantage = second_order(mdp, group.logits, direction)
    terms = np.abs(exact.action_value(mdp, policy)) + np.abs(exact.value(mdp, policy))[..., None]
    return _Study(
        scale=np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount),
        value_error=np.abs(along[:, 0]),
        elsewhere_error=np.abs(elsewhere - gain),
        sampled_elsewhere_error=np.abs(sampled_elsewhere - gain),
        gradient_norm=_norm(derivative),
        gradient_scale=_norm(exact.visitation(mdp, policy)[..., None] * policy * terms),
        theorem_error=_norm(gradient - theorem),
        complex_error=_norm(gradient - derivative),
        sampled_error=_norm(sampled_gradient - derivative),
        slope=(derivative * direction).sum(axis=(-2, -1)),
        change=change[:, : STEPS.size],
        forward=missed[:, : STEPS.size],
        backward=missed[:, STEPS.size :],
        coefficient=(d_rho * d_advantage).sum(axis=-1),
        coefficient_scale=(np.abs(d_rho) * np.abs(d_advantage)).sum(axis=-1),
    )


def _rounding(name: str, statement: str, error: np.ndarray) -> Check:
    law = f"rounding: RMS {rms(error):.1e}, largest {error.max():.1e}"
    return at_most(name, statement, error.size, error.max(), 1e-12, law)


def _exact_checks(study: _Study) -> list[Check]:
    return [
        _rounding("value at π", "L_π(π) = η(π), relative to max|r|/(1 − γ)", study.value_error / study.scale),
        _rounding(
            "value elsewhere",
            "The library's surrogate/(1 − γ) + η(π) = L_π(π̃) of equation 3 at unrelated π̃, relative to max|r|/(1 − γ)",
            study.elsewhere_error / study.scale,
        ),
        _rounding(
            "importance-sampled form",
            "Σ_s,a d_π(s) π(a|s) [π̃(a|s)/π(a|s)] A_π(s, a) through `sampled_problem` is the same number (equation 14)",
            study.sampled_elsewhere_error / study.scale,
        ),
        _rounding(
            "gradient: theorem",
            "∇L_π = ρ_π(s) π(a|s) A_π(s, a), relative to ‖ρ_π π (|Q| + |V|)‖, the terms whose difference it is",
            study.theorem_error / study.gradient_scale,
        ),
        _rounding(
            "gradient: derivative of η",
            "∇L_π = ∇η by complex steps, relative to the same",
            study.complex_error / study.gradient_scale,
        ),
        _rounding(
            "gradient: importance-sampled form",
            "The gradient of `sampled_problem` over all (s, a) = ∇η by complex steps, relative to the same",
            study.sampled_error / study.gradient_scale,
        ),
    ]


def _order_checks(study: _Study) -> list[Check]:
    """Check slope and coefficient of what L_π misses; ``study`` has only MDPs in which it is measurable."""
    unit = study.coefficient_scale[:, None]
    cases = len(unit)
    relative = np.abs(study.forward) / unit
    each = slope(STEPS, relative)
    typical = float(np.median(each))
    # The mean of +t and −t has no third-order term, and one extrapolation in t² takes away the fourth.
    even = (study.forward + study.backward) / (2 * STEPS**2)
    off = np.abs(even - study.coefficient[:, None]) / unit
    ratio = (STEPS[-2] / STEPS[-1]) ** 2
    limit = (ratio * even[:, -1] - even[:, -2]) / (ratio - 1)
    final = np.abs(limit - study.coefficient) / unit[:, 0]
    approach = float(slope(STEPS, rms(off, axis=0)))
    return [
        within(
            "error is of second order",
            "|η − L_π| at θ + td ∝ t^slope, t = 0.1 … 0.01 (median over the MDPs)",
            cases,
            typical,
            1.95,
            2.05,
            f"slope {typical:.3f} in log-log, 90 % of the MDPs within {np.quantile(each, 0.05):.2f} … "
            f"{np.quantile(each, 0.95):.2f} (t³ shows, most where t² happens to cancel)",
        ),
        at_most(
            "coefficient of t²",
            "(η − L_π)/t² → Σ_s dρ(s) dĀ(s) as t → 0 (extrapolated; relative to Σ_s |dρ||dĀ|)",
            cases,
            final.max(),
            1e-4,
            f"deviation {np.median(final):.0e} in the median, {final.max():.0e} at worst",
        ),
        within(
            "approach to the coefficient",
            "|even part of (η − L_π)/t² − Σ_s dρ dĀ| ∝ t^slope: the next even order, t⁴, and nothing in between",
            cases,
            approach,
            1.95,
            2.05,
            f"slope {approach:.3f}; RMS deviation {rms(off[:, 0]):.1e} at t = 0.1, {rms(off[:, -1]):.1e} at t = 0.01",
        ),
    ]


def _join(parts: list[_Study]) -> _Study:
    return _Study(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _findings(study: _Study, measurable: int) -> tuple[str, ...]:
    moving = study.gradient_norm > 0
    share = study.complex_error[moving] / study.gradient_norm[moving]
    even = np.abs(study.coefficient) / study.coefficient_scale
    return (
        f"Relative to ‖∇η‖ itself the library's gradient is within {np.median(share):.0e} of the derivative in the "
        f"median and {share.max():.0e} at worst, where π is nearly deterministic and A a small difference of Q and V.",
        f"L_π errs on either side: it promises too much at second order (Σ_s dρ dĀ < 0) in "
        f"{100 * np.mean(study.coefficient < 0):.0f} % of random directions.",
        f"Second order is measured in {measurable} of {moving.size} MDPs; in the others π is so nearly deterministic "
        f"that the coefficient is below {MEASURABLE:.0e} of the largest return.",
        f"The exact coefficient is {100 * np.median(even):.0f} % of Σ_s |dρ||dĀ| in the median: states gained and lost "
        "cancel in part.",
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check value, gradient and second order of L_π on at least ``size`` random MDPs; draw into ``figures``."""
    # Some policies are too nearly deterministic for second differences, so a few MDPs more.
    groups = ensemble(size + size // 8, seed)
    rng = np.random.default_rng((seed, 3))
    directions = [rng.standard_normal(group.logits.shape) for group in groups]
    study = _join([_study(group, direction) for group, direction in zip(groups, directions, strict=True)])
    keep = study.coefficient_scale > MEASURABLE * study.scale
    measurable = _Study(*(column[keep] for column in study))
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        middle = len(groups) // 2
        pictures = (line(groups[middle], directions[middle], figures), _law_figure(measurable, figures))
    return Outcome((*_exact_checks(study), *_order_checks(measurable)), _findings(study, int(keep.sum())), pictures)


def _law_figure(study: _Study, figures: Path) -> Picture:
    missed = np.abs(study.forward / study.coefficient[:, None])
    change = np.abs(study.change / study.slope[:, None])
    return error_law(STEPS, change, missed, figures)
