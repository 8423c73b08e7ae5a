"""Runs that are killed, interrupted, or meet in one directory."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from benchmarks.fault_checks import Broken, check, check_said, check_same_end, check_unbroken, iterations
from benchmarks.fault_processes import Process, start, trpo
from benchmarks.fault_runs import BASES, Base, Injected, Kind, Scene, undisturbed

CHAIN = 5
"""Kills in a row of one run, which goes on after each."""
START = 1.5
"""Seconds in which a process that is started anew is hit before it trains."""


def _recorded(scene: Scene, base: Base) -> int:
    return sum(len(iterations(scene.place / "run" / member)) for member in base.members)


def _begin(scene: Scene, base: Base) -> Process:
    """Start or go on with the run of a scene."""
    run = scene.place / "run"
    described = any((run / m / "config.json").exists() for m in base.members) and _has_checkpoints(run, base)
    if described:
        return trpo(["resume", "run"], scene.place)
    shutil.rmtree(run, ignore_errors=True)  # killed before the first checkpoint: nothing was trained
    return trpo(base.train(), scene.place)


def _has_checkpoints(run: Path, base: Base) -> bool:
    sweep = base.members == (".",) or (run / "sweep.json").exists()
    return sweep and all(list((run / m / "checkpoints").glob("[0-9]*")) for m in base.members)


def _go_to_end(scene: Scene, base: Base, references: Path) -> None:
    """Go on with a run, and compare its end with the undisturbed one's, bit for bit."""
    process = _begin(scene, base)
    check_said(process.wait(), process.output, {0})
    check(not process.orphans(), "processes left behind")
    for member, end in undisturbed(base, references).items():
        count = check_unbroken(scene.place / "run" / member, 0)
        check(count == base.iterations, f"{count} iterations in metrics.jsonl, not {base.iterations}")
        check_same_end(scene.place / "run" / member, end)


def _kill_9(index: int, place: Path) -> Injected:
    chance = random.Random(f"kill {index}")
    base = list(BASES.values())[index % len(BASES)]
    scene = Scene(place / "scene")
    done = []
    try:
        undisturbed(base, place / "references")
        for number in range(CHAIN):
            process = _begin(scene, base)
            before = _recorded(scene, base)
            if number or chance.random() < 0.5:
                goal = before + chance.randint(1, base.iterations // (2 * CHAIN)) * len(base.members)
                process.until(lambda goal=goal: _recorded(scene, base) >= goal)
            time.sleep(chance.random() * 0.15)
            process.send(signal.SIGKILL, group=chance.random() < 0.5)
            code = process.wait()
            if code == 0:
                break  # it was finished before
            check(code == -signal.SIGKILL, f"exit code {code} before it was killed: {process.output[-300:]}")
            check(not process.orphans(), "workers left behind")
            for member in base.members:
                if (scene.place / "run" / member / "metrics.jsonl").exists():
                    check_unbroken(scene.place / "run" / member, base.most_lost)
            done.append(base.name)
        _go_to_end(scene, base, place / "references")
        scene.close()
        problem = ""
    except Broken as error:
        problem = str(error)
    yield from [(f"{base.name}", "")] * (len(done) if not problem else max(0, len(done) - 1))
    if problem:
        yield base.name, problem


SIGNALS = {"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)}


def _signal(index: int, place: Path) -> Injected:
    """One signal, or two, to a process or its group, at any time of its life."""
    chance = random.Random(f"signal {index}")
    name = list(SIGNALS)[index % 2]
    number, expected = SIGNALS[name]
    when = ("start", "training", "resuming", "twice", "training")[index // 2 % 5]
    base = list(BASES.values())[index // 10 % len(BASES)]
    group = chance.random() < 0.5
    scene = Scene(place / "scene")
    problem = ""
    try:
        undisturbed(base, place / "references")
        if when == "start":
            process = start(base.train(), scene.place)
            time.sleep(0.1 + chance.random() * START)
        else:
            process = _begin(scene, base)
            check(process.until(lambda: _recorded(scene, base) > 3), f"ended early: {process.output[-300:]}")
        if when == "resuming":
            process.send(signal.SIGKILL, group=True)
            process.wait()
            process = trpo(["resume", "run"], scene.place)
            time.sleep(chance.random() * START)
        process.send(number, group)
        if when == "twice":
            time.sleep(chance.random() * 0.05)
            process.send(number, group)
        code = process.wait()
        finished = "is finished" in process.output or _recorded(scene, base) == base.iterations * len(base.members)
        # Before Python has its handlers, a signal ends the process as the system does.
        early = (-number,) if when == "start" and not process.output else ()
        check_said(
            code, process.output, {expected, *early, *([0] if finished else [])}, "interrupted", "terminated", "done"
        )
        check(not process.orphans(), "processes left behind")
        for member in base.members:
            if (scene.place / "run" / member / "metrics.jsonl").exists():
                check_unbroken(scene.place / "run" / member, 0 if when in ("start", "training") else base.most_lost)
        _go_to_end(scene, base, place / "references")
        scene.close()
    except Broken as error:
        problem = str(error)
    yield f"{name}, {when}, {base.name}", problem


def _pair(index: int, place: Path) -> Injected:
    """Two processes that want one directory, a moment after each other."""
    chance = random.Random(f"pair {index}")
    what = ("train, train", "resume, resume", "train, resume")[index % 3]
    base = list(BASES.values())[index // 3 % len(BASES)]
    scene = Scene(place / "scene")
    problem = ""
    try:
        undisturbed(base, place / "references")
        if what != "train, train":
            first = _begin(scene, base)
            check(first.until(lambda: _recorded(scene, base) > 3), f"ended early: {first.output[-300:]}")
            if what == "resume, resume":
                first.send(signal.SIGKILL, group=True)
                first.wait()
                first = trpo(["resume", "run"], scene.place)
        else:
            first = trpo(base.train(), scene.place)
        time.sleep(chance.choice((0, 0, 0.02, 0.3)))
        second = trpo(base.train() if what == "train, train" else ["resume", "run"], scene.place)
        codes = [process.wait() for process in (first, second)]
        late = "is finished" in second.output
        check(sorted(codes) == [0, 2] or (late and codes == [0, 0]), f"exit codes {codes}: {second.output[-300:]}")
        for process, code in zip((first, second), codes, strict=True):
            check_said(code, process.output, {0, 2}, *(("in use", "not empty") if code else ()))
        _go_to_end(scene, base, place / "references")
        scene.close()
    except Broken as error:
        problem = str(error)
    yield f"{what}, {base.name}", problem


KINDS = (
    Kind("kill -9", 100, _kill_9, "no half checkpoint or line, at most an interval lost, the end bit-identical"),
    Kind("other signals", 60, _signal, "130 or 143 and one line, nothing lost, nobody left, the end bit-identical"),
    Kind("pairs of processes", 30, _pair, "one trains and one says who does; the end bit-identical"),
)
