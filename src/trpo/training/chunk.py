"""Whole iterations over environments in JAX, many at a time, as one compiled function of one run or of several.

An iteration is the host loop's, with the rollout inside: the same stages of the learner.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PRNGKeyArray

from trpo.rollout.device import DeviceRollout, DeviceSource
from trpo.rollout.episodes import EpisodeTotals
from trpo.rollout.vine import collect as collect_vine
from trpo.rollout.vine import vine_keys
from trpo.training.layout import Layout
from trpo.training.learner import Hyper, IterationInfo, Learner, Program, improve, prepare, refit, value_now
from trpo.trees import tree_where
from trpo.value_fits import ValueInfo

ROWS = 256
"""The most iterations in a chunk."""


class Member(eqx.Module):
    """One run on the device."""

    learner: Learner
    rollout: DeviceRollout
    iteration: Int[Array, "*run"]


class Row(eqx.Module):
    """What one iteration tells."""

    info: IterationInfo
    value: ValueInfo
    episodes: EpisodeTotals
    steps: Int[Array, ""]
    """Environment steps that it took, branches included."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything static about a training function."""

    source: DeviceSource
    program: Program
    stacked: bool
    """Whether there is a leading axis of members."""
    stop: bool
    """Whether to leave the chunk at a batch or fit that is not finite."""
    layout: Layout


def iterate(setup: Setup, hyper: Hyper, key: PRNGKeyArray, member: Member) -> tuple[Member, Row]:
    """Steps 1 to 8 of one iteration, pure; the run's ``key`` never changes."""
    learner, source, program = member.learner, setup.source, setup.program
    actor, noise, fit_key = prepare(program, learner.policy, learner.observations, key, member.iteration)
    noise = setup.layout.constrain_batch(noise)
    branches, given = None, (program.policy, actor, member.rollout, noise)
    if program.vine is None:
        rollout, trajectory, episodes = source.collect(*given)
    else:
        value = value_now(program, learner)
        vine = collect_vine(
            source,
            program.vine,
            program.policy,
            actor,
            value,
            member.rollout,
            noise,
            vine_keys(key, member.iteration),
            hyper.discount_at(member.iteration),
            hyper.branch_lambda,
        )
        rollout, trajectory, episodes, branches = vine
    # Keeps the rollout's arithmetic out of the update's. An iteration that is compiled by itself is then the host's bit
    # for bit; inside a chunk the compiler may still order a sum differently, in the last bit.
    trajectory = jax.lax.optimization_barrier(setup.layout.constrain_trajectory(trajectory))
    improved, batch, info = improve(program, hyper, learner, trajectory, member.iteration, branches)
    value, fit = refit(program, hyper, learner.value, batch, fit_key)
    improved = dataclasses.replace(improved, value=tree_where(info.finite, value, learner.value))
    sound = info.finite & fit.finite
    rollout = jax.lax.cond(sound, lambda: rollout, lambda: source.restart(rollout))
    steps = jnp.asarray(trajectory.reward.size if branches is None else trajectory.reward.size + branches.steps)
    return Member(improved, rollout, member.iteration + 1), Row(info, fit, episodes, steps.astype(jnp.int32))


def begin(setup: Setup, learner: Learner, key: PRNGKeyArray) -> Member:
    """Return a run before its first iteration."""
    count, policy = setup.program.count, setup.program.policy
    rollout = setup.source.begin(jax.random.fold_in(key, 0xE27), count, policy.start(count))
    return Member(learner, rollout, jnp.zeros((), jnp.int32))


def run_chunk(
    setup: Setup, hyper: Hyper, keys: Key[Array, "*run"], members: Member, length: Any
) -> tuple[Member, Row, Int[Array, ""]]:
    """Run up to ``length`` ≤ ROWS iterations; return also a row for each and how many there were."""
    run = setup.layout.each_device(functools.partial(_run_chunk, setup), (True, True, True, False), (0, 1, None))
    return run(hyper, keys, members, length)


def _run_chunk(setup: Setup, hyper: Hyper, keys: Key[Array, "*run"], members: Member, length: Array) -> tuple:
    one = functools.partial(iterate, setup)
    step: Callable[..., Any] = one
    if setup.stacked:
        # On a CPU nothing is gained by doing the members' operations together: they are as fast one after the other,
        # and then each member's arithmetic is that of a run alone.
        on_cpu = jax.default_backend() == "cpu"
        step = (lambda *stacked: jax.lax.map(lambda member: one(*member), stacked)) if on_cpu else jax.vmap(one)
    row = jax.eval_shape(step, hyper, keys, members)[1]
    rows = jax.tree.map(lambda leaf: jnp.zeros((ROWS, *leaf.shape), leaf.dtype), row)

    def going(carry: tuple) -> Array:
        done, _, _, sound = carry
        return (done < length) & sound

    def body(carry: tuple) -> tuple:
        done, members, rows, _ = carry
        members, row = step(hyper, keys, members)
        rows = jax.tree.map(lambda buffer, leaf: buffer.at[done].set(leaf), rows, row)
        sound = jnp.asarray(True)
        if setup.stop:
            sound = setup.layout.everywhere(jnp.all(row.info.finite & row.value.finite))
        return done + 1, members, rows, sound

    start = (jnp.zeros((), jnp.int32), members, rows, jnp.asarray(True))
    done, members, rows, _ = jax.lax.while_loop(going, body, start)
    return members, rows, done
