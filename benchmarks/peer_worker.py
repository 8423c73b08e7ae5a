"""Time a peer's own policy update; runs inside the peer's environment and imports nothing of ours.

    python peer_worker.py {sb3_contrib,tianshou} THREADS

It answers one JSON object per line of standard input, with one JSON object per line of standard output:

    {"do": "load", "path": P, "max_kl": δ, "damping": λ, "cg_iterations": n}   a batch and a policy from an .npz file
    {"do": "time", "repeats": k}   k updates, each from the loaded policy; seconds of each
    {"do": "save", "path": P}      the parameters that the last update returned, as an .npz file

What is timed is the peer's own method (``sb3_contrib.TRPO.train``, ``tianshou.TRPO._update_with_batch``) with its
critic switched off, so everything it does for the policy counts and nothing else does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

LAYERS = 3


class Peer(Protocol):
    """One library's update on one batch."""

    versions: dict[str, str]
    tensors: dict[str, torch.nn.Parameter]
    """The actor's parameters under the names of the .npz file."""

    def update(self) -> None:
        """Run the library's policy update once."""
        ...


class StubEnv(gymnasium.Env):
    """Spaces and nothing else: the peers want an environment to be built, and no step is ever taken."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)


class Sb3Contrib:
    """``sb3_contrib.TRPO.train`` on its own rollout buffer.

    It averages the KL over the d action dimensions instead of summing it, so its F and its bound are 1/d of the
    joint ones; δ/d and λ/d make it solve the same problem as the others.
    """

    def __init__(self, case: dict[str, np.ndarray], max_kl: float, damping: float, cg_iterations: int) -> None:
        import sb3_contrib
        import stable_baselines3
        from stable_baselines3.common.logger import Logger

        self.versions = {"sb3_contrib": sb3_contrib.__version__, "stable_baselines3": stable_baselines3.__version__}
        n, d = case["action"].shape
        width = case["W1"].shape[0]
        self.model = sb3_contrib.TRPO(
            "MlpPolicy",
            StubEnv(case["observation"].shape[1], d),
            n_steps=n,
            batch_size=n,
            cg_max_steps=cg_iterations,
            cg_damping=damping / d,
            target_kl=max_kl / d,
            n_critic_updates=0,
            policy_kwargs={"net_arch": {"pi": [width, width], "vf": [1]}, "activation_fn": torch.nn.Tanh},
            device="cpu",
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        buffer = self.model.rollout_buffer
        buffer.observations[:, 0] = case["observation"]
        buffer.actions[:, 0] = case["action"]
        buffer.advantages[:, 0] = case["advantage"]
        buffer.log_probs[:, 0] = case["log_prob"]
        buffer.returns[:, 0] = case["advantage"]  # not used by the policy; a constant would only warn
        buffer.pos, buffer.full = n, True
        policy = self.model.policy
        hidden = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
        self.tensors = name_tensors([*hidden, policy.action_net], policy.log_std)

    def update(self) -> None:
        """Run ``TRPO.train``."""
        self.model.train()


class ConstantCritic(torch.nn.Module):
    """V(s) = b. Tianshou's update cannot skip its critic; this one costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, observation: Any, **_: Any) -> torch.Tensor:
        """Return b for each observation."""
        return self.bias.expand(len(observation))


class Tianshou:
    """``tianshou.algorithm.TRPO._update_with_batch``: its λ = 0.1 and its 10 iterations are fixed in its code."""

    def __init__(self, case: dict[str, np.ndarray], max_kl: float, damping: float, cg_iterations: int) -> None:
        import tianshou
        from tianshou.algorithm import TRPO
        from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Batch
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.continuous import ContinuousActorProbabilistic

        if (damping, cg_iterations) != (0.1, 10):
            raise ValueError("Tianshou fixes damping 0.1 and 10 conjugate-gradient iterations")
        self.versions = {"tianshou": tianshou.__version__}
        d = case["action"].shape[1]
        env = StubEnv(case["observation"].shape[1], d)
        width = case["W1"].shape[0]
        net = Net(state_shape=env.observation_space.shape, hidden_sizes=[width, width], activation=torch.nn.Tanh)
        actor = ContinuousActorProbabilistic(preprocess_net=net, action_shape=(d,), unbounded=True)
        policy = ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=lambda parameters: torch.distributions.Independent(torch.distributions.Normal(*parameters), 1),
            action_space=env.action_space,
            observation_space=env.observation_space,
        )
        self.algorithm = TRPO(
            policy=policy,
            critic=ConstantCritic(),
            optim=AdamOptimizerFactory(),
            max_kl=max_kl,
            optim_critic_iters=1,
        )
        self.batch = Batch(
            obs=case["observation"],
            act=torch.from_numpy(case["action"]),
            adv=torch.from_numpy(case["advantage"]),
            logp_old=torch.from_numpy(case["log_prob"]),
            returns=torch.from_numpy(case["advantage"]),
            info=Batch(),
        )
        layers = [m for m in (*net.modules(), *actor.mu.modules()) if isinstance(m, torch.nn.Linear)]
        self.tensors = name_tensors(layers, actor.sigma_param)

    def update(self) -> None:
        """Run the whole-batch update once."""
        self.algorithm._update_with_batch(self.batch, batch_size=None, repeat=1)


def name_tensors(layers: list[torch.nn.Linear], log_std: torch.nn.Parameter) -> dict[str, torch.nn.Parameter]:
    """Give an actor's tensors the names of the .npz file; weights keep PyTorch's ``[out, in]`` layout."""
    if len(layers) != LAYERS:
        raise RuntimeError(f"expected {LAYERS} linear layers in the actor, found {len(layers)}")
    named = {"log_std": log_std}
    for i, layer in enumerate(layers):
        named |= {f"W{i}": layer.weight, f"b{i}": layer.bias}
    return named


def restore(peer: Peer, case: dict[str, np.ndarray]) -> None:
    """Put the sampling policy's parameters back."""
    with torch.no_grad():
        for name, tensor in peer.tensors.items():
            tensor.copy_(torch.from_numpy(case[name]).reshape(tensor.shape))


def time_updates(peer: Peer, case: dict[str, np.ndarray], repeats: int) -> list[float]:
    """Return the seconds of each of ``repeats`` updates from the same policy."""
    seconds = []
    for _ in range(repeats):
        restore(peer, case)
        start = time.perf_counter()
        peer.update()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    library, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print must not mix with the replies
    warnings.simplefilter("ignore")
    make = {"sb3_contrib": Sb3Contrib, "tianshou": Tianshou}[library]
    peer, case = None, {}
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        reply: dict[str, Any] = {}
        if do == "load":
            case = dict(np.load(request.pop("path")))
            peer = make(case, **request)
            reply = {"versions": {"torch": torch.__version__, **peer.versions}, "threads": torch.get_num_threads()}
        elif do == "time":
            reply = {"seconds": time_updates(peer, case, request["repeats"])}
        elif do == "save":
            np.savez(request["path"], **{k: v.detach().numpy().reshape(case[k].shape) for k, v in peer.tensors.items()})
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
