"""Vine rollouts against single paths: variance of the gradient, speed, learning; and the picture of a vine.

    python -m benchmarks.vine --variance [--tasks gymnax:CartPole-v1 ...] [--reference 1000000]
    python -m benchmarks.vine --speed [--tasks ...]
    python -m benchmarks.vine --learning [--tasks DeepSea-12 ...] [--seeds 0 1 2] [--processes 2]
    python -m benchmarks.vine --picture

Steps are simulator steps, those of branches included. Results go to ``benchmarks/results/vine/``; what is there is not
measured again, but for ``--picture``, which draws ``docs/figures/vine.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "vine"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "vine.png"
DEVICE = ("gymnax:CartPole-v1", "gymnax:Acrobot-v1", "gymnax:MountainCar-v0", "gymnax:DeepSea-bsuite",
          "gymnax:Breakout-MinAtar")  # fmt: skip
HOST = ("Hopper-v5",)
LEARNING: dict[str, tuple[str, int, dict[str, Any]]] = {
    "MountainCar-v0": ("MountainCar-v0", 400_000, {}),
    "Acrobot-v1": ("Acrobot-v1", 200_000, {}),
    "FrozenLake-v1": ("FrozenLake-v1", 200_000, {}),
    "Taxi-v4": ("Taxi-v4", 500_000, {}),
    **{f"DeepSea-{n}": ("gymnax:DeepSea-bsuite", 500_000, {"env": {"kwargs": {"size": n}}}) for n in (8, 12, 16, 20)},
    "Breakout-MinAtar": ("gymnax:Breakout-MinAtar", 2_000_000, {}),
    "Hopper-v5": ("Hopper-v5", 1_000_000, {}),
}
"""Name: environment, steps, and what is set of it."""
SINGLE: dict[str, dict[str, Any]] = {"GAE 0.95": {"gae_lambda": 0.95}, "Monte Carlo": {"gae_lambda": 1.0}}
"""What single paths are estimated with."""
BASE = {"every": 8, "actions": 8, "length": 16}
VINES = [
    BASE,
    *({**BASE, "length": n} for n in (4, 8, 32)),
    *({**BASE, "every": n} for n in (2, 4, 16)),
    *({**BASE, "actions": n, "proposal": "policy"} for n in (2, 4)),
    {**BASE, "branch_lambda": 0.95},
]
"""As a function of length, share of roots, K, and of how early V is trusted."""
LONG = 512
"""Steps of the reference's fragments, so that few returns are closed with V."""
TRAINED = (0, 20_000)
"""Steps that policy and V were trained for when gradients are measured: V is poor, then better."""


def config_of(task: str, steps: int, **changes: Any) -> Any:
    """Return a configuration of moderate size."""
    import trpo
    from trpo.settings.config import merge

    small = {"hidden": [64, 64]}
    env = {"id": task, "count": 16}
    whole = {"env": env, "steps": max(steps, 1), "fragment": 64, "policy": small, "value": small, **changes}
    return merge(trpo.Config(), whole)


def vine(task: str, steps: int, settings: dict[str, Any]) -> Any:
    """Return the same with a vine."""
    return config_of(task, steps, rollout="vine", vine=settings, standardise_advantages=False)


# ---------------------------------------------------------------- variance


def gradients(agent: Any, learner: Any, least: int, independent: bool = False) -> Iterator[tuple[Any, int]]:
    """Yield ∇L of one batch after the other and the steps that it took, until ``least`` steps; the policy stays."""
    import jax
    import numpy as np
    from jax.flatten_util import ravel_pytree

    from trpo.training.learner import estimate, local_problem
    from trpo.training.vine import roots_of

    program, hyper = agent.program(), _hyper(agent)

    def gradient(trajectory: Any, branches: Any) -> Any:
        estimates = estimate(program, hyper, learner, trajectory, 0)
        if branches is not None:
            roots = roots_of(program.vine, branches, estimates.seen, estimates.weight)
            estimates = dataclasses.replace(estimates, roots=roots)
        return ravel_pytree(local_problem(program, learner, estimates).linearise(learner.policy).gradient)[0]

    collect = (
        _on_device(agent, learner, gradient, independent)
        if ":" in agent.spec.id
        else _on_host(agent, learner, gradient)
    )
    taken = 0
    for found, steps in collect:
        yield np.asarray(jax.device_get(found)), int(steps)
        taken += int(steps)
        if taken >= least:
            return


def _hyper(agent: Any) -> Any:
    from trpo.training.learner import Hyper

    return Hyper.of(agent.config, agent.rule)


def _on_device(agent: Any, learner: Any, gradient: Callable[..., Any], independent: bool) -> Iterator[tuple[Any, Any]]:
    import jax

    from trpo.envs.names import resolve
    from trpo.rollout import vine as rollouts
    from trpo.training.learner import prepare, value_now
    from trpo.training.loop import device_source

    source = device_source(resolve(agent.spec.id, agent.config.env))
    program, hyper, key = agent.program(), _hyper(agent), jax.random.key(agent.config.seed)
    assert source is not None

    @jax.jit
    def batch(rollout: Any, k: Any) -> tuple[Any, Any, Any]:
        actor, noise, _ = prepare(program, learner.policy, learner.observations, key, k)
        if program.vine is None:
            rollout, trajectory, _ = source.collect(program.policy, actor, rollout, noise)
            return rollout, gradient(trajectory, None), trajectory.reward.size
        given = source, program.vine, program.policy, actor, value_now(program, learner), rollout, noise
        last = rollouts.vine_keys(key, k), hyper.discount, hyper.branch_lambda
        rollout, trajectory, _, branches = rollouts.collect(*given, *last)
        return rollout, gradient(trajectory, branches), trajectory.reward.size + branches.steps

    if independent:
        rollouts.follow = apart(rollouts.follow)
    try:
        count = program.count
        rollout, k = source.begin(jax.random.fold_in(key, 7), count, program.policy.start(count)), 0
        while True:
            rollout, found, steps = batch(rollout, k)
            yield found, steps
            k += 1
    finally:
        if independent:
            rollouts.follow = rollouts.follow.__wrapped__


def apart(follow: Callable[..., Any]) -> Any:
    """Return ``follow`` without common random numbers: every branch is a root of its own."""
    import functools

    import jax
    import jax.numpy as jnp

    @functools.wraps(follow)
    def each(source: Any, act: Any, value: Any, start: Any, first: Any, noise: Any, keys: Any, *rest: Any) -> Any:
        roots, k = jax.tree.leaves(first)[0].shape[:2]
        spread = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), start)
        own = jax.vmap(lambda key: jax.random.split(key, k))(keys).reshape(-1)
        drawn = jax.tree.map(lambda x: jnp.repeat(x, k, axis=1), noise)
        shuffle = jax.random.permutation(keys[0], roots * k)
        drawn = jax.tree.map(lambda x: x[:, shuffle], drawn)
        one = jax.tree.map(lambda x: x.reshape(roots * k, 1, *x.shape[2:]), first)
        q, steps = follow(source, act, value, spread, one, drawn, own, *rest[:2], None)
        return q.reshape(roots, k), steps

    return each


def _on_host(agent: Any, learner: Any, gradient: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    import jax

    import trpo
    from trpo.rollout import HostSource
    from trpo.training.host import HostLoop, _prepare

    config = agent.config
    source = HostSource(trpo.make_envs(agent.spec.id, config.env.count), agent.policy.start)
    loop = HostLoop(source, agent, trpo.TrainingState(learner))
    key, of = jax.random.key(config.seed), jax.jit(gradient)
    try:
        k = 0
        while True:
            actor, noise, _ = _prepare(agent.program(), learner.policy, learner.observations, key, k)
            loop.policy.load(actor)
            trajectory, branches = loop._collect(actor, learner, noise, key, k)
            steps = trajectory.reward.size + (0 if branches is None else int(branches.steps))
            yield of(trajectory, branches), steps
            k += 1
    finally:
        source.close()


def trained(task: str, steps: int) -> Any:
    """Return the learner of a short single-path run."""
    import trpo

    config = config_of(task, steps)
    agent = trpo.make_agent(task, config)
    if not steps:
        return agent.learner
    *_, (state, _) = trpo.iterations(task, agent, config)
    return state.learner


def variance(task: str, reference: int, each: int) -> dict[str, Any]:
    """Measure variances of gradients, times the steps that one took, and their squared biases.

    Both are relative to the squared length of a reference: single paths with Monte Carlo returns over long fragments.
    The squared bias is what the noise of both means does not explain, so it may be below 0; it does not fall with the
    steps, as the variance's share of the error does.
    """
    import numpy as np

    import trpo

    rows, references = [], {}
    for steps in TRAINED:
        learner = trained(task, steps)

        def measured(config: Any, learner: Any = learner, **more: Any) -> tuple[Any, float, int]:
            """Return the mean, its squared standard error, and the steps of all."""
            agent = trpo.make_agent(task, dataclasses.replace(config, seed=more.pop("seed", 0)))
            found, taken = zip(*gradients(agent, learner, **more), strict=True)
            mean = np.mean(found, axis=0, dtype=float)
            spread = sum(float(((g - mean) ** 2).sum()) for g in found) / max(len(found) - 1, 1)
            return mean, spread / len(found), sum(taken)

        long = config_of(task, 1, fragment=LONG, gae_lambda=1.0, standardise_advantages=False)
        truth, unsure, _ = measured(long, least=reference, seed=1)
        size = max(float(truth @ truth) - unsure, 1e-30)
        references[steps] = {"squared_length": size, "squared_error": unsure / size}
        kinds = [(name, config_of(task, 1, standardise_advantages=False, **s), False) for name, s in SINGLE.items()]
        kinds += [(json.dumps(s), vine(task, 1, s), False) for s in VINES]
        if task.startswith("gymnax:"):
            kinds.append((json.dumps({**BASE, "common random numbers": False}), vine(task, 1, BASE), True))
        for name, config, independent in kinds:
            more = {"independent": True} if independent else {}
            mean, noise, taken = measured(config, least=each, **more)
            bias = float(((mean - truth) ** 2).sum()) - noise - unsure
            row = {"trained": steps, "kind": name, "steps": taken}
            row |= {"variance": noise * taken / size, "squared_bias": bias / size, "unsure": (noise + unsure) / size}
            rows.append(row)
            print(f"{task:26s} {steps:6d} {name:90s} {row['variance']:10.3g} {row['squared_bias']:10.3g}", flush=True)
    return {"task": task, "reference": reference, "each": each, "references": references, "rows": rows}


# ---------------------------------------------------------------- speed


def last_of(trajectory: Any, branches: Any) -> Any:
    """Return a number that needs all that was collected."""
    import jax.numpy as jnp

    return jnp.sum(trajectory.reward) + (0 if branches is None else jnp.sum(branches.q))


LEAST = 0.2
"""Seconds that one kind is stepped for before it is the other's turn."""


def timed(batches: Iterator[tuple[Any, Any]], count: int) -> tuple[float, int]:
    """Return the seconds and the steps of so many batches."""
    import jax

    began = time.perf_counter()
    steps = 0
    for _ in range(count):
        found, taken = next(batches)
        jax.block_until_ready(found)
        steps += int(taken)
    return time.perf_counter() - began, steps


def speed(task: str, rounds: int = 15) -> dict[str, Any]:
    """Measure steps per second of branches and of plain collecting, in turns: the median of the ratios.

    ``share``: on the device all steps of all branches are computed, those after a branch's end for nothing. Of so many
    ``share`` were taken, and count.
    """
    import numpy as np

    import trpo

    times: dict[str, list[float]] = {"plain": [], "branches": [], "share": []}
    on_device = ":" in task
    agents = [trpo.make_agent(task, config_of(task, 1)), trpo.make_agent(task, vine(task, 1, BASE))]
    runs = []
    for agent in agents:
        make = (_on_device if on_device else _on_host)(agent, agent.learner, last_of, *([False] if on_device else []))
        runs.append(make)
        timed(make, 2)
    # As many batches a round as take a while.
    batches = max(1, round(LEAST / timed(runs[0], 3)[0] * 3))
    for _ in range(rounds):
        (plain, few), (both, many) = (timed(make, batches) for make in runs)
        times["plain"].append(few / plain)
        times["branches"].append((many - few) / max(both - plain, 1e-9))
        times["share"].append((many - few) / (batches * agents[1].program().most_steps - few))
    ratio = np.array(times["branches"]) / np.array(times["plain"])
    found = {name: statistics.median(values) for name, values in times.items()}
    found |= dict(zip(("low", "ratio", "high"), map(float, np.quantile(ratio, [0.25, 0.5, 0.75])), strict=True))
    print(
        f"{task:26s} plain {found['plain']:10.0f}/s branches {found['branches']:10.0f}/s ratio {found['ratio']:.2f}, "
        f"share {found['share']:.2f}"
    )
    return {"task": task, "settings": BASE, **found}


# ---------------------------------------------------------------- learning


def jobs(names: list[str], seeds: list[int], out: Path = RESULTS, most: int | None = None) -> list[Any]:
    """Return the runs of both kinds: single paths with the task's preset, and a vine beside them."""
    from benchmarks.learning import Job

    def job(name: str, seed: int, kind: str, changes: dict[str, Any]) -> Any:
        env, steps, own = LEARNING[name]
        steps = min(steps, most or steps)
        return Job(
            task=f"{env}:{steps}",
            variant=kind,
            seed=seed,
            changes=own | changes,
            preset="auto",
            every=-(-steps // 20),
            episodes=10,
            simulator="gymnasium",
            out=out / "learning" / name,
        )

    kinds: dict[str, dict[str, Any]] = {"single-path": {}, "vine": {"rollout": "vine", "vine": BASE}}
    return [job(name, seed, kind, changes) for seed in seeds for name in names for kind, changes in kinds.items()]


# ---------------------------------------------------------------- the picture


def picture(out: Path = FIGURE) -> None:
    """Draw trunk and branches of a real run on MountainCar: place and speed, some roots' branches by first action."""
    import jax
    import numpy as np

    import trpo
    from trpo.rollout import HostSource
    from trpo.rollout.vine_host import collect_vine
    from trpo.theory.shared import style
    from trpo.training.host import HostLoop, _prepare, prepare_vine

    settings = {"every": 40, "length": 24, "actions": 8}
    config = dataclasses.replace(vine("MountainCar-v0", 1, settings), fragment=160)
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, count=1), normalise_observations=False)
    agent = trpo.make_agent("MountainCar-v0", config)
    source = HostSource(trpo.make_envs("MountainCar-v0", 1), agent.policy.start)
    loop = HostLoop(source, agent, trpo.TrainingState(agent.learner))
    key = jax.random.key(3)
    actor, noise, _ = _prepare(agent.program(), agent.learner.policy, agent.learner.observations, key, 0)
    drawn = jax.tree.map(np.asarray, prepare_vine(agent.program(), actor, key, 0))
    trajectory, met = collect_vine(source, loop.policy, jax.tree.map(np.asarray, noise), drawn, every_step=True)
    source.close()
    drawing, ((axes,),) = style.figure(width=7.0, height=4.2)
    trunk = trajectory.observation[:, 0]
    axes.plot(*trunk.T, color="black", linewidth=1.4, label="trunk: one trajectory of π")
    for a, name in enumerate(("push left", "no push", "push right")):
        for s in range(len(drawn.time)):
            root = trunk[drawn.time[s, 0]]
            branch = met.following[met.alive[:, s, 0, a], s, 0, a]
            line = np.concatenate([root[None], branch])
            axes.plot(
                *line.T, color=style.COLOURS[a], linewidth=1.2, label=f"branches: {name}, then π" if s == 0 else None
            )
    roots = trunk[drawn.time[:, 0]]
    axes.plot(*roots.T, "o", color="black", markersize=6, label="roots", zorder=5)
    style.label(axes, "a vine on MountainCar-v0, untrained policy", "place", "speed", ylim=(-0.015, 0.025))
    out.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(out, dpi=110, metadata={"Software": None})


def missing(path: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure what has no result file yet, and write it."""
    from benchmarks.timing import machine, versions

    if path.exists():
        print(f"{path} is there")
        return
    found = measure() | {"machine": machine(1), "versions": versions("jax", "numpy", "gymnasium", "gymnax", "trpo")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what in ("variance", "speed", "learning", "picture"):
        parser.add_argument(f"--{what}", action="store_true")
    parser.add_argument("--tasks", nargs="+", help="by default all")
    parser.add_argument("--reference", type=int, default=1_000_000, help="steps of the reference gradient")
    parser.add_argument("--steps", type=int, default=200_000, help="steps that each kind's variance is measured with")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument(
        "--most", type=int, help="steps of learning runs, at the most; a trial, with an --out of its own"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for task in (options.tasks or (*DEVICE, *HOST)) if options.variance or options.speed else ():
        name = task.replace(":", "-")
        if options.variance:
            missing(
                options.out / f"variance-{name}.json",
                lambda task=task: variance(task, options.reference, options.steps),
            )
        if options.speed:
            missing(options.out / f"speed-{name}.json", lambda task=task: speed(task))
    if options.learning:
        from benchmarks.learning import run_all

        run_all(jobs(options.tasks or list(LEARNING), options.seeds, options.out, options.most), options.processes)
    if options.picture:
        picture()


if __name__ == "__main__":
    main()
