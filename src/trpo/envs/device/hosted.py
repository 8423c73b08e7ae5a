"""JAX environments stepped from the host, as evaluation does: one compiled call for every vector step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import Transition
from trpo.envs.device import batch
from trpo.envs.device.extras import quiet
from trpo.envs.device.protocol import JaxEnv


@partial(jax.jit, static_argnums=0)
def _start(env: JaxEnv, keys: Any) -> batch.BatchState:
    return batch.start_each(env, keys)


@partial(jax.jit, static_argnums=(0, 3))
def _step(env: JaxEnv, state: batch.BatchState, action: Any, rescale: bool) -> tuple[batch.BatchState, Transition]:
    # New initial states only where they are needed: for some simulators they cost more than a step.
    return batch.step(env, state, action, rescale, partial(batch.fresh_if_any, env, state))


class HostedJaxEnvs:
    """N environments in JAX behind the host's protocol."""

    def __init__(self, env: JaxEnv, count: int, rescale_actions: bool = True):
        self.spec, self.count = env.spec, count
        self._env, self._rescale = env, rescale_actions
        self._state: Any = None

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Start new episodes, environment i from ``seeds[i]``."""
        with quiet():
            self._state = _start(self._env, jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)))
        return np.asarray(self._state.observation)

    def step(self, action: np.ndarray) -> Transition:
        """Step every environment once."""
        with quiet():
            self._state, transition = _step(self._env, self._state, action, self._rescale)
        return Transition(*(np.array(leaf) for leaf in transition))

    def snapshot(self) -> None:
        """None: from the host, a resumed run starts new episodes."""
        return

    def restore(self, snapshot: Any) -> None:
        """Never called: there is no snapshot."""
        raise TypeError("JAX environments that are stepped from the host have no snapshots")

    def close(self) -> None:
        """Nothing is open."""
