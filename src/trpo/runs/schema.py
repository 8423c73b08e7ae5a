"""What the JSON files of a run must be: checked where they are read, before anything is made of them."""

import contextlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from trpo.runs.disk import read_regular, replace_durably

JSON_BYTES = 2**28
"""The largest JSON file that is read; snapshots of simulators are in one."""
LARGEST = 2**53
"""Whole numbers stay below it: any reader of JSON has them exactly."""

Count = Annotated[int, range(LARGEST)]
Iteration = Annotated[int, range(2**31)]
Finite = Annotated[float, math.isfinite]
Name = Annotated[str, str.isprintable]


class Custom(TypedDict):
    """Which parts of an agent were given as code of one's own."""

    policy: bool
    env: bool
    rule: bool
    value: bool


class EnvSettings(TypedDict):
    """Of the settings, what says which environment."""

    id: Name


class Settings(TypedDict):
    """Settings, which :mod:`trpo.settings.config` checks itself."""

    env: EnvSettings


class Spaces(TypedDict):
    """Spaces, which are checked when they are made: :mod:`trpo.envs.spec`."""

    id: Name
    observation: dict[str, Any]
    action: dict[str, Any]


class ConfigFile(TypedDict):
    """``config.json``, of today's format."""

    format: int
    spec: Spaces
    config: Settings
    custom: Custom
    run: NotRequired[Name]


class Episodes(TypedDict, total=False):
    """The account of episodes; lists have one entry for each environment, ``recent`` some for the latest."""

    episodes: Count
    recent: list[tuple[Annotated[int, range(1, LARGEST)], Finite, Count]]
    running_return: list[float]
    running_length: list[Count]
    first: list[bool]
    returns: list[Finite]
    lengths: list[Count]


class StateFile(TypedDict):
    """``state.json`` of a checkpoint."""

    format: int
    iteration: Iteration
    steps: Count
    seconds: Annotated[Finite, lambda x: 0 <= x < 1e15]
    episodes: Episodes | None
    environments: Any
    environment: NotRequired[Name]
    value_fit: NotRequired[tuple[float | None, bool] | None]


class Member(TypedDict):
    """One run of a sweep."""

    name: Name
    changes: dict[str, Any]
    seed: Annotated[int, range(2**32)]


class SweepFile(TypedDict):
    """``sweep.json``."""

    format: int
    runs: list[Member]


def conform(value: Any, hint: Any, name: str = "") -> None:
    """Raise ValueError, naming what is wrong, unless JSON ``value`` is of the type ``hint``.

    A ``TypedDict`` may have more entries than are asked for; an ``Annotated`` type has ranges or predicates.
    """
    if (wrong := _misfit(value, hint, name)) is not None:
        raise ValueError(wrong)


def _misfit(value: Any, hint: Any, name: str) -> str | None:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is NotRequired:
        return _misfit(value, args[0], name)
    if hint is Any:
        return None
    if origin is Annotated:
        inside = (value in rule if isinstance(rule, range) else rule(value) for rule in args[1:])
        return _misfit(value, args[0], name) or (None if all(inside) else f"{_said(name, value)}: out of range")
    if origin in (typing.Union, types.UnionType):
        return min((_misfit(value, option, name) or "" for option in args), key=len) or None
    if typing.is_typeddict(hint):
        return _record_misfit(value, hint, name)
    if origin is list and isinstance(value, list):
        return _first(_misfit(x, args[0], f"{name}[{i}]") for i, x in enumerate(value))
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return _first(_misfit(x, arg, f"{name}[{i}]") for i, (x, arg) in enumerate(zip(value, args, strict=True)))
    if origin is dict and isinstance(value, dict):
        return _first(_misfit(x, args[1], f"{name}.{key}") for key, x in value.items())
    kinds = {float: (float, int), None: (types.NoneType,)}.get(hint, (hint,))
    if origin is None and type(value) in kinds and not (type(value) is int and abs(value) > 2**63):
        return None
    return f"{_said(name, value)}: must be of type {getattr(origin or hint, '__name__', hint)}"


def _record_misfit(value: Any, hint: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{_said(name, value)}: must be an object"
    if missing := sorted(hint.__required_keys__ - value.keys()):
        return f"{name}{'.' if name else ''}{missing[0]} is missing"
    hints = {key: kind for key, kind in typing.get_type_hints(hint, include_extras=True).items() if key in value}
    return _first(_misfit(value[key], kind, f"{name}.{key}".lstrip(".")) for key, kind in hints.items())


def _first(found: Iterator[str | None]) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)


def _said(name: str, value: Any) -> str:
    return f"{name or 'the content'}={reprlib.repr(value)}"


# ---------------------------------------------------------------- reading and writing


def parse_json(data: bytes, constants: bool = True) -> Any:
    """Return what JSON says; ValueError if it is not UTF-8, names a thing twice, or goes too deep.

    Without ``constants``, NaN and infinities are refused too.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object names a thing twice")
        return found

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=once, parse_constant=None if constants else refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
    text = " ".join(str(error).split())
    text = text if len(text) <= 500 else f"{text[:500]}…"
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
