"""Peak memory of a process that trains on a batch of images, with blocks and without.

    python -m benchmarks.memory                  measure, and write benchmarks/results/memory.json
    python -m benchmarks.memory one BLOCK        what each measurement is, in a process of its own

The batch is 8,192 observations of 84 × 84 × 4 bytes, of one iteration of the library's own loop: rollout, values, an
update by the Nature network and a value fit. What is told is the largest resident set that the process ever had, JAX
and everything included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

RESULTS = Path(__file__).parent / "results" / "memory.json"
SHAPE, COUNT, FRAGMENT = (84, 84, 4), 32, 256
BLOCKS: tuple[int | str, ...] = ("auto", 0)


class Noise(gym.Env):
    """Random images, episodes of a hundred steps."""

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(6)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(**kwargs)
        self._time = 0
        return self._image(), {}

    def _image(self) -> np.ndarray:
        return self.np_random.integers(0, 256, SHAPE, np.uint8)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Draw the next image."""
        self._time += 1
        return self._image(), float(action == 0), False, self._time == 100, {}


def one(block: int | str) -> dict[str, Any]:
    """Run one iteration in this process."""
    import jax

    import trpo

    config = trpo.Config(
        steps=COUNT * FRAGMENT,
        fragment=FRAGMENT,
        env=trpo.EnvConfig(count=COUNT),
        # One product: more of them take more time, and no more memory.
        rule=trpo.RuleConfig(cg_iterations=1, max_backtracks=0),
        policy=trpo.PolicyConfig(hidden=()),
        value=trpo.ValueConfig(hidden=(), epochs=1),
        problem=trpo.ProblemConfig(block=block),  # type: ignore[arg-type]
    )
    agent = trpo.make_agent(lambda: Noise(), config)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for state, metrics in trpo.iterations(lambda: Noise(), agent, config):
        jax.block_until_ready(state.learner)
        result = metrics["result"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = {"peak_gib": peak / 2**20, "before_gib": before / 2**20, "seconds": time.perf_counter() - began}
    return {"block": block, "states": config.block_of(agent.spec.observation), "result": result, **gib}


def main() -> None:
    """Measure each setting in a process of its own."""
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(sys.argv[2] if sys.argv[2] == "auto" else int(sys.argv[2]))))
        return
    found = []
    for block in BLOCKS:
        command = [sys.executable, "-m", "benchmarks.memory", "one", str(block)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found.append({"block": block, "failed": (done.stderr.strip().splitlines() or [f"{done.returncode}"])[-1]})
        else:
            found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    batch = {"observation": [*SHAPE], "type": "uint8", "states": COUNT * FRAGMENT}
    RESULTS.write_text(json.dumps({"batch": batch, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
