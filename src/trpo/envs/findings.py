"""What was found when an environment was looked at: faults with their cures, and what is worth knowing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from trpo.envs.masks import choices
from trpo.envs.spaces import Bits, Box, Choice, Dict, Space, Tuple, by_name


@dataclasses.dataclass
class Findings:
    """Of each kind the first alone."""

    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """By kind: what is against the interface, or stops or spoils training."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What training takes, but a user may want to know."""

    def fault(self, kind: str, text: str) -> None:
        """Note a fault, unless one of its kind is known."""
        self.faults.setdefault(kind, text)

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)


def outside(box: Box, x: np.ndarray, part: str) -> str:
    """Return which element of an array, or of rows of them, is outside the bounds of its space; empty if none is."""
    low, high = (
        np.broadcast_to(np.reshape(bound, box.shape if isinstance(bound, tuple) else ()), box.shape)
        for bound in (box.low, box.high)
    )
    with np.errstate(invalid="ignore"):
        bad = np.argwhere((x < low) | (x > high))
    if not len(bad):
        return ""
    index, own = tuple(map(int, bad[0])), tuple(map(int, bad[0]))[x.ndim - len(box.shape) :]
    return (
        f"{part}{list(own) or ''} is {x[index]:.6g}, but its space ends at {low[own]:.6g} and {high[own]:.6g}: "
        "declare the bounds that it has, or clip it"
    )


def drawn(action: Space, random: np.random.Generator, count: int, mask: Any = None) -> Any:
    """Return random actions as a policy has them ``[count, …]``, of those that ``mask`` ``[count, n]`` allows."""
    begin = 0

    def of(space: Space) -> Any:
        nonlocal begin
        match space:
            case Dict() | Tuple():
                parts = {key: of(part) for key, part in by_name(space)}
                return parts if isinstance(space, Dict) else tuple(parts.values())
            case Box():
                return random.normal(size=(count, space.size))
            case Bits():
                return random.integers(0, 2, (count, space.size))
        chosen = []
        for n in choices(space):
            allowed = np.ones((count, n)) if mask is None else mask[:, begin : begin + n]
            begin += n
            chosen.append(((1 - random.random((count, n))) * (allowed > 0)).argmax(axis=-1))
        return chosen[0] if isinstance(space, Choice) else np.stack(chosen, axis=-1)

    return of(action)
