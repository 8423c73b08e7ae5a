"""What the claim "importance sampling" measures: batches for the sampled problem, ratios, and exact single paths."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trpo.tabular import exact
from trpo.theory.claims.importance_sampling import paths, sampled
from trpo.theory.claims.importance_sampling.sampled import QUANTITIES, Estimator, Setting
from trpo.theory.shared.arrays import bisect, join, stack, take
from trpo.theory.shared.ensemble import ensemble
from trpo.theory.shared.laws import rms
from trpo.theory.shared.noise import Noise
from trpo.theory.shared.paths import Moments, draw_moments, path_moments, simulate, state_frequencies

SHARPEST = 3.0
"""Standard deviation of the sharpest policies' logits. Actions rarer than 1/N hide from N samples."""

SAMPLES = np.array([128, 512, 2048])
"""N, independent pairs (s, a)."""
STEPS = 32
"""T, steps of a simulated path."""
PATHS = sampled.ROWS // STEPS
"""N, simulated paths."""
NEAR = np.geomspace(0.1, 0.01, 5)
"""t, along lines of logits θ + tv with standard normal v, where the law near π is measured."""
FAR = np.geomspace(0.05, 12.0, 25)
"""t, out to where the policies have little in common."""
RADII = np.array([0.01, 0.1, 1.0])
"""δ: mean KL(π ‖ π̃) at which ratios are compared; 0.01 is the usual trust region."""


class Estimates(NamedTuple):
    """Of one quantity: means over N samples ``[n, k]``, what they should be ``[n]``, and the moments of one sample."""

    mean: np.ndarray
    exact: np.ndarray
    moments: Moments

    def noise(self, samples: np.ndarray) -> Noise:
        """Return the errors in units of σ/√N."""
        return Noise.of(samples, self.mean, self.moments, self.exact)


class PathErrors(NamedTuple):
    """RMS error of the single-path gradient against ∇η, in units of σ of one path; rows: γᵗ kept, γᵗ dropped."""

    paths: np.ndarray
    """N, ``[k]``."""
    measured: np.ndarray
    """``[2, k]``."""
    exact: np.ndarray
    """√(bias² + σ²/N), ``[2, k]``."""


class AllPairs(NamedTuple):
    """The problem with every (s, a) listed once, weighted w(s) π(a|s); ``[n]`` each."""

    error: np.ndarray
    """Largest error of any quantity relative to the size of its summands, w = d_π, d_∞ and random."""
    mismatch: np.ndarray
    """Largest ‖F A − g‖/‖g‖."""
    fisher: np.ndarray
    """vᵀFv, w = d_π."""


class Spread(NamedTuple):
    """How far π̃ is from π; means over the states that π visits."""

    chi_square: np.ndarray
    """E_π[(π̃/π)²] − 1 = χ²(π̃ ‖ π), the variance of the ratio."""
    kl_new: np.ndarray
    """KL(π̃ ‖ π)."""
    kl_old: np.ndarray
    """KL(π ‖ π̃), the trust region's."""
    deviation: np.ndarray
    """Standard deviation of π̃/π · A_π, one sample of the surrogate."""


class Study(NamedTuple):
    """Everything that was measured on one group of MDPs, or on all of them."""

    pairs: AllPairs
    near: Spread
    far: Spread
    radii: Spread
    deviation: np.ndarray
    """σ of A_π, one sample of the surrogate at π."""
    bias: paths.PathBias
    asymmetry: tuple[np.ndarray, np.ndarray]
    """‖J − Jᵀ‖/‖J‖ of the gradient fields with γᵗ and without."""
    shared: paths.Shared


def from_all_pairs(rng: np.random.Generator, s: Setting, estimate: Estimator) -> AllPairs:
    """List every (s, a) once, with three weightings of the states."""
    anything = rng.dirichlet(np.ones(s.weight.shape[-1]), len(s.weight))
    weights = np.stack([s.weight, paths.stationary(s.group.mdp, s.group.policy), anything], axis=1)
    found = estimate(s, *sampled.enumerate_pairs(s, weights))
    pairs = weights[..., None] * s.group.policy[:, None]
    wanted = {name: (pairs * f[:, None]).sum(axis=(-2, -1)) for name, f in s.summands().items()}
    sizes = {name: (pairs * f[:, None]).sum(axis=(-2, -1)) for name, f in s.magnitudes().items()}
    errors = [np.abs(found[name] - wanted[name]) / sizes[name] for name in QUANTITIES]
    return AllPairs(np.max(errors, axis=(0, 2)), found[sampled.MISMATCH].max(axis=-1), found["fisher"][:, 0])


def from_samples(rng: np.random.Generator, s: Setting, estimate: Estimator) -> dict[str, Estimates]:
    """Estimate from N independent pairs, N in ``SAMPLES``."""
    n = len(s.weight)
    weight = (np.arange(sampled.ROWS) < SAMPLES[:, None]) / SAMPLES[:, None]
    found = estimate(s, *sampled.draw(rng, s, sampled.ROWS), np.broadcast_to(weight, (n, *weight.shape)))
    pairs = (s.weight[..., None] * s.group.policy).reshape(n, -1)
    summands = s.summands()
    moments = {q: draw_moments(pairs, summands[q].reshape(n, -1)) for q in QUANTITIES}
    return {q: Estimates(found[q], moments[q].mean, moments[q]) for q in QUANTITIES}


def from_paths(rng: np.random.Generator, s: Setting, estimate: Estimator) -> dict[str, Estimates]:
    """Estimate from single paths: with weights γᵗ and without."""
    mdp, policy, n = s.group.mdp, s.group.policy, len(s.weight)
    state, action = (x.reshape(n, -1) for x in simulate(rng, mdp, policy, PATHS, STEPS))
    kept, dropped = paths.discounted_weights(mdp.discount, STEPS), paths.equal_weights(mdp.discount, STEPS)
    weight = np.stack([np.tile(w / PATHS, PATHS) for w in (kept, dropped)], axis=1)
    found = estimate(s, state, action, weight)
    # What to expect does not come from the weights of the batch, so that a mistake in them can't hide.
    visited = (paths.cut_visitation(mdp, policy, STEPS), state_frequencies(mdp, policy, STEPS).mean(axis=1))
    summands, estimates = s.summands(), {}
    for i, (name, w) in enumerate((("γᵗ kept", kept), ("γᵗ dropped", dropped))):
        for q in ("gradient", "fisher"):
            wanted = (visited[i][..., None] * policy * summands[q]).sum(axis=(-2, -1))
            moments = path_moments(mdp, policy, summands[q], w)
            estimates[f"{name}, {q}"] = Estimates(found[q][:, i : i + 1], wanted, moments)
    return estimates


def path_errors(rng: np.random.Generator, s: Setting, estimate: Estimator) -> PathErrors:
    """Average the library's gradients over many batches of paths, in MDPs with γ near 0.85."""
    copies, rounds = 4, 4
    chosen = np.argsort(np.abs(s.group.mdp.discount - 0.85))[: max(1, len(s.weight) // copies)]
    one, many = take(s, chosen), take(s, np.resize(chosen, len(s.weight)))
    batches: list[np.ndarray] = []
    for _ in range(rounds):
        found = [e.mean[:, 0] for n, e in from_paths(rng, many, estimate).items() if n.endswith("gradient")]
        full = len(s.weight) // chosen.size
        batches += list(np.stack(found)[:, : full * chosen.size].reshape(2, full, chosen.size).swapaxes(0, 1))
    count = 2 ** np.arange(int(np.log2(len(batches))) + 1)
    mean = np.stack([np.mean(batches[:c], axis=0) for c in count], axis=-1)
    mdp, policy, f = one.group.mdp, one.group.policy, one.summands()["gradient"]
    truth = (one.weight[..., None] * policy * f).sum(axis=(-2, -1))
    weights = (paths.discounted_weights(mdp.discount, STEPS), paths.equal_weights(mdp.discount, STEPS))
    moments = [path_moments(mdp, policy, f, w) for w in weights]
    unit, number = moments[0].deviation, count * PATHS
    error = (mean - truth[None, :, None]) / unit[None, :, None]
    known = [((m.mean - truth) ** 2 / unit**2)[:, None] + (m.deviation / unit)[:, None] ** 2 / number for m in moments]
    return PathErrors(number, rms(error, axis=1), np.sqrt(np.mean(known, axis=1)))


def spread_at(s: Setting, t: np.ndarray) -> Spread:
    """Return it at θ + tv; ``t`` has shape ``[n]``."""
    old, weight = s.group.policy, s.weight
    new = exact.softmax(s.group.logits + t[:, None, None] * s.v)
    second = (weight[..., None] * new**2 / old * s.advantage**2).sum(axis=(-2, -1))
    mean = (weight[..., None] * new * s.advantage).sum(axis=(-2, -1))
    return Spread(
        # Not Σ π̃²/π − 1, which cancels near π.
        chi_square=(weight[..., None] * (new - old) ** 2 / old).sum(axis=(-2, -1)),
        kl_new=(weight * exact.kl(new, old)).sum(axis=-1),
        kl_old=(weight * exact.kl(old, new)).sum(axis=-1),
        deviation=np.sqrt(np.maximum(second - mean**2, 0)),
    )


def along(s: Setting, steps: np.ndarray) -> Spread:
    """Return it at every step of a line, ``[n, k]``."""
    return stack([spread_at(s, np.full(len(s.weight), t)) for t in steps])


def at_radii(s: Setting) -> Spread:
    """Return it where the line leaves each trust region KL(π ‖ π̃) ≤ δ of ``RADII``; NaN if it never does by t = 100."""
    # KL(π ‖ π̃) is convex along the line and 0 at π, so it rises.
    begin = np.zeros((len(s.weight), RADII.size))
    _, end = bisect(lambda t: np.stack([spread_at(s, x).kl_old for x in t.T], axis=-1) <= RADII, begin, begin + 100, 40)
    found = stack([spread_at(s, t) for t in end.T])
    return Spread(*(np.where(end < 100.0, x, np.nan) for x in found))


def _study(rng: np.random.Generator, s: Setting, estimate: Estimator) -> Study:
    mdp, policy = s.group.mdp, s.group.policy
    return Study(
        pairs=from_all_pairs(rng, s, estimate),
        near=along(s, NEAR),
        far=along(s, FAR),
        radii=at_radii(s),
        deviation=spread_at(s, np.zeros(len(s.weight))).deviation,
        bias=paths.path_bias(mdp, policy),
        asymmetry=paths.asymmetry(mdp, s.group.logits),
        shared=paths.shared_parameters(rng, mdp, policy),
    )


class Measured(NamedTuple):
    """All MDPs together."""

    study: Study
    samples: dict[str, Estimates]
    paths: dict[str, Estimates]
    named: dict[str, np.ndarray]
    """Angle to ∇η without γᵗ in the named MDPs, by γ."""
    errors: PathErrors | None
    """Only the figure shows them."""


def measure(size: int, seed: int, errors: bool) -> Measured:
    """Measure at least ``size`` random MDPs, with ``errors`` or without."""
    # In some MDPs a sum is too heavy-tailed for tests with few samples, so a few more.
    groups = ensemble(size + size // 8, seed, sharpest=SHARPEST)
    rng, estimate = np.random.default_rng((seed, 4)), sampled.estimator()
    settings = [sampled.setting(group, rng) for group in groups]
    study = join([_study(rng, s, estimate) for s in settings])
    independent, simulated = (join([kind(rng, s, estimate) for s in settings]) for kind in (from_samples, from_paths))
    middle = settings[len(settings) // 2]
    shown = path_errors(rng, middle, estimate) if errors else None
    return Measured(study, independent, simulated, paths.named_angles(), shown)
