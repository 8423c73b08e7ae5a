"""How long one action takes: the file for NumPy, the ONNX graph and ``agent.act``, on one CPU.

    python -m benchmarks.deploy [--actions 2000] [--write]

Policies have not learned; their sizes are what counts. Observations are those of Hopper-v5 one after the other, or
frames of 84 × 84. The contenders take turns, a hundred actions each. An action during which the system gave the CPU to
somebody else says nothing of the policy, and is left out; how many were is told. The table goes to standard output,
all of it to ``benchmarks/results/deploy.json``, and with ``--write`` into docs/deploy.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy reads it when it is imported

import gymnasium as gym
import numpy as np

from benchmarks.timing import Background, machine, pin, versions, write

RESULTS = Path(__file__).with_name("results") / "deploy.json"
PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
BEGIN, END = "<!-- latency: written by python -m benchmarks.deploy -->", "<!-- end of latency -->"
TURN = 100


class Frames(gym.Env):
    """Four grey frames as of Atari games."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "64 × 64": ("Hopper-v5", {"hidden": (64, 64)}),
    "256 × 256": ("Hopper-v5", {"hidden": (256, 256)}),
    "64, GRU of 64": ("Hopper-v5", {"hidden": (64,), "trunk": "gru"}),
    "convolutions (84 × 84 × 4)": (Frames, {}),
}
"""Environment and settings of the policy."""


def observations(env: Any, count: int) -> list[Any]:
    """Return what is met one after the other."""
    if env is Frames:
        space = Frames.observation_space
        space.seed(0)
        return [space.sample() for _ in range(TURN)] * (count // TURN)
    made, found = gym.make(env), []
    made.action_space.seed(0)
    observation = made.reset(seed=0)[0]
    while len(found) < count:
        found.append(observation)
        observation, _, terminated, truncated, _ = made.step(made.action_space.sample())
        if terminated or truncated:
            observation = made.reset()[0]
    return found


def code_beside(file: Path) -> Any:
    """Import the policy.py that was written."""
    spec = importlib.util.spec_from_file_location("deployed_policy", file.with_name("policy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contenders(agent: Any, place: Path) -> dict[str, Callable[[Any, Any], Any]]:
    """Return for each what takes an observation and a memory, and gives the memory after the action."""
    import onnxruntime

    import trpo

    policy = code_beside(trpo.export(agent, place / "policy.npz")).Policy(place / "policy.npz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = str(trpo.export(agent, place / "policy.onnx"))
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    dtype = agent.spec.observation.dtype

    def by_graph(x: Any, carry: Any) -> Any:
        given = {"observation": np.asarray(x, dtype)[None]}
        memory = {f"carry/{name}": np.zeros((1, 64), np.float32) for name in ("h",) * bool(policy.start())}
        return session.run(None, {**given, **(carry or memory)}) and None

    return {
        "NumPy": lambda x, carry: policy(x, policy.start() if carry is None else carry)[1],
        "ONNX": by_graph,
        "agent.act": lambda x, carry: agent.act(x, agent.start() if carry is None else carry)[1],
    }


def measure(env: Any, settings: dict[str, Any], actions: int, background: Background) -> dict[str, Any]:
    """Return median and 99th percentile of each contender, in microseconds."""
    import trpo

    config = trpo.Config(policy=trpo.PolicyConfig(**settings), value=trpo.ValueConfig(encoder="flat", hidden=(4,)))
    agent = trpo.make_agent(env, config)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        memory: dict[str, Any] = {}
        acting, met = contenders(agent, Path(place)), observations(env, actions)
        for name, act in acting.items():
            memory[name] = act(met[0], None)  # compiles, and fills caches
        for begin in range(0, actions, TURN):
            for name, act in acting.items():
                background.rest()
                for i, x in enumerate(met[begin : begin + TURN]):
                    before, start = interruptions(), time.perf_counter()
                    memory[name] = act(x, memory[name])
                    taken = time.perf_counter() - start
                    if i and interruptions() == before:  # the first of a turn wakes the CPU up
                        seconds.setdefault(name, []).append(taken)
    both = {name: 1e6 * np.percentile(taken, [50, 99]) for name, taken in seconds.items()}
    kept = {name: len(taken) / (actions - actions // TURN) for name, taken in seconds.items()}
    return {name: {"median": a, "99 %": b, "kept": kept[name]} for name, (a, b) in both.items()}


def interruptions() -> int:
    """Return how often the system has taken the CPU from this process to give it to another."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def table(result: dict[str, Any]) -> str:
    """Return the table of docs/deploy.md."""
    names = list(next(iter(result["cases"].values())))
    lines = [f"| one action, µs: median (99 %) | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case, measured in result["cases"].items():
        cells = [f"{measured[name]['median']:.0f} ({measured[name]['99 %']:.0f})" for name in names]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    if result["others"]:
        lines += ["", f"While this was measured, others had {result['others']['mean']:.0%} of the machine's CPUs."]
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> None:
    """Put the table into docs/deploy.md."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", f"{BEGIN}\n{table(result)}\n{END}", text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/deploy.md")
    options = parser.parse_args()
    threads, background = pin(1), Background()
    cases = {name: measure(*case, options.actions, background) for name, case in CASES.items()}
    about = {"machine": machine(threads), "versions": versions("numpy", "onnxruntime", "jax", "trpo")}
    result = {"actions": options.actions, "cases": cases, "others": background.report(), **about}
    print(table(result))
    for case, measured in cases.items():
        left_out = ", ".join(f"{1 - each['kept']:.1%} of {name}" for name, each in measured.items())
        print(f"{case}: left out {left_out}")
    print(background.warning())
    write(RESULTS, result)
    if options.write:
        write_page(result)


if __name__ == "__main__":
    main()
