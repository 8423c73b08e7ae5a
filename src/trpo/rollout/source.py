"""Where data come from, on the host: anything that can be collected from, fragment after fragment."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from trpo.envs.spec import EnvSpec
from trpo.rollout.acting import HostPolicy
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.trajectory import Snapshot, Trajectory


@runtime_checkable
class Source(Protocol):
    """Environments, or whatever else hands out fragments of experience with the policy that it is given."""

    spec: EnvSpec
    count: int
    """Environments that it steps together."""
    episodes: EpisodeStatistics
    """The account of episodes, which a resumed run puts back."""

    def collect(self, policy: HostPolicy, noise: Any) -> Trajectory:
        """Return fragments as long as ``noise`` has rows, from where the last ones ended."""
        ...

    def restart(self, seeds: list[int]) -> None:
        """Begin new episodes everywhere, environment i from ``seeds[i]``."""
        ...

    def snapshot(self) -> Snapshot | None:
        """Return all that is needed to go on bit for bit, or None where that is not offered."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...
