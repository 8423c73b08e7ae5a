"""What the tests check annotations with: beartype and jaxtyping, in each test's first calls of every function.

A function that a test calls thousands of times, most of them with the same shapes, is not checked thousands of times:
that took a quarter of the time of the tests.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import beartype
import jaxtyping

CALLS = 3
"""Calls of a function, in each test, that are checked."""

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float, as PEP 484 has it
_tests = [0]
"""How many tests have begun. Functions count their own calls: a table of them would keep alive what they close over."""
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, **keywords: Any) -> Any:
    """Check as jaxtyping's decorator does, which this replaces under its import hook."""
    if function is None:
        return functools.partial(jaxtyped, **keywords)
    if inspect.isclass(function):  # its annotations are those of what makes it
        made = function.__init__
        _jaxtyped(function, **keywords)
        if function.__init__ is not made:
            function.__init__ = first_calls(made, function.__init__)
        return function
    checked = _jaxtyped(function, **keywords)
    if isinstance(function, property) and function.fset is function.fdel is None:
        return property(first_calls(function.fget, checked.fget))
    return first_calls(function, checked) if inspect.isfunction(function) else checked


def first_calls(function: Any, checked: Any) -> Any:
    """Call ``checked``, and ``function`` itself once a test has called that often enough."""

    test = calls = 0

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        nonlocal test, calls
        if test != _tests[0]:
            test, calls = _tests[0], 0
        if calls >= CALLS:
            return function(*arguments, **keywords)
        calls += 1
        return checked(*arguments, **keywords)

    return called


def begin() -> None:
    """Note that another test begins."""
    _tests[0] += 1


def watch() -> None:
    """Have jaxtyping's import hook, which says ``jaxtyping.jaxtyped``, check first calls only."""
    jaxtyping.jaxtyped = jaxtyped
