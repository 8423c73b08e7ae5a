"""Measure training with environments in JAX: throughput, peers, start-up, many seeds, learning curves, physics.

    python -m benchmarks.device [SECTION ...] [--quick]

Sections: throughput peers start seeds learning physics; all by default. Each runs in a process of its own and writes
``benchmarks/results/device/SECTION.json`` (learning and physics: one file for each task, never overwritten).
Contenders take turns and ratios are those of turns next to each other. Peers need environments of their own:

    python -m venv .venv-rejax && .venv-rejax/bin/pip install rejax==0.1.3 gymnax==0.0.9 six jax==0.10.2
    python -m venv .venv-peers && .venv-peers/bin/pip install torch==2.13.0 sb3-contrib gymnasium
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Background, interleave, machine, pin, summary, versions, write

RESULTS = Path(__file__).with_name("results") / "device"
WORKER = Path(__file__).with_name("device_peer.py")
PYTHONS = {"rejax": Path(".venv-rejax/bin/python"), "sb3_contrib": Path(".venv-peers/bin/python")}
LEARNING = {
    "gymnax:CartPole-v1": 500_000,
    "gymnax:Acrobot-v1": 500_000,
    "gymnax:Pendulum-v1": 500_000,
    "gymnax:Breakout-MinAtar": 1_000_000,
}
PHYSICS = {"brax:hopper": 2_000_000, "brax:ant": 1_000_000, "playground:CartpoleBalance": 1_000_000}
LEAN = {"rule": {"cg_iterations": 5}, "fisher_subsample": 32, "value": {"epochs": 1, "minibatch": 512}}
"""The least that still is TRPO with a fitted value function."""


def settings(env: str, changes: dict[str, Any] | None = None, **more: Any) -> Any:
    """Return the configuration that ``trpo train`` uses for ``env``, with changes."""
    import trpo
    from trpo.settings.config import merge
    from trpo.settings.presets import apply_preset

    config = apply_preset(trpo.Config(env=trpo.EnvConfig(env)))[0]
    return dataclasses.replace(merge(config, changes or {}), **more)


def source_of(env: str, config: Any) -> Any:
    """Return an environment in JAX as training sees it."""
    from trpo.envs.names import resolve
    from trpo.training.loop import device_source

    source = device_source(resolve(env, config.env))
    assert source is not None
    return source


class Training:
    """One run, or several at once, that is advanced by some iterations at a time."""

    def __init__(self, env: str, configs: Sequence[Any]) -> None:
        import trpo
        from trpo.training.device import DeviceLoop

        agents = [trpo.make_agent(env, config) for config in configs]
        self.loop = DeviceLoop(source_of(env, configs[0]), agents, [trpo.TrainingState(a.learner) for a in agents])
        self.batch = configs[0].batch * len(configs)
        self.advance(1)

    def advance(self, iterations: int) -> float:
        """Return seconds per step, of all runs together."""
        import jax
        import numpy as np

        left, began = iterations, time.perf_counter()
        while left > 0:
            length = min(left, 256)
            loop = self.loop
            loop.members, _, done = loop.program(loop.hyper, loop.keys, loop.members, np.int32(length))
            left -= length
        jax.block_until_ready((self.loop.members, done))
        return (time.perf_counter() - began) / (iterations * self.batch)


def alone(env_id: str, count: int, length: int) -> Callable[[], float]:
    """Return a function that steps gymnax's own vectorised environment with random actions: seconds per step."""
    import gymnax
    import jax

    env, params = gymnax.make(env_id.removeprefix("gymnax:"))
    space = env.action_space(params)

    @jax.jit
    def run(key: Any, state: Any) -> tuple[Any, Any]:
        def step(state: Any, key: Any) -> tuple[Any, Any]:
            acting, stepping = jax.random.split(key)
            action = jax.vmap(space.sample)(jax.random.split(acting, count))
            keys = jax.random.split(stepping, count)
            seen, state, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
            return state, (seen.sum(), reward.sum())

        return jax.lax.scan(step, state, jax.random.split(key, length))

    _, start = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(0), count), params)
    jax.block_until_ready(run(jax.random.key(1), start))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(2), start))
        return (time.perf_counter() - began) / (count * length)

    return measure


def acting(env: str, config: Any, fragments: int) -> Callable[[], float]:
    """Return a function that collects fragments with a policy, and learns nothing: seconds per step."""
    import jax

    import trpo
    from trpo.training import device as d
    from trpo.training.learner import prepare

    agent = trpo.make_agent(env, config)
    setup = d.check(source_of(env, config), agent)
    key = jax.random.key(0)
    member = jax.jit(functools.partial(d.begin, setup))(agent.learner, key)

    @jax.jit
    def run(member: Any) -> Any:
        def one(rollout: Any, i: Any) -> tuple[Any, Any]:
            learner = member.learner
            actor, noise, _ = prepare(setup.program, learner.policy, learner.observations, key, i)
            rollout, trajectory, _ = setup.source.collect(agent.policy, actor, rollout, noise)
            return rollout, trajectory.reward.sum()

        return jax.lax.scan(one, member.rollout, jax.numpy.arange(fragments))

    jax.block_until_ready(run(member))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(member))
        return (time.perf_counter() - began) / (fragments * config.batch)

    return measure


def throughput(quick: bool) -> dict[str, Any]:
    """Steps per second of training against the environment stepped alone, at the same width."""
    rows = []
    for env in ("gymnax:CartPole-v1", "gymnax:Pendulum-v1"):
        for width in (64,) if quick else (64, 1024):
            shape = {"env": {"count": width}, "fragment": 32}
            preset, lean = settings(env, shape), settings(env, shape | LEAN)
            runs = {name: Training(env, [config]) for name, config in (("preset", preset), ("lean", lean))}
            iterations = max(2, 200_000 // preset.batch)
            contenders = {name: functools.partial(run.advance, iterations) for name, run in runs.items()}
            contenders["acting"] = acting(env, preset, iterations)
            contenders["alone"] = alone(env, width, iterations * 32)
            seconds = interleave(contenders, 3 if quick else 6)
            for name in ("preset", "lean", "acting"):
                share = [a / b for a, b in zip(seconds["alone"], seconds[name], strict=True)]
                rows.append(
                    {
                        "env": env,
                        "environments": width,
                        "variant": name,
                        "steps_per_second": 1 / summary(seconds[name])["median"],
                        "alone_steps_per_second": 1 / summary(seconds["alone"])["median"],
                        "share": summary(share),
                    }
                )
    return {"rows": rows, "target": 0.5, "lean": LEAN}


class Peer:
    """A peer in its own interpreter."""

    def __init__(self, library: str, count: int, fragment: int) -> None:
        command = [str(PYTHONS[library]), str(WORKER), library, str(count), str(fragment)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.versions = self._read()["versions"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer stopped with exit code {self._process.wait()}")
        return json.loads(line)

    def advance(self, iterations: int) -> float:
        """Return seconds per step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{iterations}\n")
        self._process.stdin.flush()
        reply = self._read()
        return reply["seconds"] / reply["steps"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def peers(quick: bool) -> dict[str, Any]:
    """Steps per second on CartPole against rejax's PPO at the same batch and sb3-contrib's TRPO."""
    env = "gymnax:CartPole-v1"
    config = settings(env)
    same_fit = settings(env, {"value": {"epochs": 4, "minibatch": config.batch // 4}})
    ours = {"preset": Training(env, [config]), "as many value epochs as rejax": Training(env, [same_fit])}
    contenders = {name: functools.partial(run.advance, 100) for name, run in ours.items()}
    others = {}
    for library, iterations in (("rejax", 100), ("sb3_contrib", 2)):
        if PYTHONS[library].exists():
            others[library] = Peer(library, config.env.count, config.fragment)
            contenders[library] = functools.partial(others[library].advance, iterations)
    background = Background()
    seconds = interleave(contenders, 3 if quick else 5, background)
    rows = []
    for name in ours:
        for library in others:
            times = [b / a for a, b in zip(seconds[name], seconds[library], strict=True)]
            rows.append({"variant": name, "against": library, "times_faster": summary(times)})
    for peer in others.values():
        peer.close()
    return {
        "rows": rows,
        "steps_per_second": {name: 1 / summary(values)["median"] for name, values in seconds.items()},
        "targets": {"rejax": 1, "sb3_contrib": 100},
        "batch": [config.env.count, config.fragment],
        "peers": {library: peer.versions for library, peer in others.items()},
        "background": background.report(),
    }


START = """
import sys, trpo
agent = trpo.train("gymnax:CartPole-v1", steps=int(sys.argv[1]), seed=int(sys.argv[2]), out=sys.argv[3], quiet=True)
print(agent.evaluate(20).mean_return)
"""


def start(quick: bool) -> dict[str, Any]:
    """Wall clock from the start of a process to the end of an evaluation of CartPole, compilation included."""
    rows, steps = [], 120_000
    for seed in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as directory:
            began = time.perf_counter()
            command = [sys.executable, "-c", START, str(steps), str(seed), f"{directory}/run"]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds = time.perf_counter() - began
        rows.append({"seed": seed, "seconds": seconds, "deterministic_return": float(said)})
    return {"rows": rows, "steps": steps, "target_seconds": 15, "target_return": 475}


def seeds(quick: bool) -> dict[str, Any]:
    """Time of 32 seeds at once against one, the same iterations each."""
    from trpo.training.layout import use_cores

    use_cores(32)
    rows = []
    for env, shape in (
        ("gymnax:CartPole-v1", {}),
        ("gymnax:CartPole-v1", {"env": {"count": 8}, "fragment": 16}),
        (
            "gymnax:CartPole-v1",
            {"env": {"count": 8}, "fragment": 16, "policy": {"hidden": [16]}, "value": {"hidden": [16]}},
        ),
    ):
        config = settings(env, shape)
        single = dataclasses.replace(config, env=dataclasses.replace(config.env, devices=1))
        one = Training(env, [single])
        many = Training(env, [dataclasses.replace(config, seed=i) for i in range(32)])
        iterations = max(2, 30_000 // config.batch)
        contenders = {
            "one": functools.partial(one.advance, 4 * iterations),
            "many": functools.partial(many.advance, iterations),
        }
        measured = interleave(contenders, 2 if quick else 4)
        ratio = [32 * b / a for a, b in zip(measured["one"], measured["many"], strict=True)]
        rows.append(
            {
                "env": env,
                "environments": config.env.count,
                "fragment": config.fragment,
                "hidden": list(config.policy.hidden),
                "ratio": summary(ratio),
                "steps_per_second": {name: 1 / summary(values)["median"] for name, values in measured.items()},
            }
        )
    return {"rows": rows, "target": 8}


def _train(env: str, steps: int, count: int, path: Path, **changes: Any) -> None:
    """Train ``count`` seeds of ``env``, evaluate both ways, and write scores and curves; skip what is there."""
    if path.exists():
        return
    import trpo
    from trpo.runs.sinks import read_metrics
    from trpo.runs.sweep import sweep

    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "sweep"
        config = settings(env, changes)
        began = time.perf_counter()
        agents = sweep(env, seeds=count, steps=steps, config=config, out=out, quiet=True)
        seconds = time.perf_counter() - began
        runs = [read_metrics(out / f"seed-{seed}") for seed in range(count)]
    curves = [[[r["steps"], r["episode_return"]] for r in run[:: max(1, len(run) // 60)]] for run in runs]
    worst = max(r["mean_kl"] / r["max_kl"] for run in runs for r in run)
    report = {
        "env": env,
        "steps": steps,
        "seeds": count,
        "seconds": seconds,
        "steps_per_second": count * steps / seconds,
        "first_return": [next(r["episode_return"] for r in run if r["episode_return"] is not None) for run in runs],
        "training_return": [run[-1]["episode_return"] for run in runs],
        "deterministic": [agent.evaluate(20).mean_return for agent in agents],
        "stochastic": [agent.evaluate(20, deterministic=False).mean_return for agent in agents],
        "largest_kl_over_bound": worst,
        "curves": curves,
        "config": config.to_json(),
        "versions": versions("jax", "numpy") | {"trpo": trpo.__version__},
        "machine": machine(pin(64)),
    }
    write(path, report)


def _each(folder: str, tasks: dict[str, int], count: int, quick: bool) -> None:
    for env, steps in tasks.items():
        name = f"{env.replace(':', '-')}-{steps}"
        path = (Path(tempfile.mkdtemp()) if quick else RESULTS / folder) / f"{name}.json"
        code = "import sys; from pathlib import Path; from benchmarks.device import _train; " \
            "_train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))"  # fmt: skip
        arguments = [env, str(20_000 if quick else steps), str(2 if quick else count), str(path)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        report = json.loads(path.read_text())
        print(f"  {env} {steps}: {report['seconds']:.0f} s, {report['steps_per_second']:.0f} steps/s", flush=True)


def learning(quick: bool) -> None:
    """Learning curves of 32 seeds."""
    _each("learning", LEARNING, 32, quick)


def physics(quick: bool) -> None:
    """Two tasks of brax and one of MuJoCo Playground, one seed each."""
    _each("physics", PHYSICS, 1, quick)


SECTIONS = {f.__name__: f for f in (throughput, peers, start, seeds, learning, physics)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run sections, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {' '.join(SECTIONS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; sections are {', '.join(SECTIONS)}")
    if not options.here:
        for name in options.sections or SECTIONS:
            print(name, flush=True)
            quick = ["--quick"] if options.quick else []
            subprocess.run([sys.executable, "-m", "benchmarks.device", name, "--here", *quick], check=True)
        return
    (name,) = options.sections
    report = SECTIONS[name](options.quick)
    if report is None:
        return
    report |= {"machine": machine(pin(64)), "versions": versions("jax", "jaxlib", "gymnax", "trpo")}
    print(json.dumps(report["rows"], indent=1))
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
