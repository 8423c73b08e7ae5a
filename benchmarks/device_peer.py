"""Train with a peer, for its steps per second; runs inside the peer's environment and imports nothing of ours.

    python device_peer.py {rejax,sb3_contrib} COUNT FRAGMENT

It answers each line of standard input (a number of iterations) with one JSON object: steps and seconds.

* rejax: PPO on its CartPole-v1, COUNT environments × FRAGMENT steps, 64×64 tanh networks; epochs and minibatches are
  those of its own configuration file for this task's family (4 epochs of 4 minibatches), all else its defaults.
* sb3_contrib: TRPO with its own defaults on Gymnasium's CartPole-v1, one environment, batches of 2048 steps.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable


def rejax_trainer(count: int, fragment: int) -> tuple[Callable[[int], int], dict[str, str]]:
    """Return a function that trains for some iterations and returns the steps taken."""
    import jax
    import rejax

    algorithm = rejax.PPO.create(
        env="CartPole-v1",
        num_envs=count,
        num_steps=fragment,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=1e-3,
        total_timesteps=10**9,
        eval_freq=10**9,
        skip_initial_evaluation=True,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    )
    state = [algorithm.init_state(jax.random.key(0))]
    block = 10

    @jax.jit
    def run(s):
        return jax.lax.scan(lambda s, _: (algorithm.train_iteration(s), None), s, None, block)[0]

    def train(iterations: int) -> int:
        for _ in range(iterations // block):
            state[0] = run(state[0])
        jax.block_until_ready(state[0])
        return iterations // block * block * count * fragment

    train(block)
    return train, {name: importlib.metadata.version(name) for name in ("rejax", "gymnax", "jax")}


def sb3_trainer(count: int, fragment: int) -> tuple[Callable[[int], int], dict[str, str]]:
    """As :func:`rejax_trainer`; an iteration is one of the library's own batches."""
    import sb3_contrib
    import torch

    torch.set_num_threads(1)  # more threads spin against each other on networks of this size
    model = sb3_contrib.TRPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0)

    def train(iterations: int) -> int:
        before = model.num_timesteps
        model.learn(iterations * model.n_steps, reset_num_timesteps=False)
        return model.num_timesteps - before

    train(1)
    return train, {"sb3_contrib": sb3_contrib.__version__, "torch": torch.__version__}


def main() -> None:
    library, count, fragment = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    train, versions = {"rejax": rejax_trainer, "sb3_contrib": sb3_trainer}[library](count, fragment)
    print(json.dumps({"versions": versions}), file=replies)
    for line in sys.stdin:
        began = time.perf_counter()
        steps = train(int(line))
        print(json.dumps({"steps": steps, "seconds": time.perf_counter() - began}), file=replies)


if __name__ == "__main__":
    main()
