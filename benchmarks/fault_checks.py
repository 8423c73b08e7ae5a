"""What must hold after a fault, looked at without the code under test: files, exit codes, what was said."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Collection
from pathlib import Path

TRACE = "Traceback (most recent call last)"


class Broken(AssertionError):
    """Something that must survive a fault did not; the message says what."""


def check(holds: object, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def check_said(code: int, output: str, allowed: Collection[int], *words: str) -> None:
    """Check an exit code, that there is no traceback, and that what is said names the cause (any of ``words``)."""
    told = output.strip()[-600:]
    check(TRACE not in output, f"traceback: {told}")
    check(code in allowed, f"exit code {code}, not {sorted(allowed)}: {told}")
    if code not in (0, *range(-64, 0)):
        ours = [line for line in output.splitlines() if line.startswith("trpo: ")]
        check(ours, f"exit code {code} without a line that says why: {told}")
    check(not words or any(word.lower() in output.lower() for word in words), f"says none of {words}: {told}")


def check_line(error: BaseException, *words: str) -> None:
    """Check that an error of Python's door is one line that names the cause (any of ``words``)."""
    text = str(error)
    ours = isinstance(error, ValueError) or type(error).__name__ == "RunFailed"
    check(ours and not isinstance(error, UnicodeError), f"{type(error).__name__}: {text}")
    check(text and "\n" not in text.strip() and len(text) < 2000, f"not one line: {text[:600]!r}")
    check(not words or any(word.lower() in text.lower() for word in words), f"says none of {words}: {text}")


class Canary:
    """A tree beside the runs that nobody may touch: names, kinds, sizes, times and contents of all that is in it."""

    def __init__(self, place: Path):
        self.place = place
        for name in ("victim", "photos/00000001/portrait.png", "photos/00000002/sea.png", "other-run/config.json"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(f"precious {name}\n".encode() * 9)
        (place / "empty").mkdir()
        self.before = self._look()

    def _look(self) -> dict[str, tuple]:
        found = {}
        for path in sorted(self.place.rglob("*")):
            stat = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(self.place))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, content)
        return found

    def check(self) -> None:
        after = self._look()
        changed = sorted(name for name in {*self.before, *after} if self.before.get(name) != after.get(name))
        check(not changed, f"written or deleted outside the run: {changed}")


def iterations(run: Path) -> list[int]:
    """Return the iterations in ``metrics.jsonl``; the last line may be cut off, for which it has no newline."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line)["iteration"] for line in lines]


def sound(checkpoint: Path) -> bool:
    """Return whether a checkpoint is what its checksums say."""
    try:
        sums = dict(line.split("  ")[::-1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines())
        return set(sums) == {"state.safetensors", "state.json"} and all(
            hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == sum_ for name, sum_ in sums.items()
        )
    except (OSError, ValueError):
        return False


def newest(run: Path, damaged: str = "") -> Path | None:
    """Return the newest checkpoint; all must be whole, but for the one that was damaged on purpose."""
    found = [p for p in (run / "checkpoints").glob("*") if re.fullmatch("[0-9]{8,10}", p.name) and p.name != damaged]
    for path in found:
        check(sound(path), f"{path.name} is half a checkpoint")
    return max(found, key=lambda path: int(path.name), default=None)


def check_unbroken(run: Path, most_lost: int | None = None, damaged: str = "") -> int:
    """Check that iterations are 1, 2, … without gap or double and few are later than the newest checkpoint.

    Returns the number of iterations in ``metrics.jsonl``.
    """
    found = iterations(run)
    check(found == list(range(1, len(found) + 1)), f"iterations in metrics.jsonl: {_first_wrong(found)}")
    last = newest(run, damaged)
    if most_lost is not None and found:
        check(last is not None, "metrics but no checkpoint")
        lost = found[-1] - int(last.name)
        check(lost <= most_lost, f"{lost} iterations lost, an interval has {most_lost}")
    return len(found)


def _first_wrong(found: list[int]) -> str:
    place = next((i for i, number in enumerate(found) if number != i + 1), 0)
    return f"{found[max(0, place - 2) : place + 3]} where {place + 1} should be"


def tensors(checkpoint: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return a checkpoint's arrays by name, read by hand: type, shape, bytes."""
    data = (checkpoint / "state.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (entry["dtype"], entry["shape"], data[8 + size + begin : 8 + size + end])
    return found


def ends(run: Path) -> tuple[int, dict]:
    """Return the iteration and arrays of a run's end."""
    last = newest(run)
    check(last is not None, "no checkpoint")
    return int(last.name), tensors(last)


def check_same_end(run: Path, other: tuple[int, dict]) -> None:
    """Check that a run ended where, and with the bits that, an uninterrupted one did."""
    iteration, arrays = ends(run)
    check(iteration == other[0], f"ended at iteration {iteration}, not {other[0]}")
    unlike = sorted(name for name in {*arrays, *other[1]} if arrays.get(name) != other[1].get(name))
    check(not unlike, f"another end than the uninterrupted run's: {unlike[:4]}")
    leftovers = [str(p.relative_to(run)) for p in run.rglob(".tmp-*")]
    check(not leftovers, f"left behind: {leftovers}")
