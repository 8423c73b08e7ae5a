"""What to say of a name that is not known, and of errors. A simulator's process uses it: it imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(
    name: str,
    known: Sequence[str],
    otherwise: str | Sequence[str] = "nearest: none",
    *,
    prefix: str = "",
    cutoff: float = 0.6,
) -> str:
    """Return ``nearest: a, b, c``: up to three of the known names, each after ``prefix``.

    ``cutoff`` says how like they must be, from 0 to 1. Where none is, return what ``otherwise`` says, or its names.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=cutoff) or otherwise
    return near if isinstance(near, str) else f"nearest: {', '.join(f'{prefix}{n}' for n in near)}"


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Ask for the known name that is most like ``name``, after ``prefix``; where none is, say all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"


def on_one_line(text: object, most: int = 80) -> str:
    """Return a text on one line of up to ``most`` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def in_words(error: BaseException) -> str:
    """Say in one line what went wrong: the library's own errors in their words, others after the name of their type."""
    if isinstance(error, SystemExit):
        return f"something called sys.exit({error.code!r})"
    if isinstance(error, OSError) and error.strerror:
        # Where a directory is to be made, "File exists" would puzzle.
        why = "is there, and is no directory" if isinstance(error, FileExistsError) else error.strerror
        return why if error.filename is None else f"{error.filename}: {why}"
    kind = type(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if text and kind.__module__.partition(".")[0] == "trpo":
        return text
    return f"{kind.__name__}: {text}" if text else kind.__name__
