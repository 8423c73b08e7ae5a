"""Sizes that no machine has, and threads that train at once."""

from __future__ import annotations

import random
import resource
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import Broken, check, check_said
from benchmarks.fault_damage import command
from benchmarks.fault_runs import Injected, Kind

MOST = 512 * 2**20
"""Bytes by which this process may grow while it refuses."""
BIG = (10**8, 10**9, 10**12, 2**40)
FLAGS = {
    "env.count": ("--env.count",),
    "fragment": ("--fragment",),
    "policy.hidden": ("--policy.hidden",),
    "value.hidden": ("--value.hidden",),
    "seeds": ("--seeds",),
    "env.workers": ("--env.workers",),
}


def _size(index: int, place: Path) -> Injected:
    name = list(FLAGS)[index % len(FLAGS)]
    env = ("probe:both", "jax-probe:both")[index // len(FLAGS) % 2]
    number = random.Random(f"size {index}").choice(BIG)
    flags = [*FLAGS[name], number]
    if name.endswith("hidden"):
        flags += [number]
    if name == "env.workers":
        flags += ["--env.count", number]
    problem = ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        code, said = command("train", env, "--quiet", "--out", place / f"run-{index}", *flags)
        check_said(code, said, {2}, name, name.rpartition(".")[2], f"{number:,}", str(number))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        check(grown < MOST, f"took {grown / 2**20:.0f} MiB to refuse")
        check(not (place / f"run-{index}").exists(), "left a directory")
    except Broken as error:
        problem = str(error)
    yield f"{name} of {env}", problem


def _bits(agent: Any) -> dict[str, bytes]:
    import numpy as np

    from trpo.trees import named_arrays

    return {name: np.asarray(leaf).tobytes() for name, leaf in named_arrays(agent.learner).items()}


def _train(env: str, seed: int, place: Path | None) -> dict[str, bytes]:
    import trpo

    hidden = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,), minibatch=16, epochs=1)}
    config = trpo.Config(steps=640, seed=seed, fragment=8, env=trpo.EnvConfig(env, count=4), **hidden)
    return _bits(trpo.train(env, config=config, out=place, quiet=True))


def _threads(index: int, place: Path) -> Injected:
    """Several threads train at once what was trained one after the other, and print meanwhile."""
    kinds = [("jax-probe:both", "jax-probe:both"), ("probe:both", "jax-probe:both"), ("probe:both",) * 2]
    envs = (kinds[index % 3] * 2)[: 2 + index % 2 * 2]
    streams = sys.stdout, sys.stderr
    found: dict[int, Any] = {}
    problem = ""

    def work(number: int, env: str) -> None:
        try:
            found[number] = _train(env, 10 * index + number, place / f"run-{index}-{number}")
        except BaseException as error:
            found[number] = error

    try:
        threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(envs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
            check(not thread.is_alive(), "hung for 200 s")
        check((sys.stdout, sys.stderr) == streams, "a stream was left redirected")
        for number, env in enumerate(envs):
            check(not isinstance(found[number], BaseException), f"{type(found[number]).__name__}: {found[number]}")
            check(found[number] == _train(env, 10 * index + number, None), "other bits than one after the other")
    except Broken as error:
        problem = str(error)
    yield f"{len(envs)} threads, {' and '.join(dict.fromkeys(envs))}", problem


KINDS = (
    Kind("sizes", 20, _size, "refused with numbers, exit code 2, before memory is taken", True),
    Kind("threads", 10, _threads, "the same bits as one after the other; nobody's streams redirected", True),
)
