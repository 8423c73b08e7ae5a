"""MuJoCo Playground's environments (extra ``playground``), which have brax's form."""

from __future__ import annotations

import functools

import jax

from trpo.envs.device.brax import BraxEnv, from_brax
from trpo.envs.device.extras import check_known, quiet, require
from trpo.envs.protocol import UnknownEnvironmentError


@functools.cache
def make_playground(name: str) -> BraxEnv:
    """Make a MuJoCo Playground task with its own time limit."""
    with quiet():
        registry = require("mujoco_playground", f"playground:{name}", "playground").registry
    check_known("playground", name, list(registry.ALL_ENVS))
    config = registry.get_default_config(name)
    # Some tasks' default is physics in Warp, whose kernels are made for GPUs; elsewhere MJX's own, in JAX.
    overrides = {"impl": "jax"} if "impl" in config and jax.default_backend() != "gpu" else {}
    try:
        with quiet():
            env = registry.load(name, config_overrides=overrides)
    except OSError as error:
        raise UnknownEnvironmentError(
            f"environment 'playground:{name}' needs robot models that its package fetches when first used: {error}"
        ) from error
    return from_brax(env, f"playground:{name}", int(config.episode_length))
