"""Settings of rl-zoo for sb3-contrib's TRPO, in the terms of :mod:`benchmarks.peer_training`."""

from __future__ import annotations

from typing import Any

_COMMON = {"count": 2, "fragment": 1024, "hidden": [64, 64], "gae_lambda": 0.95, "learning_rate": 1e-3,
           "epochs": 20, "minibatch": 128, "initial_std": 1.0}  # fmt: skip
_DIMENSIONS = {"Hopper-v5": 3, "HalfCheetah-v5": 6, "Swimmer-v5": 2, "LunarLanderContinuous-v3": 2}
_MAX_KL = {"HalfCheetah-v5": 0.04}
_CG_ITERATIONS = {"LunarLanderContinuous-v3": 15}
_DISCOUNT = {"Swimmer-v5": 0.9999}


def settings(env: str) -> dict[str, Any]:
    """Return what rl-zoo trains ``env`` with. Its δ and λ are for a mean over action dimensions, ours for their sum."""
    return _COMMON | {
        "env": env,
        "max_kl": _MAX_KL.get(env, 0.01) * _DIMENSIONS[env],
        "damping": 0.1 * _DIMENSIONS[env],
        "cg_iterations": _CG_ITERATIONS.get(env, 25),
        "discount": _DISCOUNT.get(env, 0.99),
    }
