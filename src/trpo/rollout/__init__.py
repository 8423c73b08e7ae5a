"""Rollouts: where data come from."""

from trpo.rollout.acting import HostPolicy, act, noise_of
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.host import HostSource
from trpo.rollout.source import Source
from trpo.rollout.trajectory import Actor, Seat, Snapshot, Trajectory

__all__ = [
    "Actor",
    "EpisodeStatistics",
    "HostPolicy",
    "HostSource",
    "Seat",
    "Snapshot",
    "Source",
    "Trajectory",
    "act",
    "noise_of",
]
