"""Evaluation over whole episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from trpo.envs import EnvironmentFailure, HostEnv, RestartableEnv
from trpo.envs.meeting import not_finite
from trpo.policies.function import to_numpy
from trpo.policies.protocol import PolicyFunction
from trpo.programs import compiled
from trpo.rollout.acting import HostPolicy, noise_of
from trpo.rollout.host import replaced, require_allowed, step_all
from trpo.rollout.trajectory import Actor

NOISE = 200
"""Steps whose noise is drawn at once."""
MAX_STEPS = 30_000
"""Steps after which an episode is cut unless another number is given: more than the 27,000 of Atari games have."""


@partial(compiled, static=3)
def _noise(policy: PolicyFunction, count: int, leading: tuple[int, ...], actor: Actor, key: Any) -> Any:
    return noise_of(policy, actor, count, leading, key)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted returns of raw rewards, one for each episode."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    max_steps: int = MAX_STEPS
    """Steps after which an episode that had not ended was cut."""
    cut: int = 0
    """Episodes that were; their returns are those until then."""

    @property
    def mean_return(self) -> float:
        """Mean over episodes."""
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """Population standard deviation over episodes."""
        return float(np.std(self.returns))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as ``trpo evaluate --json`` prints it."""
        return {
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "max_steps": self.max_steps,
            "cut": self.cut,
        }


def whole_episodes(
    envs: HostEnv,
    policy: HostPolicy,
    episodes: int,
    seed: int,
    noise: Callable[[int], Any] | None = None,
    max_steps: int = MAX_STEPS,
) -> EvaluationResult:
    """Run exactly ``episodes`` whole episodes, a share in each environment that is fixed beforehand.

    ``noise`` gives the standard noise of a step by its number; None takes the distributions' modes. Episodes that have
    not ended after ``max_steps`` are cut, and new ones begin.
    """
    count = envs.count
    quota = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    carry, reset = policy.start(count), np.ones(count, bool)
    observation = envs.reset([int(s) for s in np.random.SeedSequence([seed, 0xE7A1]).generate_state(count)])
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    total, length, step, cuts = np.zeros(count), np.zeros(count, int), 0, 0
    missing = quota.copy()
    while (missing > 0).any():
        _require_finite(envs, observation, missing > 0)
        if envs.spec.masked:
            require_allowed(envs, observation, missing > 0)
        action, carry = policy(observation, carry, reset, None if noise is None else noise(step))
        after = step_all(envs, action)
        total += np.where(after.valid, after.reward, 0.0)
        length += after.valid
        done = after.terminated | after.truncated
        due = ~done & (missing > 0) & (length >= max_steps)
        for i in np.flatnonzero(done | due):
            returns[i].append(float(total[i]))
            lengths[i].append(int(length[i]))
            total[i], length[i] = 0.0, 0
            missing[i] -= 1
        observation, step, cuts = after.observation, step + 1, cuts + int(due.sum())
        if (again := due & (missing > 0)).any():
            observation = _restarted(envs, observation, np.flatnonzero(again), max_steps)
        reset = done | due | ~after.valid
    kept = [(r[:q], n[:q]) for r, n, q in zip(returns, lengths, quota, strict=True)]
    return EvaluationResult(
        returns=tuple(x for r, _ in kept for x in r),
        lengths=tuple(x for _, n in kept for x in n),
        max_steps=max_steps,
        cut=cuts,
    )


def _restarted(envs: HostEnv, observation: Any, which: np.ndarray, max_steps: int) -> Any:
    if not isinstance(envs, RestartableEnv):
        raise EnvironmentFailure(
            f"environment {envs.spec.id}: an episode has not ended after max_steps={max_steps}, and without "
            f"`restart` no other can begin; evaluate at most {envs.count} episodes"
        )
    return replaced(observation, which, envs.restart(which))


def _require_finite(envs: HostEnv, observation: Any, going: np.ndarray) -> None:
    """Refuse what no policy can act on; environments that have run their share may show what they like."""
    space = envs.spec.observation
    if bad := not_finite(space, observation):
        bad = not_finite(space, space.map(lambda leaf, x: x[going], observation))
    if bad:
        raise EnvironmentFailure(f"environment {envs.spec.id} gave an observation that is not finite: {bad}")


def drawn_noise(policy: PolicyFunction, actor: Actor, count: int, seed: int) -> Callable[[int], Any]:
    """Return the noise of step 0, 1, 2, …, which must be asked for in this order: it is drawn for many at once."""
    key, drawn = jax.random.key(seed), None

    def noise(step: int) -> Any:
        nonlocal drawn
        if step % NOISE == 0:
            drawn = to_numpy(_noise(policy, count, (NOISE,), actor, jax.random.fold_in(key, step)))
        return jax.tree.map(lambda rows: rows[step % NOISE], drawn)

    return noise
