"""Whole iterations on the device: the host's arithmetic, exact resuming, one compilation, clear refusals."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import bits, untimed

import trpo
from trpo.envs import Box, EnvSpec
from trpo.envs.device import Step, batch
from trpo.envs.device.hosted import HostedJaxEnvs
from trpo.envs.names import resolve
from trpo.rollout import HostPolicy, HostSource, noise_of
from trpo.rollout.device import DeviceRollout, DeviceSource
from trpo.rollout.episodes import EpisodeTotals, RecentEpisodes
from trpo.rules.protocol import Result, UpdateInfo
from trpo.running_statistics import RunningStatistics
from trpo.runs import checkpoint
from trpo.runs.sinks import read_metrics
from trpo.training import device as device_training
from trpo.training import layout as parallel
from trpo.training.chunk import Row, begin, iterate
from trpo.training.device import DeviceLoop, setup_for
from trpo.training.host import _STAGES
from trpo.training.layout import Layout
from trpo.training.learner import Hyper, IterationInfo
from trpo.training.loop import advance, device_source
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.trees import named_arrays
from trpo.value_fits import ValueInfo

LIMIT = 6


class Walk:
    """x ← 0.9 x + 0.5 a + noise, reward −x²; absorbing beyond 1.2, cut after six steps. Counts its own tracing."""

    def __init__(self, cheap_reset: bool = True):
        self.spec = EnvSpec("walk", Box((2,)), Box((1,), low=-1.0, high=1.0))
        self.cheap_reset, self.traced = cheap_reset, 0

    def look(self, x: Any, time: Any) -> Any:
        return jnp.stack([x, 0.1 * time])

    def reset(self, key: Any) -> tuple[Any, Any]:
        self.traced += 1
        x = jax.random.uniform(key, minval=-1.0, maxval=1.0)
        return (x, jnp.zeros((), jnp.int32)), self.look(x, 0)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        self.traced += 1
        x, time = 0.9 * state[0] + 0.5 * action[0] + 0.3 * jax.random.uniform(key, minval=-1.0), state[1] + 1
        return (x, time), Step(self.look(x, time), -(x**2), jnp.abs(x) > 1.2, time == LIMIT)


WALK, DEAR = Walk(), Walk(cheap_reset=False)


def source_of(env: Any) -> DeviceSource:
    source = device_source(resolve(env, trpo.EnvConfig()))
    assert source is not None
    return source


def configure(iterations: int = 4, **changes: Any) -> trpo.Config:
    """Small networks, five steps of four environments: episodes are under way at the end of every fragment."""
    small: dict[str, Any] = {
        "env": trpo.EnvConfig("walk", count=4),
        "fragment": 5,
        "policy": trpo.PolicyConfig(hidden=(8,)),
        "value": trpo.ValueConfig(hidden=(8,), minibatch=8, epochs=2),
    }
    config = trpo.Config(**(small | changes))
    return dataclasses.replace(config, steps=iterations * config.batch)


def run(
    config: trpo.Config, env: Any = WALK, state: TrainingState | None = None
) -> tuple[trpo.Agent, list[TrainingState], list[dict[str, Any]]]:
    agent = trpo.make_agent(env, config)
    pairs = list(trpo.iterations(env, agent, config, state))
    return agent, [state for state, _ in pairs], [metrics for _, metrics in pairs]


def in_chunks(config: trpo.Config, longest: int, state: TrainingState | None = None) -> tuple[TrainingState, list[Any]]:
    """The last state and all metrics of a run that comes back after at most ``longest`` iterations."""
    agent = trpo.make_agent(WALK, config)
    rows: list[Any] = []
    for progress in advance(WALK, [agent], [state or TrainingState(agent.learner)], longest):
        assert len(progress.metrics[0]) <= longest
        rows += progress.metrics[0]
        (state,) = progress.states()
    assert state is not None
    return state, rows


def trained_actor(agent: trpo.Agent) -> tuple[Any, Any]:
    """A learner whose statistics and parameters are not those of the beginning, and what acting needs of it."""
    seen = RunningStatistics(jnp.asarray(40.0), jnp.array([0.3, 0.25]), jnp.array([12.0, 3.0]), jnp.ones(2))
    policy = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), agent.learner.policy
    )
    learner = dataclasses.replace(agent.learner, observations=seen, policy=policy)
    return learner, agent.program().freeze(policy, seen)


# ---------------------------------------------------------------- the rollout


@pytest.mark.parametrize("env", [WALK, DEAR], ids=["cheap", "dear"])
def test_rollout_equals_a_loop_over_environments(env: Walk) -> None:
    """One environment after the other, step by step, in NumPy; two fragments, episodes cross the break."""
    config = configure()
    agent = trpo.make_agent(env, config)
    _, actor = trained_actor(agent)
    count, length, key = 3, 8, jax.random.key(5)
    noise = np.random.default_rng(0).normal(size=(2, length, count, 1)).astype(np.float32)
    source = source_of(env)
    collect = jax.jit(lambda rollout, noise: source.collect(agent.policy, actor, rollout, noise))
    rollout = source.begin(key, count, ())
    found = []
    for part in noise:
        rollout, *rest = collect(rollout, part)
        found.append(jax.device_get(rest))

    step, reset, fold = jax.jit(env.step), jax.jit(env.reset), jax.random.fold_in
    mean, deviation = np.array([0.3, 0.25]), np.sqrt(np.array([12.0, 3.0]) / 40)
    ended = [0, 0]
    returns: list[list[float]] = [[], []]
    lengths: list[list[int]] = [[], []]
    for i in range(count):
        own = fold(key, i)
        state, seen = reset(fold(own, 1))
        # The time of this environment's clock, which every draw of randomness has to itself: 2τ steps, 2τ + 1 resets.
        clock, total, age = 1, 0.0, 0
        for k in range(2):
            if not env.cheap_reset:
                spare = reset(fold(own, 2 * clock + 1))
                clock += 1
            trajectory, _ = found[k]
            for t in range(length):
                normal = np.clip((np.asarray(seen) - mean) / deviation, -10, 10)
                observed = jnp.asarray(normal, jnp.float32), jnp.asarray(t == 0)
                policy, _ = agent.policy(actor.params, (), observed)
                action = np.asarray(policy.mean) + np.exp(np.asarray(policy.log_std)) * noise[k, t, i]
                state, told = step(state, jnp.asarray(np.clip(action, -1, 1), jnp.float32), fold(own, 2 * clock))
                expected = {
                    "observation": seen,
                    "action": action,
                    "reward": told.reward,
                    "terminated": told.terminated,
                    "truncated": told.truncated & ~told.terminated,
                    "next_observation": told.observation,
                    "valid": True,
                }
                for name, value in expected.items():
                    got = getattr(trajectory, name)[t, i]
                    np.testing.assert_allclose(got, value, rtol=2e-5, atol=2e-5, err_msg=f"{name} {t} {i}")
                seen, total, age = told.observation, total + float(told.reward), age + 1
                if told.terminated | told.truncated:
                    ended[k] += 1
                    returns[k].append(total)
                    lengths[k].append(age)
                    state, seen = spare if not env.cheap_reset else reset(fold(own, 2 * clock + 1))
                    total, age = 0.0, 0
                clock += 1
        np.testing.assert_allclose(rollout.envs.observation[i], seen, rtol=2e-5, atol=2e-5)
        assert float(rollout.running_return[i]) == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert int(rollout.running_length[i]) == age
    for k, (trajectory, totals) in enumerate(found):
        assert ended[k] == totals.ended == totals.counted == (trajectory.terminated | trajectory.truncated).sum()
        assert float(totals.return_sum) == pytest.approx(sum(returns[k]), rel=1e-4)
        assert int(totals.length_sum) == sum(lengths[k])
    whole = [trajectory for trajectory, _ in found]
    assert any(t.terminated.any() for t in whole)
    assert any(t.truncated.any() for t in whole)
    assert min(ended) >= 3


@pytest.mark.parametrize("name", ["walk", "jax-probe:both"])
def test_rollout_equals_the_host_s_over_the_same_environments(name: str) -> None:
    """:class:`HostSource` and NumPy's policy step the same environments from the same keys with the same noise."""
    source = source_of(WALK if name == "walk" else name)
    env = source.env
    agent = trpo.make_agent(env, configure())
    actor = (trained_actor(agent)[1]) if env is WALK else agent.actor()
    seeds = [3, 1, 4, 1_000_000_007]
    noise = [noise_of(agent.policy, actor, len(seeds), (LIMIT,), jax.random.key(k)) for k in range(2)]
    hosted = HostSource(HostedJaxEnvs(env, len(seeds)))
    hosted.restart(seeds)
    policy = HostPolicy(agent.policy, actor)
    assert policy.in_numpy
    count, started = len(seeds), batch.start_each(env, jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)))
    rollout = DeviceRollout(started, jnp.zeros(count), jnp.zeros(count, jnp.int32), (), jnp.ones(count, bool))
    collect = jax.jit(lambda rollout, noise: source.collect(agent.policy, actor, rollout, noise))
    ended, cut = 0, False
    for part in noise:
        theirs = hosted.collect(policy, np.asarray(part))
        rollout, ours, totals = collect(rollout, part)
        for field in dataclasses.fields(ours)[:-1]:  # info is for the account of episodes
            np.testing.assert_allclose(getattr(ours, field.name), getattr(theirs, field.name), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(rollout.reset, hosted.seat.reset)
        np.testing.assert_array_equal(rollout.reset, ours.terminated[-1] | ours.truncated[-1])
        cut = cut or bool(ours.truncated[-1].any())
        ended += int(totals.ended)
    assert ended == hosted.episodes.recent.episodes > 4
    assert cut or env is not WALK
    np.testing.assert_allclose(rollout.running_return, hosted.episodes.running_return, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rollout.running_length, hosted.episodes.running_length)


class Brief(Walk):
    """Every step is an episode, and its reward is 2, or NaN from a positive start."""

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        reward = jnp.where(state[0] > 0, jnp.nan, 2.0)
        return state, Step(self.look(state[0], 1), reward, jnp.asarray(True), jnp.asarray(False))


def test_an_episode_without_a_return_hides_no_other() -> None:
    env, count = Brief(), 4
    agent = trpo.make_agent(env, configure())
    noise = jnp.zeros((7, count, 1))
    source = source_of(env)
    collect = jax.jit(lambda rollout: source.collect(agent.policy, agent.actor(), rollout, noise))
    _, trajectory, totals = collect(source.begin(jax.random.key(0), count, ()))
    good = int((trajectory.observation[..., 0] <= 0).sum())
    assert 5 < good < 23
    assert (int(totals.ended), int(totals.counted), int(totals.length_sum)) == (28, good, good)
    assert float(totals.return_sum) == 2 * good


def test_new_episodes_everywhere_are_new() -> None:
    """Started from randomness of their own, which serves neither before nor after."""
    env, count = Brief(), 4
    agent = trpo.make_agent(env, configure())
    noise = jnp.zeros((3, count, 1))
    source = source_of(env)
    collect = jax.jit(lambda rollout: source.collect(agent.policy, agent.actor(), rollout, noise))
    rollout, before, _ = collect(source.begin(jax.random.key(0), count, ()))
    assert before.reset.all()
    under_way = {"running_return": jnp.full(count, 5.0), "running_length": jnp.full(count, 5)}
    rollout = dataclasses.replace(rollout, reset=jnp.zeros(count, bool), **under_way)
    again = source.restart(rollout)
    assert again.reset.all()
    assert not again.running_return.any()
    assert not again.running_length.any()
    _, after, _ = collect(again)
    starts = [*before.observation[..., 0].ravel(), *rollout.envs.observation[:, 0], *after.observation[..., 0].ravel()]
    assert len({float(x) for x in starts}) == len(starts) == 3 * count + count + 3 * count


# ---------------------------------------------------------------- the update


def test_no_environment_has_the_key_of_an_iteration() -> None:
    """Else the noise of the policy and the randomness of an environment would be the same numbers."""
    pieces = Pieces(WALK, configure())
    own = jax.random.key_data(pieces.begin().envs.key)
    taken = jax.random.key_data(jax.vmap(partial(jax.random.fold_in, pieces.key))(jnp.arange(16)))
    assert len({tuple(data) for data in np.concatenate([own, taken]).tolist()}) == 4 + 16


class Pieces:
    """The host's compiled pieces, and a rollout compiled by itself."""

    def __init__(self, env: Any, config: trpo.Config):
        self.agent = trpo.make_agent(env, config)
        self.setup = setup_for(source_of(env), self.agent)
        self.key, self.hyper = jax.random.key(config.seed), Hyper.of(config, self.agent.rule)
        self._collect = jax.jit(partial(self.setup.source.collect, self.agent.policy))

    def begin(self) -> Any:
        return jax.jit(lambda learner: begin(self.setup, learner, self.key).rollout)(self.agent.learner)

    def collect(self, learner: Any, rollout: Any, iteration: int) -> tuple[Any, Any, Any]:
        """The rollout after the fragment, its trajectory, and the key of the fit that follows."""
        program = self.setup.program
        actor, noise, fit_key = _STAGES["_prepare"](
            Layout(), program, learner.policy, learner.observations, self.key, iteration
        )
        rollout, trajectory, _ = self._collect(actor, rollout, noise)
        # Through the host's memory, as the host's own trajectories come.
        return rollout, jax.device_get(trajectory), fit_key

    def learn(self, learner: Any, trajectory: Any, fit_key: Any, iteration: int) -> Any:
        """The learner after the update of the policy and the fit of the value function."""
        pieces = Layout(), self.setup.program, self.hyper
        learner, data, info = _STAGES["_improve"](*pieces, learner, trajectory, iteration)
        assert info.finite
        return dataclasses.replace(learner, value=_STAGES["_refit"](*pieces, learner.value, data, fit_key)[0])


@functools.cache
def walked(final_discount: float | None = None) -> tuple[list[Any], list[Any]]:
    """Rollouts and learners after each of four iterations by hand."""
    pieces = Pieces(WALK, configure(final_discount=final_discount, discount_steps=60, seed=3))
    rollout, learner = pieces.begin(), pieces.agent.learner
    rolled, learners = [], []
    for k in range(4):
        rollout, trajectory, fit_key = pieces.collect(learner, rollout, k)
        learner = pieces.learn(learner, trajectory, fit_key, k)
        rolled.append(rollout)
        learners.append(learner)
    return rolled, learners


@pytest.mark.usual_compiler
@pytest.mark.parametrize("final_discount", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_an_iteration_s_update_is_the_host_s_bit_for_bit(final_discount: float | None) -> None:
    """The trajectory comes from a compiled rollout of its own; the whole iteration is one compiled function."""
    config = configure(final_discount=final_discount, discount_steps=60, seed=3)
    rolled, learners = walked(final_discount)
    agent = trpo.make_agent(WALK, config)
    setup = setup_for(source_of(WALK), agent)
    key, hyper = jax.random.key(config.seed), Hyper.of(config, agent.rule)
    member = jax.jit(begin, static_argnums=0)(setup, agent.learner, key)
    whole = jax.jit(iterate, static_argnums=0)
    for k in range(4):
        member, row = whole(setup, hyper, key, member)
        assert row.info.finite
        assert bits(member.rollout) == bits(rolled[k])
        assert bits(member.learner) == bits(learners[k])
    assert bits(member.learner.policy) != bits(agent.learner.policy)
    assert bits(member.learner.value) != bits(agent.learner.value)
    assert final_discount is None or bits(learners[1].policy) != bits(walked()[1][1].policy)


def test_chunks_are_that_iteration_too() -> None:
    """To rounding: within the loop over iterations the compiler may add a sum up in another order."""
    _, states, _ = run(configure(iterations=3, seed=3))
    rolled, learners = walked()
    assert [(state.iteration, state.steps) for state in states] == [(1, 20), (2, 40), (3, 60)]
    for k, state in enumerate(states):
        ours = [*jax.tree.leaves(state.learner), state.source.envs.observation, state.source.running_return]
        theirs = [*jax.tree.leaves(learners[k]), rolled[k].envs.observation, rolled[k].running_return]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@functools.cache
def curves() -> dict[str, list[list[dict[str, Any]]]]:
    """Metrics of eight runs on the host and of eight on the device."""
    config = configure(
        iterations=6, fragment=32, rule=trpo.RuleConfig(max_kl=0.05), value=trpo.ValueConfig(hidden=(8,))
    )
    return {
        env: [run(dataclasses.replace(config, seed=seed), env)[2] for seed in range(8)]
        for env in ("probe:both", "jax-probe:both")
    }


@pytest.mark.slow
def test_learning_curves_of_host_and_device_agree() -> None:
    """probe:both, the same settings, eight seeds each; an iteration is 128 one-step episodes of one policy.

    Returns of an iteration, averaged over seeds, may differ by four standard errors of the difference, which are
    estimated from the spread over seeds (0.02 to 0.05, of a curve that rises from 0 to 0.8).
    """
    host, device = (np.array([[row["episode_return"] for row in rows] for rows in runs]) for runs in curves().values())
    assert host.shape == device.shape == (8, 6)
    error = np.sqrt((host.var(0, ddof=1) + device.var(0, ddof=1)) / 8)
    assert (error < 0.1).all()
    assert (np.abs(host.mean(0) - device.mean(0)) < 4 * error).all()
    assert (np.diff(device.mean(0)) > 0).all()
    assert device.mean(0)[-1] > 0.5


# ---------------------------------------------------------------- resuming


def test_resuming_is_exact_whatever_the_chunks(tmp_path: Path) -> None:
    """Through files, environments included, with one, three or all iterations a chunk before and after."""
    whole, rows = in_chunks(configure(iterations=11), 1)
    assert [row["iteration"] for row in rows] == list(range(1, 12))
    assert int(whole.source.running_length.max()) > 0
    for longest in (1, 3, 256):
        half, early = in_chunks(configure(iterations=4), longest)
        assert half.iteration == 4
        place = checkpoint.write_checkpoint(tmp_path / str(longest), half)
        for after in (longest, 2):
            loaded = checkpoint.read_checkpoint(place, trpo.make_agent(WALK, configure()).learner)
            end, late = in_chunks(configure(iterations=11), after, loaded)
            assert (end.iteration, end.steps, end.episodes) == (whole.iteration, whole.steps, whole.episodes)
            assert bits(end.learner) == bits(whole.learner)
            assert bits(end.source) == bits(whole.source)
            expected = [untimed(row) for row in rows]
            found = [untimed(row) for row in early + late]
            assert found[4]["value_loss"] is not None  # of the fit before
            assert found == expected


def test_runs_are_resumed_from_their_directories(tmp_path: Path) -> None:
    config = configure(iterations=9, checkpoint_every=2, keep_checkpoints=100)
    half = dataclasses.replace(config, steps=4 * config.batch)
    whole = trpo.train(WALK, config=config, out=tmp_path / "whole", quiet=True)
    trpo.train(WALK, config=half, out=tmp_path / "half", quiet=True)
    agent = trpo.resume(tmp_path / "half", env=WALK, steps=config.steps, quiet=True)
    assert bits(agent.learner) == bits(whole.learner)
    a, b = (tmp_path / name / "checkpoints" / "00000009" / "state.safetensors" for name in ("whole", "half"))
    assert a.read_bytes() == b.read_bytes()
    assert [row["iteration"] for row in read_metrics(tmp_path / "half")] == list(range(1, 10))
    with pytest.raises(ValueError, match="env=…"):
        trpo.load(tmp_path / "half").evaluate(episodes=1)


def test_a_checkpoint_without_environments_begins_new_episodes() -> None:
    _, states, _ = run(configure(iterations=2))
    bare = dataclasses.replace(states[-1], source=None)
    _, resumed, rows = run(configure(iterations=3), state=bare)
    assert [state.iteration for state in resumed] == [3]
    assert bits(resumed[-1].source.envs.key) == bits(states[-1].source.envs.key)
    assert rows[0]["result"] == "accepted"


def test_going_on_with_another_number_of_environments_begins_new_episodes_and_says_so() -> None:
    config = configure(iterations=2)
    _, states, _ = run(config)
    more = configure(iterations=3, env=trpo.EnvConfig("walk", count=3))
    whole = dataclasses.replace(more, steps=config.steps + more.batch)
    named = dataclasses.replace(states[-1], source=named_arrays(states[-1].source))  # as a checkpoint has it
    for state in (states[-1], named):
        with pytest.warns(UserWarning, match="new episodes begin: the state is not that of these environments"):
            _, resumed, rows = run(whole, state=state)
        assert [state.iteration for state in resumed] == [3]
        assert rows[0]["result"] == "accepted"
        assert resumed[-1].source.running_return.shape == (3,)


def test_a_finished_run_goes_on_only_with_more_steps() -> None:
    config = configure(iterations=2)
    _, states, _ = run(config)
    assert run(config, state=states[-1])[1] == []
    longer = dataclasses.replace(config, steps=config.steps + 1)
    assert [state.iteration for state in run(longer, state=states[-1])[1]] == [3]


def test_progress_gives_the_state_after_its_own_iterations() -> None:
    """Asked later, too."""
    config = configure(iterations=5)
    agent = trpo.make_agent(WALK, config)
    kept = [
        (progress.metrics[0][-1], progress.states)
        for progress in advance(WALK, [agent], [TrainingState(agent.learner)], longest=1)
    ]
    _, states, _ = run(config)
    for (row, get), state in zip(kept, states, strict=True):
        (late,) = get()
        assert bits(late.learner) == bits(state.learner)
        assert (late.iteration, late.steps, late.episodes) == (row["iteration"], row["steps"], state.episodes)


# ---------------------------------------------------------------- compilation

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILED.append(event) if "backend_compile" in event or "jaxpr_trace" in event else None
)


def test_only_the_first_chunk_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)
    env, config = Walk(), configure(iterations=12)
    agent = trpo.make_agent(env, config)
    counts, traced, chunks = [], [], []
    COMPILED.clear()
    for progress in advance(env, [agent], [TrainingState(agent.learner)], longest=4):
        progress.states()
        counts.append(len(COMPILED))
        traced.append(env.traced)
        chunks.append(len(progress.metrics[0]))
        assert progress.iteration == sum(chunks)
    assert chunks == [1, 2, 4, 4, 1]  # the same program
    assert counts[0] > 0
    assert traced[0] > 0
    assert counts == [counts[0]] * len(counts)
    assert traced == [traced[0]] * len(traced)


def test_no_chunk_is_longer_than_there_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)
    monkeypatch.setattr(device_training, "ROWS", 3)
    config = configure(iterations=8)
    agent = trpo.make_agent(WALK, config)
    said: list[str] = []
    going = advance(WALK, [agent], [TrainingState(agent.learner)], tell=said.append)
    assert [len(progress.metrics[0]) for progress in going] == [1, 2, 3, 2]
    assert [text.split(";")[0] for text in said] == ["on cpu: batch of 4 environments × 5 steps"]


OTHER_FLOATS = {
    "seed": 5,
    "rule": trpo.RuleConfig(max_kl=0.5, damping=0.3, cg_tolerance=0.1, backtrack_ratio=0.3),
    "discount": 0.5,
    "gae_lambda": 0.25,
    "value": trpo.ValueConfig(hidden=(8,), minibatch=8, epochs=2, learning_rate=0.5),
}


def test_other_floats_use_the_same_program() -> None:
    run(configure())
    programs, changed = device_training._compile.cache_info().misses, configure(**OTHER_FLOATS)
    agent = trpo.make_agent(WALK, changed)
    traced = WALK.traced
    rows = [row for _, row in trpo.iterations(WALK, agent, changed)]
    assert rows[0]["max_kl"] == 0.5
    assert device_training._compile.cache_info().misses == programs
    # Nothing but the shapes of a batch and the first episodes' beginning looks at the environment again.
    assert WALK.traced - traced <= 8


def test_other_floats_compile_nothing() -> None:
    run(configure())
    changed = configure(**OTHER_FLOATS)
    agent = trpo.make_agent(WALK, changed)
    COMPILED.clear()
    list(trpo.iterations(WALK, agent, changed))
    assert [event for event in COMPILED if "backend_compile" in event] == []


# ---------------------------------------------------------------- what goes wrong


class Failing(Walk):
    """Its episodes never end, and in their ``when``-th step something is wrong in some environments."""

    def __init__(self, what: str, when: int):
        super().__init__()
        self.what, self.when = what, when

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        state, seen = super().step(state, action, key)
        bad = (state[1] == self.when) & (state[0] > -0.5)
        reward, observation = seen.reward, seen.observation
        if self.what == "reward":
            reward = jnp.where(bad, jnp.nan, reward)
        else:
            observation = jnp.where(bad, 1e25, observation)
        return state, Step(observation, reward, jnp.asarray(False), jnp.asarray(False))


NAN = Failing("reward", 22)
HUGE = Failing("observation", 12)


def test_a_nan_stops_the_run_with_the_parameters_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps each: in the fifth iteration, which is the second of a chunk of four."""
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)  # chunks of 1, 2, 4 iterations on a slow machine, too
    config = configure(iterations=20)
    agent = trpo.make_agent(NAN, config)
    rows: list[Any] = []

    def go() -> None:
        for progress in advance(NAN, [agent], [TrainingState(agent.learner)]):
            rows.extend(progress.metrics[0])

    with pytest.raises(NonFiniteBatchError, match=r"^iteration 5: .*NaN or infinite") as caught:
        go()
    state = caught.value.state
    _, states, good = run(dataclasses.replace(config, steps=4 * config.batch), NAN)
    assert (state.iteration, state.steps) == (5, 100)
    assert bits(state.learner) == bits(states[-1].learner)
    assert [untimed(row) for row in rows[:-1]] == [untimed(row) for row in good]
    assert (rows[-1]["iteration"], rows[-1]["result"]) == (5, "nonfinite_batch")
    # Going on from there works: new episodes, with other beginnings.
    assert int(state.source.running_length.max()) == 0
    np.testing.assert_array_equal(state.source.envs.env[1], 0)
    _, after, more = run(dataclasses.replace(config, steps=7 * config.batch), NAN, state)
    assert [row["result"] for row in more] == ["accepted"] * 2
    assert len({float(x) for x in state.source.envs.observation[:, 0]}) == 4
    assert bits(after[-1].learner) != bits(state.learner)


def test_a_run_that_stops_has_the_metrics_of_all_its_iterations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)
    config = configure(iterations=20)
    with pytest.raises(trpo.RunFailed, match=r"iteration 5: .*on_nonfinite=stop.*checkpoint of iteration 5") as caught:
        trpo.train(NAN, config=config, out=tmp_path / "r", quiet=True)
    assert f"trpo resume {tmp_path / 'r'}" in str(caught.value)
    assert [row["iteration"] for row in read_metrics(tmp_path / "r")] == [1, 2, 3, 4, 5]
    trpo.resume(tmp_path / "r", env=NAN, steps=6 * config.batch, quiet=True)
    assert [row["iteration"] for row in read_metrics(tmp_path / "r")] == [1, 2, 3, 4, 5, 6]


def test_a_huge_observation_is_learned_from_like_any_other() -> None:
    """1e25, whose square is out of range: the run goes on, and statistics that have seen it are finite."""
    _, states, rows = run(configure(iterations=5), HUGE)
    assert [row["result"] for row in rows] == ["accepted"] * 5
    (statistics,) = jax.tree.leaves(states[-1].learner.observations, is_leaf=lambda x: hasattr(x, "std"))
    assert float(statistics.std.max()) > 1e23
    assert np.isfinite(statistics.std).all()


def test_a_batch_that_is_not_finite_is_skipped_if_so_configured() -> None:
    config = configure(iterations=5, on_nonfinite="continue")
    _, states, rows = run(config, Failing("reward", 12))
    assert [row["result"] for row in rows] == ["accepted", "accepted", "nonfinite_batch", "accepted", "accepted"]
    assert bits(states[2].learner) == bits(states[1].learner)  # statistics and value function, too
    assert bits(states[3].learner.policy) != bits(states[2].learner.policy)
    assert bits(states[3].learner.value) != bits(states[2].learner.value)
    ages = [np.asarray(state.source.envs.env[1]) for state in states]
    np.testing.assert_array_equal(ages, np.repeat([[5], [10], [0], [5], [10]], 4, axis=1))
    starts = [np.asarray(state.source.envs.observation[:, 0]) for state in states]
    assert not np.isin(starts[2], starts[1]).any()
    assert rows[3]["value_loss"] is None  # there was nothing to fit
    for row in rows:
        json.dumps(row, allow_nan=False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].learner))


class Abyss(Walk):
    """Every episode ends in its seventh step, where there is nothing more to see: no return depends on that."""

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        state, seen = super().step(state, action, key)
        end = state[1] == 7
        return state, Step(jnp.where(end, jnp.nan, seen.observation), seen.reward, end, jnp.asarray(False))


@pytest.mark.parametrize("on_nonfinite", ["continue", "stop"])
def test_what_comes_after_an_end_must_be_finite_too(on_nonfinite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value function could be fitted, and still all of the batch is given up, and the episodes are."""
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)
    env, config = Abyss(), configure(iterations=7, on_nonfinite=on_nonfinite)
    agent = trpo.make_agent(env, config)
    good, bad, chunks = "accepted", "nonfinite_batch", []

    def go() -> None:
        for progress in advance(env, [agent], [TrainingState(agent.learner)]):
            chunks.append([row["result"] for row in progress.metrics[0]])

    if on_nonfinite == "stop":
        with pytest.raises(NonFiniteBatchError, match=r"^iteration 2: .*NaN or infinite"):
            go()
        assert chunks == [[good], [bad]]
        return
    go()
    assert chunks == [[good], [bad, good], [bad, good, bad, good]]  # new episodes each time; the chunk is not left
    _, states, _ = run(dataclasses.replace(config, steps=2 * config.batch), env)
    assert bits(states[1].learner) == bits(states[0].learner)


def test_a_refused_value_fit_is_skipped_if_so_configured() -> None:
    """A learning rate that sends V to infinity: the policy has learned, V has not, and new episodes begin."""
    value = trpo.ValueConfig(hidden=(), learning_rate=1e38, minibatch=8)
    agent, states, rows = run(configure(iterations=2, value=value, on_nonfinite="continue"))
    assert [row["result"] for row in rows] == ["accepted"] * 2
    assert bits(states[-1].learner.value) == bits(agent.learner.value)
    assert bits(states[-1].learner.policy) != bits(agent.learner.policy)
    for state in states:
        assert not np.asarray(state.source.running_length).any()


class Late(Walk):
    """Its episodes never end, and the first five steps are worth nothing."""

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        state, seen = super().step(state, action, key)
        reward = jnp.where(state[1] > 5, seen.reward, 0.0)
        return state, Step(seen.observation, reward, jnp.asarray(False), jnp.asarray(False))


@pytest.mark.parametrize("rates", [(1e38,), (1e-3, 1e38)], ids=["alone", "beside a sound one"])
def test_a_refused_value_fit_stops_the_chunk(rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second iteration, the first of a chunk of two: until a reward is seen, V = 0 has nothing to learn."""
    monkeypatch.setattr(device_training, "INTERVAL", 1e9)
    env, found = Late(), []
    values = [trpo.ValueConfig(hidden=(), learning_rate=rate, minibatch=8) for rate in rates]
    agents = [trpo.make_agent(env, configure(iterations=7, value=value)) for value in values]
    blank = [dataclasses.replace(a.learner, value=jax.tree.map(jnp.zeros_like, a.learner.value)) for a in agents]

    def go() -> None:
        for progress in advance(env, agents, [TrainingState(learner) for learner in blank]):
            found.append([[row["iteration"] for row in rows] for rows in progress.metrics])

    with pytest.raises(NonFiniteBatchError, match=r"iteration 2: its value fit gave a NaN") as caught:
        go()
    assert found == [[[1]] * len(rates), [[2]] * len(rates)]
    assert [state.iteration for state in caught.value.states] == [2] * len(rates)


@pytest.mark.parametrize("stop", [False, True])
def test_every_run_of_a_chunk_has_records_of_its_own(stop: bool) -> None:
    """Three iterations of two runs that go on; the second run's last value fit failed."""

    def numbers(offset: float) -> np.ndarray:  # [iteration, run]
        return offset + np.arange(10.0 * 3).reshape(3, 10)[:, :2]

    scalars = {f.name: numbers(i) for i, f in enumerate(dataclasses.fields(UpdateInfo))} | {"result": np.ones((3, 2))}
    sound, fits = np.ones((3, 2), bool), np.array([[True, True], [True, True], [True, False]])
    sound[1, 0] = False
    ended = [np.full((3, 2), 4), np.array([[0, 0], [2, 1], [0, 4]]), numbers(0.5), numbers(3)]
    real, whole, yes = jnp.zeros(()), jnp.asarray(0), jnp.asarray(True)
    wholes = {"result", "cg_iterations", "backtracks", "accepted_updates"}
    update = UpdateInfo(**{name: whole if name in wholes else real for name in scalars})
    episodes = EpisodeTotals(whole, whole, real, whole)
    one = Row(IterationInfo(update, real, None, yes), ValueInfo(real, yes), episodes, whole)
    steps = np.array([[20, 30], [20, 10], [20, 20]])
    leaves = [*scalars.values(), numbers(0.25), sound, numbers(100), fits, *ended, steps]
    rows = jax.tree.structure(one).unflatten(leaves)
    loop: Any = object.__new__(DeviceLoop)
    loop.configs = [configure(seed=seed) for seed in (8, 9)]
    learner = trpo.make_agent(WALK, loop.configs[0]).learner
    loop.states = [TrainingState(learner, 5 * m, 70 * m, 11.0 * m) for m in (1, 2)]
    loop.rules = [trpo.TRPO(max_kl=0.25), trpo.TRPO(max_kl=0.5)]
    loop.episodes = [RecentEpisodes({"episodes": 6}), RecentEpisodes()]
    loop._fits = [ValueInfo(real + 7.0, yes), None]
    loop.setup = SimpleNamespace(stacked=True, stop=stop, source=SimpleNamespace(spec=WALK.spec))
    metrics, bad = loop._records(rows, 3, 6.0)
    assert [len(records) for records in metrics] == [3, 3]  # one that stops the run has its record, too
    assert bad == ("seed 8, iteration 7: " + Result.NONFINITE_BATCH.reason + "; environment walk" if stop else None)
    for m, records in enumerate(metrics):
        for i, row in enumerate(records):
            assert (row["iteration"], row["steps"]) == (5 * (m + 1) + i + 1, 70 * (m + 1) + steps[: i + 1, m].sum())
            assert (row["seconds"], row["steps_per_second"]) == (11 * (m + 1) + 2 * (i + 1), steps[i, m] / 2)
            assert row["collect_seconds"] is None
            assert row["max_kl"] == (0.25, 0.5)[m]
            assert row["mean_kl"] == scalars["mean_kl"][i, m]
            assert row["explained_variance"] == 10 * i + m + 0.25
            assert row["episodes"] == (6, 0)[m] + 4 * (i + 1)
        assert [row["value_loss"] for row in records] == [[7.0, 100.0, None], [None, 101.0, 111.0]][m][: len(records)]
    assert [row["episode_return"] for row in metrics[1][:2]] == [None, 11.5]
    assert [row["episode_length"] for row in metrics[0][:2]] == [None, 13 / 2]
    for m, state in enumerate(loop.states):
        assert (state.iteration, state.steps, state.seconds) == (5 * m + 8, 70 * m + 130, 11 * m + 17)
        assert state.episodes == loop.episodes[m].to_json()
        assert state.value_fit is loop._fits[m]
        assert state.value_fit.loss == 120 + m
    sound[1, 0] = True
    _, bad = loop._records(rows, 3, 6.0)
    assert bad == ("seed 9, iteration 16: its value fit gave a NaN or infinite loss and was refused" if stop else None)


def train_probe(out: Path, **changes: Any) -> None:
    trpo.train("jax-probe:both", config=dataclasses.replace(configure(), **changes), out=out, quiet=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 19}, ["steps=19", "env.count × fragment = 4 × 5 = 20"]),
        ({"env": trpo.EnvConfig(count=4, workers=2)}, ["env.workers=2", "need no processes; use 0"]),
        ({"env": trpo.EnvConfig(count=4, devices=64)}, ["env.devices=64: there are", "(cpu)"]),
        (
            {"env": trpo.EnvConfig(count=10**9), "steps": 10**10},
            ["env.count=1000000000", "fragment=5", "GiB", "use fewer"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_one_line(
    changes: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(*_: Any) -> None:
        raise AssertionError("refused only after compiling")

    monkeypatch.setattr(device_training, "_compile", not_yet)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are below)
        train_probe(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("runs", [1, 3])
def test_a_batch_beyond_memory_is_refused_by_its_true_size(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two observations of two floats, an action, a reward and three flags are 27 bytes, for each step of each run."""
    config = configure(env=trpo.EnvConfig(count=1000), fragment=100)
    least = 27 * 100 * 1000 * runs
    agent = trpo.make_agent(WALK, config)
    monkeypatch.setattr(device_training, "capacity", lambda: least)
    with pytest.raises(ValueError, match=r"takes at least \d\.\d MiB of memory") as caught:
        setup_for(source_of(WALK), agent, runs)
    said = float(str(caught.value).split("at least ")[1].split()[0])
    assert least / 2**20 < said < 1.2 * least / 2**20  # the environments' own state is not much


def test_what_the_program_needs_is_refused_too_and_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(env=trpo.EnvConfig("walk", count=50), fragment=100)
    agent = trpo.make_agent(WALK, config)
    monkeypatch.setattr(device_training, "capacity", lambda: 2**40)
    loop = DeviceLoop(source_of(WALK), [agent], [TrainingState(agent.learner)])
    learned = sum(leaf.nbytes for leaf in jax.tree.leaves(agent.learner))
    assert learned + 27 * 50 * 100 < loop.memory < 2**26  # the batch is in the memory that it works in
    assert loop.describe().startswith("on cpu: batch of 50 environments × 100 steps; memory ")
    assert loop.describe().endswith("of 1024.00 GiB")
    batch_alone = 27 * 50 * 100 * 5 // 4
    monkeypatch.setattr(device_training, "capacity", lambda: batch_alone)
    device_training._compile.cache_clear()
    with pytest.raises(ValueError, match=r"the batch needs at least \d+\.\d MiB of memory"):
        DeviceLoop(source_of(WALK), [agent], [TrainingState(agent.learner)])
    assert device_training._compile.cache_info().currsize == 0


def test_the_machine_s_memory_is_known() -> None:
    limit = parallel.capacity()
    assert limit is not None
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < limit * jax.local_device_count() <= whole  # less where a container has a limit


# ---------------------------------------------------------------- metrics


def test_metrics_are_the_host_s() -> None:
    host, device = (runs[0] for runs in curves().values())
    for k, (theirs, ours) in enumerate(zip(host, device, strict=True)):
        assert list(ours) == list(theirs)
        assert json.loads(json.dumps(ours, allow_nan=False)) == ours
        assert (ours["iteration"], ours["steps"]) == (k + 1, 128 * (k + 1)) == (theirs["iteration"], theirs["steps"])
        for name in ours.keys() - {"collect_seconds"}:  # which the device cannot tell
            assert type(ours[name]) is type(theirs[name]), name
        assert ours["episodes"] == 128 * (k + 1)
    assert device[0]["value_loss"] is None
    assert device[1]["value_loss"] > 0
    assert run(configure(iterations=1))[2][0]["std"] == pytest.approx(0.6)


def test_every_update_stays_in_the_trust_region() -> None:
    _, rows = in_chunks(configure(iterations=40, rule=trpo.RuleConfig(max_kl=0.02, damping=1e-3)), 256)
    assert len(rows) == 40
    for row in rows:
        assert 0 <= row["mean_kl"] <= row["max_kl"] == pytest.approx(0.02)
    assert max(row["mean_kl"] for row in rows) > 0.01
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_returns_are_those_of_the_latest_episodes() -> None:
    """Recomputed from rewards: over the latest iterations that together saw the end of a hundred episodes.

    Every iteration is collected a second time, from the state that the run had before it.
    """
    config = configure(iterations=60)
    agent, states, rows = run(config)
    pieces = Pieces(WALK, config)
    before = [(agent.learner, pieces.begin())] + [(state.learner, state.source) for state in states[:-1]]
    trajectories = [pieces.collect(*pair, k)[1] for k, pair in enumerate(before)]
    total, age = np.zeros(4), np.zeros(4, int)
    ended: list[list[tuple[float, int]]] = []
    used = []
    for trajectory, row in zip(trajectories, rows, strict=True):
        here = []
        for t in range(config.fragment):
            total, age = total + trajectory.reward[t], age + 1
            for i in np.flatnonzero(trajectory.terminated[t] | trajectory.truncated[t]):
                here.append((total[i], age[i]))
                total[i], age[i] = 0.0, 0
        ended.append(here)
        assert row["episodes"] == sum(map(len, ended))
        latest: list[tuple[float, int]] = []
        for some in reversed(ended):
            if len(latest) >= 100:
                break
            latest += some
        used.append(len(latest))
        if not latest:
            assert row["episode_return"] is row["episode_length"] is None
            continue
        assert row["episode_return"] == pytest.approx(np.mean([r for r, _ in latest]), rel=1e-5)
        assert row["episode_length"] == pytest.approx(np.mean([n for _, n in latest]))
    assert used[-1] < sum(map(len, ended)) - 50  # the window has moved
    assert len({row["episode_length"] for row in rows}) > 10  # and episodes are not all alike
