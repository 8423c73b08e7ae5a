"""TRPO bounds the mean KL, not the theory's max: what that keeps, what it costs, and how often η falls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trpo.theory.claims._mean_kl import MEAN, PAPER, Study, study
from trpo.theory.claims._mean_kl_checks import (
    FALL,
    fall_checks,
    order_checks,
    relation_checks,
    share_that_falls,
    share_void,
)
from trpo.theory.claims._mean_kl_figures import falls_figure, steps_figure
from trpo.theory.records import Outcome, Picture

TITLE = "From max to mean KL"
EXPLANATION = """
The guarantee of the previous chapters charges for D_max, the largest KL of any state, at a price of 4εγ/(1−γ)². Two
things are wrong with that in practice. The steps it pays for are tiny; and a maximum over all states cannot be
estimated from samples, which never meet most of them. TRPO makes two replacements. The penalty becomes a constraint
(equation 11), and D_max becomes its mean over the states that π visits (equation 12):

    maximise L_π(π̃)   subject to   D̄(π, π̃) = Σ_s d_π(s) KL(π(·|s) ‖ π̃(·|s)) ≤ δ

A mean can be estimated from samples. But it is a heuristic: the theorem needs D_max. What still holds, and what is
given up? By their definitions

    D̄ ≤ D_max ≤ D̄ / min_s d_π(s)

so states that are hardly ever visited may change a lot. Here the library's unmodified `TRPO` walks 20 steps through
random MDPs, from a random policy towards better ones, and the oracle judges every step: its D̄ and D_max, and whether
the true η rose or fell. A step that is accepted has D̄ ≤ δ; one that is rejected leaves θ as it was, bit for bit.

Close to π, at fixed δ, the gain of η is the gradient times a step of length ∝ √δ, and what L_π misses is of second
order, ∝ δ. So a small enough step cannot fail unless g = 0, while a large one can:

    η(π̃) − η(π) = √D̄ · √(2 gᵀF⁻¹g) + O(δ),   L_π(π̃) − η(π̃) = O(δ),   g = ∇η

The guarantee is a third quantity, also ∝ δ but with a coefficient that is larger by orders of magnitude. At
δ = 0.01, the paper's value, it says nothing about nearly every step: 4εγ/(1−γ)² D_max exceeds the gain. Still nearly
every step raises η. That is the case for the heuristic, and it is an empirical one.

Can TRPO lower η at all? With a table that has a logit for every state and action it cannot here, however large δ is:
the natural gradient of a table is A_π(s, a) itself, so each state shifts to its better actions, every Σ_a π̃(a|s)
A_π(s, a) ≥ 0, and by the performance difference (equation 2) η rises. The danger appears when states share
parameters, as in a network: then one state's gain is paid for by another's loss, judged by the visitation of π. So the
policies here are log-linear, π_θ(a|s) ∝ π(a|s) exp(φ(s, a)·θ), with a quarter as many parameters as logits and random
features φ; the complete table is the control. A step counts as lowering η if it loses more than a billionth of the
first policy's gap η* − η(π), far above rounding errors. Even the worst step loses less than Achiam et al. (2017,
corollary 3) allow a step with this D̄: their bound is in the mean KL, and so is the one that still covers TRPO.

The first figure shows how far the largest KL exceeds the mean, and the three orders of magnitude. The second compares
TRPO with the constraint that the theory would want: TRPO's own steps, shortened until D_max ≤ δ. They are safer at the
same δ because they are shorter. The fair question is what each pays for the same progress, and there the two hardly
differ: δ sets the trade between progress and falls, mean or maximum does not. And the mean can be estimated.
"""
CODE = (
    "trpo.rules.trpo:TRPO.update",
    "trpo.line_search:line_search",
    "trpo.objectives:mean_kl",
    "trpo.objectives:max_state_kl",
    "trpo.tabular.bridge:exact_problem",
    "trpo.tabular.bounds:theorem_1_kl",
    "trpo.tabular.bounds:average_kl",
)
TESTS = (
    "test_claim_mean_kl.py::test_holds",
    "test_claim_mean_kl.py::test_swapped_kl_is_noticed",
    "test_claim_mean_kl.py::test_dropped_weights_are_noticed",
    "test_claim_mean_kl.py::test_search_that_ignores_the_bound_is_noticed",
    "test_claim_mean_kl.py::test_step_kept_after_rejection_is_noticed",
)


def _findings(study: Study) -> tuple[str, ...]:
    paper, cautious = study.mean[PAPER], study.largest[PAPER]
    first = {max_kl: w.select(0) for max_kl, w in study.mean.items()}
    closed = {max_kl: 100 * (1 - w.gap[-1].mean()) for max_kl, w in study.mean.items()}
    matched = study.largest[1e-1]
    falling = paper.accepted & (paper.gain < -FALL)
    depth = max(float(-w.gain.min()) / max_kl for max_kl, w in study.mean.items())
    return (
        f"At δ = {PAPER:g} the first step gains {np.median(first[PAPER].gain):.3f} of the gap in the median, the "
        f"surrogate errs by {np.median(np.abs(first[PAPER].promised - first[PAPER].gain)):.1g}, and the theorem allows "
        f"an error of {np.median(first[PAPER].theorem):.2g}, all in units of the gap.",
        f"The {int(falling.sum())} steps that lower η at δ = {PAPER:g} were promised "
        f"{np.median(paper.promised[falling]) if falling.any() else 0:.1g} of the gap in the median, all first steps "
        f"{np.median(paper.promised[0]):.1g}: they are near stationary points. The deepest fall at any δ is "
        f"{max(depth, 0):.2g} δ, in units of the gap.",
        f"Even at δ = {MEAN[0]:g} the theorem promises nothing about {100 * share_void(study.mean[MEAN[0]]):.0f} % of "
        "the steps.",
        f"{paper.gain.shape[0]} steps close {closed[1e-4]:.0f} %, {closed[1e-3]:.0f} %, {closed[PAPER]:.0f} % and "
        f"{closed[1e-1]:.0f} % of the gap to the best policy of any kind at δ = 1e-4, 1e-3, 0.01 and 0.1, on average "
        "over the MDPs.",
        f"With D_max ≤ {PAPER:g} they close {100 * (1 - cautious.gap[-1].mean()):.0f} %, and "
        f"{100 * share_that_falls(cautious):.2f} % of the steps lower η, against {closed[PAPER]:.0f} % and "
        f"{100 * share_that_falls(paper):.2f} % with D̄ ≤ {PAPER:g}; with D_max ≤ 0.1, "
        f"{100 * (1 - matched.gap[-1].mean()):.0f} % and {100 * share_that_falls(matched):.2f} %.",
    )


def run(size: int, figures: Path | None = None, seed: int = 0) -> Outcome:
    """Walk TRPO through at least ``size`` random MDPs at several δ and judge every step; draw into ``figures``."""
    found = study(size, seed)
    checks = (*relation_checks(found), *order_checks(found), *fall_checks(found))
    pictures: tuple[Picture, ...] = ()
    if figures is not None:
        pictures = (
            steps_figure(found.shapes, found.mean, figures),
            falls_figure(found.mean, found.largest, found.table, FALL, figures),
        )
    return Outcome(checks, _findings(found), pictures)
