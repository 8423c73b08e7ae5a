"""The prose of the theory pages, and what the HTML and Markdown writers share."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple


class Equation(NamedTuple):
    """An equation of the paper, what computes it, and what checks that."""

    number: str
    formula: str
    code: list[str]
    tests: list[str]
    claim: str
    """Name of the claim that it belongs to."""


def read(name: str) -> str:
    """Return the text of a file beside this one."""
    return files("trpo.theory.pages").joinpath(name).read_text(encoding="utf-8")


_PAPER = tomllib.loads(read("paper.toml"))
NOTATION: dict[str, str] = _PAPER["notation"]
EQUATIONS = [Equation(**equation) for equation in _PAPER["equations"]]
"""In the paper's order."""


class Excerpt(NamedTuple):
    """Where something is defined."""

    path: str
    """From the directory that holds the package, as ``trpo/rules/trpo.py``."""
    first: int
    last: int
    text: str


def excerpt(reference: str) -> Excerpt:
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
    return Excerpt(file.relative_to(package).as_posix(), first, first + len(lines) - 1, "".join(lines))


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
