"""What the tests check annotations with: beartype and jaxtyping, in each test's first calls of every function.

A function that a test calls thousands of times, most of them with the same shapes, is not checked thousands of times:
that took a quarter of the time of the tests.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

CALLS = 4
"""Calls of a function, in each test, that are checked."""

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float, as PEP 484 has it
seen: Counter[Callable[..., Any]] = Counter()
"""How many calls of each function were checked in the test that runs."""
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, **keywords: Any) -> Any:
    """Check as jaxtyping's decorator does, which this replaces under its import hook."""
    if function is None:
        return functools.partial(jaxtyped, **keywords)
    checked = _jaxtyped(function, **keywords)
    if not inspect.isfunction(function):  # a class, a property, a static method
        return checked

    @functools.wraps(function)
    def first_calls(*arguments: Any, **keywords: Any) -> Any:
        if seen[function] >= CALLS:
            return function(*arguments, **keywords)
        seen[function] += 1
        return checked(*arguments, **keywords)

    return first_calls


def watch() -> None:
    """Have jaxtyping's import hook, which says ``jaxtyping.jaxtyped``, check first calls only."""
    jaxtyping.jaxtyped = jaxtyped
