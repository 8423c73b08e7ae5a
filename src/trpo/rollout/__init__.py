"""Rollouts: where data come from (L6)."""

from trpo.rollout.host import EpisodeStatistics, HostPolicy, HostRollout, act, noise_of
from trpo.rollout.trajectory import Actor, Trajectory

__all__ = ["Actor", "EpisodeStatistics", "HostPolicy", "HostRollout", "Trajectory", "act", "noise_of"]
