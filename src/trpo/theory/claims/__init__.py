"""The eleven claims, a folder each, in the order of the argument.

    text.md      all that is said: explanation, captions, which code and which tests
    claim.py     ``run(size, figures, seed)``
    measure.py   what is measured: arrays, with a row for each case
    checks.py    the verdicts on them, and what was found besides
    figures.py   the pictures

A claim that measures several things has a room for each.
"""

from __future__ import annotations

import importlib
import re
from importlib.resources import files
from types import ModuleType
from typing import Any, NamedTuple

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
    "rollouts",
)
"""A claim's number is its place here."""


def claim(name: str) -> ModuleType:
    """Return ``claim.py`` of the claim called ``name``."""
    return importlib.import_module(f"{__name__}.{name}.claim")


class Text(NamedTuple):
    """What a claim's ``text.md`` says."""

    title: str
    explanation: str
    """Paragraphs; those indented by four spaces are formulas."""
    captions: dict[str, str]
    """Of the figures, by file name; numbers that were measured are in braces."""
    code: list[str]
    """What implements the claim: ``module:qualified name``."""
    tests: list[str]

    def caption(self, found: dict[str, Any]) -> dict[str, Any]:
        """Give the pictures of what a run found their captions."""
        pictures = [
            {"file": picture["file"], "caption": self.captions[picture["file"]].format(**picture["numbers"])}
            for picture in found["pictures"]
        ]
        return {**found, "pictures": pictures}


def text(name: str) -> Text:
    """Read the text of the claim called ``name``."""
    whole = files(f"{__name__}.{name}").joinpath("text.md").read_text(encoding="utf-8")
    head, *sections = whole.split("\n## ")
    title, _, explanation = head.removeprefix("# ").partition("\n")
    of = dict(section.split("\n", 1) for section in sections)
    code, tests = (of[section].replace(",", " ").split() for section in ("Code", "Tests"))
    items = re.findall(r"^- \*\*(.+?)\*\*: (.+(?:\n  .+)*)", of["Figures"], re.MULTILINE)
    captions = {file: " ".join(caption.split()) for file, caption in items}
    return Text(title, explanation.strip("\n"), captions, code, tests)
