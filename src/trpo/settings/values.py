"""One conversion for every setting: what is kept is plain data, which a file can hold and give back."""

from __future__ import annotations

import contextlib
import math
import numbers
import types
import typing
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from trpo.spelling import on_one_line

LARGEST = 2**63
"""Whole numbers stay below: no counter is larger, and a file cannot hold every one of Python's."""
_WORDS = {
    bool: "of type bool",
    int: "of type int",
    float: "of type float",
    str: "of type str",
    tuple[int, ...]: "a list of integers",
    tuple[str, ...]: "a list of names",
    dict: "names with values that JSON has: numbers, texts, true, false, null, lists and objects",
    type(None): "None",
}


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError, on one line, unless ``condition``."""
    if not condition:
        raise ValueError(f"{name}={on_one_line(repr(value), 200)}: must be {allowed}")


def converted(value: Any, hint: Any, name: str, advice: str = "") -> Any:
    """Return ``value`` as plain data of the type ``hint``, such as ``int`` or ``float | None``.

    What means the same is taken, so that a file gives back what was kept: an integral 1e3 for an integer, scalars of
    NumPy, decimals and fractions for numbers, lists and arrays for tuples. True is no number, and text is none.

    Raises:
        ValueError: anything else; the message names the setting, its type and the ``advice``.
    """
    plain = _scalar(value)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        with contextlib.suppress(ValueError, TypeError, ArithmeticError):
            return _as(option, plain)
    allowed = ", or ".join(map(_words, options))
    require(False, name, value, f"{allowed}; {advice}" if advice else allowed)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"
    return _WORDS.get(hint) or _WORDS.get(typing.get_origin(hint)) or f"a trpo.{hint.__name__}"


def _scalar(value: Any) -> Any:
    """Return the number, flag or text in a scalar of NumPy, JAX or the like; anything else as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind not in ("m", "M") and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _as(hint: Any, value: Any) -> Any:
    """Return ``value`` as the one type ``hint``; raise where it is not that."""
    kind = typing.get_origin(hint) or hint
    if kind is int or kind is float:
        return _number(kind, value)
    if kind is str and isinstance(value, str):
        return str.__str__(value)  # of a subclass, the text itself
    if kind is Literal and isinstance(value, str) and value in typing.get_args(hint):
        return str.__str__(value)
    if kind is tuple and not isinstance(value, str | bytes | Mapping):
        return tuple(_as(typing.get_args(hint)[0], _scalar(each)) for each in value)
    if kind is dict and isinstance(value, Mapping):
        return _json(value)
    if (kind in (bool, type(None)) or kind not in _WORDS) and isinstance(value, kind):
        return value
    raise TypeError


def _number(kind: type, value: Any) -> Any:
    known: tuple[Any, ...] = (numbers.Real, Decimal)
    if isinstance(value, bool) or not isinstance(value, known):
        raise TypeError
    if kind is float:
        return float(value)
    if not -LARGEST < value < LARGEST or (whole := math.floor(value)) != value:
        raise ValueError
    return whole


def _json(value: Any) -> Any:
    """Return what reading ``value`` from JSON would give."""
    value = _scalar(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError
        return {str.__str__(name): _json(each) for name, each in value.items()}
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0:
        return [_json(each) for each in value]
    number = _number(int if isinstance(value, numbers.Integral) else float, value)
    if math.isnan(number):  # it would not equal itself
        raise ValueError
    return number
