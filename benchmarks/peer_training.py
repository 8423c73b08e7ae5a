"""Whole training runs of a peer; runs inside the peer's environment and imports nothing of ours.

    python peer_training.py {sb3_contrib,tianshou} SETTINGS

SETTINGS is one JSON object: env, count, fragment, hidden, max_kl (joint), damping, cg_iterations, discount, gae_lambda,
epochs, minibatch (0: the whole batch at once), learning_rate, seed, threads, and optionally ``initial_std``.

First it prints one JSON line with versions. Then it answers one JSON line per line of standard input:

    {"do": "train", "iterations": k}   k iterations; seconds, of which seconds of updates, and steps
    {"do": "value", "updates": k}      k policy-and-value updates with and without the value fit: seconds of each
    {"do": "evaluate", "episodes": n}  deterministic returns of whole episodes, raw rewards
    {"do": "memory"}                   peak resident memory of this process, bytes

Observations and rewards are normalised by the library's own wrappers, as its users do; environments are stepped one
after the other in this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
import torch


class Run(Protocol):
    """One library training on one task."""

    versions: dict[str, str]

    def train(self, iterations: int) -> int:
        """Train on; return steps."""
        ...

    def update(self, value_fit: bool) -> None:
        """Update policy, and value function if wanted, on the batch that is there."""
        ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return deterministic actions for raw observations."""
        ...


class Sb3Contrib:
    """``sb3_contrib.TRPO`` in its ``DummyVecEnv`` and ``VecNormalize``.

    It averages the KL over the d action dimensions, so δ/d and λ/d make it solve the problem that the others solve.
    """

    def __init__(self, s: dict[str, Any]) -> None:
        import sb3_contrib
        import stable_baselines3
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import VecNormalize

        self.versions = {"sb3_contrib": sb3_contrib.__version__, "stable_baselines3": stable_baselines3.__version__}
        self.envs = VecNormalize(make_vec_env(s["env"], s["count"], seed=s["seed"]), gamma=s["discount"])
        d = int(np.prod(self.envs.action_space.shape))
        batch = s["count"] * s["fragment"]
        self.batch = batch
        self.epochs = s["epochs"]
        self.model = sb3_contrib.TRPO(
            "MlpPolicy",
            self.envs,
            n_steps=s["fragment"],
            batch_size=s["minibatch"] or batch,
            gamma=s["discount"],
            gae_lambda=s["gae_lambda"],
            learning_rate=s["learning_rate"],
            cg_max_steps=s["cg_iterations"],
            cg_damping=s["damping"] / d,
            target_kl=s["max_kl"] / d,
            n_critic_updates=s["epochs"],
            policy_kwargs={
                "net_arch": s["hidden"],
                "activation_fn": torch.nn.Tanh,
                "log_std_init": float(np.log(s.get("initial_std", 1.0))),
            },
            seed=s["seed"],
            device="cpu",
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._first = True

    def train(self, iterations: int) -> int:
        """Run ``TRPO.learn``."""
        self.model.learn(iterations * self.batch, reset_num_timesteps=self._first)
        self._first = False
        return iterations * self.batch

    def update(self, value_fit: bool) -> None:
        """Run ``TRPO.train`` on the last batch."""
        self.model.n_critic_updates = self.epochs if value_fit else 0
        self.model.train()
        self.model.n_critic_updates = self.epochs

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return ``predict`` of normalised observations."""
        return self.model.predict(self.envs.normalize_obs(observation), deterministic=True)[0]


class Tianshou:
    """``tianshou``'s TRPO, its collector, ``DummyVectorEnv`` and ``VectorEnvNormObs``; returns scaled by it.

    λ = 0.1 and 10 conjugate-gradient iterations are fixed in its code, and its critic always takes the whole batch.
    """

    def __init__(self, s: dict[str, Any]) -> None:
        import tianshou
        from tianshou.algorithm import TRPO
        from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, VectorReplayBuffer
        from tianshou.env import DummyVectorEnv, VectorEnvNormObs
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

        if (s["damping"], s["cg_iterations"], s["minibatch"]) != (0.1, 10, 0):
            raise ValueError("Tianshou fixes damping 0.1, 10 conjugate-gradient iterations and whole batches")
        self.versions = {"tianshou": tianshou.__version__}
        self.envs = VectorEnvNormObs(DummyVectorEnv([lambda: gymnasium.make(s["env"]) for _ in range(s["count"])]))
        self.envs.seed(s["seed"])
        single = gymnasium.make(s["env"])
        shape, space = single.observation_space.shape, single.action_space
        nets = [Net(state_shape=shape, hidden_sizes=s["hidden"], activation=torch.nn.Tanh) for _ in range(2)]
        actor = ContinuousActorProbabilistic(preprocess_net=nets[0], action_shape=space.shape, unbounded=True)
        torch.nn.init.constant_(actor.sigma_param, float(np.log(s.get("initial_std", 0.6))))
        self.policy = ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=lambda parameters: torch.distributions.Independent(torch.distributions.Normal(*parameters), 1),
            action_space=space,
            observation_space=single.observation_space,
            action_scaling=True,
            action_bound_method="clip",
        )
        self.epochs = s["epochs"]
        self.algorithm = TRPO(
            policy=self.policy,
            critic=ContinuousCritic(preprocess_net=nets[1]),
            optim=AdamOptimizerFactory(lr=s["learning_rate"]),
            max_kl=s["max_kl"],
            optim_critic_iters=s["epochs"],
            gamma=s["discount"],
            gae_lambda=s["gae_lambda"],
            return_scaling=True,
        )
        self.batch = s["count"] * s["fragment"]
        self.collector = Collector(self.algorithm, self.envs, VectorReplayBuffer(self.batch, s["count"]))
        self.collector.reset()
        self.data: Any = None

    def train(self, iterations: int) -> int:
        """Collect and update in turn, as its on-policy trainer does."""
        from tianshou.algorithm.algorithm_base import policy_within_training_step

        steps = 0
        for _ in range(iterations):
            with policy_within_training_step(self.policy):
                steps += self.collector.collect(n_step=self.batch).n_collected_steps
                self.algorithm.update(buffer=self.collector.buffer, batch_size=None, repeat=1)
            if self.data is None:
                self.data = self.algorithm._preprocess_batch(*self._sample())
            self.collector.reset_buffer(keep_statistics=True)
        return steps

    def _sample(self) -> tuple[Any, Any, Any]:
        batch, indices = self.collector.buffer.sample(0)
        return batch, self.collector.buffer, indices

    def update(self, value_fit: bool) -> None:
        """Run the whole-batch update; without the value fit it still takes one critic step, which cannot be avoided."""
        self.algorithm.optim_critic_iters = self.epochs if value_fit else 1
        self.algorithm._update_with_batch(self.data, batch_size=None, repeat=1)
        self.algorithm.optim_critic_iters = self.epochs

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the mean action of normalised observations, scaled to the space."""
        rms = self.envs.get_obs_rms()
        with torch.no_grad():
            mean = self.policy.actor(rms.norm(observation))[0][0]
        return self.policy.map_action(np.asarray(mean))


def evaluate(run: Run, env: str, episodes: int) -> list[float]:
    """Return raw returns of whole episodes, environments stepped together."""
    envs = [gymnasium.make(env) for _ in range(episodes)]
    seen = np.stack([e.reset(seed=1000 + i)[0] for i, e in enumerate(envs)])
    total, going = np.zeros(episodes), np.ones(episodes, bool)
    while going.any():
        for i, action in zip(np.flatnonzero(going), run.act(seen[going]), strict=True):
            seen[i], reward, terminated, truncated, _ = envs[i].step(action)
            total[i] += reward
            going[i] = not (terminated or truncated)
    return total.tolist()


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Return the seconds of a call and what it returned."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def warn(message: str) -> None:
    """Pass on what MuJoCo warns of, but not that Gymnasium's models use deprecated attributes."""
    if "deprecated" not in message:
        print(message, file=sys.stderr)


def main(libraries: dict[str, Any]) -> None:
    library, s = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(s["threads"])
    torch.manual_seed(s["seed"])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print must not mix with the replies
    warnings.simplefilter("ignore")
    mujoco.set_mju_user_warning(warn)
    run: Any = libraries[library](s)
    versions = {"torch": torch.__version__, "gymnasium": gymnasium.__version__, **run.versions}
    print(json.dumps({"versions": versions, "threads": torch.get_num_threads()}), file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "train":
                seconds, steps = timed(run.train, request["iterations"])
                reply = {"seconds": seconds, "steps": steps}
            case "value":
                pairs = [(timed(run.update, True)[0], timed(run.update, False)[0]) for _ in range(request["updates"])]
                reply = {"with": [a for a, _ in pairs], "without": [b for _, b in pairs]}
            case "evaluate":
                reply = {"returns": evaluate(run, s["env"], request["episodes"])}
            case "memory":
                reply = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main({"sb3_contrib": Sb3Contrib, "tianshou": Tianshou})
