"""A soak: hours of training, resuming, evaluating and plotting in one process, and what it holds while they pass.

    python -m benchmarks.soak [--hours 2] [--out FILE]

A round trains a run on the host with a worker process, resumes it, evaluates it and loads it again; trains one in an
environment in JAX that was never seen before; trains both kinds at once in two threads; and plots. After every round
the memory of the process and of its children, open files, threads and entries of shared memory are noted. What the
process holds must not grow once everything has happened a few times: a straight line is fitted to the second half of
the curve, and its slope must be below a bound. All of it goes to ``benchmarks/results/soak.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import machine, versions, write
from trpo import Config, EnvConfig, PolicyConfig, ValueConfig, load, resume, train
from trpo.envs.device.probes import make_probe
from trpo.report.plots import plot_runs

RESULTS = Path(__file__).with_name("results") / "soak.json"
NEW = 2
"""Environments in a round that were never seen before."""
BOUND = 1.0
"""MiB that the process may grow for each of them."""
STEADY = ("files", "threads", "shared", "children")
"""What must be at the end what it was at the beginning of the fit."""
SMALL = (16,)


@dataclasses.dataclass(frozen=True, eq=False)
class New:
    """An environment in JAX that equals no other, so that all is compiled anew."""

    env: Any = dataclasses.field(default_factory=lambda: make_probe("delayed"))

    spec = property(lambda self: self.env.spec)
    cheap_reset = property(lambda self: self.env.cheap_reset)

    def reset(self, key: Any) -> Any:
        """Begin an episode."""
        return self.env.reset(key)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        """Take a step."""
        return self.env.step(state, action, key)


def settings(seed: int, workers: int = 0) -> Config:
    """Return those of a small run, a checkpoint every second iteration."""
    return Config(
        steps=1024, fragment=16, seed=seed, checkpoint_every=2, env=EnvConfig(count=8, workers=workers),
        policy=PolicyConfig(hidden=SMALL), value=ValueConfig(hidden=SMALL),
    )  # fmt: skip


def one_round(number: int, place: Path) -> None:
    """Do everything once, in an empty directory."""
    host, device = place / "host", place / "device"
    train("CartPole-v1", config=settings(number, workers=1), out=host, quiet=True)
    resume(host, steps=2048, quiet=True).evaluate(4)
    load(host).act(np.zeros(4, np.float32))
    fresh = New()
    train(fresh, config=settings(number), out=device, quiet=True)
    resume(device, steps=2048, env=fresh, quiet=True).evaluate(4)
    others: list[tuple[Any, str]] = [(New(), "new"), ("probe:delayed", "probe")]
    threads = [
        threading.Thread(
            target=train, args=(env,), kwargs={"config": settings(number), "out": place / name, "quiet": True}
        )
        for env, name in others
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if missing := [name for _, name in others if not (place / name / "metrics.jsonl").is_file()]:
        raise RuntimeError(f"a thread trained nothing in {missing}")
    plot_runs([host, device], place / "curves.png")


def resident(process: int | str) -> float:
    """Return the MiB of memory that a process has; 0 if it is gone."""
    try:
        pages = int(Path("/proc", str(process), "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)


def held(began: float) -> dict[str, float]:
    """Return what this process holds, and what it left behind since ``began``."""
    children = [child.pid for child in multiprocessing.active_children()]
    return {
        "memory": resident("self"),
        "memory_of_children": sum(resident(pid) for pid in children if pid is not None),
        "children": len(children),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": Path("/proc/self/maps").read_bytes().count(b"\n"),
        "shared": left_behind(began),
    }


def left_behind(began: float) -> int:
    """Return how many entries of shared memory were made since ``began`` and are used by no process any more."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            used |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    found = 0
    for entry in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):
            found += str(entry) not in used and entry.stat().st_ctime >= began
    return found


def fitted(curve: list[dict[str, float]]) -> dict[str, Any]:
    """Fit a straight line to memory over the rounds of the second half of ``curve``, and judge it."""
    late = curve[len(curve) // 2 :]
    rounds, memory = (np.array([point[name] for point in late]) for name in ("round", "memory"))
    slope = float(np.polyfit(rounds, memory, 1)[0]) if len(late) > 1 else 0.0
    hours = (late[-1]["seconds"] - late[0]["seconds"]) / 3600
    grown = {name: late[-1][name] - late[0][name] for name in STEADY}
    return {
        "rounds": len(late),
        "mib_per_new_environment": round(slope / NEW, 4),
        "bound": BOUND,
        "mib_per_hour": round(slope * len(late) / hours, 2) if hours else None,
        "grown": grown,
        "flat": slope / NEW <= BOUND and not any(change > 0 for change in grown.values()),
    }


def soak(seconds: float) -> dict[str, Any]:
    """Do rounds for so long, at least four."""
    began, clock, curve = time.perf_counter(), time.time(), []
    while len(curve) < 4 or time.perf_counter() - began < seconds:
        with tempfile.TemporaryDirectory() as place:
            one_round(len(curve), Path(place))
        curve.append({"round": len(curve), "seconds": round(time.perf_counter() - began, 1)} | held(clock))
        print(" · ".join(f"{name} {value:g}" for name, value in curve[-1].items()), file=sys.stderr, flush=True)
    return {"seconds": curve[-1]["seconds"], "fit": fitted(curve), "curve": curve}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    found = soak(3600 * options.hours)
    write(options.out, found | {"machine": machine(1), "versions": versions("jax", "jaxlib", "trpo")})
    fit = found["fit"]
    verdict = "flat" if fit["flat"] else "NOT FLAT"
    print(
        f"{len(found['curve'])} rounds: {fit['mib_per_new_environment']:+.3f} MiB for each new environment "
        f"(bound {BOUND:g}), grown {fit['grown']}: {verdict}"
    )
    return 0 if fit["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
