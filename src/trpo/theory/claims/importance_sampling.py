"""Sampled surrogate, gradient and Fisher products against the exact ones; what importance ratios and γᵗ do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo.theory.claims._batches import (
    PATHS,
    SAMPLES,
    STEPS,
    AllPairs,
    Estimates,
    from_all_pairs,
    from_paths,
    from_samples,
    path_errors,
)
from trpo.theory.claims._importance_figures import path_figure, ratio_figure, sampling_figure
from trpo.theory.claims._path_checks import bias_checks, field_checks, path_findings
from trpo.theory.claims._ratios import FAR, NEAR, RADII, Spread, along, at_radii, spread_at
from trpo.theory.claims._sampled import Estimator, Setting, estimator, setting
from trpo.theory.claims._sampling import bias_check, noise_checks
from trpo.theory.claims._single_path import PathBias, Shared, asymmetry, path_bias, shared_parameters
from trpo.theory.records import Check, Outcome, Picture, at_least, at_most
from trpo.theory.shared.ensemble import ensemble
from trpo.theory.shared.laws import rms, slope

TITLE = "Importance sampling"
EXPLANATION = """
So far everything was exact. On a real task the sums over states and actions become averages over what was met:
states s_i that the present policy visited and actions a_i that it took (equations 13 and 14). The actions are those
of π, while L_π asks for those of π̃, and the importance ratio makes up for it:

    L_π(π̃) = η(π) + 1/(1 − γ) · E_{s ~ d_π, a ~ π}[π̃(a|s)/π(a|s) · A_π(s, a)],   d_π = (1 − γ) ρ_π

The library turns a batch of such pairs into the same kind of local problem as an exact MDP; what differs are the
weights, 1/N instead of probabilities. So with every (s, a) listed once and weighted with its probability the
sampled problem must be the exact one, to rounding error, and with N independent samples its surrogate, gradient and
Fisher products must err by σ/√N. σ follows from the MDP, so the error is compared with that number and not only
with a slope.

The price of the ratio is variance. The ratio has mean 1 under π and variance χ²(π̃ ‖ π), which is 2 KL for small
steps and, by Jensen's inequality, never less than e^KL(π̃ ‖ π) − 1: it grows exponentially with the distance of the
policies. Inside a trust region of the usual size, KL(π ‖ π̃) ≤ 0.01, it is 0.02, and the sampled surrogate is
hardly noisier than at π itself. The same constraint that keeps L_π close to η also keeps its estimate usable.

States are another matter than actions. Where d_π can't be drawn from, they come from paths of π, and ρ_π(s) = Σ_t
γᵗ P(s_t = s) says how: the state at time t counts with weight γᵗ. Paths that are cut after T steps then miss a part
of the gradient that is γᵀ times the gradient of the same MDP begun where the paths ended, no more.

In practice everybody, this library's training loop included, drops the weight γᵗ and counts all steps alike, as if
every suffix of a path were a path of its own; late states would otherwise hardly count. This estimates the gradient
weighted with d_T(s) = (1/T) Σ_{t<T} P(s_t = s), and is not the gradient of η: as T grows, it tends at rate 1/T to
that of the stationary weights d_∞. It is not the gradient of any other function either, since its Jacobian isn't
symmetric (Nota and Thomas 2020, arXiv:1906.07073).

How much harm is in it? In a table both gradients scale the same blocks, one for each state, by positive weights, so
the angle between them is always less than 90° and the direction remains one of ascent to first order; with shared
parameters nothing guarantees that. The angle is small when γ is close to 1 and the MDP forgets its start within the
horizon, and tens of degrees when γ is small or the MDP mixes slowly. It is smallest for paths of about 1/(1 − γ)
steps: d_π differs from d_∞ by (1 − γ) times the excess visits of the transient, to first order, and d_T by 1/T
times the same. These are random MDPs and policies: the angles are measurements, not bounds.

A natural gradient step suffers less. In a table, where every state has its own parameters, it doesn't suffer at
all: F and the gradient are weighted alike, state by state, and F⁻¹g = A_π whatever the weights. Where states share
parameters the weights do matter, as in the last finding, and the trust region then holds on average over the states
of the batch, which are those of d_T.
"""
CODE = (
    "trpo.problem:sampled_problem",
    "trpo.problem:Batch",
    "trpo.objectives:importance_sampled_surrogate",
    "trpo.fisher:Linearisation.fisher_vp",
    "trpo.distributions.categorical:Categorical.log_prob",
    "trpo.theory.claims._single_path:path_bias",
)
TESTS = (
    "test_claim_importance_sampling.py::test_holds",
    "test_claim_importance_sampling.py::test_weights_dropped_are_noticed",
    "test_claim_importance_sampling.py::test_weights_not_normalised_are_noticed",
    "test_claim_importance_sampling.py::test_ratio_inverted_is_noticed",
    "test_claim_importance_sampling.py::test_ratio_missing_is_noticed",
    "test_claim_importance_sampling.py::test_log_probability_of_the_wrong_action_is_noticed",
    "test_claim_importance_sampling.py::test_fisher_without_weights_is_noticed",
    "test_claim_importance_sampling.py::test_discount_weights_forgotten_are_noticed",
    "test_claim_importance_sampling.py::test_discount_weights_kept_where_dropped_are_noticed",
)

SHARPEST = 3.0
"""Standard deviation of the sharpest policies' logits. Actions rarer than 1/N hide from N samples."""


class _Study(NamedTuple):
    """Everything that was measured on one group of MDPs, or on all of them."""

    pairs: AllPairs
    near: Spread
    far: Spread
    radii: Spread
    deviation: np.ndarray
    """σ of A_π, one sample of the surrogate at π."""
    bias: PathBias
    kept_asymmetry: np.ndarray
    dropped_asymmetry: np.ndarray
    shared: Shared


def _study(rng: np.random.Generator, s: Setting, estimate: Estimator) -> _Study:
    mdp, policy = s.group.mdp, s.group.policy
    kept, dropped = asymmetry(mdp, s.group.logits)
    return _Study(
        pairs=from_all_pairs(rng, s, estimate),
        near=along(s, NEAR),
        far=along(s, FAR),
        radii=at_radii(s),
        deviation=spread_at(s, np.zeros(len(s.weight))).deviation,
        bias=path_bias(mdp, policy),
        kept_asymmetry=kept,
        dropped_asymmetry=dropped,
        shared=shared_parameters(rng, mdp, policy),
    )


def _concatenate(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _sampling_checks(study: _Study, independent: dict[str, Estimates]) -> list[Check]:
    checks = [
        at_most(
            "all pairs listed",
            "With every (s, a) listed once, weighted w(s) π(a|s), the sampled problem gives the exact surrogate at π̃, "
            "gradient, Fisher product and moments of the ratio; w = d_π, d_∞ and random (relative to Σ w π |summand|)",
            study.pairs.error.size,
            study.pairs.error.max(),
            1e-12,
            f"rounding: RMS {rms(study.pairs.error):.1e}, largest {study.pairs.error.max():.1e}",
        )
    ]
    for name, what, statement in (
        ("surrogate", "the sampled surrogate at π̃", "Σ_i (1/N) [π̃/π](a_i|s_i) A_π(s_i, a_i) → Σ_s d_π Σ_a π̃ A_π"),
        ("gradient", "the sampled gradient along u", "u·∇L of a batch → (1 − γ) u·∇η"),
        ("fisher", "the sampled Fisher product", "vᵀF v of a batch's states → vᵀF v under d_π"),
    ):
        checks += noise_checks(name, what, independent[name].noise(SAMPLES), statement)
    for name, what, statement in (
        ("ratio", "the mean ratio", "E_π[π̃/π] = 1, with variance χ²(π̃ ‖ π)/N"),
        ("ratio²", "the mean squared ratio", "E_π[(π̃/π)²] = 1 + χ²(π̃ ‖ π)"),
    ):
        checks.append(bias_check(name, what, independent[name].noise(SAMPLES), statement))
    return checks


def _ratio_checks(study: _Study) -> list[Check]:
    excess = np.log1p(study.far.chi_square) - study.far.kl_new
    law = study.near.chi_square / NEAR**2 / study.pairs.fisher[:, None] - 1
    shrink = float(slope(NEAR, rms(law, axis=0)))
    # Two extrapolations: the next orders are t and t².
    first = (law[:, 1:] * NEAR[:-1] - law[:, :-1] * NEAR[1:]) / (NEAR[:-1] - NEAR[1:])
    second = (first[:, 1:] * NEAR[:-2] - first[:, :-1] * NEAR[2:]) / (NEAR[:-2] - NEAR[2:])
    final = np.abs(second[:, -1])
    return [
        at_least(
            "variance grows exponentially",
            "log(1 + χ²(π̃ ‖ π)) − KL(π̃ ‖ π) ≥ 0: the variance of the ratio is at least e^KL − 1",
            excess.size,
            excess.min(),
            -1e-12,
            f"excess over KL: median {np.median(excess):.2g}, largest {excess.max():.2g} nats",
        ),
        at_most(
            "variance near π",
            "χ²(π̃ ‖ π)/t² → vᵀF v at θ + tv, F v the library's product (extrapolated, relative)",
            final.size,
            final.max(),
            1e-3,
            f"so χ² = 2 D̄ + O(t³): deviation falls with slope {shrink:.3f} in log-log, from "
            f"{rms(law[:, 0]):.1e} at t = 0.1 to {rms(law[:, -1]):.1e} at t = 0.01; extrapolated {rms(final):.0e}",
        ),
    ]


def _simulation_checks(paths: dict[str, Estimates]) -> list[Check]:
    kept, dropped = "Σ_{t<T} γᵗ P(s_t = s)/Σγᵗ", "d_T(s) = Σ_{t<T} P(s_t = s)/T"
    statements = {
        "γᵗ kept, gradient": f"Paths with weights γᵗ/Σγᵗ: E[u·∇L] = u·gradient weighted with {kept}",
        "γᵗ kept, fisher": "The same for vᵀF v: the states on the paths are distributed as that visitation",
        "γᵗ dropped, gradient": f"Paths with weights 1/T: E[u·∇L] = u·gradient weighted with {dropped}",
        "γᵗ dropped, fisher": "The same for vᵀF v",
    }
    what = f"{PATHS} paths of {STEPS} steps"
    return [
        bias_check(name, what, paths[name].noise(np.array([PATHS])), statement)
        for name, statement in statements.items()
    ]


def _ratio_finding(study: _Study) -> str:
    chi, sigma = study.radii.chi_square, study.radii.deviation / study.deviation[:, None]
    ratio = "; ".join(
        f"δ = {r:g}: χ² {np.nanmedian(chi[:, i]):.2g} ({np.nanquantile(chi[:, i], 0.95):.2g}), σ of a sample "
        f"{np.nanmedian(sigma[:, i]):.2f} ({np.nanquantile(sigma[:, i], 0.95):.2f}) times that at π"
        for i, r in enumerate(RADII)
    )
    return f"Median (and 95th percentile) over the MDPs where the mean KL(π ‖ π̃) reaches a radius δ: {ratio}."


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check sampling, ratios and single paths on at least ``size`` random MDPs; draw into ``figures``, if given."""
    # In some MDPs a sum is too heavy-tailed for tests with few samples, so a few more.
    groups = ensemble(size + size // 8, seed, sharpest=SHARPEST)
    rng = np.random.default_rng((seed, 4))
    estimate = estimator()
    settings = [setting(group, rng) for group in groups]
    study = _concatenate([_study(rng, s, estimate) for s in settings])
    independent = _concatenate([from_samples(rng, s, estimate) for s in settings])
    paths = _concatenate([from_paths(rng, s, estimate) for s in settings])
    checks = (
        *_sampling_checks(study, independent),
        *_ratio_checks(study),
        *_simulation_checks(paths),
        *bias_checks(study.bias),
        *field_checks(study.kept_asymmetry, study.dropped_asymmetry, study.pairs.mismatch),
    )
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        names = {"surrogate": "surrogate at π̃", "gradient": "gradient", "fisher": "Fisher product"}
        noises = {label: independent[name].noise(SAMPLES) for name, label in names.items()}
        pictures = (
            sampling_figure(noises, path_errors(rng, settings[len(settings) // 2], estimate), figures),
            ratio_figure(study.far, study.deviation, figures),
            path_figure(study.bias, figures),
        )
    return Outcome(checks, (_ratio_finding(study), *path_findings(study.bias, study.shared)), pictures)
