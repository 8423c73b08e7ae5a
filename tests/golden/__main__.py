"""Golden runs: what a change that only moves code must leave alone, bit for bit.

    python -m tests.golden make DIRECTORY        run all with the package that Python finds (PYTHONPATH chooses it)
    python -m tests.golden compare OLD NEW       exit 1 if anything but timings differs; how far, where it is rounding
    python -m tests.golden old                   exit 1 if the run directories of the first format in tests/golden/runs
                                                 do not evaluate and resume as they did when they were written

Bits depend on the machine and the versions of its libraries, so two commits are compared on one machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

UNTIMED = ("seconds", "steps_per_second", "collect_seconds")
HERE = Path(__file__).parent
MODULE = "tests.golden.environments"


def config(env: str, steps: int, /, **changes: Any) -> Any:
    """Return the settings of a run: defaults, and ``changes`` by group or name."""
    import trpo

    small = {"env": {"count": 8}, "steps": steps, "fragment": 32, "checkpoint_every": 3}
    for name, value in changes.items():
        small[name] = {**small.get(name, {}), **value} if isinstance(value, dict) else value
    small["env"] = {**small["env"], "id": env}
    return trpo.Config.from_json(small)


def train(env: str, steps: int, out: Path, /, **changes: Any) -> None:
    import trpo

    trpo.train(env, config=config(env, steps, **changes), out=out, quiet=True)


def resumed(env: str, steps: int, out: Path, /, **changes: Any) -> None:
    """Stop at half and go on."""
    import trpo

    train(env, steps // 2, out, **changes)
    trpo.resume(out, steps=steps, quiet=True)


def sweep(env: str, steps: int, out: Path, /, **changes: Any) -> None:
    import trpo

    trpo.sweep(env, seeds=3, config=config(env, steps, **changes), out=out, quiet=True)


VARIED = {"policy": {"state_dependent_std": True}, "value": {"method": "gauss-newton"}}
REUSE = {"updates_per_batch": 2, "fisher_subsample": 2}
RUNS: dict[str, Any] = {
    "cartpole": lambda out: train("CartPole-v1", 2048, out),
    "pendulum": lambda out: train(
        "Pendulum-v1",
        2048,
        out,
        policy={"state_dependent_std": True},
        value={"method": "gauss-newton"},
        env={"stagger": True},
    ),
    "hopper": lambda out: train("Hopper-v5", 8192, out, env={"count": 16}, fragment=64),
    "multi_discrete": lambda out: train(f"{MODULE}:Choices-v0", 1024, out, **REUSE),
    "multi_binary": lambda out: train(f"{MODULE}:Bits-v0", 1024, out, rule={"name": "penalty"}),
    "mixed_observation": lambda out: train(f"{MODULE}:Mixed-v0", 1024, out),
    "box_action": lambda out: train(f"{MODULE}:Square-v0", 1024, out, rule={"name": "natural-gradient"}),
    "envpool": lambda out: train("envpool:Hopper-v4", 4096, out, env={"count": 16}, fragment=64),
    "workers": lambda out: train("Hopper-v5", 4096, out, env={"count": 24, "workers": 2}, fragment=64),
    "observed_elements": lambda out: train("Hopper-v5", 1024, out, **first_elements(5)),
    "gymnax": lambda out: train("gymnax:CartPole-v1", 4096, out),
    "sweep": lambda out: sweep("gymnax:CartPole-v1", 2048, out),
    "resume": lambda out: resumed(f"{MODULE}:Choices-v0", 2048, out),
    "device_resume": lambda out: resumed("jax-probe:continuous", 2048, out, policy={"min_std": 0.1}),
}


def first_elements(n: int) -> dict[str, Any]:
    """Return the setting that shows policy and value function so many first elements of an observation."""
    import dataclasses

    import trpo

    if "observed_elements" in {field.name for field in dataclasses.fields(trpo.Config)}:
        return {"observed_elements": n}
    return {"policy": {"sees": f":{n}"}, "value": {"sees": f":{n}"}}


def summary(run: Path) -> dict[str, Any]:
    """Return a run's metrics without timings, and its final arrays."""
    import jax

    import trpo

    agent = trpo.load(run)
    learner = agent.learner
    parts = {"policy": learner.policy, "average": learner.average, "rule": learner.rule, "value": learner.value.params}
    parts |= {"optimiser": learner.value.optimiser, "returns": learner.value.returns}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in UNTIMED} for line in lines]
    evaluated = agent.evaluate(episodes=3, deterministic=False).to_json()
    arrays = {name: flat(jax.tree.leaves(part)) for name, part in parts.items()}
    # In the order of the flat observation, whether they are one array or one for each part.
    statistics = sorted_statistics(learner.observations)
    return {"metrics": metrics, "evaluated": evaluated, "arrays": arrays | {"observations": statistics}}


def flat(leaves: list[Any]) -> list[float]:
    return [float(x) for leaf in leaves for x in np.ravel(np.asarray(leaf))]


def sorted_statistics(tree: Any) -> list[float]:
    import jax

    import trpo

    parts = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, trpo.RunningStatistics))
    deviations = (p.deviations * getattr(p, "unit", 1) ** 2 for p in parts)
    return flat([parts[0].count, *(p.mean for p in parts), *deviations])


def make(out: Path, only: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, run in RUNS.items():
        if only and name not in only:
            continue
        place = out / "runs" / name
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        run(place)
        members = sorted(p.parent for p in place.rglob("config.json"))
        found = {str(member.relative_to(place)): summary(member) for member in members}
        (out / f"{name}.json").write_text(json.dumps(found))
        print(f"{name}: {len(found)} run(s)", flush=True)


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, float]]:
    """Return where two results differ and by how much, relative to the larger; infinite where it is no number."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) for d in differences(old.get(k), new.get(k), f"{path}/{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    if old == new or (old != old and new != new):
        return []
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (old, new))
    return [(path, abs(old - new) / max(abs(old), abs(new)) if numbers else float("inf"))]


def compare(old: Path, new: Path) -> int:
    failed = 0
    for name in sorted({p.stem for p in [*old.glob("*.json"), *new.glob("*.json")]}):
        files = [(place / f"{name}.json") for place in (old, new)]
        if not all(file.exists() for file in files):
            print(f"- {name}: in one of them only")
            continue
        found = differences(*(json.loads(file.read_text()) for file in files))
        failed += bool(found)
        worst = max(found, key=lambda d: d[1], default=None)
        print(
            f"{'✗' if found else '✓'} {name}"
            + (f": {len(found)} differ, first {found[0]}, worst {worst}" if found else "")
        )
    return int(failed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("out", type=Path)
    maker.add_argument("--only", nargs="*", default=[])
    comparer = commands.add_parser("compare")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    commands.add_parser("old")
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options.old, options.new)
    if options.command == "make":
        make(options.out, options.only)
        return 0
    return old()


def old() -> int:
    """Evaluate and resume the kept runs of the first format, and compare with what that gave when they were written."""
    import trpo

    failed = 0
    for run in sorted(path for path in (HERE / "runs").iterdir() if path.is_dir()):
        expected = json.loads((run / "expected.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(run, Path(folder) / "run")
            evaluated = trpo.load(copy, trust=True).evaluate(episodes=3).to_json()
            trpo.resume(copy, steps=1024, quiet=True, trust=True)
            found = differences(expected, {"evaluated": evaluated, "resumed": summary(copy)})
        print(f"✗ {run.name}: {len(found)} differ, first {found[0]}" if found else f"✓ {run.name}")
        failed += bool(found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
