"""Environments: spaces as plain data, and what a rollout needs. Nothing here or in ``host`` imports JAX."""

from trpo.envs.protocol import (
    EnvironmentFailure,
    HostEnv,
    MissingExtraError,
    RestartableEnv,
    SplitEnv,
    Transition,
    UnknownEnvironmentError,
)
from trpo.envs.spec import ActionSpec, EnvSpec, UnsupportedSpaceError, to_env_action

__all__ = [
    "ActionSpec",
    "EnvSpec",
    "EnvironmentFailure",
    "HostEnv",
    "MissingExtraError",
    "RestartableEnv",
    "SplitEnv",
    "Transition",
    "UnknownEnvironmentError",
    "UnsupportedSpaceError",
    "to_env_action",
]
