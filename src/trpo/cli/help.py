"""What the command line says of itself: the flags that people use, the nearest of a mistyped one, the presets."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from trpo.cli.options import READERS, Resume, Train, assignments
from trpo.runs.changing import CHANGEABLE
from trpo.settings import presets
from trpo.settings.config import Config

WIDTH = 80
FEW = (
    "steps", "seed", "out", "preset", "env.count", "env.workers", "env.kwargs", "fragment", "rule.max_kl",
    "policy.hidden", "discount", "gae_lambda", "evaluate.every", "seeds", "vary", "quiet",
)  # fmt: skip
"""Of Train's fields and the settings, those that people use."""


def described(kind: Any, prefix: str = "") -> dict[str, str]:
    """Return the text below each field of a dataclass and of its groups, by dotted name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[prefix + ast.unparse(field.target)] = ast.literal_eval(text.value)
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            texts |= described(hint, f"{prefix}{name}.")
    return texts


def parse(kind: Any, command: str, arguments: Sequence[str], **options: Any) -> Any:
    """Return what ``tyro`` makes of a command's arguments; ValueError names what is wrong, on one line."""
    options = {"prog": f"trpo {command}", "registry": READERS, **options}
    try:
        with _written() as shown, _written(contextlib.redirect_stderr) as said:
            return tyro.cli(kind, args=list(arguments), **options)
    except SystemExit as error:
        if not error.code:
            print(_wrapped(_text(shown)), end="")
            raise
        with _written() as shown, contextlib.suppress(SystemExit):
            tyro.cli(kind, args=["--help"], **options)
        known = dict.fromkeys(re.findall(r"(?<=[ │])--?[a-z][\w.-]*(?=[ ,])", _text(shown)))
        see = f"see trpo {command} --help"
        for flag in (argument.partition("=")[0] for argument in arguments):
            if re.match(r"--?[A-Za-z]", flag) and flag.replace("_", "-") not in known:
                otherwise = f"{see}-all" if command == "train" else see
                raise ValueError(f"unknown flag {flag}; {nearest_flag(flag, known, otherwise)}") from error
        # tyro explains itself in a box: below its title, its first paragraph, on one line
        lines = [line.strip("│╭╮╰╯─- ") for line in _text(said).splitlines()]
        paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[1:]))
        raise ValueError(f"{_NO_NUMBER.sub(_no_number, ' '.join(paragraph))} ({see})") from error


_NO_NUMBER = re.compile(r"no type matching \{None\}\|(INT|FLOAT) could be instantiated from \[(.*)\]\.?")


def _no_number(found: re.Match[str]) -> str:
    return f"{found[2]} is not a {'whole number' if found[1] == 'INT' else 'number'}, nor None"


@contextlib.contextmanager
def _written(redirect: Any = contextlib.redirect_stdout) -> Iterator[io.TextIOWrapper]:
    """Keep what is printed, as the terminal's encoding can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    with redirect(stream):
        yield stream


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def few_flags(options: Train, preset: str, settings: dict[str, Any]) -> str:
    """Return the help of ``trpo train``: few flags, with the values that they have for the environment."""
    texts = described(Train) | described(Config)
    fill = functools.partial(textwrap.fill, width=WIDTH)
    given = f"with their values for {options.env_id}" if options.env_id else "with their defaults"
    said = [
        "usage: trpo train ENV [FLAG VALUE ...]",
        fill(str(Train.__doc__)),
        fill(f"ENV: {texts['env_id'].partition(': ')[2]}"),
        fill(f"Flags that people use, {given}:"),
    ]
    said.append(_flag_lines(FEW, options, texts))
    if settings:
        said.append(fill(f"Preset {preset}: {presets.describe(settings)}", subsequent_indent="    "))
    said.append(fill("Every setting is a flag: trpo train [ENV] --help-all lists them. Presets: trpo presets."))
    return "\n\n".join(said)


def resume_flags() -> str:
    """Return the help of ``trpo resume``: the settings that may change, with their defaults."""
    said = [
        "usage: trpo resume RUN [FLAG VALUE ...]",
        textwrap.fill(str(Resume.__doc__), WIDTH),
        "RUN: the directory of a run, or of a sweep.",
        _flag_lines(("quiet", "trust"), Resume(Path()), described(Resume)),
        textwrap.fill("Settings, with their defaults; what is changed is kept in the run:", WIDTH),
        _flag_lines(sorted(CHANGEABLE), Resume(Path()), described(Config)),
    ]
    return "\n\n".join(said)


def _flag_lines(names: Iterable[str], options: Train | Resume, texts: dict[str, str]) -> str:
    """Return flags with their values, and what each is."""
    flags = []
    for name in names:
        source = options if hasattr(options, name) else options.config
        value = functools.reduce(getattr, name.split("."), source)
        head = f"  --{name.replace('_', '-')} {shown(value)}".rstrip()
        text = texts.get(name, "").replace("``", "").replace("\n", " ")
        lines = textwrap.wrap(" ".join(text.split()), WIDTH - 28) or [""]
        if len(head) > 26:
            flags.append(textwrap.fill(head, WIDTH, subsequent_indent="      "))
            head = ""
        flags += [f"{start:<28}{line}".rstrip() for start, line in zip([head, *[""] * len(lines)], lines, strict=False)]
    return "\n".join(flags)


def shown(value: Any) -> str:
    """Return a flag's value as one would type it; nothing for what is off, empty or chosen by itself."""
    if isinstance(value, dict):
        return " ".join(assignments(value))
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "" if value is None or isinstance(value, bool) else str(value)


def _wrapped(text: str) -> str:
    """Return help whose paragraphs fit the width; boxes, and what is set in, are left as they are."""
    lines = text.split("\n")
    return "\n".join(line if line[:1] in " │╭╰├" else textwrap.fill(line, WIDTH) for line in lines)


def nearest_flag(flag: str, known: Iterable[str], otherwise: str) -> str:
    """Ask for the known flag that is most like ``flag``: the same without its group, or spelt alike."""
    flags = list(known)
    ends = {f: f.lstrip("-").rpartition(".")[2] for f in flags}
    end = flag.replace("_", "-").lstrip("-").rpartition(".")[2]
    same = [f for f in flags if ends[f] == end]
    alike = difflib.get_close_matches(flag.replace("_", "-"), flags, n=1)
    for close in () if same or alike else difflib.get_close_matches(end, ends.values(), n=1):
        same = [f for f in flags if ends[f] == close]
    if f"--{end}" in same:
        same = [f"--{end}"]
    elif "." in flag:  # of another group: the one that it is most like
        same = [f for f in alike if f in same]
    near = same or alike
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def list_presets(which: str | None) -> str:
    """Return the presets, or the one of a name or for an environment: what it is for, and its settings."""
    names = presets.names()
    if which is not None and which not in names:
        chosen = presets.preset_for(which)
        if chosen == presets.NONE:
            with contextlib.suppress(IndexError):
                near = difflib.get_close_matches(which, names, n=1)[0]
                return f"no preset is named {which} or is for it; did you mean {near}?"
            return f"no preset is for {which}: it has the defaults"
        which = chosen
    paragraphs = []
    for name in names if which is None else [which]:
        settings = presets.describe(presets.settings_of(name))
        head = textwrap.fill(f"{name}: {presets.about(name)}", WIDTH, subsequent_indent="    ")
        lines = [textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
                 for text in (f"for {presets.tasks(name)}", settings)]  # fmt: skip
        paragraphs.append("\n".join([head, *lines]))
    return "\n".join(paragraphs)


SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, commands: dict[str, Any]) -> str:
    """Return the script that completes ``trpo`` in a shell."""
    if shell not in SHELLS:
        raise ValueError(f"completion {shell!r}: must be one of {', '.join(SHELLS)}")
    with _written() as said, contextlib.suppress(SystemExit):
        flags: Sequence[str] = ("--tyro-write-completion", shell, "-")
        tyro.extras.subcommand_cli_from_dict(commands, prog="trpo", args=flags, registry=READERS)
    return _text(said).rstrip()
