"""The training loop over a source on the host."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.envs.meeting import require_same_spaces
from trpo.programs import compiled
from trpo.rollout import EpisodeStatistics, HostPolicy, HostSource, Snapshot, Source, Trajectory, noise_of
from trpo.rollout.vine import Branches, chosen_times, listed_actions, vine_keys
from trpo.rollout.vine_host import Drawn, Outcome, collect_vine, require_branching
from trpo.spelling import in_words
from trpo.training import hosts
from trpo.training.agent import Agent
from trpo.training.layout import Layout, layout_of_processes
from trpo.training.learner import (
    Hyper,
    IterationInfo,
    Learner,
    Program,
    improve,
    prepare,
    refit,
    value_now,
    with_memory,
)
from trpo.training.record import Metrics, nonfinite_message, record_of
from trpo.training.shares import Collected, Shares
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.trees import named_arrays
from trpo.value_fits import ValueBatch, ValueInfo
from trpo.vine import branch_returns


def prepare_vine(program: Program, actor: Any, key: Any, iteration: Any) -> Drawn:
    """Draw what is random about the branches of an iteration, but for the environments."""
    plan, (times_key, draw_key, noise_key, _) = program.vine, vine_keys(key, iteration)
    assert plan is not None
    time = chosen_times(times_key, program.fragment, plan.every, program.count)

    def noise(key: Any, leading: int) -> Any:
        drawn = noise_of(program.policy, actor, time.size, (leading,), key)
        return jax.tree.map(lambda x: x.reshape(leading, *time.shape, *x.shape[2:]), drawn)

    if plan.proposal == "policy":
        return Drawn(time=time, noise=noise(noise_key, plan.length), first_noise=noise(draw_key, plan.actions))
    first = listed_actions(plan, time.shape, draw_key)
    return Drawn(time=time, noise=noise(noise_key, plan.length), first=first)


def close_branches(
    program: Program, hyper: Hyper, learner: Learner, iteration: Any, time: Any, met: Outcome
) -> Branches:
    """Return Q̂ of branches that the host has followed."""
    value, discount = value_now(program, learner)(met.following), hyper.discount_at(iteration)
    q = branch_returns(met.reward, met.alive, met.terminated, value, discount, hyper.branch_lambda)
    return Branches(time, met.action, q, jnp.sum(met.alive, dtype=jnp.int32))


def _prepare(layout: Layout, program: Program, *arguments: Any) -> tuple[Any, Any, Any]:
    actor, noise, key = prepare(program, *arguments)
    return layout.constrain_learned(actor), layout.constrain_batch(noise), layout.constrain_learned(key)


def _improve(layout: Layout, program: Program, *arguments: Any) -> tuple[Learner, ValueBatch, IterationInfo]:
    new, batch, info = improve(program, *arguments)
    carry, new = new.value_carry, layout.constrain_learned(dataclasses.replace(new, value_carry=()))
    new = dataclasses.replace(new, value_carry=layout.constrain_batch(carry, axis=0))
    return new, batch, layout.constrain_learned(info)


def _refit(layout: Layout, program: Program, *arguments: Any) -> tuple[Any, ValueInfo]:
    return layout.constrain_learned(refit(program, *arguments))


def _prepare_vine(layout: Layout, program: Program, *arguments: Any) -> Drawn:
    drawn = prepare_vine(program, *arguments)
    time, first = layout.constrain_batch((drawn.time, drawn.first), axis=1)
    noise, first_noise = layout.constrain_batch((drawn.noise, drawn.first_noise), axis=2)
    return Drawn(time, noise, first, first_noise)


def _close(layout: Layout, program: Program, *arguments: Any) -> Branches:
    branches = close_branches(program, *arguments)
    return dataclasses.replace(branches, steps=layout.constrain_learned(branches.steps))


# Policies and value functions of the same structure are equal, so a second run of the same shapes compiles nothing.
_STAGES = {stage.__name__: compiled(stage, 2) for stage in (_prepare, _improve, _refit, _prepare_vine, _close)}


def env_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """Return a seed for each environment, from its global index: the same however they are spread over processes."""
    return [int(np.random.SeedSequence([seed, iteration, i]).generate_state(1)[0]) for i in range(count)]


def _unfit(source: Source, agent: Agent, state: TrainingState) -> str:
    """Return why the simulators' state cannot be put back into ``source``; empty if it can, or if there is none."""
    if state.source is None:
        return ""
    if not isinstance(state.source, Snapshot):
        return "the state is that of environments in JAX"
    if (of := state.source.id or agent.spec.id) != source.spec.id:
        return f"the state is that of {of!r}, not of {source.spec.id!r}"
    now = source.snapshot()
    if now is None or now.environments is None:
        return "these environments take no state"
    before, after = (
        {name: np.shape(x) for name, x in (seat if isinstance(seat, dict) else named_arrays(seat)).items()}
        for seat in (state.source.seat, now.seat)
    )
    if before != after:
        count = before.get("reset", ("other",))[0]
        return f"the state is that of {count} environments, not of {agent.config.env.count}"
    return ""


class HostLoop:
    """One run over a source on the host; of several processes each has a source of its share of the environments."""

    def __init__(self, source: Source, agent: Agent, state: TrainingState):
        config = agent.config
        self.layout = layout_of_processes(config.env.count)
        self.shares = Shares(self.layout, config.env.count)
        self.shares.require(source.count)
        require_same_spaces(agent.spec, source.spec)
        self.hyper = Hyper.of(config, agent.rule)
        program = agent.program(self.layout.strata)
        state = dataclasses.replace(state, learner=with_memory(program, state.learner))
        self.learner = self.layout.place_learner(state.learner)
        state = self.shares.own(state)
        self.source, self.config, self.state = source, config, state
        self._plan = program.vine
        stages = {name: partial(stage, self.layout, program) for name, stage in _STAGES.items()}
        self._prepare, self._prepare_vine = stages["_prepare"], stages["_prepare_vine"]
        learning = (partial(stages[name], self.hyper) for name in ("_improve", "_refit", "_close"))
        self._improve, self._refit, self._close = learning
        self._restart(state.iteration)
        several = self.layout.processes > 1
        source.episodes = EpisodeStatistics(source.count, state.episodes, config.env.info, several)
        self.begins_anew = _unfit(source, agent, state)
        """Why new episodes begin although the state has the simulators'; empty if it is not so."""
        if state.source is not None and not self.begins_anew:
            try:
                source.restore(state.source)
            except Exception as error:  # of whoever wrote the simulator
                self.begins_anew = f"the state cannot be put back ({in_words(error)})"
                self._restart(state.iteration)
        if state.source is None or self.begins_anew:
            source.episodes.restart()  # the episodes that were under way are gone
        self.policy = HostPolicy(agent.policy, program.freeze(state.learner.policy, state.learner.observations))
        if self._plan is not None:
            require_branching(source, self.policy)

    def _restart(self, iteration: int) -> None:
        self.source.restart(env_seeds(self.config.seed, iteration, self.config.env.count)[self.shares.rows])

    def _collect(
        self, actor: Any, learner: Any, noise: Any, key: Any, iteration: int
    ) -> tuple[Collected, Trajectory, Any]:
        """Return what happened here, and of all environments a trajectory, and branches where there are any."""
        noise, plan, met = jax.tree.map(np.asarray, self.layout.own(noise)), self._plan, None
        drawn = None if plan is None else self._prepare_vine(actor, key, iteration)
        here = jax.tree.map(np.asarray, self.layout.own(drawn))
        with hosts.together() as said:
            if plan is None:
                trajectory = self.source.collect(self.policy, noise)
            else:
                assert isinstance(self.source, HostSource)
                trajectory, met = collect_vine(self.source, self.policy, noise, here, not plan.monte_carlo)
            said.mine = self.shares.account(trajectory, self.source)
        found = self.shares.count_all(said.all, trajectory, self.source)
        branches = None
        if drawn is not None and met is not None:
            branches = self._close(learner, iteration, drawn.time, self.shares.hand_in_outcome(met))
        return found, self.shares.hand_in(found), branches

    def run(self) -> Iterator[tuple[TrainingState, Metrics]]:
        """Train to ``steps``, yielding after every iteration while its value fit runs in the background."""
        learner, iteration, steps = self.learner, self.state.iteration, self.state.steps
        key = jax.random.key(self.config.seed)
        began = time.perf_counter() - self.state.seconds
        actor, noise, fit_key = self._prepare(learner.policy, learner.observations, key, iteration)
        value_info: ValueInfo | None = self.state.value_fit
        while steps < self.config.steps:
            started = time.perf_counter()
            self.policy.load(self.layout.own(actor))
            found, trajectory, branches = self._collect(actor, learner, noise, key, iteration)
            collected = time.perf_counter()
            previous, fitted = learner, value_info
            learner, batch, info = self._improve(learner, trajectory, iteration, branches)
            info = jax.device_get(info)
            of_branches = 0 if branches is None else int(branches.steps)
            steps += found.steps + of_branches
            iteration += 1
            # Queued in this order, since computations run one after the other: what the next fragment needs must not
            # wait behind the value fit, which then has the length of that fragment to finish in.
            this_fit_key = fit_key
            actor, noise, fit_key = self._prepare(learner.policy, learner.observations, key, iteration)
            value, value_info = self._refit(learner.value, batch, this_fit_key)
            if info.finite:
                learner = dataclasses.replace(learner, value=value)
            else:
                value_info = None  # there was nothing to fit
            now = time.perf_counter()
            bad_fit = fitted is not None and not bool(fitted.finite)
            if not info.finite or bad_fit:
                # Before the state is recorded: going on from it must not meet the broken simulation again.
                self._restart(iteration)
            episodes = self.source.episodes
            self.state = TrainingState(
                learner=self.layout.own(learner),
                iteration=iteration,
                steps=steps,
                seconds=now - began,
                episodes=episodes.to_json(),
                source=self.source.snapshot(),
                value_fit=self.layout.own(value_info),
            )
            timing = {
                "steps_per_second": (self.config.batch + of_branches) / (now - started),
                "collect_seconds": collected - started,
            }
            loss = None if fitted is None else fitted.loss
            metrics = record_of(self.state, info, self.hyper.rule, episodes.recent, loss, timing)
            stops = (not info.finite or bad_fit) and self.config.on_nonfinite == "stop"
            if stops:
                self.state = dataclasses.replace(self.state, learner=self.layout.own(previous))
            yield self.state, metrics
            if stops:
                at = iteration - bad_fit  # a fit is seen to have failed in the iteration after it
                first = self.shares.rows.start
                said = nonfinite_message(at, bad_fit, self.source.spec.id, found.trajectory, info.blocked, first)
                said = max(hosts.exchange(said), key=len)  # that which found the number
                raise hosts.agree(NonFiniteBatchError([self.shares.whole(self.state)], said))
