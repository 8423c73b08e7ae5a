"""Accounts of episodes: returns and lengths, from raw rewards."""

from __future__ import annotations

import collections
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from trpo.trees import number


class EpisodeStatistics:
    """Returns and lengths of episodes, from raw rewards, across fragments."""

    def __init__(self, count: int):
        self.running_return = np.zeros(count, np.float64)
        self.running_length = np.zeros(count, np.int64)
        self.returns: collections.deque[float] = collections.deque(maxlen=RECENT)
        self.lengths: collections.deque[int] = collections.deque(maxlen=RECENT)
        self.episodes = 0
        self.first = np.ones(count, bool)
        """Whether an environment is still in its first episode."""

    def add(self, reward: np.ndarray, done: np.ndarray, valid: np.ndarray) -> None:
        """Record some vector steps, arrays ``[time, env]``."""
        counted = np.where(valid, reward, 0.0)
        begin = 0
        for end in (np.flatnonzero(done.any(1)) + 1).tolist():
            self._go_on(counted[begin:end], valid[begin:end])
            self._end(done[end - 1])
            begin = end
        self._go_on(counted[begin:], valid[begin:])

    def _go_on(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Record steps between ends of episodes."""
        # A running sum, not ``sum``: it adds in the order of time, so what is added at once does not matter.
        self.running_return = np.cumsum(np.concatenate([self.running_return[None], reward]), 0, np.float64)[-1]
        self.running_length += valid.sum(0)

    def _end(self, done: np.ndarray) -> None:
        """Close the books of the episodes that ended."""
        # An episode with a NaN reward has no return; counted in, it would hide the next hundred.
        for i in np.flatnonzero(done & np.isfinite(self.running_return)):
            self.returns.append(float(self.running_return[i]))
            self.lengths.append(int(self.running_length[i]))
        self.episodes += int(done.sum())
        self.running_return[done] = 0.0
        self.running_length[done] = 0
        self.first[done] = False

    def forget(self, which: np.ndarray) -> None:
        """Forget the episodes under way in some environments, which count as their first."""
        self.running_return[which] = 0.0
        self.running_length[which] = 0
        self.first[which] = False

    def restart(self) -> None:
        """Forget episodes under way: their environments were reset."""
        self.running_return[:] = 0.0
        self.running_length[:] = 0
        self.first[:] = True

    def to_json(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {
            "running_return": self.running_return.tolist(),
            "running_length": self.running_length.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "episodes": self.episodes,
            "first": self.first.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpisodeStatistics:
        """Read what :meth:`to_json` wrote."""
        self = cls(len(data["running_return"]))
        self.running_return[:] = data["running_return"]
        self.running_length[:] = data["running_length"]
        self.returns.extend(data["returns"])
        self.lengths.extend(data["lengths"])
        self.episodes = data["episodes"]
        self.first[:] = data.get("first", False)  # older checkpoints don't have it
        return self


RECENT = 100
"""Episodes over which return and length are averaged."""


class EpisodeWindow:
    """Mean return and length over the episodes of the latest iterations that together hold a hundred."""

    def __init__(self, data: dict[str, Any] | None = None):
        self.episodes: int = data["episodes"] if data else 0
        self._recent: list[list[float]] = [list(entry) for entry in data["recent"]] if data else []

    def add(self, totals: EpisodeTotals) -> None:
        """Record one iteration."""
        self.episodes += int(totals.ended)
        if totals.counted:
            self._recent.append([int(totals.counted), float(totals.return_sum), int(totals.length_sum)])
            while sum(entry[0] for entry in self._recent[1:]) >= RECENT:
                del self._recent[0]

    def means(self) -> tuple[float | None, float | None]:
        """Return mean return and mean length, None before an episode has ended."""
        count, returns, lengths = (
            (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0,) * 3
        )
        return (number(returns / count), number(lengths / count)) if count else (None, None)

    def to_json(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"episodes": self.episodes, "recent": [list(entry) for entry in self._recent]}


class EpisodeTotals(eqx.Module):
    """The episodes that ended in one fragment."""

    ended: Int[Array, ""]
    counted: Int[Array, ""]
    """Those with a finite return; the sums are over them."""
    return_sum: Float[Array, ""]
    length_sum: Int[Array, ""]
