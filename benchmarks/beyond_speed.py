"""Whole training runs with memory and with images, against skrl and sb3-contrib: equal work, in turns, in one run.

    python -m benchmarks.beyond_speed [--quick]

Memory: Pendulum without its velocity, 16 × 128 steps a batch, a GRU of 64 units and a linear layer each for policy and
value function, ten passes of the value fit over minibatches of one sequence. Images: noise of four 84 × 84 screens,
8 × 128 steps, the convolutions of Mnih et al. 2015 with 512 units, two passes over minibatches of 128. Both: δ = 0.01,
damping 0.1, ten conjugate-gradient iterations. Without the peers' environment it says how to make one. The ratios go
to ``benchmarks/results/beyond_speed.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import whole_run
from benchmarks.noise import Noise
from benchmarks.peer_process import BEYOND, TrainingPeer
from benchmarks.timing import Background, interleave, machine, pin, ratios, summary, versions

RESULTS = Path(__file__).with_name("results") / "beyond_speed.json"
INSTALL = (
    "python -m venv .venv-beyond && .venv-beyond/bin/pip install torch==2.13.0 skrl==1.4.3 sb3-contrib "
    '"gymnasium[mujoco]"'
)
TARGET = 2.0
COMMON = {"fragment": 128, "minibatch": 128, "max_kl": 0.01, "damping": 0.1, "cg_iterations": 10, "discount": 0.99,
          "gae_lambda": 0.95, "learning_rate": 1e-3, "initial_std": 0.6, "seed": 0}  # fmt: skip
WORK: dict[str, dict[str, Any]] = {
    "skrl": {"count": 16, "epochs": 10, "memory": 64},
    "sb3_contrib": {"count": 8, "epochs": 2},
}


def our_config(library: str) -> Any:
    """Return our settings for the work that ``library`` does."""
    import trpo
    from trpo.settings.config import merge

    work = COMMON | WORK[library]
    config = trpo.Config(
        env=trpo.EnvConfig("Pendulum-v1", count=work["count"]),
        fragment=work["fragment"],
        steps=10**9,
        value=trpo.ValueConfig(epochs=work["epochs"], minibatch=work["minibatch"]),
    )
    if library == "skrl":
        network = {"trunk": "gru", "memory": work["memory"], "hidden": (), "sees": ":2"}
    else:
        network = {"hidden": (512,), "activation": "relu"}
    return merge(config, {"policy": network, "value": network})


class Ours:
    """Our training, iteration by iteration."""

    def __init__(self, library: str) -> None:
        import trpo

        config, env = our_config(library), "Pendulum-v1" if library == "skrl" else Noise
        self.batch = config.batch
        self._run = trpo.iterations(env, trpo.make_agent(env, config), config)
        whole_run.advance(self._run, 2)  # compiles

    def train(self, iterations: int) -> float:
        """Return seconds per step."""
        return whole_run.advance(self._run, iterations) / (iterations * self.batch)

    def close(self) -> None:
        """Close the environments."""
        self._run.close()


def run(python: Path, rounds: int, iterations: int, threads: int) -> dict[str, Any]:
    """Measure, and return the report."""
    threads, background, rows = pin(threads), Background(), []
    found = python.exists()
    if not found:
        print(f"No interpreter at {python}: the peers are left out. To compare with them, run\n\n    {INSTALL}\n")
    for library, work in WORK.items():
        with ExitStack() as stack:
            ours = stack.enter_context(closing(Ours(library)))
            contenders: dict[str, Callable[[], float]] = {"trpo": partial(ours.train, iterations)}
            peer = None
            if found:
                settings = COMMON | work | {"threads": threads}
                peer = stack.enter_context(closing(TrainingPeer(python, library, settings, BEYOND)))
                peer.train(1)
                contenders[library] = partial(peer.train, iterations)
            seconds = interleave(contenders, rounds, background)
            row: dict[str, Any] = {"work": library, "steps_per_second": {}}
            for name, values in seconds.items():
                row["steps_per_second"][name] = summary([1 / s for s in values])
            if peer is not None:
                row |= {"ratio": ratios(seconds[library], seconds["trpo"]), "versions": peer.versions}
            rows.append(row)
            print(json.dumps(row), flush=True)
    found_here = versions("jax", "numpy", "gymnasium", "trpo")
    return {"rows": rows, "target": TARGET, "machine": machine(threads), "versions": found_here,
            "background": background.report()}  # fmt: skip


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: one turn, nothing kept")
    parser.add_argument("--threads", type=int, default=2, help="CPUs for every contender (default 2)")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-beyond/bin/python"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rounds, iterations = (1, 1) if options.quick else (6, 3)
    report = run(options.peer_python, rounds, iterations, options.threads)
    if not options.quick:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
