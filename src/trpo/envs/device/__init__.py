"""Environments written in JAX, which run inside the compiled iteration."""

from trpo.envs.device.protocol import Flattened, JaxEnv, Step

__all__ = ["Flattened", "JaxEnv", "Step"]
