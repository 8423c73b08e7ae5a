"""The training loop over environments in JAX: the host looks in between chunks of iterations, about once a second.

Then it reports, saves, and sees whether it should stop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from trpo.capacity import gigabytes, require_room
from trpo.envs.meeting import require_same_spaces
from trpo.policies.protocol import PolicyFunction
from trpo.programs import bounded, compiled
from trpo.rollout import Snapshot
from trpo.rollout.device import DeviceRollout, DeviceSource
from trpo.rollout.episodes import RecentEpisodes
from trpo.training import hosts
from trpo.training.agent import Agent
from trpo.training.chunk import ROWS, Member, Row, Setup, begin, run_chunk
from trpo.training.layout import capacity, layout_for, without_content
from trpo.training.learner import Hyper, Learner, prepare, with_memory
from trpo.training.record import Metrics, nonfinite_message, record_of
from trpo.training.sizes import check_training
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.trees import from_named_arrays, named_arrays, require_same

INTERVAL = 1.0
"""Seconds that a chunk should take: how often progress is shown and a request to stop is seen."""


@compiled
def _begin(setup: Setup, learners: Learner, keys: Key[Array, "*run"]) -> Member:
    start = functools.partial(begin, setup)
    return (jax.vmap(start) if setup.stacked else start)(learners, keys)


def setup_for(source: DeviceSource, agent: Agent, runs: int = 1) -> Setup:
    """Return what ``runs`` runs of ``agent`` are compiled from; nothing is compiled or allocated yet.

    Raises:
        ValueError: fewer steps than one iteration takes, processes for the environments, devices that do not divide
            them, or a batch that is larger than the device.
    """
    require_same_spaces(agent.spec, source.spec)
    hosts.require_alone("an environment in JAX")
    config = agent.config
    if config.steps < config.batch:
        raise ValueError(
            f"steps={config.steps}: fewer than one iteration, which takes env.count × fragment = "
            f"{config.env.count} × {config.fragment} = {config.batch} steps"
        )
    if config.env.workers:
        raise ValueError(f"env.workers={config.env.workers}: environments in JAX need no processes; use 0")
    layout = layout_for(config.env.devices, config.env.count, runs)
    stop = config.on_nonfinite == "stop"
    setup = Setup(source, agent.program(layout.strata), runs > 1, stop, layout)
    _check_batch(setup, runs, agent.learner)
    check_training(agent, on_host=False, runs=runs, devices=layout.devices)
    return setup


class DeviceLoop:
    """One or several runs in the same compiled function.

    Runs may differ in seed and in traced hyperparameters, in nothing else.
    """

    def __init__(self, source: DeviceSource, agents: Sequence[Agent], states: Sequence[TrainingState]):
        self.setup = setup_for(source, agents[0], len(agents))
        self.layout = self.setup.layout
        self.configs, self.states = [agent.config for agent in agents], list(states)
        hypers = [Hyper.of(agent.config, agent.rule) for agent in agents]
        self.rules = [hyper.rule for hyper in hypers]
        self.hyper = self._join([_arrays(hyper) for hyper in hypers])
        self.keys = self._join([jax.random.key(config.seed) for config in self.configs])
        self.episodes = [RecentEpisodes(state.episodes, source.info) for state in states]
        self._fits = [state.value_fit for state in states]
        self.begins_anew = ""
        """Why new episodes begin although the states have the simulators'; empty if it is not so."""
        self.members = self._begin()
        self.hyper, self.keys = self.layout.place_learned((self.hyper, self.keys))
        self.program, self.memory = _compile(self.setup, *_shapes(self.hyper, self.keys, self.members))

    def describe(self) -> str:
        """Return a line on what the compiled function takes."""
        program, limit = self.setup.program, capacity()
        runs = f"{len(self.configs)} runs × " if self.setup.stacked else ""
        device = jax.devices()[0].platform
        where = f"{self.layout.devices} devices ({device})" if self.layout.devices > 1 else device
        of = f" of {gigabytes(limit)}" if limit else ""
        batch = f"{runs}{program.count} environments × {program.fragment} steps"
        return f"on {where}: batch of {batch}; memory {gigabytes(self.memory)}{of}"

    def _join(self, trees: list[Any]) -> Any:
        if not self.setup.stacked:
            return trees[0]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def _begin(self) -> Member:
        learners = self._join([with_memory(self.setup.program, state.learner) for state in self.states])
        members: Member = _begin(self.setup, learners, self.keys)
        template = jax.tree.map(lambda leaf: leaf[0], members.rollout) if self.setup.stacked else members.rollout
        rollout = members.rollout
        if self.states[0].source is not None:
            try:
                rollout = self._join([_restored(template, state.source) for state in self.states])
            except ValueError as error:
                self.begins_anew = f"the state is not that of these environments ({error})"
        iterations = [jnp.asarray(state.iteration, jnp.int32) for state in self.states]
        members = Member(learners, rollout, self._join(iterations))
        learned = dataclasses.replace(members.learner, value_carry=())
        carry, rollout = self.layout.place_rollout((members.learner.value_carry, members.rollout), self.setup.stacked)
        return Member(
            dataclasses.replace(self.layout.place_learned(learned), value_carry=carry),
            rollout,
            self.layout.place_learned(members.iteration),
        )

    def run(
        self, longest: int | Callable[[int], int] = ROWS
    ) -> Iterator[tuple[list[list[Metrics]], Callable[[], list[TrainingState]]]]:
        """Train to ``steps``, coming back about once a second, or after every ``longest`` iterations.

        Yields the metrics of each run, one record an iteration, and a function that returns their states.

        Raises:
            NonFiniteBatchError: a batch or fit had a NaN or infinity and ``on_nonfinite`` is ``stop``.
        """
        config, length = self.configs[0], 1
        most_steps = self.setup.program.most_steps
        while (left := -(-(config.steps - min(state.steps for state in self.states)) // most_steps)) > 0:
            most = longest(ROWS) if callable(longest) else longest
            count = min(length, left, most, ROWS)
            started = time.perf_counter()
            self.members, rows, done = self.program(self.hyper, self.keys, self.members, np.int32(count))
            rows, done = jax.device_get((rows, done))
            elapsed = time.perf_counter() - started
            metrics, bad = self._records(rows, int(done), elapsed)
            yield metrics, functools.partial(self._gather, self.members, list(self.states))
            if bad is not None:
                raise NonFiniteBatchError(self._gather(self.members, self.states), bad)
            # At most doubled, since the first iterations are slower and episodes then short.
            length = max(1, min(2 * length, int(INTERVAL * done / elapsed)))

    def _records(self, rows: Row, done: int, elapsed: float) -> tuple[list[list[Metrics]], str | None]:
        """Return the metrics, and why the last iteration stops the run, if it does."""
        metrics: list[list[Metrics]] = []
        bad: list[str] = []
        for m, (state, config) in enumerate(zip(self.states, self.configs, strict=True)):
            records = []
            for i in range(done):
                index = (i, m) if self.setup.stacked else i
                row: Row = jax.tree.map(lambda leaf: leaf[index], rows)  # noqa: B023
                ended, recent = row.episodes, self.episodes[m]
                recent.episodes += int(ended.ended)
                if ended.counted:
                    recent.add(int(ended.counted), float(ended.return_sum), int(ended.length_sum))
                for key, (told, total) in zip(recent.info, ended.info, strict=True):
                    if told:
                        recent.note(key, int(told), float(total))
                state = dataclasses.replace(
                    state,
                    iteration=state.iteration + 1,
                    steps=state.steps + int(row.steps),
                    seconds=state.seconds + elapsed / done,
                )
                timing = {"steps_per_second": int(row.steps) * done / elapsed, "collect_seconds": None}
                loss = None if (fit := self._fits[m]) is None else fit.loss
                records.append(record_of(state, row.info, self.rules[m], recent, loss, timing))
                self._fits[m] = row.value if row.info.finite else None
                if not (row.info.finite and row.value.finite):
                    which = f"seed {config.seed}, " if self.setup.stacked else ""
                    bad_fit, env = bool(row.info.finite), self.setup.source.spec.id
                    bad.append(which + nonfinite_message(state.iteration, bad_fit, env, None, row.info.blocked))
            self.states[m] = dataclasses.replace(state, episodes=self.episodes[m].to_json(), value_fit=self._fits[m])
            metrics.append(records)
        return metrics, bad[0] if bad and self.setup.stop else None

    def _gather(self, members: Member, states: list[TrainingState]) -> list[TrainingState]:
        if not self.setup.stacked:
            return [dataclasses.replace(states[0], learner=members.learner, source=members.rollout)]
        # Taken apart on the host: on the device each of the thousands of slices would be an operation of its own.
        learner, rollout = jax.device_get(members.learner), named_arrays(members.rollout)
        return [
            dataclasses.replace(
                state,
                learner=jax.tree.map(lambda leaf: leaf[m], learner),  # noqa: B023
                source={name: leaf[m] for name, leaf in rollout.items()},
            )
            for m, state in enumerate(states)
        ]


def check_rollout(source: DeviceSource, agent: Agent, state: TrainingState) -> None:
    """Raise ValueError unless a saved state has environments such as these, however many of them."""
    if not isinstance(state.source, dict):
        raise ValueError("it has no environments in JAX")
    count = len(state.source.get("reset", ()))
    require_same(_rollout_like(source, agent.policy, count), state.source)


@bounded
def _rollout_like(source: DeviceSource, policy: PolicyFunction, count: int) -> DeviceRollout:
    return jax.eval_shape(lambda: source.begin(jax.random.key(0), count, policy.start(count)))


def _restored(template: DeviceRollout, source: Any) -> DeviceRollout:
    """Return environments as they were saved; ValueError if they are not such as ``template``."""
    if isinstance(source, Snapshot):
        raise ValueError("it is that of environments on the host")
    if not isinstance(source, dict):
        from_named_arrays(template, named_arrays(source))  # raises; what it makes has lost its sharding
        return source
    return from_named_arrays(template, source)


def _arrays(hyper: Hyper) -> Hyper:
    """Turn Python numbers into arrays: a sweep's are stacked, and a compiled program takes arrays only."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float if isinstance(leaf, float) else None), hyper)


def _shapes(*arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the structure of arguments, and shapes and places of their leaves: what a program is compiled for."""
    leaves, structure = jax.tree.flatten(jax.tree.map(without_content, arguments))
    return structure, tuple(leaves)


@bounded
def _compile(setup: Setup, structure: Any, leaves: tuple[Any, ...]) -> tuple[Any, int]:
    """Compile a chunk for arguments of these shapes, once; return the program and the bytes that it works in."""
    chunk = jax.jit(functools.partial(run_chunk, setup))
    compiled_chunk = chunk.lower(*structure.unflatten(leaves), np.int32(1)).compile()
    usage = compiled_chunk.memory_analysis()
    size = 0 if usage is None else usage.temp_size_in_bytes + usage.argument_size_in_bytes + usage.output_size_in_bytes
    _check(setup, size, "needs")
    return compiled_chunk, size


@bounded
def _batch_bytes(setup: Setup, structure: Any, leaves: tuple[Any, ...]) -> int:
    """Return what a batch alone takes, for a learner of these shapes."""

    def batch(member: Member) -> Any:
        program, learner = setup.program, member.learner
        actor, noise, _ = prepare(program, learner.policy, learner.observations, jax.random.key(0), member.iteration)
        return setup.source.collect(program.policy, actor, member.rollout, noise)[:2]

    member = jax.eval_shape(functools.partial(begin, setup), *structure.unflatten(leaves), jax.random.key(0))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(batch, member)))


def _check_batch(setup: Setup, runs: int, learner: Learner) -> None:
    """Refuse a batch that alone is larger than the device."""
    _check(setup, _batch_bytes(setup, *_shapes(learner)) * runs // setup.layout.devices, "alone takes")


def _check(setup: Setup, size: int, verb: str) -> None:
    what = f"env.count={setup.program.count}, fragment={setup.program.fragment}: the batch {verb}"
    if (limit := capacity()) is not None:
        cure = "use fewer environments, shorter fragments or fewer seeds"
        require_room(what, size, cure, limit, f"each {jax.devices()[0].platform} device")
