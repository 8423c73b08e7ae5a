"""Sampled surrogate, gradient and Fisher products against the exact ones; what importance ratios and γᵗ do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo.theory.claims._ratios import FAR, NEAR, RADII, Spread, along, at_radii, spread_at
from trpo.theory.claims._sampled import (
    QUANTITIES,
    ROWS,
    WEIGHTS,
    Estimator,
    Mismatch,
    Setting,
    draw,
    enumerate_pairs,
    estimator,
    natural_mismatch,
    setting,
)
from trpo.theory.claims._sampling import Moments, Noise, bias_check, draw_moments, noise_checks, path_moments, simulate
from trpo.theory.claims._single_path import (
    DISCOUNTS,
    LENGTHS,
    PathBias,
    Shared,
    asymmetry,
    discounted_weights,
    equal_weights,
    path_bias,
    shared_parameters,
    stationary,
)
from trpo.theory.ensemble import ensemble
from trpo.theory.laws import rms, slope, spread
from trpo.theory.records import Check, Outcome, Picture, at_least, at_most

TITLE = "Importance sampling"
EXPLANATION = """
"""
CODE = (
    "trpo.problem:sampled_problem",
    "trpo.problem:Batch",
    "trpo.objectives:importance_sampled_surrogate",
    "trpo.fisher:Linearisation.fisher_vp",
    "trpo.distributions.categorical:Categorical.log_prob",
    "trpo.theory.claims._single_path:path_bias",
)
TESTS = ("test_claim_importance_sampling.py::test_holds",)

SAMPLES = np.array([128, 512, 2048])
"""N, independent pairs (s, a)."""
STEPS = 32
"""T, steps of a simulated path."""
PATHS = ROWS // STEPS
SHARPEST = 3.0
"""Standard deviation of the sharpest policies' logits. Actions rarer than 1/N hide from N samples."""


class _Estimates(NamedTuple):
    """Of one quantity: means over N samples ``[n, k]`` and the exact moments of one sample."""

    mean: np.ndarray
    moments: Moments

    def noise(self, samples: np.ndarray) -> Noise:
        return Noise.of(samples, self.mean, self.moments, self.moments.mean)


def _enumerated(rng: np.random.Generator, s: Setting, estimate: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """Return errors relative to the sizes of the summands, and vᵀFv, of the problem with every (s, a) listed once."""
    others = rng.dirichlet(np.ones(s.weight.shape[-1]), (len(s.weight), WEIGHTS - 1))
    weights = np.concatenate([s.weight[:, None], others], axis=1)
    found = estimate(s, *enumerate_pairs(s, weights))
    pairs = weights[..., None] * s.group.policy[:, None]
    exact = {name: (pairs * f[:, None]).sum(axis=(-2, -1)) for name, f in s.summands().items()}
    sizes = {name: (pairs * f[:, None]).sum(axis=(-2, -1)) for name, f in s.magnitudes().items()}
    errors = [np.abs(found[name] - exact[name]) / sizes[name] for name in QUANTITIES]
    return np.max(errors, axis=(0, 2)), found["fisher"][:, 0]


def _independent(rng: np.random.Generator, s: Setting, estimate: Estimator) -> dict[str, _Estimates]:
    n = len(s.weight)
    weight = (np.arange(ROWS) < SAMPLES[:, None]) / SAMPLES[:, None]
    found = estimate(s, *draw(rng, s, ROWS), np.broadcast_to(weight, (n, *weight.shape)))
    pairs = (s.weight[..., None] * s.group.policy).reshape(n, -1)
    summands = s.summands()
    return {q: _Estimates(found[q], draw_moments(pairs, summands[q].reshape(n, -1))) for q in QUANTITIES}


def _paths(rng: np.random.Generator, s: Setting, estimate: Estimator) -> dict[str, _Estimates]:
    """Estimate from single paths: with weights γᵗ and without."""
    mdp, policy, n = s.group.mdp, s.group.policy, len(s.weight)
    state, action = (x.reshape(n, -1) for x in simulate(rng, mdp, policy, PATHS, STEPS))
    kept, dropped = discounted_weights(mdp.discount, STEPS), equal_weights(mdp.discount, STEPS)
    weight = np.stack([np.tile(w / PATHS, PATHS) for w in (kept, dropped)], axis=1)
    found = estimate(s, state, action, weight)
    summands = s.summands()
    return {
        f"{name}, {q}": _Estimates(found[q][:, i : i + 1], path_moments(mdp, policy, summands[q], w))
        for i, (name, w) in enumerate((("γᵗ kept", kept), ("γᵗ dropped", dropped)))
        for q in ("gradient", "fisher")
    }


class _Study(NamedTuple):
    """Everything that was measured on one group of MDPs, or on all of them."""

    enumerated_error: np.ndarray
    fisher: np.ndarray
    """vᵀFv of the library's enumerated problem."""
    near: Spread
    far: Spread
    radii: Spread
    deviation: np.ndarray
    """σ of A_π, one sample of the surrogate at π."""
    bias: PathBias
    kept_asymmetry: np.ndarray
    dropped_asymmetry: np.ndarray
    natural_mismatch: np.ndarray
    shared: Shared


def _study(rng: np.random.Generator, s: Setting, estimate: Estimator, mismatch: Mismatch) -> _Study:
    mdp, policy = s.group.mdp, s.group.policy
    error, curvature = _enumerated(rng, s, estimate)
    kept, dropped = asymmetry(mdp, s.group.logits)
    return _Study(
        enumerated_error=error,
        fisher=curvature,
        near=along(s, NEAR),
        far=along(s, FAR),
        radii=at_radii(s),
        deviation=spread_at(s, np.zeros(len(s.weight))).deviation,
        bias=path_bias(mdp, policy),
        kept_asymmetry=kept,
        dropped_asymmetry=dropped,
        natural_mismatch=mismatch(s, np.stack([s.weight, stationary(mdp, policy)], axis=1)).max(axis=-1),
        shared=shared_parameters(rng, mdp, policy),
    )


def _concatenate(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _sampling_checks(study: _Study, independent: dict[str, _Estimates]) -> list[Check]:
    checks = [
        at_most(
            "all pairs listed",
            "With every (s, a) listed once, weighted w(s) π(a|s), the sampled problem gives the exact surrogate at π̃, "
            "gradient, Fisher product and moments of the ratio, for w = d_π and random w (relative to Σ w π |summand|)",
            study.enumerated_error.size,
            study.enumerated_error.max(),
            1e-12,
            f"rounding: RMS {rms(study.enumerated_error):.1e}, largest {study.enumerated_error.max():.1e}",
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
    law = study.near.chi_square / NEAR**2 / study.fisher[:, None] - 1
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


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check sampling, ratios and single paths on at least ``size`` random MDPs; draw into ``figures``, if given."""
    # In some MDPs a sum is too heavy-tailed for tests with few samples, so a few more.
    groups = ensemble(size + size // 8, seed, sharpest=SHARPEST)
    rng = np.random.default_rng((seed, 4))
    estimate, mismatch = estimator(), natural_mismatch()
    settings = [setting(group, rng) for group in groups]
    study = _concatenate([_study(rng, s, estimate, mismatch) for s in settings])
    independent = _concatenate([_independent(rng, s, estimate) for s in settings])
    paths = _concatenate([_paths(rng, s, estimate) for s in settings])
    checks = (*_sampling_checks(study, independent), *_ratio_checks(study), *_path_checks(study, paths))
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        pictures = ()
    return Outcome(checks, _findings(study), pictures)
