"""How much of the first start's CPU time the second one takes, to the end of the first iteration.

    python -m benchmarks.start [ENV] [--pairs 5]

Each pair begins with an empty directory for compiled programs (``TRPO_CACHE``). Counted is the CPU time of the process
and its children, so that others on the machine matter little; the table goes to standard output, all of it to
``benchmarks/results/start.json``.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import machine, pin, ratios, summary, versions, write

TARGET = 0.4
RESULTS = Path(__file__).with_name("results") / "start.json"


def cpu_seconds(command: list[str], env: dict[str, str]) -> float:
    """Return the CPU time of a command and of what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(env_id: str, pairs: int) -> dict[str, Any]:
    """Start twice, ``pairs`` times over."""
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as place:
            env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
            env["TRPO_CACHE"] = f"{place}/programs"
            for which, measured in seconds.items():  # one step is the first iteration
                command = ["train", env_id, "--steps", "1", "--out", f"{place}/{which}", "--quiet"]
                measured.append(cpu_seconds([sys.executable, "-m", "trpo", *command], env))
            told = " s, then ".join(f"{measured[-1]:.2f}" for measured in seconds.values())
            print(f"{env_id}: {told} s of CPU time", flush=True)
    return {name: summary(measured) for name, measured in seconds.items()} | {
        "ratio": ratios(seconds["second"], seconds["first"])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Hopper-v5")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    threads = pin(2)
    measured = measure(options.env, options.pairs)
    ratio = measured["ratio"]["median"]
    verdict = "met" if ratio <= TARGET else "MISSED"
    print(f"second / first {ratio:.2f}, target ≤ {TARGET:g}: {verdict}")
    about = {"env": options.env, "pairs": options.pairs, "target": TARGET, "met": ratio <= TARGET}
    write(RESULTS, about | measured | {"machine": machine(threads), "versions": versions("jax", "jaxlib", "trpo")})


if __name__ == "__main__":
    main()
