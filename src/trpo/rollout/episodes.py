"""Accounts of episodes: returns and lengths, from raw rewards."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from trpo.trees import number

RECENT = 100
"""Episodes over which return and length are averaged."""


class RecentEpisodes:
    """Mean return and length of the latest episodes: of the latest entries that together hold a hundred."""

    def __init__(self, data: dict[str, Any] | None = None, info: Sequence[str] = ()):
        data = data or {}
        saved = {entry["key"]: entry["recent"] for entry in data.get("info", ())}
        self.info = {key: collections.deque(map(tuple, saved.get(key, ()))) for key in info}
        """For each key of ``info``, the latest entries (episodes that told it, sum of what they told)."""
        self.episodes: int = data.get("episodes", 0)
        """All that ever ended."""
        # Checkpoints of the first format have each episode by itself.
        old = zip([1] * RECENT, data.get("returns", ()), data.get("lengths", ()), strict=False)
        self._entries = collections.deque(tuple(entry) for entry in data.get("recent", old))
        self._count = sum(entry[0] for entry in self._entries)

    def add(self, count: int, return_sum: float, length_sum: int) -> None:
        """Record episodes of finite return."""
        self._entries.append((count, return_sum, length_sum))
        self._count += count
        while self._count - self._entries[0][0] >= RECENT:
            self._count -= self._entries.popleft()[0]

    def note(self, key: str, count: int, total: float) -> None:
        """Record what episodes told under a key of ``info``."""
        entries = self.info[key]
        entries.append((count, total))
        while sum(entry[0] for entry in entries) - entries[0][0] >= RECENT:
            entries.popleft()

    def info_means(self) -> dict[str, float | None]:
        """Return the mean of each key of ``info`` over the latest episodes that told it, None before one did."""
        totals = {key: np.sum(list(entries), 0) if entries else (0, 0.0) for key, entries in self.info.items()}
        return {key: number(total / count) if count else None for key, (count, total) in totals.items()}

    def means(self) -> tuple[float | None, float | None]:
        """Return mean return and mean length, None before an episode has ended."""
        if not self._entries:
            return None, None
        _, returns, lengths = zip(*self._entries, strict=True)
        return number(np.sum(returns) / self._count), number(np.sum(lengths) / self._count)

    def to_json(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        info = [{"key": key, "recent": [list(entry) for entry in entries]} for key, entries in self.info.items()]
        found = {"episodes": self.episodes, "recent": [list(entry) for entry in self._entries]}
        return found | ({"info": info} if info else {})


class Ended(NamedTuple):
    """An episode that has ended."""

    step: int
    """After how many steps since the last count."""
    env: int
    total: float
    """Its return."""
    length: int
    told: tuple[float, ...] = ()
    """What it told under each key of ``info``; NaN is nothing."""


class EpisodeStatistics:
    """Returns and lengths of episodes of ``count`` environments, across fragments.

    An episode is counted when it ends, or, of ``several`` such accounts of parts of the environments, when the owner
    of all has put :attr:`ended` together in order of time.
    """

    def __init__(self, count: int, data: dict[str, Any] | None = None, info: Sequence[str] = (), several: bool = False):
        self.recent = RecentEpisodes(data, info)
        self.several, self.step = several, 0
        self.ended: list[Ended] = []
        """Those not counted yet."""
        data = data or {}
        if len(data.get("running_return", ())) != count:
            data = {}  # another number of environments: their episodes are not these
        self.running_return = np.array(data.get("running_return", np.zeros(count)), np.float64)
        self.running_length = np.array(data.get("running_length", np.zeros(count)), np.int64)
        self.first = np.array(data.get("first", np.full(count, not data)), bool)
        """Whether an environment is still in its first episode."""

    def add(self, reward: np.ndarray, done: np.ndarray, valid: np.ndarray, info: Any = None) -> None:
        """Record some vector steps, arrays ``[time, env]``, and what they tell besides, ``[time, env, keys]``."""
        counted = np.where(valid, reward, 0.0)
        begin = 0
        for end in (np.flatnonzero(done.any(1)) + 1).tolist():
            self._go_on(counted[begin:end], valid[begin:end])
            self._end(self.step + end, done[end - 1], None if info is None else info[end - 1])
            begin = end
        self._go_on(counted[begin:], valid[begin:])
        self.step += len(reward)
        if not self.several:
            self.count_ended(self.ended)

    def _go_on(self, reward: np.ndarray, valid: np.ndarray) -> None:
        """Record steps between ends of episodes."""
        # A running sum, not ``sum``: it adds in the order of time, so what is added at once does not matter.
        self.running_return = np.cumsum(np.concatenate([self.running_return[None], reward]), 0, np.float64)[-1]
        self.running_length += valid.sum(0)

    def _end(self, step: int, done: np.ndarray, info: Any) -> None:
        """Close the books of the episodes that ended."""
        for i in np.flatnonzero(done).tolist():
            told = () if info is None else tuple(info[i].tolist())
            self.ended.append(Ended(step, i, float(self.running_return[i]), int(self.running_length[i]), told))
        self.forget(done)

    def count_ended(self, ended: Sequence[Ended]) -> None:
        """Count episodes, in order of their end."""
        for episode in ended:
            # An episode with a NaN reward has no return; counted in, it would hide the next hundred.
            if np.isfinite(episode.total):
                self.recent.add(1, episode.total, episode.length)
        self.recent.episodes += len(ended)
        for _, together in itertools.groupby(ended, lambda episode: episode.step):
            told = [episode.told for episode in together if episode.told]
            for key, values in zip(self.recent.info, np.asarray(told).T, strict=True) if told else ():
                known = values[np.isfinite(values)]
                if known.size:
                    self.recent.note(key, known.size, float(known.sum(dtype=np.float64)))
        self.ended, self.step = [], 0

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
        running = {name: getattr(self, name).tolist() for name in ("running_return", "running_length", "first")}
        return running | self.recent.to_json()


class EpisodeTotals(eqx.Module):
    """The episodes that ended in a step of each environment, or in a whole fragment."""

    ended: Shaped[Array, "*n"]
    counted: Shaped[Array, "*n"]
    """Those with a finite return; the sums are over them."""
    return_sum: Float[Array, "*n"]
    length_sum: Int[Array, "*n"]
    info: Any = ()
    """For each key of ``info``, how many of them told it, and the sum of what they told."""
