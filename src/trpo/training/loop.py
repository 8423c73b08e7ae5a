"""Training, whose loop the caller owns."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from trpo.envs.names import EnvLike, Origin, require_name, resolve
from trpo.policies.protocol import PolicyLike
from trpo.programs import require_no_fork
from trpo.rollout import HostSource, Source
from trpo.rollout.device import DeviceSource
from trpo.rollout.host import number_from
from trpo.rules.protocol import Rule
from trpo.settings.config import Config
from trpo.training import hosts
from trpo.training.agent import Agent, require_trust
from trpo.training.agreement import require_agreement
from trpo.training.device import ROWS, DeviceLoop, check_rollout, setup_for
from trpo.training.host import HostLoop
from trpo.training.layout import layout_of_processes
from trpo.training.record import Metrics
from trpo.training.sizes import check_training, flat_images
from trpo.training.state import TrainingState


def make_agent(
    env: EnvLike | Source,
    config: Config | None = None,
    policy: PolicyLike | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
) -> Agent:
    """Return an untrained agent for ``env``.

    Args:
        env: an id, a function that makes a ``gymnasium.Env``, a :class:`~trpo.JaxEnv`, environments made by
            :func:`trpo.make_envs`, or a :class:`~trpo.rollout.Source` of your own.
        config: settings; the defaults if None.
        policy: any callable pytree that maps observations (their numbers, normalised, with any leading axes) to a
            distribution, or a module with memory (:class:`~trpo.policies.protocol.PolicyFunction`).
        rule: an update rule of your own, in place of the configuration's.
        value: a value function of your own, a callable pytree that maps observations to numbers.
    """
    config = config or Config()
    if isinstance(env, str):
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
    require_name(env, config.env.kwargs)
    origin = None if isinstance(env, Source) else resolve(env, config.env)
    if origin is not None and origin.ours:
        return Agent.create(origin.spec, config, policy, origin.env, rule, value)
    agent = Agent.create(env.spec, config, policy, None, rule, value)  # type: ignore[union-attr]
    return dataclasses.replace(agent, own=agent.own | {"env"})


def device_source(origin: Origin) -> DeviceSource | None:
    """Return the source of an environment in JAX, None for any other."""
    return None if origin.device is None else DeviceSource(origin.device, origin.spec, origin.info)


def check_runs(env: EnvLike | Source, agents: Sequence[Agent]) -> None:
    """Raise ValueError for runs that could not begin, before anything is written or compiled."""
    origin = None if isinstance(env, Source) else resolve(env, agents[0].config.env)
    source = None if origin is None else device_source(origin)
    if source is not None:
        setup_for(source, agents[0], len(agents))
        return
    for agent in agents:
        check_training(agent, on_host=True)
        if origin is not None:
            origin.check_room(agent.config.env.count, agent.config.env.workers)


def check_of_state(env: EnvLike | Source, agent: Agent) -> Callable[[TrainingState], None] | None:
    """Return what raises ValueError for a saved state that is not one of ``env``; None unless that is in JAX."""
    origin = None if isinstance(env, Source) else resolve(env, agent.config.env)
    source = None if origin is None else device_source(origin)
    return None if source is None else partial(check_rollout, source, agent)


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
    env: EnvLike | Source,
    agents: Sequence[Agent],
    states: Sequence[TrainingState],
    longest: int | Callable[[int], int] = ROWS,
    tell: Callable[[str], None] | None = None,
    ending: contextlib.ExitStack | None = None,
) -> Iterator[Progress]:
    """Train one run, or on the device several at once, yielding now and then; each follows its agent's configuration.

    Args:
        env: as :func:`iterations` takes it.
        agents: of the same structure.
        states: where each run goes on.
        longest: the most iterations without a word, or what returns them, given the most that there can be.
        tell: what to do with a line that a user should see before the first iteration; None: only what is unexpected
            is said, as a warning.
        ending: closes the environments that are made here; None: they are closed as soon as this ends or fails.
    """
    require_no_fork()
    require_agreement(agents, states)
    for text in flat_images(agents[0].spec, agents[0].config, agents[0].own):
        warnings.warn(text, stacklevel=3) if tell is None else tell(text)
    if isinstance(env, Source):
        check_runs(env, agents)
        yield from _on_host(env, agents, states, tell)
        return
    config = agents[0].config.env
    require_trust(agents[0])
    origin = resolve(env, config)
    source = device_source(origin)
    if source is not None:
        loop = DeviceLoop(source, agents, states)
        if tell is not None:
            tell(loop.describe())
        _say_anew(loop, tell)
        for metrics, gather in loop.run(longest):
            yield Progress(metrics, gather)
        return
    check_runs(env, agents)
    rows = layout_of_processes(config.count).share(config.count)
    with contextlib.ExitStack() as here:
        # A loop that is still open at the interpreter's end would be closed when modules are gone.
        atexit.register(here.close)
        here.callback(atexit.unregister, here.close)
        with hosts.together():
            envs = origin.open(rows.stop - rows.start, config.workers)
            if origin.ours:
                (here if ending is None else ending).callback(envs.close)
            number_from(envs, rows.start)
        on_host = HostSource(envs, agents[0].policy.start, config.stagger, (rows.start, config.count))
        yield from _on_host(on_host, agents, states, tell)


def _say_anew(loop: HostLoop | DeviceLoop, tell: Callable[[str], None] | None) -> None:
    if loop.begins_anew:
        text = f"new episodes begin: {loop.begins_anew}"
        warnings.warn(text, stacklevel=4) if tell is None else tell(text)


def _on_host(
    source: Source, agents: Sequence[Agent], states: Sequence[TrainingState], tell: Callable[[str], None] | None
) -> Iterator[Progress]:
    ((agent,), (state,)) = agents, states
    with hosts.together():
        loop = HostLoop(source, agent, state)
    _say_anew(loop, tell)
    for after, record in loop.run():
        yield Progress([[record]], partial(_whole, loop, after))


def _whole(loop: HostLoop, state: TrainingState) -> list[TrainingState]:
    return [loop.shares.whole(state)]


def iterations(
    env: EnvLike | Source, agent: Agent, config: Config | None = None, state: TrainingState | None = None
) -> Iterator[tuple[TrainingState, Metrics]]:
    """Train, yielding ``(state, metrics)`` after every iteration; the loop is the caller's to stop.

    Args:
        env: as :func:`trpo.make_agent` takes it; environments made by :func:`trpo.make_envs`, and a source, are the
            caller's to close.
        agent: from :func:`trpo.make_agent` or :func:`trpo.load`.
        config: settings; the agent's own by default.
        state: where to go on; the agent's beginning by default. If it is that of another number of environments, or of
            others, new episodes begin, and a warning says so.

    With environments on the host, yields after iteration k while the value fit of k runs in the background; reading
    ``state`` waits for it. Environments in JAX come back to the host after every iteration here, and about once a
    second in :func:`trpo.train`. Stops after ``config.steps`` environment steps.

    Raises:
        ValueError: the environment's spaces are not the agent's.
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
