"""JAX environments stepped from the host, as evaluation does: one compiled call for every vector step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.envs import Space, Transition, Tree
from trpo.envs.device import batch
from trpo.envs.device.protocol import Flattened, JaxEnv
from trpo.programs import compiled
from trpo.trees import per_state

_start = compiled(batch.start_each)


@partial(compiled, static=3)
def _step(
    env: JaxEnv, actions: Space, info: tuple[str, ...], state: batch.BatchState, action: Tree
) -> tuple[batch.BatchState, Transition]:
    # New initial states only where they are needed: for some simulators they cost more than a step.
    return batch.step(env, actions, state, action, partial(batch.fresh_if_any, env, state), info)


@compiled
def _restart(env: JaxEnv, state: batch.BatchState, which: Any) -> batch.BatchState:
    new = batch.fresh(env, state)
    at, observation = jax.tree.map(
        lambda a, b: jnp.where(per_state(which, a), a, b), new, (state.env, state.observation)
    )
    return batch.BatchState(at, observation, state.key, state.time + 1)


class HostedJaxEnvs:
    """N environments in JAX behind the host's protocol."""

    time_limit: int | None = None
    """Theirs is their own affair."""

    def __init__(
        self, env: JaxEnv, count: int, rescale_actions: bool = True, flatten: bool = False, info: Sequence[str] = ()
    ):
        self.spec, self.count = env.spec.with_options(rescale_actions, flatten), count
        self._env = Flattened(env) if flatten else env
        self._state: Any = None
        self.info = tuple(info)

    def reset(self, seeds: list[int]) -> Tree:
        self._state = _start(self._env, jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)))
        return jax.tree.map(np.asarray, self._state.observation)

    def restart(self, which: np.ndarray) -> Tree:
        """Start new episodes in some of them, as :class:`~trpo.envs.RestartableEnv` has it."""
        self._state = _restart(self._env, self._state, np.isin(np.arange(self.count), which))
        return jax.tree.map(lambda x: np.asarray(x)[which], self._state.observation)

    def step(self, action: Tree) -> Transition:
        self._state, transition = _step(self._env, self.spec.action, self.info, self._state, action)
        return jax.tree.map(np.array, transition)

    def snapshot(self) -> None:
        return

    def restore(self, snapshot: Any) -> None:
        raise TypeError("JAX environments that are stepped from the host have no snapshots")

    def close(self) -> None:
        """Nothing is open."""
