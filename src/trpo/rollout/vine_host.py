"""Vine rollouts of host environments, fragments of which may be done by several processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from trpo.envs.host.gymnasium import GymnasiumEnvs
from trpo.rollout.acting import Act, numpy_act
from trpo.rollout.host import run_fragment
from trpo.rollout.trajectory import Actor, Drawn, Seat, Trajectory


class Outcome(NamedTuple):
    """What the branches met, ``[strata, env, K]``."""

    action: Any
    reward: np.ndarray
    """``[length, strata, env, K]``, 0 after a branch's end."""
    alive: np.ndarray
    """``[length, strata, env, K]``: whether that step was taken."""
    terminated: np.ndarray
    """Whether the branch ended in an absorbing state."""
    following: Any
    """What followed each step, ``[length, strata, env, K, …]``; the last step's alone with an axis of one, if no more is
    needed."""


def run_vine(
    envs: GymnasiumEnvs, policy: tuple[Any, Actor], seat: Seat, noise: Any, drawn: Drawn, every_step: bool
) -> tuple[Trajectory, Seat, Outcome]:
    """Run a fragment and then, from its roots, the branches; what a worker is sent.

    Branches are run in the same environments, as many at once as there are, whose own states are put back afterwards.
    """
    act = numpy_act(*policy) if isinstance(policy, tuple) else policy
    met: dict[tuple[int, int], tuple[Any, Seat]] = {}
    keepers, strata = envs.keepers(), {}
    for s, i in np.ndindex(drawn.time.shape):
        strata.setdefault(int(drawn.time[s, i]), []).append((s, i))

    def before(t: int, at: Seat) -> None:
        for s, i in strata.get(t, ()):
            met[s, i] = keepers[i].save(), jax.tree.map(lambda x: np.copy(x[i]), at)  # noqa: B023

    trajectory, seat = run_fragment(envs, act, seat, noise, before=before)
    held = [keeper.save() for keeper in keepers]
    try:
        outcome = _branches(envs, act, met, drawn, every_step)
    finally:
        for keeper, state in zip(keepers, held, strict=True):
            keeper.restore(state)
    return trajectory, seat, outcome


def _branches(envs: GymnasiumEnvs, act: Act, met: dict, drawn: Drawn, every_step: bool) -> Outcome:
    shape = drawn.time.shape
    roots = list(np.ndindex(shape))
    at: Seat = jax.tree.map(lambda *x: np.stack(x), *(met[root][1] for root in roots))
    first = _first_actions(act, at, drawn, len(roots))
    k = jax.tree.leaves(first)[0].shape[1]
    length = len(jax.tree.leaves(drawn.noise)[0])
    noise = jax.tree.map(lambda x: x.reshape(length, len(roots), *x.shape[3:]), drawn.noise)
    pairs = [(root, a) for root in range(len(roots)) for a in range(k)]
    reward, alive = np.zeros((length, len(pairs)), np.float32), np.zeros((length, len(pairs)), bool)
    terminated = np.zeros(len(pairs), bool)
    following = envs.spec.observation.zeros(length if every_step else 1, len(pairs))
    for begin in range(0, len(pairs), envs.count):
        block = np.arange(begin, min(begin + envs.count, len(pairs)))
        # As many rows as there are environments, so that a compiled policy has one shape to act in.
        rows = np.array([pairs[min(begin + j, len(pairs) - 1)][0] for j in range(envs.count)])
        for j, pair in enumerate(block):
            envs.keepers()[j].restore(met[roots[pairs[pair][0]]][0])
        here = jax.tree.map(lambda x: x[rows], at)  # noqa: B023
        observation, carry, reset = jax.tree.map(np.copy, here.observation), here.carry, here.reset
        going = np.ones(len(block), bool)
        chosen = jax.tree.map(lambda x: np.stack([x[pairs[p]] for p in block]), first)  # noqa: B023
        for t in range(length):
            action, carry = act(observation, carry, reset, jax.tree.map(lambda x: x[t, rows], noise))  # noqa: B023
            if t == 0:
                for a, c in zip(jax.tree.leaves(action), jax.tree.leaves(chosen), strict=True):
                    a[: len(block)] = c
            reset = np.zeros_like(reset)
            converted = envs.spec.action.to_env(action)
            for j in np.flatnonzero(going):
                one = jax.tree.map(lambda x: x[j], converted)  # noqa: B023
                after, gained, ended, cut = envs.step_from(j, one)
                pair = block[j]
                reward[t, pair], alive[t, pair] = gained, True
                put = t if every_step else 0
                for column, row, now in zip(
                    jax.tree.leaves(following), jax.tree.leaves(after), jax.tree.leaves(observation), strict=True
                ):
                    column[put, pair] = row[0]
                    now[j] = row[0]
                terminated[pair] |= ended
                going[j] = not (ended or cut)
            if not going.any():
                break
    whole = (*shape, k)
    return Outcome(
        action=jax.tree.map(lambda x: x.reshape(*whole, *x.shape[2:]), first),
        reward=reward.reshape(length, *whole),
        alive=alive.reshape(length, *whole),
        terminated=terminated.reshape(whole),
        following=jax.tree.map(lambda x: x.reshape(x.shape[0], *whole, *x.shape[2:]), following),
    )


def _first_actions(act: Act, at: Seat, drawn: Drawn, roots: int) -> Any:
    """Return the actions that branches begin with, ``[R, K, …]``."""
    if not drawn.sampled:
        return jax.tree.map(lambda x: np.asarray(x).reshape(roots, *x.shape[2:]), drawn.first)
    each = jax.tree.map(lambda x: x.reshape(len(x), roots, *x.shape[3:]), drawn.first)
    k = len(jax.tree.leaves(each)[0])
    actions = [act(at.observation, at.carry, at.reset, jax.tree.map(lambda x: x[i], each))[0] for i in range(k)]  # noqa: B023
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *actions)
