"""Environments written in JAX, which run inside the compiled iteration."""

from trpo.envs.device.protocol import JaxEnv, Step

__all__ = ["JaxEnv", "Step"]
