"""Training, whose loop the caller owns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from trpo.envs import EnvSpec, HostEnv
from trpo.envs.names import as_jax_env, make_envs
from trpo.settings.config import Config
from trpo.training.agent import Agent
from trpo.training.device import ROWS, DeviceLoop, check
from trpo.training.host import HostLoop
from trpo.training.record import Metrics
from trpo.training.state import NonFiniteBatchError, TrainingState

__all__ = [
    "Metrics",
    "NonFiniteBatchError",
    "Progress",
    "TrainingState",
    "advance",
    "check_runs",
    "iterations",
    "make_agent",
]


def make_agent(env: Any, config: Config | None = None, policy: Any = None, rule: Any = None) -> Agent:
    """Return an untrained agent for ``env``.

    ``env`` is an id, a function that makes a ``gymnasium.Env``, a :class:`~trpo.JaxEnv`, or environments made by
    :func:`trpo.make_envs`; ``policy`` may be any callable pytree that maps observations ``[..., features]`` to a
    distribution.
    """
    config = config or Config()
    if isinstance(env, str):
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
    known = as_jax_env(env)
    if known is not None:
        return Agent.create(known.spec, config, policy, env, rule)
    if isinstance(env, str) or callable(env):
        envs = make_envs(env, 1, 0, config.env.rescale_actions)
        spec: EnvSpec = envs.spec
        envs.close()
        return Agent.create(spec, config, policy, env, rule)
    return Agent.create(env.spec, config, policy, None, rule)


def check_runs(env: Any, agents: Sequence[Agent]) -> None:
    """Raise ValueError for runs that could not begin, before anything is written or compiled."""
    known = as_jax_env(env)
    if known is not None:
        check(known, agents[0], agents[0].config, len(agents))


@dataclasses.dataclass(frozen=True)
class Progress:
    """What has happened since the last time: one iteration on the host, about a second's on the device."""

    metrics: list[list[Metrics]]
    """For each run, one record an iteration."""
    states: Callable[[], list[TrainingState]]
    """The state of each run after the last of them."""

    @property
    def iteration(self) -> int:
        """The last one."""
        return int(self.metrics[0][-1]["iteration"] or 0)


def advance(
    env: Any,
    agents: Sequence[Agent],
    states: Sequence[TrainingState],
    longest: int = ROWS,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Progress]:
    """Train one run, or on the device several at once, yielding now and then; each follows its agent's configuration.

    Args:
        env: as :func:`iterations` takes it.
        agents: of the same structure.
        states: where each run goes on.
        longest: the most iterations without a word.
        tell: what to do with a line that a user should see before the first iteration.
    """
    known = as_jax_env(env)
    if known is not None:
        loop = DeviceLoop(known, agents, [agent.config for agent in agents], states)
        tell(loop.describe())
        for metrics, gather in loop.run(longest):
            yield Progress(metrics, gather)
        return
    ((agent,), (state,)) = agents, states
    config = agent.config
    owned = isinstance(env, str) or callable(env)
    envs: HostEnv = make_envs(env, config.env.count, config.env.workers, config.env.rescale_actions) if owned else env
    try:
        for after, record in HostLoop(envs, agent, config, state).run():
            yield Progress([[record]], partial(list, [after]))
    finally:
        if owned:
            envs.close()


def iterations(
    env: Any, agent: Agent, config: Config | None = None, state: TrainingState | None = None
) -> Iterator[tuple[TrainingState, Metrics]]:
    """Train, yielding ``(state, metrics)`` after every iteration; the loop is the caller's to stop.

    Args:
        env: an id, a function that makes a ``gymnasium.Env``, a :class:`~trpo.JaxEnv`, or environments made by
            :func:`trpo.make_envs` (which the caller then closes).
        agent: from :func:`trpo.make_agent` or :func:`trpo.load`.
        config: settings; the agent's own by default.
        state: where to go on; the agent's beginning by default.

    With environments on the host, yields after iteration k while the value fit of k runs in the background; reading
    ``state`` waits for it. Environments in JAX come back to the host after every iteration here, and about once a
    second in :func:`trpo.train`. Stops after ``config.steps`` environment steps.

    Raises:
        NonFiniteBatchError: a batch had a NaN or infinity and ``config.on_nonfinite`` is ``stop``.
        EnvironmentFailure: an environment raised.

    >>> import trpo
    >>> config = trpo.Config(steps=256, fragment=16, env=trpo.EnvConfig("probe:action", count=8))
    >>> agent = trpo.make_agent("probe:action", config)
    >>> for state, metrics in trpo.iterations("probe:action", agent, config):
    ...     print(state.steps, metrics["result"])
    128 accepted
    256 accepted
    >>> agent = agent.at(state)
    """
    agent = dataclasses.replace(agent, config=config or agent.config)
    for progress in advance(env, [agent], [state or TrainingState(agent.learner)], longest=1):
        yield progress.states()[0], progress.metrics[0][0]
