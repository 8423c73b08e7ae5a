"""The flags of `trpo train` and `trpo check`: every setting is one; and how texts become values."""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from trpo.runs.changing import setting
from trpo.settings.config import Config, EnvConfig, HostsConfig, settings_of
from trpo.settings.presets import AUTO
from trpo.settings.values import converted


@dataclass(frozen=True)
class Train:
    """Train a policy by TRPO; leaves a directory to evaluate, resume, record and plot."""

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment: a Gymnasium id, module:Id-v0 or module:Class, envpool:ID, gymnax:ID, brax:NAME, playground:NAME or
    probe:NAME."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    settings: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """TOML file of settings; flags win over it, and it wins over the preset."""
    out: Path | None = None
    """Directory of the run; by default runs/ENV-sSEED."""
    preset: str = AUTO
    """Name of a preset (see trpo presets), auto (by environment) or none."""
    start_from: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    """Begin with the policy, value function and statistics of this run, whose spaces and networks are kept."""
    checkpoint: str = "last"
    """Of the run in --from: last, best (where it evaluated), or the iteration of one."""
    quiet: bool = False
    """Show no progress."""
    seeds: int = 1
    """Independent runs, from --seed on, each with a directory of its own; in JAX all at once."""
    vary: tuple[str, ...] = ()
    """Settings to try several values of, in every combination: rule.max-kl=0.01,0.02 discount=0.98,0.99."""
    hosts: HostsConfig = field(default_factory=HostsConfig)


@dataclass(frozen=True)
class Check:
    """Step an environment at random and name every fault with its cure; exit code 1 if there is one."""

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment: as for trpo train."""
    env: EnvConfig = field(default_factory=EnvConfig)
    steps: int = 1000
    """Steps to take."""
    seed: int = 0
    """Of environments and actions."""
    preset: str = AUTO
    """Whose settings of environments: as for trpo train."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its newest intact checkpoint, with settings of it that may change as flags."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of the run."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    quiet: bool = False
    """Show no progress."""
    trust: bool = False
    """Import the module that the run names for its environment, although it was not trained here."""
    hosts: HostsConfig = field(default_factory=HostsConfig)


def given(arguments: Sequence[str], config: Config) -> dict[str, Any]:
    """Return the settings that ``arguments`` name as flags, by dotted name, with their values in ``config``."""
    known, found = settings_of(Config), {}
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        name = flag[2:].replace("-", "_")
        if name not in known:  # --evaluate.no-deterministic
            group, _, last = name.rpartition(".")
            name = f"{group}.{last.removeprefix('no_')}".lstrip(".")
        if name in known:
            found[name] = setting(config, name)
    return found


SEVERAL = ("--env.kwargs", "--env.wrappers", "--env.info", "--vary")
"""Flags that add up where they are given more than once; of others the last counts."""


def flags_of(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return each flag with the value that follows it, if one does."""
    found: list[tuple[str, str | None]] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, sign, value = argument.partition("=")
        if argument.startswith("--"):
            found.append((flag, value if sign else None if following.startswith("--") else following))
    return found


def gathered(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with all values of each flag in ``SEVERAL`` at its first place."""
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    into = kept
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        if argument.startswith("--"):
            into = kept
        if flag in SEVERAL:
            if flag not in values:
                kept.append(flag)
            into = values.setdefault(flag, [])
            into += [value] if sign else []
        else:
            into.append(argument)
    return [part for argument in kept for part in (argument, *values.get(argument, ()))]


def varied(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """Turn ``rule.max-kl=0.01,0.02`` into ``{"rule.max_kl": [0.01, 0.02]}``; values are JSON, or names."""
    varied: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, sign, values = assignment.partition("=")
        if not (name and sign and values):
            raise ValueError(f"vary {assignment!r}: must be SETTING=VALUE,VALUE,…, such as rule.max-kl=0.01,0.02")
        name = name.replace("-", "_")
        try:
            varied[name] = json.loads(f"[{values}]")  # lists, too: policy.hidden=[64,64],[32,32]
        except ValueError:
            varied[name] = [value_of(text) for text in values.split(",")]
    return varied


def value_of(text: str) -> Any:
    """Return what ``text`` is: JSON (3, 0.5, true, null, "text", [1, 2]), a number as Python has it, or text itself."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    with contextlib.suppress(KeyError):
        return {"True": True, "False": False, "None": None}[text]
    if text.lstrip("+-.")[:1].isdigit():
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)  # 1_000, .5
    return text


def keywords(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``ctrl_cost_weight=0.2 healthy=true`` into a dict, values as :func:`value_of` reads them."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not (name and sign):
            raise ValueError(f"{assignment!r} is not NAME=VALUE, such as ctrl_cost_weight=0.2")
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = value_of(text)
    return found


def whole(text: str) -> int:
    """Return a whole number, which may be written 1000000, 1_000_000 or 1e6."""
    with contextlib.suppress(InvalidOperation, ValueError):
        return int(converted(Decimal(text), int, "number"))
    raise ValueError(f"{text!r} is not a whole number")


def _wholes(texts: Sequence[str]) -> tuple[int, ...]:
    return tuple(whole(part) for part in " ".join(texts).strip("()[]").replace(",", " ").split())


def _spec(
    nargs: Any, metavar: str, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]], kind: type
) -> Any:
    return PrimitiveConstructorSpec(nargs, metavar, read, lambda value: type(value) is kind, write)


READERS = ConstructorRegistry()
"""How the command line reads whole numbers, lists of them, and arguments of environments."""


@READERS.primitive_rule
def _reader(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is int:
        return _spec(1, "INT", lambda texts: whole(texts[0]), lambda value: [str(value)], int)
    if (typing.get_origin(info.type), typing.get_args(info.type)) == (tuple, (int, ...)):
        return _spec("*", "[INT [INT ...]]", _wholes, lambda value: list(map(str, value)), tuple)
    if info.type == dict[str, Any]:
        return _spec("*", "[NAME=VALUE ...]", keywords, assignments, dict)
    return None


def assignments(kwargs: dict[str, Any]) -> list[str]:
    """Return what :func:`keywords` reads."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in kwargs.items()]
