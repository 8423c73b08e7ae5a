"""Evaluation over whole episodes (L7)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from trpo.agent import Agent
from trpo.jax_envs import make_envs
from trpo.rollout import HostPolicy, noise_of

NOISE = 200
"""Steps whose noise is drawn at once."""
_noise = jax.jit(noise_of, static_argnums=(0, 2, 3, 4))


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


def evaluate(
    agent: Agent, env: Any = None, episodes: int = 10, deterministic: bool = True, seed: int = 0, count: int = 32
) -> EvaluationResult:
    """Run exactly ``episodes`` whole episodes with frozen statistics.

    Up to ``count`` environments are stepped together. Environment i runs a share of episodes that is fixed beforehand:
    taking whichever end first would favour short episodes. ``env`` is by default what the agent was made for.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: must be ≥ 1; 10 is usual")
    count = -(-episodes // -(-episodes // count))  # no more than shares of equal size need
    env = env if env is not None else agent.env if agent.env is not None else agent.spec.id
    envs = make_envs(env, count, 0, agent.config.env.rescale_actions)
    try:
        quota = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
        actor, size = agent.actor(), agent.spec.observation_size
        policy = HostPolicy(agent.policy, actor, size)
        seeds = [int(s) for s in np.random.SeedSequence([seed, 0xE7A1]).generate_state(count)]
        observation = envs.reset(seeds)
        returns: list[list[float]] = [[] for _ in range(count)]
        lengths: list[list[int]] = [[] for _ in range(count)]
        total, length = np.zeros(count), np.zeros(count, int)
        key, step = jax.random.key(seed), 0
        while any(len(r) < q for r, q in zip(returns, quota, strict=True)):
            if not deterministic and step % NOISE == 0:
                noise = np.asarray(_noise(agent.policy, actor, count, size, NOISE, jax.random.fold_in(key, step)))
            action, _ = policy(observation, None if deterministic else noise[step % NOISE])
            after = envs.step(np.asarray(action))
            total += np.where(after.valid, after.reward, 0.0)
            length += after.valid
            for i in np.flatnonzero(after.terminated | after.truncated):
                returns[i].append(float(total[i]))
                lengths[i].append(int(length[i]))
                total[i], length[i] = 0.0, 0
            observation, step = after.observation, step + 1
    finally:
        envs.close()
    kept = [(r[:q], n[:q]) for r, n, q in zip(returns, lengths, quota, strict=True)]
    return EvaluationResult(tuple(x for r, _ in kept for x in r), tuple(x for _, n in kept for x in n))
