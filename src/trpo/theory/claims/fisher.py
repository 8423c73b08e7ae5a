"""The mean KL's second derivative is the Fisher matrix, and nothing of lower order is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from trpo.distributions import Categorical
from trpo.tabular import exact
from trpo.theory.claims._fisher import SMALL, STEPS, WAYS, Part, Series, compare, fisher_error, measure
from trpo.theory.records import Check, Outcome, Picture, at_least, at_most, within
from trpo.theory.shared import laws, style
from trpo.theory.shared.ensemble import SHAPES, ensemble

TITLE = "The Fisher matrix"

EXPLANATION = """
The distance that TRPO bounds is the mean KL divergence (eq. 12), and at the old policy it is as flat as a function can
be: its value is 0 and, since 0 is its minimum, so is its gradient. The first thing to be seen of it is its second
derivative. That matrix is the same as the average product of two scores:

    F = E_s E_a[∇log π(a|s) ∇log π(a|s)ᵀ] = ∇² D̄(θ_old, θ) at θ = θ_old,   s ~ d_π = (1 − γ) ρ_π,   a ~ π

The left side needs first derivatives only. The library never forms F. It returns F v for a vector v (appendix C.1): one
pass forward through the linearised policy, the distribution's own small Fisher matrix, one pass back. Here it is
applied to every basis vector in turn, which gives all of F, and compared with the average of scores from the definition
and with two Hessians of the mean KL by automatic differentiation.

For a step tΔ the divergence is then a parabola plus a remainder of third order. For the soft-max in its logits there is
no need to stop there, because the whole series is known: its coefficients are the cumulants κ_k(s) of the
number Δ_sa when a is drawn from π(·|s), the second being the variance.

    D̄(θ_old, θ_old + tΔ) = Σ_s d_π(s) [½ κ₂(s) t² + κ₃(s) t³/6 + κ₄(s) t⁴/24 + …],   Σ_s d_π(s) κ₂(s) = ΔᵀFΔ

So the claim "F is the curvature" can be held to more than a tolerance: what is left after the parabola must fall with
the third power of t, and its coefficient must be the third cumulant, to many digits, with its sign.

The KL divergence is not symmetric. The other direction, KL(π_new ‖ π_old), has the same parabola, but the cubic
coefficient κ₃/3 instead of κ₃/6: to second order the direction does not matter, to third order it does. Far away it
matters a great deal. If π is a fair coin and π̃ shows one side with probability q, then KL(π ‖ π̃) = ½ log 1/(4q(1 − q))
grows without end as q → 0, while KL(π̃ ‖ π) never exceeds log 2. TRPO's direction, the old policy first, forbids that an
action which was in use disappears.

The figure shows both directions and their parabola for a policy with π = 0.9 and 0.1 (left); the remainders on
all random MDPs, falling along the predicted powers of t (middle); and the cubic coefficient of every MDP, measured from
the library's KL against the third cumulant (right).
"""

CODE = (
    "trpo.fisher:fisher_vp",
    "trpo.fisher:Linearisation.fisher_vp",
    "trpo.problem:LocalModel.kl_along",
    "trpo.objectives:mean_kl",
    "trpo.distributions.categorical:Categorical.fisher_product",
    "trpo.distributions.categorical:Categorical.kl_to",
    "trpo.tabular.exact:fisher",
)

TESTS = (
    "test_claim_fisher.py::test_the_claim_holds",
    "test_claim_fisher.py::test_a_swapped_kl_is_found",
    "test_claim_fisher.py::test_lost_visitation_weights_are_found",
    "test_claim_fisher.py::test_a_fisher_product_without_its_mean_is_found",
    "test_fisher.py::test_product_is_the_dense_hessian_of_the_mean_kl",
)

_DIGITS = 1e-6
"""For extrapolated coefficients: logits of size 30 are rounded at 4e-15, which division by t² and the extrapolation
magnify by 1e7 or so. A wrong coefficient would be wrong by a good part of 1."""


def _slope(remainder: np.ndarray) -> float:
    """The power of t in the root mean square over MDPs; one MDP's coefficient may vanish, that of all cannot."""
    return float(laws.slope(STEPS[SMALL], laws.rms(remainder[:, SMALL], axis=0)))


def _library_kl(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL of the first policy to the second, by the library, in each state."""
    return np.asarray(Categorical(jnp.asarray(logits)).kl_to(Categorical(jnp.asarray(other))))


def _coin() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, and the relative errors and ratio of the library's two KLs between a fair coin and one that shows q."""
    q = 10.0 ** -np.arange(1, 13)
    fair = np.zeros((q.size, 2))
    unfair = np.stack([np.log1p(-q), np.log(q)], axis=-1)
    there, back = _library_kl(fair, unfair), _library_kl(unfair, fair)
    exactly = -0.5 * np.log(4 * q * (1 - q)), np.log(2) + q * np.log(q) + (1 - q) * np.log1p(-q)
    error = np.maximum(np.abs(there / exactly[0] - 1), np.abs(back / exactly[1] - 1))
    return q, error, there / back


def _checks(parts: list[Part], s: Series) -> tuple[Check, ...]:
    n = s.kappa.size
    error = np.concatenate([fisher_error(part) for part in parts])
    start = np.concatenate([np.abs(part.measured.start) for part in parts])
    by_way = ", ".join(f"{way} {worst:.1f}" for way, worst in zip(WAYS, error.max(axis=0), strict=True))
    cubic, gap = np.abs(s.forward - s.kappa), np.abs(s.backward - 2 * s.kappa)
    slopes = {name: _slope(getattr(s, name)) for name in ("cubic", "quartic", "gap")}
    q, coin_error, ratio = _coin()
    return (
        at_most(
            "F in six ways",
            "E[score scoreᵀ] from its definition = library products on all basis vectors = scores of log_prob = "
            "∇²D̄(θ_old), entry by entry; in units of rounding, ε d(s)√(π(a|s) π(b|s)) / (1 − γ)",
            n,
            error.max(),
            64,
            f"rounding; largest by way: {by_way}",
        ),
        at_most(
            "flat at θ_old",
            "D̄(θ_old) = 0, max_s KL = 0 and ∇D̄(θ_old) = 0",
            n,
            start.max(),
            np.finfo(float).eps,
            f"rounding: D̄ {start[:, 0].max():.1e}, max_s KL {start[:, 1].max():.1e}, ∇D̄ {start[:, 2].max():.1e}",
        ),
        at_most(
            "slope of the KL nearby",
            "∇D̄(θ_old + tΔ) = t F Δ + ½ t² d(s) π(a|s) [(Δ_sa − EΔ)² − κ₂(s)] + O(t³): the error of the t² "
            "coefficient, extrapolated to t → 0, in units of Σ_s d(s) max_a Δ²",
            n,
            s.gradient.max(),
            _DIGITS,
            f"coefficient of t² exact to {s.gradient.max():.1e} (median {np.median(s.gradient):.1e})",
        ),
        within(
            "the remainder is cubic",
            "D̄(θ_old, θ_old + tΔ) − ½ t² ΔᵀFΔ = O(t³): slope in log-log of the root mean square over MDPs",
            n,
            slopes["cubic"],
            2.97,
            3.03,
            f"slope {slopes['cubic']:.4f}; {slopes['quartic']:.4f} after the third cumulant is taken off as well",
        ),
        at_most(
            "its coefficient",
            "[D̄ − ½ t² ΔᵀFΔ] / t³ → Σ_s d(s) κ₃(s)/6, sign included, in units of ΔᵀFΔ/6",
            n,
            cubic.max(),
            _DIGITS,
            f"agrees to {cubic.max():.1e} (median {np.median(cubic):.1e})",
        ),
        at_most(
            "the other direction",
            "KL(π_new ‖ π_old) has the same parabola and cubic coefficient Σ_s d(s) κ₃(s)/3, in the same units",
            n,
            gap.max(),
            _DIGITS,
            f"agrees to {gap.max():.1e}; the directions differ by slope {slopes['gap']:.4f} in log-log",
        ),
        at_most(
            "a fair coin and an unfair one",
            "KL((½, ½) ‖ (1 − q, q)) = ½ log 1/(4q(1 − q)), and back log 2 + q log q + (1 − q) log(1 − q): "
            "relative error",
            q.size,
            coin_error.max(),
            1e-14,
            f"ratio of the directions from {ratio[0]:.2f} at q = 0.1 to {ratio[-1]:.1f} at 1e-12: it grows as log 1/q",
        ),
        at_least(
            "directions that disagree",
            "largest ratio of the two directions among the coins: far from each other they are different distances",
            q.size,
            ratio.max(),
            10,
            "½ log(1/4q) / log 2: no bound",
        ),
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Compare library, definition and derivatives on ``size`` random MDPs."""
    rng = np.random.default_rng([seed, 2])
    parts = []
    # Compiling costs more than computing: a few MDPs come in one shape only.
    for group in ensemble(size, seed, SHAPES if size >= 256 else SHAPES[1:2]):
        delta = rng.standard_normal(group.logits.shape)
        weight = exact.state_weight(group.mdp, group.policy)
        parts.append(Part(group, delta, weight, measure(group, delta, weight)))
    s = Series(*(np.concatenate(column) for column in zip(*map(compare, parts), strict=True)))
    pictures = () if figures is None else (_draw(figures, s),)
    return Outcome(_checks(parts, s), _findings(parts), pictures)


def _findings(parts: list[Part]) -> tuple[str, ...]:
    """How different the two directions are between unrelated policies, and how far the parabola can be trusted."""
    ratios, used = [], []
    for part in parts:
        pair = part.group.logits, part.group.other_logits
        there, back = ((part.weight * kl).sum(axis=-1) for kl in (_library_kl(*pair), _library_kl(*pair[::-1])))
        apart = there > 1e-3
        ratios.append(np.maximum(there, back)[apart] / np.minimum(there, back)[apart])
        used.append(part.measured.forward[:, 0] / (0.5 * part.measured.curvature * STEPS[0] ** 2))
    ratio, measured = np.concatenate(ratios), np.concatenate(used)
    low, high = np.quantile(measured, [0.05, 0.95])
    return (
        f"Between two unrelated random policies the larger direction of the mean KL exceeds the smaller one by a "
        f"factor of {np.median(ratio):.2f} in the median and {ratio.max():.0f} at most ({ratio.size} pairs).",
        f"At t = {STEPS[0]:g} the mean KL is {low:.2f} to {high:.2f} of its parabola in 90 % of the MDPs "
        f"({measured.min():.2f} to {measured.max():.2f} in all): a step that the parabola puts on the boundary may "
        "leave the trust region, hence the line search.",
    )


def _draw(directory: Path, s: Series) -> Picture:
    """Draw both directions of one KL, the remainders' powers and the coefficients."""
    drawing, panels = style.figure(columns=3, width=4.3, height=3.8)
    _draw_directions(panels[0, 0])
    _draw_powers(panels[0, 1], s)
    _draw_coefficients(panels[0, 2], s)
    caption = (
        "Left: KL in nats when the favoured action's logit is moved by t (π = 0.9, 0.1), in both directions, and their "
        f"common parabola ½ t² ΔᵀFΔ. Middle: mean KL and remainders on {s.kappa.size} MDPs, median and the middle "
        "80 %; dotted lines are pure powers of t. Right: coefficient of t³ for every MDP, from the library's KL "
        "against the third cumulant; all in units of ΔᵀFΔ/6."
    )
    return Picture(style.save(drawing, directory, "fisher_expansion"), caption)


def _draw_directions(axes: Any) -> None:
    t = np.linspace(-2.5, 2.5, 201)
    old = np.array([np.log(9.0), 0.0]) + np.zeros((t.size, 2))
    new = old + np.stack([t, np.zeros_like(t)], axis=-1)
    for kl, colour, label in ((_library_kl(old, new), 0, "KL(old ‖ new)"), (_library_kl(new, old), 1, "KL(new ‖ old)")):
        axes.plot(t, kl, color=style.COLOURS[colour], label=label)
    axes.plot(t, 0.5 * 0.09 * t**2, "--", color=style.COLOURS[6], label="½ t² ΔᵀFΔ", linewidth=1.2)
    axes.set(xlabel="change t of a logit", ylabel="KL, nats", title="One parabola, two directions", ylim=(0, 0.5))
    axes.legend(frameon=False, fontsize=8.5)


def _draw_powers(axes: Any, s: Series) -> None:
    lines = ((s.kl, 0, 2, "mean KL"), (s.cubic, 1, 3, "without its parabola"), (s.quartic, 2, 4, "and without κ₃ t³/6"))
    for y, colour, power, label in lines:
        low, middle, high = np.quantile(np.abs(y), [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(STEPS, low, high, color=style.COLOURS[colour], alpha=0.18, linewidth=0)
        axes.plot(STEPS, middle, "o-", color=style.COLOURS[colour], markersize=3, label=f"{label}: slope {power}")
        axes.plot(STEPS, middle[-1] * (STEPS / STEPS[-1]) ** power, ":", color=style.COLOURS[6], linewidth=1)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="step t",
        ylabel="in units of ΔᵀFΔ/6",
        title="What is left, and how fast it goes",
    )


def _draw_coefficients(axes: Any, s: Series) -> None:
    ends = np.array([s.kappa.min(), s.kappa.max()])
    for y, factor, colour, label in (
        (s.forward, 1, 0, "KL(old ‖ new): κ₃/6"),
        (s.backward, 2, 1, "KL(new ‖ old): κ₃/3"),
    ):
        axes.plot(ends, factor * ends, color=style.COLOURS[6], linewidth=0.8)
        axes.plot(s.kappa, y, ".", color=style.COLOURS[colour], markersize=3, label=label)
    axes.set(xlabel="third cumulant of Δ, κ₃/6", ylabel="measured coefficient of t³", title="The coefficient is known")
    axes.legend(frameon=False, fontsize=8.5)
