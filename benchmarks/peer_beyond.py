"""Training runs of peers with memory and with images; runs inside their environment and imports nothing of ours.

    python peer_beyond.py {skrl,sb3_contrib} SETTINGS

It speaks as :mod:`benchmarks.peer_training` does. skrl trains its ``TRPO_RNN`` with a GRU on Pendulum without its
velocity, sb3-contrib its ``TRPO`` with ``CnnPolicy`` on noise of four 84 × 84 screens (:mod:`benchmarks.noise`).
"""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import torch
from noise import Noise
from peer_training import main


class Positions(gymnasium.ObservationWrapper):
    """Pendulum without its velocity."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("Pendulum-v1"))
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return what is seen."""
        return observation[:2]


class Skrl:
    """``skrl``'s ``TRPO_RNN`` (version 1.4): a GRU and a linear layer for the policy, and for the value function.

    A batch has one sequence for each environment, and each minibatch of the value fit one of them.
    """

    def __init__(self, s: dict[str, Any]) -> None:
        import skrl
        from skrl.agents.torch.trpo import TRPO_DEFAULT_CONFIG, TRPO_RNN
        from skrl.envs.wrappers.torch import wrap_env
        from skrl.memories.torch import RandomMemory
        from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
        from skrl.resources.preprocessors.torch import RunningStandardScaler
        from skrl.trainers.torch import SequentialTrainer

        self.versions = {"skrl": skrl.__version__}
        length, units, count = s["fragment"], s["memory"], s["count"]

        class Recurrent(Model):
            def begin(self, outputs: int) -> None:
                self.gru = torch.nn.GRU(self.num_observations, units, batch_first=True)
                self.out = torch.nn.Linear(units, outputs)

            def get_specification(self) -> dict[str, Any]:
                return {"rnn": {"sequence_length": length, "sizes": [(1, count, units)]}}

            def run(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
                x, memory = inputs["states"], inputs["rnn"][0]
                if not self.training:
                    y, memory = self.gru(x.view(-1, 1, x.shape[-1]), memory)
                    return self.out(y.flatten(0, 1)), {"rnn": [memory]}
                x = x.view(-1, length, x.shape[-1])
                memory = memory.view(1, -1, length, units)[:, :, 0].contiguous()
                ended = inputs.get("terminated")
                ended = torch.zeros(x.shape[:2], dtype=torch.bool) if ended is None else ended.view(-1, length)
                edges = [0, *(torch.nonzero(ended[:, :-1].any(0)).flatten() + 1).tolist(), length]
                parts = []
                for begin, end in itertools.pairwise(edges):
                    y, memory = self.gru(x[:, begin:end], memory)
                    memory = memory * ~ended[:, end - 1][None, :, None]
                    parts.append(y)
                return self.out(torch.cat(parts, 1).flatten(0, 1)), {"rnn": [memory]}

        class Policy(GaussianMixin, Recurrent):
            def __init__(self, *spaces: Any) -> None:
                Model.__init__(self, *spaces)
                GaussianMixin.__init__(self, clip_actions=True)
                self.begin(self.num_actions)
                self.log_std = torch.nn.Parameter(torch.full((self.num_actions,), float(np.log(s["initial_std"]))))

            def compute(self, inputs: dict[str, Any], role: str) -> Any:
                mean, memory = self.run(inputs)
                return mean, self.log_std, memory

        class Value(DeterministicMixin, Recurrent):
            def __init__(self, *spaces: Any) -> None:
                Model.__init__(self, *spaces)
                DeterministicMixin.__init__(self)
                self.begin(1)

            def compute(self, inputs: dict[str, Any], role: str) -> Any:
                return self.run(inputs)

        envs = wrap_env(gymnasium.vector.SyncVectorEnv([Positions] * count))
        spaces = envs.observation_space, envs.action_space, envs.device
        scaler = {"size": envs.observation_space, "device": envs.device}
        config = TRPO_DEFAULT_CONFIG | {
            "rollouts": length,
            "learning_epochs": s["epochs"],
            "mini_batches": count * length // s["minibatch"],
            "discount_factor": s["discount"],
            "lambda": s["gae_lambda"],
            "learning_rate": s["learning_rate"],
            "max_kl_divergence": s["max_kl"],
            "damping": s["damping"],
            "conjugate_gradient_steps": s["cg_iterations"],
            "state_preprocessor": RunningStandardScaler,
            "state_preprocessor_kwargs": scaler,
            "value_preprocessor": RunningStandardScaler,
            "value_preprocessor_kwargs": {"size": 1, "device": envs.device},
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        }
        memory = RandomMemory(memory_size=length, num_envs=count, device=envs.device)
        models = {"policy": Policy(*spaces), "value": Value(*spaces)}
        self.agent = TRPO_RNN(models, memory, envs.observation_space, envs.action_space, envs.device, config)
        self.steps = length
        options = {
            "timesteps": length,
            "headless": True,
            "disable_progressbar": True,
            "close_environment_at_exit": False,
        }
        self.trainer = SequentialTrainer(envs, self.agent, cfg=options)
        self.count = count

    def train(self, iterations: int) -> int:
        """Run its trainer."""
        self.trainer.timesteps = iterations * self.steps
        self.trainer.train()
        return iterations * self.steps * self.count


class Sb3Cnn:
    """``sb3_contrib.TRPO`` with ``CnnPolicy``: networks of their own for policy and value function, as ours."""

    def __init__(self, s: dict[str, Any]) -> None:
        import sb3_contrib
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import DummyVecEnv

        self.versions = {"sb3_contrib": sb3_contrib.__version__}
        self.batch, self._first = s["count"] * s["fragment"], True
        self.model = sb3_contrib.TRPO(
            "CnnPolicy",
            DummyVecEnv([Noise] * s["count"]),
            n_steps=s["fragment"],
            batch_size=s["minibatch"],
            gamma=s["discount"],
            gae_lambda=s["gae_lambda"],
            learning_rate=s["learning_rate"],
            cg_max_steps=s["cg_iterations"],
            cg_damping=s["damping"],
            target_kl=s["max_kl"],
            n_critic_updates=s["epochs"],
            policy_kwargs={"net_arch": [], "share_features_extractor": False},
            seed=s["seed"],
            device="cpu",
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))

    def train(self, iterations: int) -> int:
        """Run ``TRPO.learn``."""
        self.model.learn(iterations * self.batch, reset_num_timesteps=self._first)
        self._first = False
        return iterations * self.batch


if __name__ == "__main__":
    main({"skrl": Skrl, "sb3_contrib": Sb3Cnn})
