"""Training in several threads: the results of runs one after the other, and all of the process in its place."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo
from trpo.envs.device.probes import make_probe
from trpo.envs.host.gymnasium import quiet_mujoco


@dataclasses.dataclass(frozen=True, eq=False)
class Telling:
    """A probe in JAX that equals no other and prints while it is compiled."""

    name: str
    spec = property(lambda self: make_probe(self.name).spec)
    cheap_reset = True

    def reset(self, key: Any) -> Any:
        print(f"{self.name} begins")
        return make_probe(self.name).reset(key)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return make_probe(self.name).step(state, action, key)


def config(seed: int) -> trpo.Config:
    small = {"policy": trpo.PolicyConfig(hidden=(8,)), "value": trpo.ValueConfig(hidden=(8,))}
    return trpo.Config(steps=192, fragment=16, seed=seed, env=trpo.EnvConfig(count=4), **small)


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of tasks that begin at the same time, each in a thread."""
    found: dict[int, Any] = {}
    barrier = threading.Barrier(len(tasks))

    def run(i: int) -> None:
        barrier.wait()
        found[i] = tasks[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(tasks))]


def trained(env: Any, seed: int, out: Path | None = None) -> list[np.ndarray]:
    agent = trpo.train(env, config=config(seed), out=out, quiet=True)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(agent.learner)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def test_threads_train_what_runs_one_after_the_other_train(tmp_path: Path) -> None:
    envs = ["jax", "probe:delayed", "jax"]
    before = sys.stdout, sys.stderr
    chosen = [Telling("delayed") if env == "jax" else env for env in envs]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        at_once = together([lambda i=i, env=env: trained(env, i, tmp_path / str(i)) for i, env in enumerate(chosen)])  # type: ignore[misc]
        assert sys.stdout is said
    assert (sys.stdout, sys.stderr) == before
    # What an environment prints is not swallowed: nothing stood in the place of standard output meanwhile.
    assert said.getvalue().count("delayed begins\n") >= envs.count("jax")
    for i, env in enumerate(chosen):
        assert same(at_once[i], trained(env, i)), env


def test_threads_evaluate_what_they_load(tmp_path: Path) -> None:
    places = [tmp_path / "host", tmp_path / "device"]
    for i, (place, env) in enumerate(zip(places, ["probe:delayed", "jax-probe:delayed"], strict=True)):
        trained(env, i, place)

    def evaluated(place: Path) -> Any:
        agent = trpo.load(place)
        return agent.evaluate(6, deterministic=False), agent.act(np.ones(1)).item()

    before = sys.stdout
    at_once = together([lambda place=place: evaluated(place) for place in places * 2])  # type: ignore[misc]
    assert sys.stdout is before
    assert at_once == [evaluated(place) for place in places] * 2


def test_mujocos_warnings_go_where_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    first, second = quiet_mujoco(), quiet_mujoco()
    first.__enter__()
    second.__enter__()
    inside = mujoco.get_mju_user_warning()
    assert inside is not before
    first.__exit__(None, None, None)  # as a thread does that came first and leaves first
    assert mujoco.get_mju_user_warning() is inside
    second.__exit__(None, None, None)
    assert mujoco.get_mju_user_warning() is before
