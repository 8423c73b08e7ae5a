"""The published scores that we miss, run again over several seeds: sb3-contrib's TRPO with the settings of its zoo.

    python -m benchmarks.published [--seeds 0 1 2 3 4] [--tasks Swimmer-v5 LunarLanderContinuous-v3]

Swimmer's is published as the mean of three seeds, LunarLanderContinuous's as that of one run. Here they are by the
protocol of :mod:`benchmarks.learning`: deterministic evaluation of 20 episodes at the end, and twenty times on the way.
Each run is a file below ``benchmarks/results/published`` that is never overwritten; the same command does what is
missing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import statistics
import time
from contextlib import closing
from pathlib import Path

from benchmarks.learning import commit
from benchmarks.peer_process import TrainingPeer, installed
from benchmarks.timing import machine, write
from benchmarks.zoo import settings

RESULTS = Path(__file__).with_name("results") / "published"
STEPS = {"Swimmer-v5": 1_000_000, "LunarLanderContinuous-v3": 200_000}
EPISODES = 20
POINTS = 20


def measure(env: str, seed: int, out: Path, python: Path) -> None:
    """Train once and store how it went."""
    path = out / f"{env}-s{seed}.json"
    if path.exists():
        return
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    used = settings(env) | {"seed": seed, "threads": 1}
    batch = used["count"] * used["fragment"]
    iterations = math.ceil(STEPS[env] / batch)
    edges = [round(iterations * point / POINTS) for point in range(POINTS + 1)]
    curve, returns, spent = [], [], 0.0
    with closing(TrainingPeer(python, "sb3_contrib", used)) as worker:
        for before, after in itertools.pairwise(edges):
            began = time.perf_counter()
            worker.train(after - before)
            spent += time.perf_counter() - began
            returns = worker.evaluate(EPISODES)
            curve.append([after * batch, round(statistics.mean(returns), 1)])
        result = {
            "who": "sb3_contrib",
            "env": env,
            "seed": seed,
            "settings": used,
            "steps": iterations * batch,
            "seconds": round(spent, 1),
            "deterministic": {"returns": returns, "mean_return": statistics.mean(returns)},
            "curve": curve,
            "commit": commit(),
            "machine": machine(1),
            "versions": worker.versions,
        }
    write(path, result)
    print(f"{env:26} seed {seed}: {result['deterministic']['mean_return']:.1f} after {spent:.0f} s", flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each (default 2)")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not installed(options.peer_python):
        raise SystemExit("For LunarLander also: .venv-peers/bin/pip install 'gymnasium[box2d]'")
    runs = [(env, seed, options.out, options.peer_python) for seed in options.seeds for env in options.tasks]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        pool.starmap(measure, runs, chunksize=1)


if __name__ == "__main__":
    main()
