"""The training loop over host environments, which the caller owns (L7)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.agent import Agent
from trpo.config import Config
from trpo.envs import EnvSpec, HostEnv, make_envs
from trpo.learner import Hyper, IterationInfo, Learner, freeze_actor, improve, refit
from trpo.results import Result
from trpo.rollout import Actor, HostPolicy, HostRollout, noise_of
from trpo.rollout.host import EpisodeStatistics
from trpo.types import Params
from trpo.value_fitting import ValueInfo

Metrics = dict[str, float | int | str | None]


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on: what was learned, counters, and the environments' state where it can be saved."""

    learner: Learner
    iteration: int = 0
    steps: int = 0
    seconds: float = 0.0
    episodes: dict[str, Any] | None = None
    """Recent returns and episodes under way."""
    environments: Any | None = None
    """Snapshot of the simulators, or None where they don't offer one: a resumed run then starts new episodes."""
    observation: np.ndarray | None = None
    """What the policy sees next; goes with ``environments``."""


class NonFiniteBatchError(RuntimeError):
    """A batch had a NaN or infinity and the run is configured to stop; parameters are those before it."""

    def __init__(self, state: TrainingState, message: str):
        super().__init__(message)
        self.state = state


def env_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """Return a seed for each environment, from its global index: the same however they are spread over processes."""
    return [int(np.random.SeedSequence([seed, iteration, i]).generate_state(1)[0]) for i in range(count)]


def make_agent(env: Any, config: Config | None = None, policy: Any = None, rule: Any = None) -> Agent:
    """Return an untrained agent for ``env``.

    ``env`` is an id, a function that makes a ``gymnasium.Env``, or environments made by :func:`trpo.make_envs`;
    ``policy`` may be any callable pytree that maps observations ``[..., features]`` to a distribution.
    """
    config = config or Config()
    if isinstance(env, str):
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
    if isinstance(env, str) or callable(env):
        envs = make_envs(env, 1, 0, config.env.rescale_actions)
        spec: EnvSpec = envs.spec
        envs.close()
        return Agent.create(spec, config, policy, env, rule)
    return Agent.create(env.spec, config, policy, None, rule)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled pieces of an iteration."""

    prepare: Any
    improve: Any
    refit: Any


# Policies and value functions of the same structure are equal, so a second run of the same shapes compiles nothing.
_improve = jax.jit(improve, static_argnums=(0, 1))
_refit = jax.jit(refit, static_argnums=0)


@partial(jax.jit, static_argnames=("policy", "clip", "shape"))
def _prepare(
    params: Params, observations: Any, key: Any, iteration: Any, *, policy: Any, clip: float | None, shape: Any
) -> tuple[Actor, Any, Any]:
    """Return what an iteration needs beforehand: actor, noise of its fragment, key of its value fit."""
    actor = freeze_actor(params, observations, clip)
    noise_key, fit_key = jax.random.split(jax.random.fold_in(key, iteration))
    length, count, observation_size = shape
    return actor, noise_of(policy, actor, count, observation_size, length, noise_key), fit_key


def compile_iteration(agent: Agent, config: Config) -> Compiled:
    """Return the jitted functions; each is compiled once, at its first call."""
    return Compiled(
        prepare=partial(
            _prepare,
            policy=agent.policy,
            clip=config.observation_clip if config.normalise_observations else None,
            shape=(config.fragment, config.env.count, agent.spec.observation_size),
        ),
        improve=partial(_improve, agent.policy, agent.value),
        refit=partial(_refit, agent.value),
    )


def iterations(
    env: Any, agent: Agent, config: Config | None = None, state: TrainingState | None = None
) -> Iterator[tuple[TrainingState, Metrics]]:
    """Train, yielding ``(state, metrics)`` after every iteration; the loop is the caller's to stop.

    Args:
        env: an id, a function that makes a ``gymnasium.Env``, or environments made by :func:`trpo.make_envs`
            (which the caller then closes).
        agent: from :func:`trpo.make_agent` or :func:`trpo.load`.
        config: settings; the agent's own by default.
        state: where to go on; the agent's beginning by default.

    Yields after iteration k while the value fit of k runs in the background; reading ``state`` waits for it. Stops
    after ``config.steps`` environment steps.

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
    config = config or agent.config
    owned = isinstance(env, str) or callable(env)
    envs: HostEnv = make_envs(env, config.env.count, config.env.workers, config.env.rescale_actions) if owned else env
    try:
        yield from _Loop(envs, agent, config, state or TrainingState(agent.learner)).run()
    finally:
        if owned:
            envs.close()


class _Loop:
    """One run over host environments."""

    def __init__(self, envs: HostEnv, agent: Agent, config: Config, state: TrainingState):
        if envs.count != config.env.count:
            raise ValueError(f"env.count={config.env.count}, but {envs.count} environments were handed in")
        self.agent, self.config, self.state = agent, config, state
        self.key = jax.random.key(config.seed)
        self.hyper = Hyper.of(config, agent.rule)
        self.compiled = compile_iteration(agent, config)
        self.rollout = HostRollout(envs, env_seeds(config.seed, state.iteration, envs.count))
        if state.episodes is not None:
            self.rollout.statistics = EpisodeStatistics.from_json(state.episodes)
        if state.environments is not None and state.observation is not None:
            envs.restore(state.environments)
            self.rollout.observation = state.observation
        else:
            self.rollout.statistics.restart()  # the episodes that were under way are gone
        self.policy = HostPolicy(agent.policy, state.learner.actor(config), agent.spec.observation_size)

    def run(self) -> Iterator[tuple[TrainingState, Metrics]]:
        learner, iteration, steps = self.state.learner, self.state.iteration, self.state.steps
        began = time.perf_counter() - self.state.seconds
        actor, noise, fit_key = self._prepare(learner, iteration)
        value_info: ValueInfo | None = None
        while steps < self.config.steps:
            started = time.perf_counter()
            self.policy.load(actor)
            trajectory = self.rollout.collect(self.policy, np.asarray(noise))
            collected = time.perf_counter()
            previous, fitted = learner, value_info
            learner, batch, info = self.compiled.improve(self.hyper, learner, trajectory)
            info = jax.device_get(info)
            steps += int(trajectory.valid.sum())
            iteration += 1
            # Queued in this order, since computations run one after the other: what the next fragment needs must not
            # wait behind the value fit, which then has the length of that fragment to finish in.
            this_fit_key = fit_key
            actor, noise, fit_key = self._prepare(learner, iteration)
            value, value_info = self.compiled.refit(self.hyper, learner.value, batch, this_fit_key)
            if info.finite:
                learner = dataclasses.replace(learner, value=value)
            else:
                value_info = None  # there was nothing to fit
            now = time.perf_counter()
            bad_fit = fitted is not None and not bool(fitted.finite)
            if not info.finite or bad_fit:
                # Before the state is recorded: going on from it must not meet the broken simulation again.
                self.rollout.restart(env_seeds(self.config.seed, iteration, self.config.env.count))
            self.state = self._state(learner, iteration, steps, now - began)
            metrics = self._metrics(info, fitted, now - started, collected - started)
            if (not info.finite or bad_fit) and self.config.on_nonfinite == "stop":
                kept = dataclasses.replace(self.state, learner=previous)
                raise NonFiniteBatchError(kept, _nonfinite_message(iteration, bad_fit))
            yield self.state, metrics

    def _prepare(self, learner: Learner, iteration: int) -> tuple[Actor, Any, Any]:
        return self.compiled.prepare(learner.policy, learner.observations, self.key, iteration)

    def _state(self, learner: Learner, iteration: int, steps: int, seconds: float) -> TrainingState:
        environments = self.rollout.envs.snapshot()
        return TrainingState(
            learner,
            iteration,
            steps,
            seconds,
            self.rollout.statistics.to_json(),
            environments,
            None if environments is None else self.rollout.observation,
        )

    def _metrics(self, info: IterationInfo, fitted: ValueInfo | None, elapsed: float, collecting: float) -> Metrics:
        episodes = self.rollout.statistics
        update = info.update
        rule = self.hyper.rule
        # The bound as the compiled update holds it, in its floating-point type.
        bound = float(np.asarray(rule.max_kl, np.asarray(update.mean_kl).dtype)) if rule.enforces_max_kl else None
        metrics: Metrics = {
            "iteration": self.state.iteration,
            "steps": self.state.steps,
            "seconds": self.state.seconds,
            "steps_per_second": self.config.batch / elapsed,
            "collect_seconds": collecting,
            "episodes": episodes.episodes,
            "episode_return": _mean(episodes.returns),
            "episode_length": _mean(episodes.lengths),
            "result": Result(int(update.result)).name.lower(),
            "max_kl": bound,
            "accepted_updates": int(info.accepted_updates),
            "explained_variance": _number(info.explained_variance),
            "std": _number(info.std),
            "value_loss": None if fitted is None else _number(fitted.loss),
        }
        for field in dataclasses.fields(update):
            if field.name != "result":
                metrics[field.name] = _number(getattr(update, field.name))
        return metrics


def _mean(values: Any) -> float | int | None:
    return _number(np.mean(values)) if values else None


def _number(x: Any) -> float | int | None:
    """Return a plain number, or None where it is not finite: strict JSON has no NaN."""
    value = np.asarray(x).item()
    return value if math.isfinite(value) else None


def _nonfinite_message(iteration: int, bad_fit: bool) -> str:
    if bad_fit:
        return (
            f"iteration {iteration}: the value fit of the iteration before gave a NaN or infinite loss and was refused"
        )
    return f"iteration {iteration}: {Result.NONFINITE_BATCH.reason}"
