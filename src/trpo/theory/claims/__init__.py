"""The ten claims, a folder each, in the order of the argument.

    text.md      title and explanation, in paragraphs; those indented by four spaces are formulas
    claim.py     ``CODE`` (what implements it, ``module:qualified name``), ``TESTS`` and ``run(size, figures, seed)``
    measure.py   what is measured: arrays, with a row for each case
    checks.py    the verdicts on them, and what was found besides
    figures.py   the pictures

A claim that measures several things has a room for each.
"""

from __future__ import annotations

import importlib
from importlib.resources import files
from types import ModuleType

CLAIMS = (
    "parameter_ball",
    "fisher",
    "performance_difference",
    "surrogate",
    "lower_bound",
    "minorization",
    "mean_kl",
    "importance_sampling",
    "solving",
    "sample_reuse",
)
"""A claim's number is its place here."""


def claim(name: str) -> ModuleType:
    """Return ``claim.py`` of the claim called ``name``."""
    return importlib.import_module(f"{__name__}.{name}.claim")


def prose(name: str) -> tuple[str, str]:
    """Return title and explanation of the claim called ``name``."""
    title, _, explanation = files(f"{__name__}.{name}").joinpath("text.md").read_text(encoding="utf-8").partition("\n")
    return title.removeprefix("# "), explanation.strip("\n")
