"""Vine rollouts of host environments, fragments of which may be done by several processes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np

from trpo.envs import SplitEnv
from trpo.envs.host.gymnasium import GymnasiumEnvs
from trpo.envs.host.saving import UnsavableError
from trpo.envs.masks import MASK
from trpo.rollout.acting import Act, HostPolicy, numpy_act
from trpo.rollout.host import HostSource, replaced, require_allowed, run_fragment, share_of
from trpo.rollout.trajectory import Actor, Seat, Trajectory


class Drawn(eqx.Module):
    """What is random about an iteration's branches, but for the environments."""

    time: Any
    """When the roots are met, ``[strata, env]``."""
    noise: Any
    """The policy's, of every step of a branch, ``[length, strata, env, …]``: the same for all K."""
    first: Any = None
    """The first actions, ``[strata, env, K, …]``, or else"""
    first_noise: Any = None
    """the policy's noise for them, ``[K, strata, env, …]``."""

    def of(self, rows: slice) -> Drawn:
        """Return the share of some environments."""
        time, first = share_of((self.time, self.first), rows, 1)
        noise, first_noise = share_of((self.noise, self.first_noise), rows, 2)
        return Drawn(time, noise, first, first_noise)


class Outcome(eqx.Module):
    """What the branches met."""

    action: Any
    """First actions, ``[strata, env, K, …]``."""
    terminated: Any
    """Whether a branch ended in an absorbing state, ``[strata, env, K]``."""
    reward: Any
    """``[length, strata, env, K]``, 0 after a branch's end."""
    alive: Any
    """``[length, strata, env, K]``: whether that step was taken."""
    following: Any
    """What followed each step, ``[length, strata, env, K, …]``; only the last one of each branch, with an axis of
    one, where no more is needed."""


def require_branching(source: Any, policy: HostPolicy) -> None:
    """Raise ValueError unless states of a source's environments, begun, can be put back where the policy can act."""
    envs = getattr(source, "envs", None)
    try:
        if isinstance(envs, SplitEnv):
            envs.call(GymnasiumEnvs.require_savable, [()] * len(envs.shares))
        elif isinstance(source, HostSource) and isinstance(envs, GymnasiumEnvs):
            envs.require_savable()
        else:
            raise UnsavableError(f"{type(source if envs is None else envs).__name__} cannot be saved")
    except UnsavableError as error:
        raise ValueError(
            f"rollout='vine': branches begin in states of environment {source.spec.id!r} that are put back, but "
            f"{error}; use rollout='single-path'"
        ) from error
    if isinstance(envs, SplitEnv) and not policy.can_travel:
        raise ValueError("rollout='vine': this policy does not act in NumPy, so only here; set env.workers=0")


def collect_vine(
    source: HostSource, policy: HostPolicy, noise: Any, drawn: Drawn, every_step: bool
) -> tuple[Trajectory, Outcome]:
    """Run a fragment as :meth:`HostSource.collect` does, and then branches from a share of its states.

    Each process follows the branches of its own environments. ``every_step``: whether it must be known what followed
    each step of a branch.
    """
    envs: Any = source.envs
    if isinstance(envs, SplitEnv):
        arguments = [
            (policy.parts, share_of(source.seat, rows, 0), share_of(noise, rows, 1), drawn.of(rows), every_step)
            for rows in envs.shares
        ]
        trajectories, seats, outcomes = zip(*envs.call(run_vine, arguments), strict=True)
        trajectory = source.join(trajectories, seats)
        first, later = (
            jax.tree.map(lambda *x: np.concatenate(x, axis), *map(part, outcomes))  # noqa: B023
            for axis, part in ((1, lambda o: (o.action, o.terminated)), (2, lambda o: (o.reward, o.alive, o.following)))
        )
        outcome = Outcome(*first, *later)
    else:
        acting: Any = policy.parts if policy.in_numpy else policy
        trajectory, source.seat, outcome = run_vine(envs, acting, source.seat, noise, drawn, every_step)
    source.episodes.add(trajectory.reward, trajectory.terminated | trajectory.truncated, trajectory.valid)
    return trajectory, outcome


def run_vine(
    envs: GymnasiumEnvs, policy: tuple[Any, Actor] | HostPolicy, seat: Seat, noise: Any, drawn: Drawn, every_step: bool
) -> tuple[Trajectory, Seat, Outcome]:
    """Run a fragment and then, from its roots, the branches: what a worker is sent.

    Branches run in the same environments, as many at once as there are, whose own states are put back afterwards.
    """
    act: Act = numpy_act(*policy) if isinstance(policy, tuple) else policy
    keepers, met = envs.keepers(), {}
    due: dict[int, list[tuple[int, int]]] = {}
    for s, i in np.ndindex(drawn.time.shape):
        due.setdefault(int(drawn.time[s, i]), []).append((s, i))

    def before(t: int, at: Seat) -> None:
        for s, i in due.get(t, ()):
            met[s, i] = keepers[i].save(), jax.tree.map(lambda x: np.copy(x[i]), at)  # noqa: B023

    trajectory, seat = run_fragment(envs, act, seat, noise, before=before)
    held = [keeper.save() for keeper in keepers]
    roots = [met[root] for root in np.ndindex(drawn.time.shape)]
    outcome = _branches(envs, act, roots, drawn, every_step)
    for keeper, state in zip(keepers, held, strict=True):
        keeper.restore(state)
    return trajectory, seat, outcome


def _branches(envs: GymnasiumEnvs, act: Act, roots: list, drawn: Drawn, every_step: bool) -> Outcome:
    at: Seat = jax.tree.map(lambda *x: np.stack(x), *(seat for _, seat in roots))
    noise = jax.tree.map(lambda x: x.reshape(len(x), len(roots), *x.shape[3:]), drawn.noise)
    first = _first_actions(act, at, drawn, len(roots))
    length, (_, k) = len(jax.tree.leaves(noise)[0]), jax.tree.leaves(first)[0].shape[:2]
    # Pair p is action p % K of root p // K.
    begun = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), first)
    pairs = len(roots) * k
    reward, alive = np.zeros((length, pairs), np.float32), np.zeros((length, pairs), bool)
    terminated = np.zeros(pairs, bool)
    following = envs.spec.observation.zeros(length if every_step else 1, pairs)
    allowed = np.ones(pairs, bool)
    if envs.spec.masked and drawn.first is not None:
        allowed = at.observation[MASK].ravel() > 0
    for begin in range(0, pairs, envs.count):
        # As many rows as there are environments, so that a compiled policy has one shape to act in.
        rows = np.minimum(np.arange(begin, begin + envs.count), pairs - 1)
        going = np.flatnonzero(allowed[begin : begin + envs.count])
        for j in going:
            envs.keepers()[j].restore(roots[rows[j] // k][0])
        here: Seat = jax.tree.map(lambda x: x[rows // k], at)  # noqa: B023
        observation, carry, reset = here.observation, here.carry, here.reset
        for t in range(length if going.size else 0):
            if envs.spec.masked:
                require_allowed(envs, observation, np.isin(np.arange(envs.count), going))
            now = jax.tree.map(lambda x: x[t, rows // k], noise)  # noqa: B023
            action, carry = act(observation, carry, reset, now)
            action = jax.tree.map(lambda x: x[rows], begun) if t == 0 else action  # noqa: B023
            step = envs.step_some(going, action)
            reset, pair, put = np.zeros_like(reset), rows[going], t if every_step else 0
            reward[t, pair], alive[t, pair], terminated[pair] = step.reward[going], True, step.terminated[going]
            jax.tree.map(lambda column, x: column.__setitem__((put, pair), x[going]), following, step.observation)  # noqa: B023
            # Of those that have ended the last observation stays: the policy must be able to act there.
            observation = replaced(observation, going, jax.tree.map(lambda x: x[going], step.observation))  # noqa: B023
            going = going[~(step.terminated | step.truncated)[going]]
            if not going.size:
                break
    shape = *drawn.time.shape, k
    action, terminated = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (begun, terminated))
    later = jax.tree.map(lambda x: x.reshape(len(x), *shape, *x.shape[2:]), (reward, alive, following))
    return Outcome(action, terminated, *later)


def _first_actions(act: Act, at: Seat, drawn: Drawn, roots: int) -> Any:
    """Return the actions that branches begin with, ``[R, K, …]``."""
    if drawn.first is not None:
        return jax.tree.map(lambda x: np.asarray(x).reshape(roots, *x.shape[2:]), drawn.first)
    each = jax.tree.map(lambda x: x.reshape(len(x), roots, *x.shape[3:]), drawn.first_noise)
    k = len(jax.tree.leaves(each)[0])
    actions = [act(at.observation, at.carry, at.reset, jax.tree.map(lambda x: x[i], each))[0] for i in range(k)]  # noqa: B023
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *actions)
