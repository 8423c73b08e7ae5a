"""Rollouts: where data come from (L6)."""

from trpo.rollout.host import EpisodeStatistics, HostRollout, noise_of
from trpo.rollout.host_policy import HostPolicy, act
from trpo.rollout.trajectory import Actor, Trajectory

__all__ = ["Actor", "EpisodeStatistics", "HostPolicy", "HostRollout", "Trajectory", "act", "noise_of"]
