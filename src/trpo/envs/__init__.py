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
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Space, Tree, Tuple, UnsupportedSpaceError
from trpo.envs.spec import EnvSpec
