"""Learning experiments: tasks × variants × seeds; every result is a file that is never overwritten.

    python -m benchmarks.learning --suite mujoco                 # nine tasks, five seeds: one setting, and presets
    python -m benchmarks.learning --suite classic
    python -m benchmarks.learning --tasks Hopper-v5:300000 --variant default --variant two updates_per_batch=2

Training is done in EnvPool where it has the task (``tests/test_envpool_equals_gymnasium.py``: the same dynamics and
rewards), otherwise, and for Box2D's tasks (they need ``gymnasium[box2d]``), in Gymnasium. Every ``--every`` steps the
policy is evaluated, deterministically and stochastically, and everything is saved: interrupt the command at any point,
and the same command goes on from there. The last evaluation is in Gymnasium, of the deployed policy (the average) and
of the last one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "learning"
MUJOCO = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "Swimmer", "Reacher", "InvertedPendulum",
          "InvertedDoublePendulum")  # fmt: skip
CLASSIC = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 100_000,
    "MountainCar-v0": 100_000,
    "MountainCarContinuous-v0": 50_000,
    "Pendulum-v1": 100_000,
    "LunarLander-v3": 200_000,
    "LunarLanderContinuous-v3": 200_000,
    "BipedalWalker-v3": 1_000_000,
}
BOX2D = ("LunarLander", "BipedalWalker")
"""EnvPool has these too, but no test shows that they are Gymnasium's: their state cannot be set from an observation."""
SUITES = {
    "mujoco": [f"{name}-v5:1000000" for name in MUJOCO],
    "classic": [f"{name}:{steps}" for name, steps in CLASSIC.items()],
}
ONE = {"mujoco": "mujoco", "classic": "none"}
"""The preset that is the one setting for all tasks of a suite; none: the defaults of ``trpo.Config``."""
CURVE_EVERY = 10
"""Iterations between points of the training curve."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    """ID:STEPS."""
    variant: str
    seed: int
    changes: dict[str, Any]
    preset: str
    """As ``trpo train --preset``."""
    every: int
    """Steps between evaluations."""
    episodes: int
    simulator: str
    """``auto``, ``envpool`` or ``gymnasium``."""
    out: Path

    @property
    def env(self) -> str:
        """The environment's id in Gymnasium."""
        return self.task.rpartition(":")[0]

    @property
    def steps(self) -> int:
        """How long to train."""
        return int(self.task.rpartition(":")[2])

    @property
    def path(self) -> Path:
        """Where the result goes."""
        return self.out / self.task.replace(":", "-").replace("/", "-") / f"{self.variant}-s{self.seed}.json"

    @property
    def partial(self) -> Path:
        """Where everything is until the result is complete."""
        return self.path.with_suffix(".partial")


def commit() -> str | None:
    """Return the commit of the library, marked if files differ from it; None outside a repository."""
    root = Path(__file__).parents[1]
    try:
        name = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "src"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def training_id(env: str, simulator: str) -> str:
    """Return the id to train with: EnvPool's where it has the task and is tested to be equal, unless told otherwise."""
    if simulator == "gymnasium" or (simulator == "auto" and env.startswith(BOX2D)):
        return env
    try:
        import envpool

        known = env in envpool.list_all_envs()
    except ImportError:
        known = False
    if simulator == "envpool" and not known:
        raise ValueError(f"EnvPool is not installed or does not have {env}: use --simulator gymnasium")
    return f"envpool:{env}" if known else env


def configure(job: Job) -> Any:
    """Return the job's configuration: preset, then changes."""
    import trpo
    from trpo.settings.config import merge
    from trpo.settings.presets import apply_preset

    env = trpo.EnvConfig(training_id(job.env, job.simulator))
    config = trpo.Config(env=env, steps=job.steps, seed=job.seed)
    return merge(apply_preset(config, job.preset)[0], job.changes)


@contextlib.contextmanager
def claimed(job: Job) -> Iterator[bool]:
    """Hold the job's directory; yields False if another process does, or the result is there."""
    job.partial.mkdir(parents=True, exist_ok=True)
    with (job.partial / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not job.path.exists()
    if job.path.exists():
        shutil.rmtree(job.partial, ignore_errors=True)


def run(job: Job) -> Path:
    """Train, evaluate on the way, and write the result, going on where an earlier attempt stopped."""
    if not job.path.exists():
        with claimed(job) as mine:
            if mine:
                _train(job)
    return job.path


def _train(job: Job) -> None:
    import jax
    import numpy as np

    import trpo
    from benchmarks.timing import machine, versions
    from trpo.runs.checkpoint import write_checkpoint

    config = configure(job)
    agent = trpo.make_agent(config.env.id, config)
    state, record = _begin(job, agent, config)
    record["commits"] = sorted({*record["commits"], str(commit())})
    due = (state.steps // job.every + 1) * job.every
    began = time.perf_counter()

    def keep() -> None:
        record["iteration"], record["steps"] = state.iteration, state.steps
        write_checkpoint(job.partial / "checkpoints", state)
        _write(job.partial / "record.json", record)

    if not record["evaluations"]:
        record["evaluations"].append({"steps": 0} | _evaluate(agent, config.env.id, job.episodes, 0))
        began = time.perf_counter()
    for state, metrics in trpo.iterations(config.env.id, agent, config, state):  # noqa: B020
        if metrics["iteration"] % CURVE_EVERY == 0:
            record["curve"].append([metrics["steps"], _round(metrics["episode_return"]), _round(metrics["std"])])
        if metrics["max_kl"] is not None:
            record["iterations_over_bound"] += metrics["mean_kl"] > metrics["max_kl"]
            record["largest_mean_kl"] = max(record["largest_mean_kl"], metrics["mean_kl"])
        record["training_return"] = metrics["episode_return"]
        if state.steps >= due or state.steps >= config.steps:
            jax.block_until_ready(state.learner)
            record["seconds"] += time.perf_counter() - began
            at = time.perf_counter()
            evaluation = _evaluate(agent.at(state), config.env.id, job.episodes, state.steps)
            record["evaluations"].append({"steps": state.steps} | evaluation)
            record["evaluation_seconds"] += time.perf_counter() - at
            keep()
            due += job.every
            began = time.perf_counter()
    trained = agent.at(state)
    last = _evaluate(trained, job.env, job.episodes, config.seed, full=True)
    newest = trained if state.learner.average is None else _without_average(trained)
    record["last_policy"] = _evaluate(newest, job.env, job.episodes, config.seed, full=True)
    means = {how: [e[how]["mean_return"] for e in record["evaluations"]] for how in last}
    packages = ("jax", "jaxlib", "numpy", "gymnasium", "mujoco", "trpo")
    packages += ("envpool",) if config.env.id.startswith("envpool:") else ()
    record |= last
    record["best"] = {how: max(values) for how, values in means.items()}
    record["finite"] = all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.learner.policy))
    record["machine"], record["versions"] = machine(1), versions(*packages)
    record["seconds"], record["evaluation_seconds"] = round(record["seconds"], 1), round(record["evaluation_seconds"])
    del record["iteration"]
    _write(job.path, record)


def _begin(job: Job, agent: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the state to go on from, and what is known so far."""
    import trpo
    from trpo.runs.checkpoint import read_checkpoint

    path = job.partial / "record.json"
    if path.exists():
        record = json.loads(path.read_text())
        if record["config"] == json.loads(json.dumps(config.to_json())):
            state = read_checkpoint(job.partial / "checkpoints" / f"{record['iteration']:08d}", agent.learner)
            record["resumed"] += 1
            return state, record
        raise ValueError(f"{job.partial} was begun with other settings: remove it, or name the variant otherwise")
    shutil.rmtree(job.partial / "checkpoints", ignore_errors=True)
    record = {
        "task": job.task,
        "variant": job.variant,
        "changes": job.changes,
        "preset": job.preset,
        "seed": job.seed,
        "trained_in": config.env.id,
        "config": config.to_json(),
        "commits": [],
        "resumed": 0,
        "seconds": 0.0,
        "evaluation_seconds": 0.0,
        "evaluations": [],
        "curve": [],
        "largest_mean_kl": 0.0,
        "iterations_over_bound": 0,
    }
    return trpo.TrainingState(agent.learner), record


def _evaluate(agent: Any, env: str, episodes: int, seed: int, full: bool = False) -> dict[str, Any]:
    import trpo

    found = {}
    for how, deterministic in (("deterministic", True), ("stochastic", False)):
        result = trpo.evaluate(agent, env, episodes, deterministic, seed)
        found[how] = {"mean_return": round(result.mean_return, 3), "std_return": round(result.std_return, 3)}
        if full:
            found[how] |= {"returns": [round(x, 2) for x in result.returns], "lengths": list(result.lengths)}
    return found


def _without_average(agent: Any) -> Any:
    """Return the agent that deploys its last policy."""
    return dataclasses.replace(agent, learner=dataclasses.replace(agent.learner, average=None))


def _round(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.5g}")


def _write(path: Path, record: dict[str, Any]) -> None:
    from trpo.runs.disk import replace_durably

    replace_durably(path, (json.dumps(record) + "\n").encode())


def nested(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["rule.max_kl=0.02"]`` into nested changes; values are JSON, or strings."""
    from trpo.runs.sweep import nested as nest

    changes = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            changes[name] = json.loads(text)
        except ValueError:
            changes[name] = text
    return nest(changes)


def _one_thread() -> None:
    # Two runs side by side, one core each: more throughput than one run on two.
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.nice(10)


def plan(options: argparse.Namespace) -> list[Job]:
    """Return the jobs of a command line; every seed of all tasks before the next one."""
    tasks = options.tasks or SUITES[options.suite]
    if options.variant:
        variants = [(v[0], nested(v[1:]), options.preset) for v in options.variant]
    elif options.suite:
        variants = [("one", {}, ONE[options.suite]), ("preset", {}, "auto")]
    else:
        variants = [("default", {}, options.preset)]
    rest = (options.every, options.episodes, options.simulator, options.out)
    jobs = [Job(t, n, s, c, p, *rest) for s in options.seeds for t in tasks for n, c, p in variants]
    one = ONE[options.suite] if options.suite else "none"
    return [job for job in jobs if job.variant != "preset" or has_preset(job.env, one)]


def has_preset(env: str, one: str) -> bool:
    """Return whether the environment's preset differs from the one setting of the suite."""
    import trpo
    from trpo.settings.presets import apply_preset

    config = trpo.Config(env=trpo.EnvConfig(env))
    return apply_preset(config)[0] != apply_preset(config, one)[0]


def line(record: dict[str, Any]) -> str:
    """Return one line about a result."""
    d, s = record["deterministic"]["mean_return"], record["stochastic"]["mean_return"]
    name = f"{record['task']:28s} {record['variant']:22s} s{record['seed']}"
    return f"{name} det {d:8.1f} sto {s:8.1f} best {record['best']['deterministic']:8.1f} {record['seconds']:6.0f}s"


def main() -> None:
    """Run whatever is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", nargs="+", metavar="ID:STEPS")
    what.add_argument("--suite", choices=SUITES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--variant", nargs="+", action="append", default=None, metavar=("NAME", "FIELD=VALUE"))
    parser.add_argument("--preset", default="auto", help="preset below the variants' changes (default auto)")
    parser.add_argument("--every", type=int, default=50_000, help="steps between evaluations")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of an evaluation")
    parser.add_argument("--simulator", choices=("auto", "envpool", "gymnasium"), default="auto")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, one thread each")
    options = parser.parse_args()
    jobs = plan(options)
    left = [job for job in jobs if not job.path.exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done", flush=True)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, _one_thread, max_tasks_per_child=1) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run, job) for job in left]):
            path = done.result()
            if path.exists():
                print(line(json.loads(path.read_text())), flush=True)


if __name__ == "__main__":
    main()
