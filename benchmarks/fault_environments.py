"""Environments that raise, that return what they must not, or that end: on the host, in workers, in JAX, handed in."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.fault_checks import TRACE, Broken, Canary, check, check_line, check_unbroken, ends
from benchmarks.fault_runs import Injected, Kind

LATE = 70
"""The call, of each environment, in which a late fault comes: after the first checkpoints."""
ITERATIONS = 20


class OddError(Exception):
    """An error of somebody's own, of several lines, that cannot be made again from what it says."""

    def __init__(self, code: int, place: str):
        super().__init__(f"sensor {code}\nat {place}\n")


def _raise(error: BaseException) -> Any:
    raise error


class _Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


RAISES: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: _raise(ValueError("bad\nnews")),
    "RuntimeError": lambda: _raise(RuntimeError("motor on fire")),
    "an error of two lines": lambda: _raise(OddError(7, "door")),
    "KeyError": lambda: {}["motor"],
    "AssertionError": lambda: _raise(AssertionError()),
    "MemoryError": lambda: _raise(MemoryError()),
    "RecursionError": lambda: _raise(RecursionError("too deep")),
    "StopIteration": lambda: next(iter(())),
    "SystemExit": lambda: sys.exit(0),
    "sys.exit of words": lambda: sys.exit("bye"),
    "OSError": Path("/nowhere/at/all").read_text,
    "BrokenPipeError": lambda: _raise(BrokenPipeError()),
    "ZeroDivisionError": lambda: 1 // 0,
    "UnicodeError": lambda: b"\xff".decode(),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "EOFError": lambda: _raise(EOFError()),
    "no text at all": lambda: _raise(RuntimeError()),
}
GOOD = np.zeros(2, np.float32)
STEPS: dict[str, Any] = {
    "no reward": (GOOD, None, False, False, {}),
    "a reward of text": (GOOD, "1", False, False, {}),
    "two rewards": (GOOD, [1.0, 2.0], False, False, {}),
    "a complex reward": (GOOD, 1j, False, False, {}),
    "a reward that is odd": (GOOD, _Odd(), False, False, {}),
    "reward NaN": (GOOD, float("nan"), False, False, {}),
    "reward infinite": (GOOD, float("inf"), False, False, {}),
    "an observation of another shape": (np.zeros(3, np.float32), 1.0, False, False, {}),
    "no observation": (None, 1.0, False, False, {}),
    "an observation of text": (np.array(["a", "b"]), 1.0, False, False, {}),
    "a dict observed": ({"x": GOOD}, 1.0, False, False, {}),
    "ragged rows observed": ([[1.0], [1.0, 2.0]], 1.0, False, False, {}),
    "NaN observed": (GOOD + np.nan, 1.0, False, False, {}),
    "an infinity observed": (GOOD + np.inf, 1.0, False, False, {}),
    "terminated None": (GOOD, 1.0, None, False, {}),
    "terminated of text": (GOOD, 1.0, "no", False, {}),
    "truncated an array": (GOOD, 1.0, False, np.zeros(2, bool), {}),
    "four values": (GOOD, 1.0, False, {}),
    "nothing": None,
    "a number": 7,
}


class Faulty(gym.Env):
    """Episodes of ten steps; one thing goes wrong in one call, from its ``at``-th time on."""

    observation_space: gym.Space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space: gym.Space = gym.spaces.Discrete(2)

    def __init__(self, where: str, fault: str, at: int):
        self.where, self.fault, self.at, self.time, self.calls = where, fault, at, 0, {}
        self._meet("init", None)

    def _meet(self, where: str, usual: Any) -> Any:
        number = self.calls[where] = self.calls.get(where, -1) + 1
        if where != self.where or number < self.at:
            return usual
        if self.fault == "death":
            if multiprocessing.parent_process() is None:
                return usual  # a worker dies, not who trains
            os.kill(os.getpid(), signal.SIGKILL)
        return RAISES[self.fault]() if self.fault in RAISES else STEPS[self.fault]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._meet("reset", (GOOD, {}))

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._meet("step", (GOOD, float(action), self.time == 10, False, {}))

    def snapshot(self) -> Any:
        return self._meet("snapshot", {"time": self.time})

    def restore(self, snapshot: Any) -> None:
        self.time = self._meet("restore", snapshot["time"])

    def close(self) -> None:
        self._meet("close", None)


@dataclass(frozen=True)
class Make:
    """A function that makes the environment, and that survives the way to a worker."""

    where: str
    fault: str
    at: int

    def __call__(self) -> gym.Env:
        return Faulty(self.where, self.fault, self.at)


def _cases() -> list[tuple[str, str, int]]:
    cases = [("step", fault, at) for fault in (*RAISES, *STEPS) for at in (LATE, 0)]
    cases += [(where, fault, at) for where, at in (("reset", 5), ("reset", 0), ("init", 0)) for fault in RAISES]
    cases += [("reset", fault, 5) for fault in ("nothing", "a number", "four values")]
    cases += [(w, fault, 0) for w in ("snapshot", "close") for fault in ("RuntimeError", "SystemExit", "KeyError")]
    return cases


def _jax_env(fault: str) -> Any:
    from benchmarks.fault_jax import JaxFaulty

    return JaxFaulty(fault)


def _door(index: int) -> tuple[str, str, str, int]:
    """Return the door, and the fault."""
    from benchmarks.fault_jax import FAULTS

    cases = _cases()
    door = ("host", "host", "handed in", "JAX", "host", "handed in", "workers", "host")[index % 8]
    if door == "JAX":
        return door, "step or reset", list(FAULTS)[index // 8 % len(FAULTS)], 0
    where, fault, at = cases[(index * 7) % len(cases)]
    if door == "workers" and index % 16 == 6:
        where, fault, at = "step", "death", LATE
    return door, where, fault, at


def _inject(index: int, place: Path) -> Injected:
    import trpo

    door, where, fault, at = _door(index)
    shutil.rmtree(place / "scene", ignore_errors=True)
    (place / "scene" / "outside").mkdir(parents=True)
    canary, run = Canary(place / "scene" / "outside"), place / "scene" / "run"
    hidden = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,), minibatch=16, epochs=1)}
    ours = trpo.EnvConfig(count=4, workers=2 if door == "workers" else 0)
    config = trpo.Config(steps=32 * ITERATIONS, fragment=8, checkpoint_every=4, env=ours, **hidden)
    env, problem = Make(where, fault, at), ""
    said, ended = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                given = _jax_env(fault) if door == "JAX" else env
                given = trpo.make_envs(given, 4) if door == "handed in" else given
                trpo.train(given, config=config, out=run, quiet=True)
            except BaseException as error:
                ended = error
        _check_end(ended, door, where, fault, at)
        logged = fault == "a callback raises"  # JAX itself logs where a callback raised
        check(logged or TRACE not in said.getvalue(), f"traceback: {said.getvalue()[-300:]}")
        _check_run(run, config, ended, door)
        canary.check()
    except Broken as error:
        problem = str(error)
    yield f"{door}, {fault}" + (f" in {where}" if fault in RAISES or fault == "death" else ""), problem


HARMLESS = ("close", "snapshot", "restore")


def _check_end(ended: BaseException | None, door: str, where: str, fault: str, at: int) -> None:
    """Check that what ended a run names the environment and the cause."""
    if door == "JAX":
        from benchmarks.fault_jax import FAULTS

        if ended is not None:
            check_line(ended, *FAULTS[fault])
        else:
            check(not FAULTS[fault], "it trained to its end")
        return
    if ended is None:
        # A non-finite reward leaves the policy as it is, and the run goes on: see on_nonfinite.
        check(where in HARMLESS or fault in ("reward NaN", "reward infinite"), "it trained to its end")
        return
    check_line(ended)
    text = str(ended).lower()
    named = any(word in text for word in ("environment", "faulty", "snapshot", "simulator"))
    check(named, f"does not name the environment: {ended}")
    words = {"ValueError": "bad news", "RuntimeError": "motor on fire", "an error of two lines": "sensor 7"}
    words |= {"death": "died", "KeyError": "motor", "sys.exit of words": "bye", "OSError": "/nowhere/at/all"}
    check(words.get(fault, "") in text, f"does not say {words.get(fault)!r}: {ended}")


def _check_run(run: Path, config: Any, ended: BaseException | None, door: str) -> None:
    """Check what was saved, and go on from it in a sound environment."""
    import trpo

    if not (run / "config.json").exists():
        check(not run.exists() or not any(run.iterdir()), "left half a directory")
        return
    check_unbroken(run, 0 if door != "JAX" else None)
    if ended is None:
        return
    sound = _jax_env("none") if door == "JAX" else Make("", "", 0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            trpo.resume(run, env=sound, quiet=True)
        except Exception as error:
            raise Broken(f"does not go on: {type(error).__name__}: {error}") from error
    check(check_unbroken(run, 0) == ITERATIONS == ends(run)[0], "iterations are missing after it went on")


KINDS = (
    Kind(
        "environments", 200, _inject, "the environment and the cause are named; the run goes on with a sound one", True
    ),
)
