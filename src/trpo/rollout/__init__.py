"""Rollouts: where data come from."""

from trpo.rollout.acting import HostPolicy, act, noise_of
from trpo.rollout.episodes import EpisodeStatistics
from trpo.rollout.host import HostRollout
from trpo.rollout.trajectory import Actor, Trajectory

__all__ = ["Actor", "EpisodeStatistics", "HostPolicy", "HostRollout", "Trajectory", "act", "noise_of"]
