"""How much CPU time callbacks add to a run that uses none, and one that is called after every iteration.

    python -m benchmarks.callbacks [--pairs 30]

Runs take turns in one process, and only the ratios of pairs are compared: ``none`` is the loop as ``trpo.train`` has it
without a callback, against the same loop with the calls taken out; ``each`` has one that does nothing, after every
iteration. CartPole is cheap, so that whatever is added shows. The table goes to standard output, all of it to
``benchmarks/results/callbacks.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import trpo
from benchmarks.timing import machine, pin, ratios, summary, versions, write

TARGET = 1.01
STEPS = 16 * 64 * 12
RESULTS = Path(__file__).with_name("results") / "callbacks.json"


def _nothing(moment: trpo.Moment) -> None:
    """Do nothing, after every iteration."""


@contextlib.contextmanager
def _without_calls() -> Iterator[None]:
    """Take the calls out of the loop, as if there were none."""
    with mock.patch("trpo.runs.run._Called.look"):
        yield


def cpu_seconds(how: str, place: str) -> float:
    """Return the CPU time of one run, all of its threads."""
    config = trpo.Config(steps=STEPS, env=trpo.EnvConfig("CartPole-v1"))
    began = time.process_time()
    with _without_calls() if how == "bare" else contextlib.nullcontext():
        trpo.train("CartPole-v1", config=config, out=place, callbacks=[_nothing] if how == "each" else (), quiet=True)
    return time.process_time() - began


def measure(pairs: int) -> dict[str, Any]:
    """Run each in turn, in an order that turns, after one of each that is not counted."""
    kinds = ["bare", "none", "each"]
    seconds: dict[str, list[float]] = {how: [] for how in kinds}
    for turn in range(pairs + 1):
        for how in kinds[turn % 3 :] + kinds[: turn % 3]:
            with tempfile.TemporaryDirectory() as place:
                took = cpu_seconds(how, f"{place}/run")
            if turn:
                seconds[how].append(took)
    return {how: summary(measured) for how, measured in seconds.items()} | {
        "ratios": {how: ratios(seconds[how], seconds["bare"]) for how in ("none", "each")}
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    pairs, threads = parser.parse_args().pairs, pin(2)
    measured = measure(pairs)
    for how, ratio in measured["ratios"].items():
        verdict = "met" if ratio["median"] <= TARGET else "MISSED"
        print(f"{how}: {ratio['median']:.4f} times the CPU time of {pairs} runs without (≤ {TARGET}: {verdict})")
    write(
        RESULTS,
        {
            "pairs": pairs,
            "steps": STEPS,
            "cpu_seconds": measured,
            "machine": machine(threads),
            "versions": versions("jax", "jaxlib", "trpo"),
        },
    )


if __name__ == "__main__":
    main()
