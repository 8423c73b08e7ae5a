"""This commit against another, in one run: import, first iteration, and the speed of whole iterations.

    git worktree add ../other COMMIT && python -m benchmarks.commits ../other [--pairs 5] [--only hopper ...]

Each measurement is a process of its own with the package of one of the two trees; the two take turns, and what is
reported is the median of the ratios of neighbours, ours / other: of times, so that below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
ITERATIONS = """
import json, sys, time
began = time.perf_counter()
import trpo
imported = time.perf_counter()
env, settings, iterations = json.loads(sys.argv[1])
config = trpo.Config.from_json({**settings, "steps": 10**9, "env": {**settings.get("env", {}), "id": env}})
agent = trpo.make_agent(env, config)
times, collecting = [], []
for state, metrics in trpo.iterations(env, agent, config):
    times.append(time.perf_counter())
    collecting.append(metrics["collect_seconds"] or 0.0)
    if len(times) > iterations:
        break
later = [b - a for a, b in zip(times[5:], times[6:])]
print(json.dumps({
    "import": imported - began,
    "first iteration": times[0] - began,
    "iteration": sorted(later)[len(later) // 2],
    "collect": sorted(collecting[5:])[len(collecting[5:]) // 2],
}))
"""
ONE = {"env": {"count": 4}, "fragment": 512}
CASES: dict[str, tuple[str, dict, int]] = {
    "hopper": ("Hopper-v5", {"env": {"count": 16}, "fragment": 64}, 150),
    "halfcheetah, one worker": ("HalfCheetah-v5", {"env": {"count": 8, "workers": 1}, "fragment": 256}, 40),
    "cartpole": ("CartPole-v1", {"env": {"count": 16}, "fragment": 64}, 200),
    "pendulum, large batch": ("Pendulum-v1", {"env": {"count": 16}, "fragment": 256}, 60),
    "gymnax": ("gymnax:CartPole-v1", {"env": {"count": 64}, "fragment": 64}, 200),
}


def measure(tree: Path, case: tuple[str, dict, int]) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {"PYTHONPATH": f"{tree}/src"}
    command = [sys.executable, "-c", ITERATIONS, json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    options = parser.parse_args()
    for name in options.only:
        ratios: dict[str, list[float]] = {}
        for _ in range(options.pairs):
            ours, theirs = measure(HERE, CASES[name]), measure(options.other, CASES[name])
            for what, seconds in ours.items():
                if theirs[what] > 0:
                    ratios.setdefault(what, []).append(seconds / theirs[what])
        told = ", ".join(
            f"{what} {statistics.median(r):.3f} ({min(r):.2f} … {max(r):.2f})" for what, r in ratios.items()
        )
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
