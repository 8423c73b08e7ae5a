"""Wall clock until a deterministic return is reached: ours against sb3-contrib with the settings of its zoo.

    python -m benchmarks.time_to_score [--seeds 0 1 2] [--tasks Hopper-v5 HalfCheetah-v5]

One run of ours and one of sb3-contrib go side by side, each on one core with one thread, on the same simulator
(Gymnasium) from the start of training, compilation included. Every 10,000 to 20,000 steps the clock stops for an
evaluation of 10 episodes; the score counts as reached when their mean is. A run ends there or after a million steps.
Ours with EnvPool runs afterwards, beside nothing. Each run is a file below ``benchmarks/results/time_to_score`` that is
never overwritten; the same command does what is missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.learning import commit
from benchmarks.peer_process import TrainingPeer, installed
from benchmarks.timing import machine, versions, write
from benchmarks.zoo import settings

RESULTS = Path(__file__).with_name("results") / "time_to_score"
SCORES = {"Hopper-v5": 3000.0, "HalfCheetah-v5": 4000.0}
LONGEST = 1_000_000
EPISODES = 10

Step = tuple[int, float, Callable[[], float]]
"""Steps so far, seconds of training so far, and a function that evaluates."""


def ours(env: str, seed: int, every: int) -> Iterator[Step]:
    """Train ours with what ``trpo train`` does by itself."""
    import jax
    import numpy as np

    import trpo
    from trpo.settings.presets import apply_preset

    began, spent = time.perf_counter(), 0.0
    config = trpo.Config(env=trpo.EnvConfig(env), steps=LONGEST, seed=seed)
    config = apply_preset(config)[0]
    agent = trpo.make_agent(env, config)
    due = every
    for state, metrics in trpo.iterations(env, agent, config):
        if metrics["steps"] >= due:
            due += every
            jax.block_until_ready(state.learner)
            spent += time.perf_counter() - began
            trained = agent.at(state)
            yield state.steps, spent, lambda trained=trained: float(np.mean(trained.evaluate(EPISODES, seed=1).returns))
            began = time.perf_counter()


def peer(env: str, seed: int, every: int, python: Path) -> Iterator[Step]:
    """Train sb3-contrib's TRPO with its zoo's settings."""
    began, spent, steps = time.perf_counter(), 0.0, 0
    used = settings(env) | {"seed": seed, "threads": 1}
    batch = used["count"] * used["fragment"]
    with closing(TrainingPeer(python, "sb3_contrib", used)) as worker:
        while steps < LONGEST:
            iterations = max(1, every // batch)
            worker.train(iterations)
            steps += iterations * batch
            spent += time.perf_counter() - began
            yield steps, spent, lambda: sum(worker.evaluate(EPISODES)) / EPISODES
            began = time.perf_counter()


def measure(who: str, env: str, seed: int, out: Path, python: Path) -> None:
    """Run one contender to the score and store how it went."""
    path = out / f"{env.replace(':', '-')}-{who}-s{seed}.json"
    if path.exists():
        return
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    task = env.removeprefix("envpool:")
    score, curve = SCORES[task], []
    run = peer(env, seed, 16_384, python) if who == "sb3_contrib" else ours(env, seed, 16_384)
    for steps, seconds, evaluate in run:
        curve.append([steps, round(seconds, 2), round(evaluate(), 1)])
        if curve[-1][2] >= score:
            break
    run.close()
    steps, seconds, reached = curve[-1]
    result = {
        "who": who,
        "env": env,
        "seed": seed,
        "score": score,
        "reached": reached >= score,
        "steps": steps,
        "seconds": seconds,
        "best": max(point[2] for point in curve),
        "curve": curve,
        "commit": commit(),
        "machine": machine(1),
        "versions": versions("jax", "numpy", "gymnasium", "mujoco", "trpo"),
    }
    write(path, result)
    verb = "reached" if result["reached"] else "did not reach"
    print(f"{env:24} {who:12} seed {seed}: {verb} {score:g} after {seconds:.0f} s, {steps} steps", flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_score", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = installed(options.peer_python)
    context = multiprocessing.get_context("spawn")
    for seed in options.seeds:
        for task in options.tasks:
            pairs: list[list[tuple[str, str]]] = [[("trpo", task), *([("sb3_contrib", task)] if known else [])]]
            pairs.append([("trpo", f"envpool:{task}")])
            for pair in pairs:
                runs: list[Any] = [
                    context.Process(target=measure, args=(who, env, seed, options.out, options.peer_python))
                    for who, env in pair
                ]
                for run in runs:
                    run.start()
                for run in runs:
                    run.join()


if __name__ == "__main__":
    main()
