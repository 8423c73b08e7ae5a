"""The small runs that faults are injected into, and how they end when nobody disturbs them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import Canary, check_said, ends
from benchmarks.fault_processes import trpo

EVERY = 5
"""Iterations between checkpoints."""
BATCH = 32
SMALL = ("--policy.hidden", "4", "--value.hidden", "4", "--value.minibatch", "16", "--value.epochs", "1")


@dataclass(frozen=True)
class Base:
    """A run, by the flags that make it."""

    name: str
    env: str
    flags: tuple[str, ...] = ()
    members: tuple[str, ...] = (".",)
    """The directories of its runs in its own."""
    most_lost: int | None = EVERY
    """Iterations that a killed process may lose; None where iterations are faster than the disk."""
    iterations: int = 200

    def train(self, out: str = "run") -> list[str]:
        fixed = ["--out", out, "--steps", str(BATCH * self.iterations), "--fragment", "8", "--env.count", "4", *SMALL]
        return ["train", self.env, *fixed, "--checkpoint-every", str(EVERY), *self.flags]


SWEEP = ("seed-0", "seed-1")
BASES = {
    base.name: base
    for base in (
        Base("host", "probe:both"),
        Base("workers", "probe:both", ("--env.workers", "2")),
        Base("JAX", "jax-probe:both", most_lost=None, iterations=2000),
        Base("sweep in JAX", "jax-probe:both", ("--seeds", "2", "--keep-checkpoints", "1"), SWEEP, None, 2000),
        Base("sweep on the host", "probe:both", ("--seeds", "2"), SWEEP),
    )
}


@dataclass
class Scene:
    """A directory for one injection: its runs, and a canary beside them."""

    place: Path
    canary: Canary = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        (self.place / "outside").mkdir()
        self.canary = Canary(self.place / "outside")

    def close(self) -> None:
        self.canary.check()
        shutil.rmtree(self.place)


@functools.cache
def finished(base: Base, place: Path) -> Path:
    """Return the directory of an undisturbed run, made once."""
    out = place / f"{base.name.replace(' ', '-')}"
    if not out.exists():
        room = place / f"making-{out.name}"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        process = trpo(base.train(), room)
        check_said(process.wait(), process.output, {0})
        (room / "run").rename(out)
        shutil.rmtree(room)
    return out


@functools.cache
def undisturbed(base: Base, place: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return how each run of a base ends."""
    return {member: ends(finished(base, place) / member) for member in base.members}


Injected = Iterator[tuple[str, str]]
"""What was injected, and what did not survive of it, empty if all did."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    count: int
    """How many are injected at least."""
    inject: Callable[[int, Path], Injected]
    """Injects those of one number, in a directory of their own; deterministic but for the machine's timing."""
    holds: str
    """What is checked."""
    inside: bool = False
    """Whether it runs in the campaign's own process, which is watched, and not in processes that it starts itself."""
