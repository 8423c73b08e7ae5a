"""What the JSON files of a run must be: checked where they are read, before anything is made of them."""

import contextlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from trpo.runs.disk import read_regular, replace_durably
from trpo.spelling import on_one_line

JSON_BYTES = 2**28
"""The largest JSON file that is read; snapshots of simulators are in one."""
LARGEST = 2**53
"""Whole numbers stay below it: any reader of JSON has them exactly."""

Count = Annotated[int, range(LARGEST)]
Finite = Annotated[float, math.isfinite]
Name = Annotated[str, str.isprintable]
CONFIG_FILE = {
    "format": int,
    "run?": Name,
    "spec": {"id": Name, "observation": dict[str, Any], "action": dict[str, Any]},
    "config": {"env": {"id": Name}},
    "custom": dict.fromkeys(("policy", "env", "rule", "value"), bool),
    "changes?": [{"iteration": Count, "steps": Count, "setting": Name, "old": Any, "new": Any}],
}
"""``config.json``, of today's format; spaces and other settings are checked when they are made."""
EPISODES = {
    "episodes?": Count,
    "recent?": [tuple[Annotated[int, range(1, LARGEST)], Finite, Count]],
    "running_return?": [float],
    "running_length?": [Count],
    "first?": [bool],
    "returns?": [Finite],
    "lengths?": [Count],
}
"""The account of episodes; lists have one entry for each environment, ``recent`` some for the latest."""
STATE_FILE = {
    "format": int,
    "iteration": Annotated[int, range(2**31)],
    "steps": Count,
    "seconds": Annotated[Finite, lambda x: 0 <= x < 1e15],
    "episodes": (EPISODES, None),
    "environments": Any,
    "environment?": Name,
    "value_fit?": (tuple[float | None, bool], None),
}
"""``state.json`` of a checkpoint."""
SWEEP_FILE = {"format": int, "runs": [{"name": Name, "changes": dict[str, Any], "seed": Annotated[int, range(2**32)]}]}
"""``sweep.json``."""


def conform(value: Any, hint: Any, name: str = "") -> None:
    """Raise ValueError, naming what is wrong, unless JSON ``value`` is what ``hint`` says.

    That is a type, ``Annotated`` with ranges or predicates; a dict, of what an object has (``name?``: or has not) and
    maybe more; ``[hint]``, of the parts of a list; or a tuple of hints, of which one must fit.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        origin, hint = None, args
    if isinstance(hint, dict):
        if not isinstance(value, dict):
            raise _refusal(name, value, "must be an object")
        for key, part in hint.items():
            known = key.rstrip("?")
            if known in value:
                conform(value[known], part, f"{name}.{known}".lstrip("."))
            elif known == key:
                raise ValueError(f"{name}.{key} is missing".lstrip("."))
    elif isinstance(hint, tuple):
        wrong = []
        for option in hint:
            try:
                return conform(value, option, name)
            except ValueError as error:
                wrong.append(str(error))
        raise ValueError(min(wrong, key=len))
    elif origin is Annotated:
        conform(value, args[0], name)
        if not all(value in rule if isinstance(rule, range) else rule(value) for rule in args[1:]):
            raise _refusal(name, value, "out of range")
    elif isinstance(hint, list) and isinstance(value, list):
        for i, x in enumerate(value):
            conform(x, hint[0], f"{name}[{i}]")
    elif origin is tuple and isinstance(value, list) and len(value) == len(args):
        for i, (x, part) in enumerate(zip(value, args, strict=True)):
            conform(x, part, f"{name}[{i}]")
    elif origin is dict and isinstance(value, dict):
        for key, x in value.items():
            conform(x, args[1], f"{name}.{key}")
    elif hint is not Any:
        kind = list if isinstance(hint, list) else origin or hint
        fits = kind is hint and type(value) is (types.NoneType if hint is None else hint)
        whole = type(value) is int
        if not (fits or (whole and hint is float)) or (whole and abs(value) > 2**63):
            raise _refusal(name, value, f"must be of type {getattr(kind, '__name__', kind)}")


def _refusal(name: str, value: Any, why: str) -> ValueError:
    return ValueError(f"{name or 'the content'}={reprlib.repr(value)}: {why}")


# ---------------------------------------------------------------- reading and writing


def parse_json(data: bytes, constants: bool = True) -> Any:
    """Return what JSON says; ValueError if it is not UTF-8, names a thing twice, or goes too deep.

    Without ``constants``, NaN and infinities are refused too.
    """
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once, parse_constant=None if constants else _no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a thing twice")
    return found


def read_json(path: Path, hint: Any, *formats: int) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError unless this version reads its ``format`` and it is of type ``hint``.

    A ``hint`` that is None is checked by the caller, for formats that are converted first.
    """
    content = read_regular(path, JSON_BYTES)
    try:
        data = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)})") from error
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is not int or found not in formats:
        raise ValueError(f"{path} has format {reprlib.repr(found)}, but this version reads format {formats[-1]}")
    if hint is not None:
        with explained(str(path)):
            conform(data, hint)
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file that people may read."""
    replace_durably(path, (json.dumps(data, indent=2) + "\n").encode())


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever is raised while a file's content is used into a ValueError of one line that begins with ``what``.

    What is wrong in a file may show as any error of those who use it; the schema finds most of it before.
    """
    try:
        yield
    except Exception as error:
        text = one_line(error)
        raise ValueError(
            f"{what}: {text}" if isinstance(error, ValueError) else f"{what}: cannot be used ({text})"
        ) from error


def one_line(error: BaseException) -> str:
    """Return an error's text on one line; its kind too, where it is not one that explains itself."""
    text = on_one_line(error, 500)
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
