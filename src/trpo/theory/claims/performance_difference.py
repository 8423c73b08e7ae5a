"""The identity that compares two policies: exactly, in rounding error only, and along simulated paths."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from trpo.tabular import exact
from trpo.tabular.mdp import MDP, chain, cliff, grid
from trpo.theory.claims._sampling import (
    NORMAL_95,
    Moments,
    Noise,
    geometric_moments,
    geometric_sums,
    interval_check,
    noise_checks,
)
from trpo.theory.records import Check, Outcome, Picture, at_most, within
from trpo.theory.shared import style
from trpo.theory.shared.ensemble import Group, ensemble
from trpo.theory.shared.laws import rms

TITLE = "Performance-difference identity"
EXPLANATION = """
A policy gradient says in which direction the return η grows, and nothing about how far that direction can be
trusted. To take steps of a finite size we need to compare two policies that are not close: the present π, about
which we know everything that its data tell, and a candidate π̃. The identity of Kakade and Langford (2002), the
paper's equations 1 and 2, does this without any approximation:

    η(π̃) = η(π) + E_π̃[Σ_t γᵗ A_π(s_t, a_t)] = η(π) + Σ_s ρ_π̃(s) Σ_a π̃(a|s) A_π(s, a)

A_π(s, a) = Q_π(s, a) − V_π(s) is the advantage under the old policy: how much better it is to do a once and follow
π afterwards than to follow π at once. ρ_π̃(s) = Σ_t γᵗ P(s_t = s) is the discounted visitation of the new policy;
as in the paper it isn't normalised and sums to 1/(1 − γ). In words: every time that π̃ deviates from π, it gains
the advantage of its deviation, and the gains simply add up.

The proof is one line. In expectation A_π(s_t, a_t) = r_t + γ V_π(s_{t+1}) − V_π(s_t); summed with weights γᵗ along
a path of π̃ the values telescope, and what remains is the return of π̃ less V_π(s_0), whose mean is η(π).

Two things follow. A policy whose expected advantage Σ_a π̃(a|s) A_π(s, a) is nowhere negative can't be worse:
policy iteration. And the obstacle to using the identity for learning is visible: it needs ρ_π̃, the states that the
candidate would visit, for every candidate. The next chapter replaces ρ_π̃ by ρ_π, which gives the surrogate L_π;
the right half of the first figure shows what that costs when the policies are far apart.

The identity is checked in three ways. By linear algebra: η comes from solving for V, the sum from solving for ρ,
and they agree to rounding error. That nothing but rounding is left shows in single precision, where the residual is
larger by the ratio 2²⁹ of the two roundings, as it would not be for an error in the formula. By simulation: paths
of π̃ that go on with probability γ after every step have no truncation to bias them, and the sum of A_π along such
a path has the expectation E_π̃[Σ γᵗ A_π]. Its standard deviation σ can be computed exactly, so the error of a mean
over N paths is compared with σ/√N itself, and not only with a slope; the 95 % interval that one would compute from
the same paths covers the exact value as often as it should.
"""
CODE = (
    "trpo.tabular.exact:performance_difference",
    "trpo.tabular.exact:visitation",
    "trpo.tabular.exact:advantage",
    "trpo.theory.claims._sampling:geometric_sums",
    "trpo.theory.claims._sampling:geometric_moments",
)
TESTS = (
    "test_claim_performance_difference.py::test_holds",
    "test_claim_performance_difference.py::test_wrong_visitation_is_noticed",
    "test_claim_performance_difference.py::test_visitation_without_start_is_noticed",
    "test_claim_performance_difference.py::test_values_in_place_of_action_values_are_noticed",
    "test_claim_performance_difference.py::test_exact_moments_are_those_of_the_simulation",
)

PATHS = np.array([64, 128, 256, 512, 1024])
"""N, the numbers of simulated paths for each MDP."""


class _Sides(NamedTuple):
    """Both sides of the identity, one entry for each MDP, and L's side for contrast."""

    change: np.ndarray
    """η(π̃) − η(π)."""
    predicted: np.ndarray
    """Σ_s ρ_π̃(s) Σ_a π̃ A_π."""
    surrogate: np.ndarray
    """The same with ρ_π."""
    scale: np.ndarray
    """max|r|/(1 − γ), the largest return that the rewards allow."""

    @property
    def error(self) -> np.ndarray:
        return np.abs(self.change - self.predicted) / self.scale


def _sides(mdp: MDP, old: np.ndarray, new: np.ndarray) -> _Sides:
    eta = exact.expected_return(mdp, old)
    return _Sides(
        exact.expected_return(mdp, new) - eta,
        exact.performance_difference(mdp, old, new),
        exact.surrogate(mdp, old, new) - eta,
        np.abs(mdp.reward).max(axis=(-2, -1)) / (1 - mdp.discount),
    )


def _join(parts: list[_Sides]) -> _Sides:
    return _Sides(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _single_precision(group: Group) -> _Sides:
    # Mapping over the leaves skips the class's conversion to double precision.
    mdp, old, new = jax.tree.map(lambda x: np.asarray(x, np.float32), (group.mdp, group.policy, group.other_policy))
    return _sides(mdp, old, new)


def _named(count: int, seed: int) -> _Sides:
    """Return the identity's sides on the named MDPs, for ``count`` pairs of random policies each."""
    rng = np.random.default_rng((seed, 1))
    sharpness = np.linspace(0, 8, count)[:, None, None]
    parts = []
    for one in (chain(), cliff(), grid()):
        mdp = jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), one)
        old, new = (exact.softmax(sharpness * rng.standard_normal(mdp.reward.shape)) for _ in range(2))
        parts.append(_sides(mdp, old, new))
    return _join(parts)


def _exact_checks(sides: _Sides, single: _Sides, named: _Sides) -> list[Check]:
    ratio = float(single.error.mean() / sides.error.mean()) if np.any(sides.error) else np.nan
    statement = (
        "|η(π̃) − η(π) − Σ_s ρ_π̃(s) Σ_a π̃(a|s) A_π(s, a)| relative to max|r|/(1 − γ), the largest return possible"
    )
    return [
        at_most(
            "identity, random MDPs",
            statement,
            sides.error.size,
            sides.error.max(),
            1e-12,
            f"rounding: RMS {rms(sides.error):.1e}, largest {sides.error.max():.1e}",
        ),
        at_most(
            "identity, named MDPs",
            f"{statement}; chain, cliff and grid with random policies",
            named.error.size,
            named.error.max(),
            1e-12,
            f"rounding: RMS {rms(named.error):.1e}, largest {named.error.max():.1e}",
        ),
        within(
            "residual is rounding",
            "Mean residual in single precision / in double precision ≈ 2²⁹, the ratio of the two roundings (log₂)",
            sides.error.size,
            np.log2(ratio),
            26,
            32,
            f"residual ∝ rounding: ratio 2^{np.log2(ratio):.2f}; mean {single.error.mean():.1e} in single precision",
        ),
    ]


class _Simulated(NamedTuple):
    """What N paths gave, per MDP (``[n, k]`` over ``PATHS``), and the exact values."""

    mean: np.ndarray
    deviation: np.ndarray
    moments: Moments
    change: np.ndarray
    """η(π̃) − η(π), from the two values and not from the identity."""
    example: tuple[float, np.ndarray]
    """η(π̃) − η(π) and every path's sum in one MDP, for the figure."""


def _simulated(rng: np.random.Generator, group: Group) -> _Simulated:
    mdp, old, new = group.mdp, group.policy, group.other_policy
    advantage = exact.advantage(mdp, old)
    sums = geometric_sums(rng, mdp, new, advantage, int(PATHS[-1]))
    change = exact.expected_return(mdp, new) - exact.expected_return(mdp, old)
    middling = int(np.argmin(np.abs(mdp.discount - 0.9)))
    return _Simulated(
        np.stack([sums[:, :n].mean(axis=-1) for n in PATHS], axis=-1),
        np.stack([sums[:, :n].std(axis=-1, ddof=1) for n in PATHS], axis=-1),
        geometric_moments(mdp, new, advantage),
        change,
        (float(change[middling]), sums[middling]),
    )


def _join_simulated(parts: list[_Simulated]) -> _Simulated:
    mean, deviation, moments, change, example = zip(*parts, strict=True)
    return _Simulated(
        np.concatenate(mean),
        np.concatenate(deviation),
        Moments(*(np.concatenate(column) for column in zip(*moments, strict=True))),
        np.concatenate(change),
        example[-1],
    )


def _sides_figure(sides: _Sides, figures: Path) -> Picture:
    drawing, ((left, right),) = style.figure(2)
    x = sides.change / sides.scale
    for axes, y, colour, label in (
        (left, sides.predicted, style.COLOURS[0], r"identity: weighted with $\rho_{\tilde\pi}$"),
        (right, sides.surrogate, style.COLOURS[1], r"surrogate: weighted with $\rho_{\pi}$"),
    ):
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8, zorder=0)
        axes.scatter(x, y / sides.scale, s=7, color=colour, alpha=0.5, linewidths=0)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(r"true change $\eta(\tilde\pi) - \eta(\pi)$, in max|r|/(1 − γ)", fontsize=9)
        limit = 1.05 * np.abs(x).max()
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    left.set_ylabel("the same from the advantages of π, in max|r|/(1 − γ)", fontsize=9)
    left.text(
        0.05, 0.93, f"largest distance from\nthe line: {sides.error.max():.0e}", transform=left.transAxes, va="top"
    )
    wrong = 100 * np.mean(sides.surrogate * sides.change < 0)
    right.text(0.05, 0.93, f"wrong sign: {wrong:.0f} %", transform=right.transAxes, va="top")
    return Picture(
        style.save(drawing, figures, "performance_difference_sides"),
        "Each point is a random MDP with two unrelated random policies π and π̃; in units of max|r|/(1 − γ). "
        "Weighted with the visitation of π̃ (left) the advantages of π add up to the true change of the return, on the "
        "diagonal to rounding error. Weighted with the visitation of π (right), which is all that data of π can tell, "
        "they don't when the policies differ this much.",
    )


def _sampling_figure(noise: Noise, example: tuple[float, np.ndarray], figures: Path) -> Picture:
    drawing, ((left, right),) = style.figure(2)
    change, sums = example
    n = np.arange(8, sums.size + 1)
    mean = np.cumsum(sums)[7:] / n
    half = NORMAL_95 * np.sqrt((np.cumsum(sums**2)[7:] / n - mean**2) / (n - 1))
    left.fill_between(n, mean - half, mean + half, color=style.COLOURS[0], alpha=0.2, linewidth=0)
    left.plot(n, mean, color=style.COLOURS[0], label=r"mean of $\sum A_\pi$ over N paths of $\tilde\pi$, 95 % interval")
    left.axhline(change, color="black", linewidth=1, linestyle="--", label=r"exact $\eta(\tilde\pi) - \eta(\pi)$")
    left.set(xscale="log", xlabel="simulated paths N", ylabel="change of the return, in units of reward")
    left.set_title("one MDP", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    error = rms(noise.z, axis=0) / np.sqrt(noise.samples)
    right.plot(noise.samples, 1 / np.sqrt(noise.samples), color="black", linewidth=1, label="exact: σ/√N")
    right.plot(noise.samples, error, "o", color=style.COLOURS[0], label="RMS error over the MDPs")
    right.set(xscale="log", yscale="log", xlabel="simulated paths N", ylabel="RMS error / σ of the MDP")
    right.set_title(f"{len(noise.z)} MDPs", fontsize=10)
    for axis, ticks in ((right.xaxis, noise.samples), (right.yaxis, (0.03, 0.06, 0.12))):
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    left.set_xticks((10, 100, 1000), ("10", "100", "1000"))
    right.legend(fontsize=8, frameon=False)
    return Picture(
        style.save(drawing, figures, "performance_difference_sampling"),
        "Left: in one MDP the mean advantage that π̃ collects along its simulated paths closes in on the exact change "
        "of the return. Right: over all MDPs the RMS error lies on σ/√N with the exact σ of each; nothing is fitted.",
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Check the identity on at least ``size`` random MDPs; draw its figures into ``figures``, if given."""
    groups = ensemble(size, seed)
    rng = np.random.default_rng((seed, 2))
    sides = _join([_sides(g.mdp, g.policy, g.other_policy) for g in groups])
    single = _join([_single_precision(g) for g in groups])
    simulated = _join_simulated([_simulated(rng, g) for g in groups])
    noise = Noise.of(PATHS, simulated.mean, simulated.moments, simulated.change)
    checks = [
        *_exact_checks(sides, single, _named(max(4, size // 32), seed)),
        *noise_checks("simulated", "the mean over N paths", noise, "E_π̃[Σ_t γᵗ A_π(s_t, a_t)] = η(π̃) − η(π)"),
        interval_check(PATHS, simulated.mean, simulated.deviation, simulated.moments, simulated.change),
    ]
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        pictures = (_sides_figure(sides, figures), _sampling_figure(noise, simulated.example, figures))
    return Outcome(tuple(checks), _findings(sides), pictures)


def _findings(sides: _Sides) -> tuple[str, ...]:
    off = np.abs(sides.surrogate - sides.change)
    share = off[sides.change != 0] / np.abs(sides.change)[sides.change != 0]
    wrong = 100 * np.mean(sides.surrogate * sides.change < 0)
    return (
        f"With ρ_π in place of ρ_π̃ the change of the return between two unrelated random policies is off by "
        f"{100 * np.median(share):.0f} % in the median, and has the wrong sign in {wrong:.0f} % of {sides.change.size} "
        "pairs: L_π is a statement about policies that are close, nothing more.",
        f"Relative to |η(π̃) − η(π)| itself, which may be small by cancellation, the identity holds to "
        f"{np.max((sides.error * sides.scale)[sides.change != 0] / np.abs(sides.change)[sides.change != 0]):.0e} at "
        "worst.",
    )
