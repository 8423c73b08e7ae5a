"""Signals to commands at random and at chosen moments: each must end as it should, and leave nothing.

``python -m benchmarks.fault_signals [N]`` injects each of them N times and prints a table.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import Broken, check_unbroken, iterations
from benchmarks.fault_processes import Process, start

SMALL = ("--policy.hidden", 8, "--value.hidden", 8, "--fragment", 16, "--env.count", 8)
ENDLESS = ("--steps", 10**9, *SMALL)
FOUR = ("--env.workers", 4)
BOUND = 10.0
"""Seconds after a second signal in which a run must have ended: three, and patience with a busy machine."""
Case = Callable[[Path, random.Random], str]
"""Injects one fault in an empty directory; returns what went wrong, empty if nothing did."""


def _number(draw: random.Random) -> int:
    return draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def _signalled(
    started: Process, draw: random.Random, run: Path | None = None, says: str = "", done: bool = False
) -> str:
    """Send a signal, to the command alone or to its group or to everything; return what is wrong with how it ends."""
    number, whom = _number(draw), draw.choice([{}, {"group": True}, {"everything": True}])
    started.send(number, **whom)
    ending = started.finish()
    if done and ending.code == 0:
        return ending.wrong(0)
    return ending.wrong(128 + number, says=says) or (_unsound(run, ending.err) if run is not None else "")


def _unsound(run: Path, said: str) -> str:
    """Return what is wrong with a run's directory after a request to end."""
    try:
        check_unbroken(run, 0 if "checkpoint of iteration" in said else None)
    except Broken as error:
        return str(error)
    left = [path.name for path in run.rglob(".tmp-*")]
    return f"left {left}" if left else ""


def while_loading(where: Path, draw: random.Random) -> str:
    """While modules are loaded, at a moment that Python tells."""
    module = draw.choice(["tyro", "numpy", "jax", "gymnasium", "trpo.training.learner", "optax"])
    started = start(["train", "probe:both", *ENDLESS], where, ("-X", "importtime", "-m", "trpo"))
    if not started.says(f" {module}"):
        return _no_start(started)
    return _signalled(started, draw, says="trpo: interrupted")


def at_the_start(where: Path, draw: random.Random, extra: tuple[Any, ...] = ()) -> str:
    """At any moment of the first seconds; the first quarter of one is Python's own start."""
    started = start(["train", "probe:both", *ENDLESS, *extra, "--out", "r"], where)
    time.sleep(draw.uniform(0.25, 8.0))
    return _signalled(started, draw, says="trpo: interrupted")


def as_workers_start(where: Path, draw: random.Random) -> str:
    """While workers start."""
    started = start(["train", "probe:both", *ENDLESS, *FOUR, "--out", "r"], where)
    if not started.until(lambda: len(started.members()) > 2):
        return _no_start(started)
    time.sleep(draw.uniform(0.0, 1.0))
    return _signalled(started, draw, says="trpo: interrupted")


def before_the_first_iteration(where: Path, draw: random.Random) -> str:
    """Between "resuming …" and the first iteration."""
    made = start(["train", "probe:both", "--steps", 256, *SMALL, "--out", "r", "--quiet"], where).finish()
    if made.code != 0:
        return made.err
    started = start(["resume", "r", "--steps", 10**9], where)
    if not started.says("resuming"):
        return _no_start(started)
    time.sleep(draw.uniform(0.0, 1.0))
    return _signalled(started, draw, where / "r", "trpo: interrupted")


def in_an_iteration(where: Path, draw: random.Random, extra: tuple[Any, ...] = ()) -> str:
    """In an iteration; with ``--checkpoint-every 1`` often while saving."""
    started = start(["train", "probe:both", *ENDLESS, *extra, "--out", "r"], where)
    if not _trains(started, where / "r", draw.randrange(1, 20)):
        return _no_start(started)
    time.sleep(draw.uniform(0.0, 0.3))
    return _signalled(started, draw, where / "r", "trpo resume r")


def at_the_end(where: Path, draw: random.Random) -> str:
    """While the last iteration is saved, and what was opened is closed."""
    extra = draw.choice([(), ("--env.workers", 2)])
    started = start(["train", "probe:both", "--steps", 512, *SMALL, *extra, "--out", "r"], where)
    if not _trains(started, where / "r", 4):
        return _no_start(started)
    time.sleep(draw.uniform(0.0, 0.5))
    return _signalled(started, draw, where / "r", done=True)


def twice(where: Path, draw: random.Random, env: str, stopped: int = 0) -> str:
    """Twice, when ``stopped`` workers are stopped, or none ever answers."""
    started = start(["train", env, *ENDLESS, *FOUR, "--out", "r", "--checkpoint-every", 10**6], where)
    if not _trains(started, where / "r", 2):
        return _no_start(started)
    for pid in started.workers()[:stopped]:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    number = _number(draw)
    for _ in range(2):
        started.send(number, group=True)
        time.sleep(0.3)
    ending = started.finish()
    slow = "" if ending.seconds < BOUND else f"took {ending.seconds:.0f} s"
    return ending.wrong(128 + number, says="trpo resume r") or slow or _unsound(where / "r", ending.err)


def closing_that_hangs(where: Path, draw: random.Random, extra: tuple[Any, ...]) -> str:
    """Environments whose closing never ends, at the end of a run and of an evaluation."""
    env = "benchmarks.fault_envs:Unclosing-v0"
    trained = start(["train", env, "--steps", 256, *SMALL, *extra, "--out", "r"], where).finish()
    evaluated = start(["evaluate", "r", "--max-steps", 20, "--json"], where).finish()
    return trained.wrong(0) or evaluated.wrong(0) or ("" if "mean_return" in evaluated.out else "no result")


def killed(where: Path, draw: random.Random, everything: bool, stopped: int = 0) -> str:
    """Killed, the parent alone or with all that it has started: no process and no memory is left."""
    started = start(["train", "probe:endless", *ENDLESS, *FOUR, "--out", "r"], where)
    if not _trains(started, where / "r", 2):
        return _no_start(started)
    for pid in started.workers()[:stopped]:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(draw.uniform(0.0, 0.5))
    started.send(signal.SIGKILL, everything=everything)
    return started.finish().wrong(-signal.SIGKILL)


def of_a_command(where: Path, draw: random.Random, arguments: tuple[Any, ...]) -> str:
    """At any moment of another command, which may have ended before."""
    made = start(["train", "probe:both", "--steps", 256, *SMALL, "--out", "r", "--quiet"], where).finish()
    if made.code != 0:
        return made.err
    started = start(arguments, where)
    time.sleep(draw.uniform(0.25, 10.0))
    if started.poll() is not None:
        return started.finish().wrong(0) if started.output else ""
    return _signalled(started, draw, done=True)


def _no_start(started: Process) -> str:
    started.end()
    return f"never came so far: {started.output}"


def _trains(started: Process, run: Path, count: int) -> bool:
    """Wait until a run has written so many iterations; False if it ended before."""
    return started.until(lambda: len(iterations(run)) >= count)


CASES: dict[str, Case] = {
    "while modules are loaded": while_loading,
    "in the first seconds": at_the_start,
    "in the first seconds, with workers": partial(at_the_start, extra=FOUR),
    "while workers start": as_workers_start,
    "between resuming and the first iteration": before_the_first_iteration,
    "in an iteration": in_an_iteration,
    "in an iteration, with workers": partial(in_an_iteration, extra=FOUR),
    "while saving": partial(in_an_iteration, extra=("--checkpoint-every", 1)),
    "while closing": at_the_end,
    "twice, a worker stopped": partial(twice, env="probe:endless", stopped=1),
    "twice, all workers stopped": partial(twice, env="probe:endless", stopped=4),
    "twice, all workers asleep": partial(twice, env="benchmarks.fault_envs:Sleeping-v0"),
    "twice, all workers deaf": partial(twice, env="benchmarks.fault_envs:Deaf-v0"),
    "closing that hangs": partial(closing_that_hangs, extra=()),
    "closing that hangs in workers": partial(closing_that_hangs, extra=FOUR),
    "kill -9 of the parent": partial(killed, everything=False),
    "kill -9 of the parent, workers stopped": partial(killed, everything=False, stopped=4),
    "kill -9 of everything": partial(killed, everything=True),
    "evaluate": partial(of_a_command, arguments=("evaluate", "r", "--episodes", 10**6)),
    "plot": partial(of_a_command, arguments=("plot", "r")),
    "theory": partial(of_a_command, arguments=("theory", "--out", "t")),
    "sweep on the host": partial(of_a_command, arguments=("train", "probe:both", "--seeds", 3, *ENDLESS)),
    "sweep on the device": partial(of_a_command, arguments=("train", "jax-probe:action", "--seeds", 3, *ENDLESS)),
}


def inject(name: str, seed: int) -> str:
    """Inject one fault; return what went wrong, empty if nothing did."""
    with tempfile.TemporaryDirectory(prefix="trpo-fault-", ignore_cleanup_errors=True) as where:
        try:
            return CASES[name](Path(where), random.Random(f"{name} {seed}"))
        except Broken as error:
            return str(error)


def main(times: int = 1) -> int:
    """Inject every fault so many times."""
    found: collections.Counter[str] = collections.Counter()
    for name in CASES:
        wrong = [text for seed in range(times) if (text := inject(name, seed))]
        found[name] = times - len(wrong)
        print(f"{name:45} {found[name]:>4} of {times}", *wrong[:3], sep="  ", flush=True)
    return 0 if all(count == times for count in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
