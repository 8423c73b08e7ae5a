"""The prose of the theory pages, and what the HTML and Markdown writers share."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

INTRODUCTION = """
Policy-gradient methods change a policy a little, in a direction that seems better, and do so again. How much is "a
little"? A step that is too short wastes samples; one that is too long can ruin the policy, and then the data that the
next step would need are ruined with it. Trust Region Policy Optimization (TRPO; Schulman et al. 2015,
arXiv:1502.05477) answers with a bound: it takes the largest step whose *policies* stay close, in Kullback–Leibler
divergence, because closeness of policies is what the theory can turn into a guarantee.

Ten claims lead from plain gradient descent to that algorithm. Each is checked here on random finite Markov decision
processes, which linear algebra solves exactly, in double precision. The oracle knows nothing of the code that
it judges; the rules that run on these problems are the same code that trains robots. Each claim comes with its error
law: not "the difference is small" but "the difference falls with this power of the step, and with this coefficient".
"""

NOTATION = (
    ("π, π̃", "the present policy and another one; π(a|s) are probabilities"),
    ("θ", "parameters of a policy; here mostly soft-max logits, one for each state and action"),
    ("γ", "discount, below 1"),
    ("η(π)", "expected discounted return, what is to be maximised"),
    ("V, Q, A", "value, action value, advantage A(s,a) = Q(s,a) − V(s): how much better a is than π's average"),
    ("ρ_π(s)", "discounted visitation Σ_t γᵗ P(s_t = s); d_π = (1 − γ)ρ_π sums to 1"),
    ("L_π(π̃)", "surrogate: η predicted for π̃ from advantages and visitation of π"),
    ("KL, TV", "divergences KL(π ‖ π̃) = Σ_a π log(π/π̃) in nats and TV = ½ Σ_a |π − π̃|, in each state"),
    ("D_max, D̄", "largest KL of any state; its mean over d_π. TRPO bounds D̄ ≤ δ"),
    ("F", "Fisher matrix: the curvature of D̄ at θ_old"),
    ("g", "gradient of the surrogate at θ_old"),
)


class Equation(NamedTuple):
    """An equation of the paper, what computes it, and what checks that."""

    number: str
    """As in arXiv:1502.05477v5; "C" and "C.1" are appendices."""
    formula: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    claim: str
    """Name of the claim that it belongs to."""


class Source(NamedTuple):
    """Where something is defined."""

    path: str
    """From the directory that holds the package, as ``trpo/rules/trpo.py``."""
    first: int
    last: int
    text: str


def source(reference: str) -> Source:
    """Return the source of ``module:qualified name``."""
    name, _, qualified = reference.partition(":")
    imported = importlib.import_module(name)
    thing: Any = imported
    for part in qualified.split("."):
        thing = getattr(thing, part)
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    file = Path(str(imported.__file__))
    try:
        lines, first = inspect.getsourcelines(thing)
    except TypeError:  # Equinox wraps methods in an object that inspect does not look through.
        lines, first = inspect.getsourcelines(thing.method)
    package = Path(str(importlib.import_module("trpo").__file__)).parents[1]
    return Source(file.relative_to(package).as_posix(), first, first + len(lines) - 1, "".join(lines))


def paragraphs(text: str) -> list[tuple[bool, str]]:
    """Split prose into (is a formula, text): formulas are paragraphs indented by four spaces."""
    found = []
    for block in text.strip("\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            found.append((True, "\n".join(line[4:] for line in lines)))
        else:
            found.append((False, " ".join(line.strip() for line in lines)))
    return found
