"""EnvPool environments: compiled simulators stepped by a thread pool (extra ``envpool``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trpo.envs.host.gymnasium import space_of, without
from trpo.envs.protocol import EnvironmentFailure, MissingExtraError, Transition, UnknownEnvironmentError, made_with
from trpo.envs.spaces import Tree
from trpo.envs.spec import EnvSpec
from trpo.spelling import nearest


class EnvPoolEnvs:
    """N EnvPool environments.

    EnvPool resets on the step *after* an episode's end and ignores that step's action; such steps are marked
    ``valid=False`` and get weight 0.
    """

    def __init__(
        self,
        env_id: str,
        count: int,
        rescale_actions: bool = True,
        flatten: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        drop: Sequence[str] = (),
    ):
        try:
            import envpool
        except ImportError as error:
            raise MissingExtraError(
                "environments named envpool:… need EnvPool, which is not installed: pip install 'trpo[envpool]'"
            ) from error
        self.count, self._flatten = count, flatten
        kwargs = kwargs or {}
        for name in kwargs.keys() & {"env_type", "num_envs", "batch_size", "seed"}:
            raise ValueError(f"env.kwargs {name}={kwargs[name]!r}: it is the run's; env.count and seed are settings")
        self._make_pool = partial(envpool.make, env_id, env_type="gymnasium", num_envs=count, **kwargs)
        known = envpool.list_all_envs()
        if env_id not in known:
            near = nearest(env_id, known, "nearest: none: see envpool.list_all_envs()", cutoff=0.5)
            raise UnknownEnvironmentError(f"unknown EnvPool environment {env_id!r}; {near}")
        with made_with(f"envpool:{env_id}", kwargs):
            self._envs = self._make(0)
        action = space_of(self._envs.action_space, of_actions=True)
        seen = space_of(without(self._envs.observation_space, drop))
        spec = self._plain_spec = EnvSpec(f"envpool:{env_id}", seen, action)
        self._space = spec.observation
        self.spec = spec.with_options(rescale_actions, flatten)
        self.time_limit: int | None = getattr(self._envs.spec.config, "max_episode_steps", None)
        self._ended = np.zeros(count, bool)

    def _make(self, seed: int) -> Any:
        # The spaces are made now, and kept by EnvPool. Classic control's bounds are in double precision: no news for a
        # user. The filter stays, since filters are common to all threads.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", module=r"gymnasium\.spaces\.box")
        envs = self._make_pool(seed=seed)
        _ = envs.observation_space
        return envs

    def _seen(self, observation: Tree) -> Tree:
        seen = self._space.map(lambda leaf, x: np.asarray(x, leaf.dtype).reshape(len(x), *leaf.shape), observation)
        return self._plain_spec.flatten(seen) if self._flatten else seen

    def reset(self, seeds: list[int]) -> Tree:
        self._envs = self._make(int(seeds[0]) % 2**31)
        observation, _ = self._envs.reset()
        self._ended[:] = False
        return self._seen(observation)

    def restart(self, which: np.ndarray) -> Tree:
        observation, _ = self._envs.reset(np.asarray(which, np.int32))
        self._ended[which] = False
        return self._seen(observation)

    def step(self, action: Tree) -> Transition:
        try:
            observation, reward, terminated, truncated, _ = self._envs.step(self.spec.action.to_env(action))
        except Exception as error:
            raise EnvironmentFailure(f"environment {self.spec.id} raised {type(error).__name__}: {error}") from error
        observation = self._seen(observation)
        valid = ~self._ended
        terminated, truncated = terminated & valid, truncated & valid
        self._ended = terminated | truncated
        return Transition(observation, np.asarray(reward, np.float32), terminated, truncated, observation, valid)

    def snapshot(self) -> None:
        return

    def restore(self, snapshot: Any) -> None:
        raise TypeError("EnvPool environments have no snapshots")

    def close(self) -> None:
        self._envs.close()
