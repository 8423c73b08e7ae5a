"""The training loop over environments that are stepped from the host."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import HostEnv
from trpo.rollout import Actor, HostPolicy, HostRollout
from trpo.rollout.episodes import EpisodeStatistics
from trpo.settings.config import Config
from trpo.training.agent import Agent
from trpo.training.learner import Hyper, IterationInfo, Learner, improve, prepare, refit
from trpo.training.record import Metrics, nonfinite_message, number, update_metrics
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.value_fits.fit import ValueInfo


def env_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """Return a seed for each environment, from its global index: the same however they are spread over processes."""
    return [int(np.random.SeedSequence([seed, iteration, i]).generate_state(1)[0]) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled pieces of an iteration."""

    prepare: Any
    improve: Any
    refit: Any


# Policies and value functions of the same structure are equal, so a second run of the same shapes compiles nothing.
_improve = jax.jit(improve, static_argnums=(0, 1))
_refit = jax.jit(refit, static_argnums=0)


_prepare = jax.jit(prepare, static_argnames=("policy", "clip", "shape"))


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


class HostLoop:
    """One run over host environments."""

    def __init__(self, envs: HostEnv, agent: Agent, config: Config, state: TrainingState):
        if envs.count != config.env.count:
            raise ValueError(f"env.count={config.env.count}, but {envs.count} environments were handed in")
        self.agent, self.config, self.state = agent, config, state
        self.key = jax.random.key(config.seed)
        self.hyper = Hyper.of(config, agent.rule)
        self.compiled = compile_iteration(agent, config)
        seeds = env_seeds(config.seed, state.iteration, envs.count)
        self.rollout = HostRollout(envs, seeds, config.env.stagger)
        if state.episodes is not None:
            self.rollout.statistics = EpisodeStatistics.from_json(state.episodes)
        if state.environments is not None and state.observation is not None:
            envs.restore(state.environments)
            self.rollout.observation = state.observation
        else:
            self.rollout.statistics.restart()  # the episodes that were under way are gone
        self.policy = HostPolicy(agent.policy, state.learner.actor(config), agent.spec.observation_size)

    def run(self) -> Iterator[tuple[TrainingState, Metrics]]:
        """Train to ``steps``, yielding after every iteration while its value fit runs in the background."""
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
            learner, batch, info = self.compiled.improve(self.hyper, learner, trajectory, iteration)
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
                raise NonFiniteBatchError([kept], nonfinite_message(iteration, bad_fit))
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
        metrics: Metrics = {
            "iteration": self.state.iteration,
            "steps": self.state.steps,
            "seconds": self.state.seconds,
            "steps_per_second": self.config.batch / elapsed,
            "collect_seconds": collecting,
            "episodes": episodes.episodes,
            "episode_return": _mean(episodes.returns),
            "episode_length": _mean(episodes.lengths),
        }
        return metrics | update_metrics(info, self.hyper.rule, None if fitted is None else fitted.loss)


def _mean(values: Any) -> float | int | None:
    return number(np.mean(values)) if values else None
