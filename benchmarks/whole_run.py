"""Measure a whole training run against its simulator stepped alone with random actions, the same number of steps.

    python -m benchmarks.whole_run [--quick] [--env ID ...]

A ratio of 1 would be training for free. Both use the same single environments (or the same EnvPool) in turns: some
iterations of training, the simulator for as many steps, and so on. Training is everything: acting, stepping,
normalisation, advantages, policy update, value fit. Its first iteration compiles and is reported apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import trpo
from benchmarks.timing import Background, interleave, machine, pin, ratios, summary, versions
from trpo.envs.names import make_single

GYMNASIUM = ("Hopper-v5", "HalfCheetah-v5")
ENVPOOL = ("Hopper", "HalfCheetah")
RESULTS = Path(__file__).with_name("results") / "whole_run.json"


class GymnasiumAlone:
    """Single environments stepped in turn, reset when an episode ends."""

    def __init__(self, env: str, count: int) -> None:
        self.envs = [make_single(env) for _ in range(count)]
        self.space = self.envs[0].action_space
        for i, e in enumerate(self.envs):
            e.reset(seed=i)

    def step(self, actions: np.ndarray) -> None:
        """Step each environment once."""
        for env, action in zip(self.envs, actions, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()


class EnvPoolAlone:
    """One EnvPool, which resets by itself."""

    def __init__(self, env: str, count: int) -> None:
        import envpool

        self.envs = envpool.make(env.removeprefix("envpool:"), env_type="gymnasium", num_envs=count, seed=0)
        self.space = self.envs.action_space
        self.envs.reset()

    def step(self, actions: np.ndarray) -> None:
        """Step all environments once."""
        self.envs.step(actions)


def simulate(alone: GymnasiumAlone | EnvPoolAlone, count: int, steps: int) -> float:
    """Return the seconds that ``steps`` rounds of random actions take; drawing them is not counted."""
    space = alone.space
    draws = np.random.default_rng(0).uniform(space.low, space.high, (steps, count, *space.shape)).astype(space.dtype)
    start = time.perf_counter()
    for actions in draws:
        alone.step(actions)
    return time.perf_counter() - start


def advance(run: Iterator[Any], iterations: int) -> float:
    """Return the seconds of some iterations of training, the value fit of the last one included."""
    start = time.perf_counter()
    for _ in range(iterations):
        state, _ = next(run)
    jax.block_until_ready(state.learner)
    return time.perf_counter() - start


def measure(env: str, rounds: int, iterations: int, background: Background) -> dict[str, Any]:
    """Train on ``env`` and step it alone, in turns."""
    config = trpo.Config(env=trpo.EnvConfig(env), steps=10**9)
    count, fragment = config.env.count, config.fragment
    alone = (EnvPoolAlone if env.startswith("envpool:") else GymnasiumAlone)(env, count)
    agent = trpo.make_agent(env, config)
    run = trpo.iterations(env, agent, config)
    try:
        first = advance(run, 1)  # makes the environments and compiles
        contenders: dict[str, Callable[[], float]] = {
            "training": lambda: advance(run, iterations),
            "simulator": lambda: simulate(alone, count, iterations * fragment),
        }
        seconds = interleave(contenders, rounds, background)
    finally:
        run.close()
    steps = iterations * config.batch
    # What a run of a million steps takes, compilation included, from the median turns.
    million = {name: 1e6 / steps * summary(values)["median"] for name, values in seconds.items()}
    return {
        "env": env,
        "envs": count,
        "steps_per_iteration": config.batch,
        "steps": rounds * steps,
        "steps_per_second": {name: summary([steps / s for s in values]) for name, values in seconds.items()},
        "ratio": ratios(seconds["training"], seconds["simulator"]),
        "first_iteration_seconds": first,
        "ratio_of_a_million_steps": (first + million["training"]) / million["simulator"],
        "config": dataclasses.asdict(config),
    }


def print_row(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    rate = {name: value["median"] for name, value in row["steps_per_second"].items()}
    ratio = row["ratio"]
    print(
        f"  {row['env']:24} {rate['training']:9.0f} {rate['simulator']:10.0f}"
        f"   {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        f"   {row['ratio_of_a_million_steps']:.2f} with the first iteration ({row['first_iteration_seconds']:.1f} s)"
    )


def default_environments() -> list[str]:
    """Return Gymnasium's two and, where EnvPool is installed, its newest versions of the same."""
    environments = list(GYMNASIUM)
    if importlib.util.find_spec("envpool") is None:
        print("EnvPool is not installed (pip install 'trpo[envpool]'): its rows are left out.")
        return environments
    import envpool

    known = envpool.list_all_envs()
    newest = (
        max((name for name in known if name.startswith(f"{task}-v")), key=lambda name: int(name.rpartition("-v")[2]))
        for task in ENVPOOL
    )
    return environments + [f"envpool:{name}" for name in newest]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: one environment, few steps")
    parser.add_argument(
        "--env", nargs="*", help="environments (default: Hopper and HalfCheetah, Gymnasium and EnvPool)"
    )
    parser.add_argument("--rounds", type=int, default=0, help="turns (default 8; 2 with --quick)")
    parser.add_argument("--iterations", type=int, default=0, help="iterations in a turn (default 8; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=2, help="CPUs for everything (default 2)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="result file (default benchmarks/results/whole_run.json)"
    )
    arguments = parser.parse_args(argv)
    threads = pin(arguments.threads)
    rounds = arguments.rounds or (2 if arguments.quick else 8)
    iterations = arguments.iterations or (1 if arguments.quick else 8)
    environments = arguments.env or (["Hopper-v5"] if arguments.quick else default_environments())
    print(f"Whole training run against its simulator alone, {threads} CPUs, default settings")
    print(f"  {'':24} {'training':>9} {'simulator':>10} steps/s; training takes × the simulator; over a million steps")
    rows, background = [], Background()
    for env in environments:
        rows.append(measure(env, rounds, iterations, background))
        print_row(rows[-1])
    report = {"rows": rows, "rounds": rounds, "quick": arguments.quick, "machine": machine(threads)}
    report["background"] = background.report()
    if background.warning():
        print(f"\n{background.warning()}")
    report["versions"] = versions("jax", "jaxlib", "numpy", "gymnasium", "mujoco", "trpo")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nWritten: {arguments.out}")


if __name__ == "__main__":
    main()
