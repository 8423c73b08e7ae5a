"""Evaluation over whole episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trpo.envs import EnvironmentFailure, HostEnv
from trpo.envs.meeting import not_finite
from trpo.policies.function import to_numpy
from trpo.policies.protocol import PolicyFunction
from trpo.rollout.acting import HostPolicy, noise_of
from trpo.rollout.trajectory import Actor

NOISE = 200
"""Steps whose noise is drawn at once."""
_noise = jax.jit(noise_of, static_argnums=(0, 2, 3))


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted returns of raw rewards, one for each episode."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

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
        }


def whole_episodes(
    envs: HostEnv, policy: HostPolicy, episodes: int, seed: int, noise: Callable[[int], Any] | None = None
) -> EvaluationResult:
    """Run exactly ``episodes`` whole episodes, a share in each environment that is fixed beforehand.

    ``noise`` gives the standard noise of a step by its number; None takes the distributions' modes.
    """
    count = envs.count
    quota = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    carry, reset = policy.start(count), np.ones(count, bool)
    observation = envs.reset([int(s) for s in np.random.SeedSequence([seed, 0xE7A1]).generate_state(count)])
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    total, length, step = np.zeros(count), np.zeros(count, int), 0
    while (going := np.array([len(r) < q for r, q in zip(returns, quota, strict=True)])).any():
        _require_finite(envs, observation, going)
        action, carry = policy(observation, carry, reset, None if noise is None else noise(step))
        after = envs.step(action)
        total += np.where(after.valid, after.reward, 0.0)
        length += after.valid
        for i in np.flatnonzero(after.terminated | after.truncated):
            returns[i].append(float(total[i]))
            lengths[i].append(int(length[i]))
            total[i], length[i] = 0.0, 0
        observation, step = after.observation, step + 1
        reset = after.terminated | after.truncated | ~after.valid
    kept = [(r[:q], n[:q]) for r, n, q in zip(returns, lengths, quota, strict=True)]
    return EvaluationResult(tuple(x for r, _ in kept for x in r), tuple(x for _, n in kept for x in n))


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
            drawn = to_numpy(_noise(policy, actor, count, (NOISE,), jax.random.fold_in(key, step)))
        return jax.tree.map(lambda rows: rows[step % NOISE], drawn)

    return noise
