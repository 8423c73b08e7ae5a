"""Measure whole training runs against sb3-contrib and Tianshou: the same task, simulator, batch, networks and work.

    python -m benchmarks.peers [--quick] [--env ID ...]

It installs nothing; without the peers' environment it says how to make one. All contenders take turns in one run, and
the *ratios* are the result. Equal work means: Gymnasium's environments, 16 × 128 steps a batch, 64×64 tanh networks,
joint δ = 0.01, damping 0.1, 10 conjugate-gradient iterations, and the value fit of the peer that is compared with: 10
epochs of minibatches of 128 (sb3-contrib), or 20 steps on the whole batch (Tianshou, which knows no other). Everything
goes to ``benchmarks/results/peers.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cases, speed, whole_run
from benchmarks.peer_process import LIBRARIES, Peer, TrainingPeer, installed
from benchmarks.timing import Background, interleave, machine, met, pin, ratios, repeat, summary, versions

RESULTS = Path(__file__).with_name("results") / "peers.json"
ENVS = ("Hopper-v5", "HalfCheetah-v5")
SHAPES = {"Hopper-v5": cases.HOPPER, "HalfCheetah-v5": cases.HALF_CHEETAH}
TARGETS = {"sb3_contrib": 5.0, "tianshou": 4.0}
ONE, TWO = "one process", "two processes"
"""Where the environments are stepped: all in the process that learns, or half of them in another (env.workers=1)."""
LIMIT = 1.25
"""How many times as long as the simulator alone a run may take where the simulator is the limit."""
WORK = {"count": 16, "fragment": 128, "hidden": [64, 64], "max_kl": 0.01, "damping": 0.1, "cg_iterations": 10,
        "discount": 0.99, "gae_lambda": 0.95, "learning_rate": 1e-3, "initial_std": 0.6, "seed": 0}  # fmt: skip
VALUE_FIT = {
    "sb3_contrib": {"epochs": 10, "minibatch": 128},
    "tianshou": {"epochs": 20, "minibatch": 0},
}


def our_config(env: str, library: str, workers: int = 0) -> Any:
    """Return our settings for the work that ``library`` does."""
    import trpo

    return trpo.Config(
        env=trpo.EnvConfig(env, count=WORK["count"], workers=workers),
        fragment=WORK["fragment"],
        steps=10**9,
        value=trpo.ValueConfig(**VALUE_FIT[library]),
    )


class Ours:
    """Our training, iteration by iteration."""

    def __init__(self, env: str, library: str, workers: int = 0) -> None:
        import trpo

        config = our_config(env, library, workers)
        self.batch = config.batch
        self._run = trpo.iterations(env, trpo.make_agent(env, config), config)
        whole_run.advance(self._run, 2)  # compiles

    def train(self, iterations: int) -> float:
        """Return seconds per step."""
        return whole_run.advance(self._run, iterations) / (iterations * self.batch)

    def close(self) -> None:
        """Close the environments."""
        self._run.close()


def value_fit(env: str, library: str) -> Callable[[], float]:
    """Return a function that times our value fit alone: seconds."""
    import jax
    import numpy as np

    import trpo
    from trpo.training.learner import Hyper, refit
    from trpo.value_fits.fit import ValueBatch

    config = our_config(env, library)
    agent = trpo.make_agent(env, config)
    rng, n = np.random.default_rng(0), config.batch
    seen = rng.standard_normal((n, agent.spec.observation.size)).astype(np.float32)
    batch = ValueBatch(seen, np.tanh(seen.sum(1)) * 10, np.full(n, 1 / n, np.float32))
    fit = partial(jax.jit(refit, static_argnums=0), agent.program(), Hyper.of(config))

    def once() -> None:
        jax.block_until_ready(fit(agent.learner.value, batch, jax.random.key(0)))

    once()
    return lambda: speed.turn(repeat(once, 4))


def our_memory(env: str, library: str) -> int:
    """Return the peak resident memory of a process that trains, in bytes."""
    command = [sys.executable, "-m", "benchmarks.peers", "--memory", env, library]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(env: str, library: str) -> None:
    """Train a little and print this process's peak resident memory, in bytes."""
    with closing(Ours(env, library)) as ours:
        ours.train(5)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def whole_runs(env: str, peers: dict[str, TrainingPeer], rounds: int, iterations: int, background: Background) -> Any:
    """Train with every contender in turns, with the simulator alone among them."""
    alone = whole_run.GymnasiumAlone(env, WORK["count"])
    steps = iterations * WORK["fragment"]
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], float]] = {}
        for library in VALUE_FIT:
            for workers, how in ((0, ONE), (1, TWO)):
                ours = stack.enter_context(closing(Ours(env, library, workers)))
                contenders[f"trpo, {how}, work of {library}"] = partial(ours.train, iterations)
        if _has_envpool():
            pool = stack.enter_context(closing(Ours(f"envpool:{env}", "sb3_contrib")))
            contenders["trpo, EnvPool"] = partial(pool.train, iterations)
            pool_alone = whole_run.EnvPoolAlone(env, WORK["count"])
            contenders["EnvPool alone"] = partial(_alone, pool_alone, steps)
        contenders |= {name: partial(peer.train, iterations) for name, peer in peers.items()}
        contenders["simulator alone"] = partial(_alone, alone, steps)
        seconds = interleave(contenders, rounds, background)
    rate = {name: summary([1 / s for s in values]) for name, values in seconds.items()}
    rows = []
    for library in peers:
        for how in (ONE, TWO):
            mine = seconds[f"trpo, {how}, work of {library}"]
            ratio, limit = ratios(seconds[library], mine), ratios(mine, seconds["simulator alone"])
            rows.append(
                {
                    "against": library,
                    "how": how,
                    "ratio": ratio,
                    "target": TARGETS[library],
                    "met": met(ratio, TARGETS[library]),
                    "over_simulator": limit,
                    "at_the_limit": max(limit["median"], limit["of_bests"]) <= LIMIT,
                }
            )
    report = {"env": env, "steps_per_second": rate, "rows": rows}
    if "trpo, EnvPool" in seconds:
        report["envpool"] = {
            "over_simulator": ratios(seconds["trpo, EnvPool"], seconds["EnvPool alone"]),
            "against": {name: ratios(seconds[name], seconds["trpo, EnvPool"]) for name in peers},
        }
    return report


def _alone(simulator: Any, steps: int) -> float:
    return whole_run.simulate(simulator, WORK["count"], steps) / (steps * WORK["count"])


def _has_envpool() -> bool:
    try:
        import envpool  # noqa: F401
    except ImportError:
        return False
    return True


def value_fits(env: str, peers: dict[str, TrainingPeer], rounds: int, background: Background) -> list[dict[str, Any]]:
    """Time the value fit alone; a peer's is what its update takes with it less what it takes without."""
    rows = []
    for library, peer in peers.items():
        contenders = {"trpo": value_fit(env, library), library: partial(peer.value_fit, 3)}
        seconds = interleave(contenders, rounds, background)
        rows.append(
            {
                "env": env,
                "against": library,
                "seconds": {name: summary(values) for name, values in seconds.items()},
                "ratio": ratios(seconds[library], seconds["trpo"]),
            }
        )
    return rows


def print_whole(report: dict[str, Any]) -> None:
    """Print the block of one environment."""
    print(f"\nWhole run, {report['env']}: steps/s")
    for name, rate in report["steps_per_second"].items():
        print(f"  {name:30} {rate['median']:8.0f} ({rate['min']:.0f} to {rate['max']:.0f})")
    for row in report["rows"]:
        line = f"  {row['how']}, times {row['against']}: {_spread(row['ratio'])}, target ≥ {row['target']:g}: "
        line += "met" if row["met"] else "MISSED"
        print(f"{line}; over the simulator alone {_spread(row['over_simulator'])}, target ≤ {LIMIT}")


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, printing as it goes."""
    threads = pin(arguments.threads)
    rounds = arguments.rounds or (2 if arguments.quick else 8)
    iterations = 1 if arguments.quick else 10
    background = Background()
    report: dict[str, Any] = {"rounds": rounds, "iterations": iterations, "quick": arguments.quick, "work": WORK}
    report |= {"value_fit": VALUE_FIT, "whole": [], "updates": [], "fits": [], "memory": []}
    report["versions"] = versions("jax", "jaxlib", "numpy", "gymnasium", "mujoco", "trpo")
    found = installed(arguments.peer_python)
    for env in arguments.env:
        with ExitStack() as stack:
            peers = {}
            for library in LIBRARIES if found else ():
                settings = WORK | VALUE_FIT[library] | {"env": env, "threads": threads}
                peer = stack.enter_context(closing(TrainingPeer(arguments.peer_python, library, settings)))
                peer.train(1)
                peers[library] = peer
                report["versions"] |= peer.versions
            report["whole"].append(whole_runs(env, peers, rounds, iterations, background))
            print_whole(report["whole"][-1])
            report["fits"] += value_fits(env, peers, rounds, background)
            for row in report["fits"][-len(peers) :] if peers else ():
                print(f"  value fit of {row['against']}, times: {_spread(row['ratio'])}")
            memory = {name: peer.memory() for name, peer in peers.items()}
            memory["trpo"] = our_memory(env, "sb3_contrib")
            report["memory"].append({"env": env, "bytes": memory})
            print("  peak memory, MiB: " + ", ".join(f"{n} {b / 2**20:.0f}" for n, b in memory.items()))
        with ExitStack() as stack:
            workers = [
                stack.enter_context(closing(Peer(arguments.peer_python, library, threads)))
                for library in (LIBRARIES if found else ())
            ]
            case = cases.Case(WORK["count"] * WORK["fragment"], 64, *SHAPES[env])
            report["updates"].append(speed.compare_updates(case, workers, rounds, background))
            speed.print_updates(report["updates"][-1])
    report["machine"], report["background"] = machine(threads), background.report()
    if background.warning():
        print(f"\n{background.warning()}")
    return report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run: few turns")
    parser.add_argument("--env", nargs="+", choices=ENVS, default=list(ENVS))
    parser.add_argument("--rounds", type=int, default=0, help="turns for each contender (default 8; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=2, help="CPUs for every contender (default 2)")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="result file (default benchmarks/results/peers.json)")
    parser.add_argument("--memory", nargs=2, metavar=("ENV", "LIBRARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.memory:
        measure_memory(*arguments.memory)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    report = run(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nWritten: {arguments.out}")


if __name__ == "__main__":
    main()
