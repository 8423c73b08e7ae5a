"""The problem that every contender solves: one batch, one Gaussian policy, and a judge that belongs to none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import trpo
from trpo.envs import Box
from trpo.policies.protocol import PolicyFunction

LAYERS = 3
MAX_KL, DAMPING, CG_ITERATIONS = 0.01, 0.1, 10

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Batch size, network and shape of an environment's spaces."""

    states: int
    width: int
    observation_size: int = 11
    action_size: int = 3

    @property
    def name(self) -> str:
        """How the tables call it."""
        return f"{self.states} states, {self.width}×{self.width}, {self.observation_size}→{self.action_size}"

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Units of each layer."""
        return self.observation_size, self.width, self.width, self.action_size


HOPPER, HALF_CHEETAH = (11, 3), (17, 6)


def make(case: Case) -> Arrays:
    """Draw a batch from a fresh policy; advantages depend on state and action, so there is something to learn.

    Arrays are as PyTorch keeps them (weights ``[out, in]``), in float32.
    """
    rng = np.random.default_rng(0)
    network = trpo.mlp(jax.random.key(0), case.sizes, last_scale=0.1)
    arrays: Arrays = {"log_std": np.full(case.action_size, -0.5, np.float32)}
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        arrays |= {f"W{i}": np.ascontiguousarray(np.asarray(weight).T), f"b{i}": np.asarray(bias)}
    observation = rng.standard_normal((case.states, case.observation_size)).astype(np.float32)
    mean, log_std = gaussian(arrays, observation)
    noise = rng.standard_normal(mean.shape)
    action = (mean + np.exp(log_std) * noise).astype(np.float32)
    wanted = np.tanh(observation @ rng.standard_normal((case.observation_size, case.action_size)))
    advantage = (noise * wanted).sum(1) + rng.standard_normal(case.states)
    arrays |= {
        "observation": observation,
        "action": action,
        "advantage": ((advantage - advantage.mean()) / advantage.std()).astype(np.float32),
        "log_prob": (-(noise**2) / 2 - log_std - np.log(2 * np.pi) / 2).sum(1).astype(np.float32),
    }
    return arrays


def gaussian(arrays: Arrays, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log standard deviation of the policy, in float64 NumPy."""
    x = observation.astype(np.float64)
    for i in range(LAYERS):
        x = x @ arrays[f"W{i}"].astype(np.float64).T + arrays[f"b{i}"]
        x = np.tanh(x) if i < LAYERS - 1 else x
    return x, arrays["log_std"].astype(np.float64)


def judge(before: Arrays, after: Arrays, reference: Arrays) -> dict[str, float]:
    """Say what an update did: mean joint KL(old ‖ new) and gain in nats and advantage units, and its direction.

    The cosine compares the step in parameter space with that of ``reference``.
    """
    (mean, log_std), (new_mean, new_log_std) = (gaussian(a, before["observation"]) for a in (before, after))
    gap = log_std - new_log_std
    z = (mean - new_mean) * np.exp(-new_log_std)
    kl = 0.5 * (np.expm1(2 * gap) - 2 * gap + z * z).sum(1)
    standardised = (before["action"] - new_mean) * np.exp(-new_log_std)
    log_prob = (-(standardised**2) / 2 - new_log_std - np.log(2 * np.pi) / 2).sum(1)
    gain = np.mean(before["advantage"] * np.expm1(log_prob - before["log_prob"]))
    step, other = _step(before, after), _step(before, reference)
    norms = np.linalg.norm(step) * np.linalg.norm(other)
    return {
        "mean_kl": float(kl.mean()),
        "surrogate_gain": float(gain),
        "step_norm": float(np.linalg.norm(step)),
        "cosine": float(step @ other / norms) if norms > 0 else float("nan"),
    }


def _step(before: Arrays, after: Arrays) -> np.ndarray:
    names = [*(f"{kind}{i}" for i in range(LAYERS) for kind in "Wb"), "log_std"]
    return np.concatenate([(after[name].astype(np.float64) - before[name]).ravel() for name in names])


class Ours:
    """Our update on a case: the sampled problem is built, and the NumPy batch handed in, inside the timed call."""

    def __init__(self, arrays: Arrays) -> None:
        policy, self.params = ours(arrays)
        rule = trpo.TRPO(max_kl=MAX_KL, damping=DAMPING, cg_iterations=CG_ITERATIONS)
        n = len(arrays["advantage"])
        self.batch = trpo.Batch(
            observation=arrays["observation"],
            action=arrays["action"],
            advantage=arrays["advantage"],
            weight=np.full(n, 1 / n, np.float32),
        )

        def update(params: trpo.Policy, batch: trpo.Batch) -> tuple[trpo.Policy, trpo.UpdateInfo]:
            new, _, info = rule.update(trpo.sampled_problem(policy, params, batch), params, rule.init(params))
            return new, info

        self._update = jax.jit(update)

    def update(self) -> None:
        """Run the whole policy update and wait for it."""
        self.result, self.info = jax.block_until_ready(self._update(self.params, self.batch))

    def arrays(self) -> Arrays:
        """Return the new parameters in the common layout."""
        network = self.result.trunk
        named = {"log_std": np.asarray(self.result.head.log_std)}
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            named |= {f"W{i}": np.asarray(weight).T, f"b{i}": np.asarray(bias)}
        return named


def ours(arrays: Arrays) -> tuple[PolicyFunction, trpo.Policy]:
    """Return our policy with a case's parameters, as ``(function, params)``."""
    weights = tuple(jnp.asarray(arrays[f"W{i}"].T) for i in range(LAYERS))
    biases = tuple(jnp.asarray(arrays[f"b{i}"]) for i in range(LAYERS))
    encoder = trpo.make_encoder(Box((weights[0].shape[0],)))
    head = trpo.GaussianHead(jnp.asarray(arrays["log_std"]))
    return trpo.as_policy(trpo.Policy(encoder, trpo.MLP(weights, biases, "tanh"), head))


def store(arrays: Arrays, directory: Path) -> Path:
    """Write a case where every contender can read it."""
    path = directory / "case.npz"
    np.savez(path, **arrays)
    return path
