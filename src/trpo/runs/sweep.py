"""Several runs of one task: seeds, and hyperparameters that vary; on the device all at once.

The directory of a sweep has one directory for each run, complete in itself, ``sweep.json``, which says which run is
which, and ``summary.json``, written at the end.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo.envs.names import EnvLike, is_in_jax, is_jax_name
from trpo.policies.protocol import PolicyLike
from trpo.programs import keep_programs
from trpo.runs.aggregate import interval
from trpo.runs.callbacks import Callback
from trpo.runs.changing import nested
from trpo.runs.disk import is_regular, refuse_link
from trpo.runs.files import CONFIG, new_directory, read_config, used_directory
from trpo.runs.lock import RunLock
from trpo.runs.one import Run
from trpo.runs.run import RunFailed, train_runs
from trpo.runs.schema import SWEEP_FILE, explained, read_json, write_json
from trpo.runs.sinks import read_metrics
from trpo.runs.starting import started
from trpo.runs.train import configure, env_of, read_run, start_of
from trpo.settings.config import Config, merge, of_setting
from trpo.settings.presets import AUTO
from trpo.settings.values import converted
from trpo.spelling import in_words
from trpo.training import hosts
from trpo.training.agent import Agent
from trpo.training.layout import use_cores
from trpo.training.loop import check_runs, make_agent
from trpo.training.sizes import check_number_of_runs
from trpo.training.state import TrainingState

SWEEP, SUMMARY = "sweep.json", "summary.json"
FORMAT = 1
TRACED = frozenset({
    "discount", "gae_lambda", "rule.max_kl", "rule.damping", "rule.cg_tolerance", "rule.max_step_norm",
    "rule.backtrack_ratio", "rule.initial_coefficient", "policy.initial_std", "policy.last_layer_scale",
    "policy.hidden_layer_scale", "value.learning_rate", "value.max_change", "value.hidden_layer_scale",
})  # fmt: skip
"""Settings that may vary between runs that train as one compiled function."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    name: str
    """Of its directory."""
    changes: dict[str, Any]
    """Settings that vary over the sweep, by dotted name; without the seed."""
    seed: int


def variants(seeds: Sequence[int], vary: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Return every combination of the values in ``vary``, with each of the seeds."""
    found = []
    for values in itertools.product(*vary.values()):
        changes = dict(zip(vary, values, strict=True))
        parts = "-".join(f"{name}={value}" for name, value in changes.items())
        label = "".join(c if c.isprintable() and c not in _UNFIT else "_" for c in f"{parts}-" if parts)
        found += [Variant(f"{label}seed-{seed}", changes, seed) for seed in seeds]
    return found


_UNFIT = '/\\:*?"<>|'
"""Characters that are in no name of a run's directory: some system gives them a meaning in paths."""


def sweep(
    env: EnvLike,
    *,
    seeds: int | Sequence[int] = 1,
    vary: Mapping[str, Sequence[Any]] | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    preset: str = AUTO,
    policy: PolicyLike | None = None,
    value: PolicyLike | None = None,
    start_from: str | Path | Agent | None = None,
    checkpoint: str | int = "last",
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> list[Agent]:
    """Train several independent runs and return their agents, in the order of :func:`variants`.

    With an environment in JAX all of them are one compiled function, compiled once, in which they run side by side; so
    what varies must be traced: floats of the rule and of the value fit, ``discount``, ``gae_lambda``, and settings that
    only shape the beginning. With an environment on the host they run one after the other, and anything may vary.

    Args:
        env: as :func:`trpo.train` takes it.
        seeds: how many (from the configuration's seed on), or which.
        vary: values for settings by dotted name, such as ``{"rule.max_kl": [0.01, 0.02]}``; every combination is run.
        steps: environment steps of each run; overrides the configuration's.
        out: directory, in which each run has its own. Without it nothing is written.
        config: settings of all; by default those of the preset.
        preset: as in :func:`trpo.train`.
        policy: a policy of your own, the same beginning for all.
        value: a value function of your own, the same beginning for all.
        start_from: as in :func:`trpo.train`, the same beginning for all; so is ``checkpoint``.
        checkpoint: of the run in ``start_from``.
        callbacks: as in :func:`trpo.train`; each run has copies of its own. Runs in JAX end together, when all are to
            stop.
        quiet: show nothing.

    Raises:
        ValueError: a wrong argument, or a setting that is compiled in and cannot vary.
        RunFailed: as in :func:`trpo.train`.

    >>> import trpo
    >>> config = trpo.Config(steps=512, fragment=16, env=trpo.EnvConfig(count=8))
    >>> agents = trpo.sweep("jax-probe:action", seeds=2, vary={"rule.max_kl": [0.01, 0.02]}, config=config, quiet=True)
    >>> [(agent.config.rule.max_kl, agent.config.seed) for agent in agents]
    [(0.01, 0), (0.01, 1), (0.02, 0), (0.02, 1)]
    """
    keep_programs()
    hosts.require_alone("a sweep")
    start = start_of(start_from, checkpoint, policy, None, value)
    base = configure(env, config, preset, start, steps=steps)
    vary = _varied(env, vary or {})
    combinations = math.prod(len(values) for values in vary.values())
    plan = variants(_seeds(seeds, base.seed, combinations), vary)
    if base.env.devices != 1 and is_jax_name(env):
        use_cores(len(plan))
    configs = [dataclasses.replace(merge(base, nested(v.changes)), seed=v.seed) for v in plan]
    agents = [make_agent(env, configs[0], policy, value=value)]
    check_number_of_runs(len(plan), agents[0].learner)
    agents += [make_agent(env, c, policy, value=value) for c in configs[1:]]
    if start is not None:
        agents = [started(agent, start.agent, start.name) for agent in agents]
    check_runs(env, agents)
    with new_directory(out) as lock, contextlib.ExitStack() as members:
        runs = [
            Run.begin(a, lock and members.enter_context(_member(lock, v)), None if start is None else start.provenance)
            for v, a in zip(plan, agents, strict=True)
        ]
        return _train(env, runs, quiet, lock, plan, callbacks)


def _member(lock: RunLock, variant: Variant) -> RunLock:
    place = lock.directory / variant.name
    place.mkdir()
    return RunLock(place)


def _describe(lock: RunLock, plan: Sequence[Variant]) -> None:
    """Write which run is which, unless it is there."""
    lock.renew()
    if not is_regular(lock.directory / SWEEP):
        write_json(lock.directory / SWEEP, {"format": FORMAT, "runs": [dataclasses.asdict(v) for v in plan]})


def _seeds(seeds: Any, first: int, combinations: int) -> list[int]:
    listed = isinstance(seeds, Sequence) or np.ndim(seeds) > 0
    check_number_of_runs(combinations * (len(seeds) if listed else converted(seeds, int, "seeds")))
    several = converted(seeds, tuple[int, ...] if listed else int, "seeds")
    chosen = list(range(first, first + several) if isinstance(several, int) else several)
    if not chosen:
        raise ValueError(f"seeds={seeds}: must be ≥ 1")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"seeds={chosen}: each seed once")
    return chosen


def _varied(env: EnvLike, vary: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what varies by today's names, with values as settings keep them."""
    in_jax = is_in_jax(env)
    found: dict[str, list[Any]] = {}
    for name, values in vary.items():
        setting = name.replace("-", "_")
        if setting in ("seed", "env.id"):
            cure = "use seeds (--seeds N)" if setting == "seed" else "a sweep has one environment"
            raise ValueError(f"vary {setting!r}: {cure}")
        if isinstance(values, str) or not np.iterable(values):
            raise ValueError(f"vary {setting!r}: must be a list of values, not {values!r}")
        found[setting] = kept = [of_setting(setting, value) for value in values]
        if not kept or len({str(value) for value in kept}) != len(kept):
            raise ValueError(f"vary {setting!r}: must have one or more values, each once, not {kept}")
        if in_jax and setting not in TRACED:
            raise ValueError(
                f"vary {setting!r}: runs in JAX train as one compiled function, which has this setting compiled in; "
                f"train them one by one, or vary one of {', '.join(sorted(TRACED))}"
            )
    return found


def _train(
    env: EnvLike,
    runs: list[Run],
    quiet: bool,
    lock: RunLock | None,
    plan: Sequence[Variant],
    callbacks: Sequence[Callback],
) -> list[Agent]:
    if lock is not None:
        _describe(lock, plan)
        for run in runs:
            run.renew_above = functools.partial(_describe, lock, plan)
    place = None if lock is None else lock.directory
    together = [runs] if is_in_jax(env) else [[run] for run in runs]
    agents = [agent for group in together for agent in train_runs(env, group, quiet, place, copy.deepcopy(callbacks))]
    if place is not None:
        try:
            write_json(place / SUMMARY, summarise(place))
        except OSError as error:
            rest = f"all runs are finished, only the summary is missing; write it with: trpo resume {place}"
            raise RunFailed(f"{in_words(error)}; {rest}") from error
    return agents


def is_sweep(run: Path) -> bool:
    """Return whether a directory is a sweep's."""
    return os.path.lexists(run / SWEEP)


def read_sweep(place: Path) -> list[Variant]:
    """Return the runs of a sweep, each in a directory of its own inside it."""
    found = read_json(place / SWEEP, SWEEP_FILE, FORMAT)["runs"]
    with explained(str(place / SWEEP)):
        names = {record["name"].casefold() for record in found}
        if not found or len(names) < len(found):
            raise ValueError("must have one or more runs, each once")
        for record in found:
            name = record["name"]
            if name.startswith(".") or not name.isprintable() or set(name) & set(_UNFIT) or not name:
                raise ValueError(f"name={name!r}: must be that of a directory in it")
            refuse_link(place / name)
    return [Variant(record["name"], record["changes"], record["seed"]) for record in found]


def settings_of_run(run: Path) -> Config:
    """Return the settings that a run has, or the first of a sweep."""
    first = next((variant.name for variant in read_sweep(run)), "") if is_sweep(run) else ""
    data = read_config(run / first)
    with explained(str(run / first / CONFIG)):
        return Config.from_json(data["config"])


def groups(plan: Sequence[Variant]) -> dict[str, list[Variant]]:
    """Return the runs that differ in their seed alone, by what they have in common: ``rule.max_kl=0.01``."""
    found: dict[str, list[Variant]] = {}
    for variant in plan:
        label = " ".join(f"{name}={value}" for name, value in variant.changes.items())
        found.setdefault(label, []).append(variant)
    return found


def summarise(place: Path) -> dict[str, Any]:
    """Return the last metrics of each run, and of each group interquartile mean and interval of its last returns."""
    plan = read_sweep(place)
    wanted = ("steps", "seconds", "iteration", "episodes", "episode_return", "episode_length")
    last = {variant.name: (read_metrics(place / variant.name) or [{}])[-1] for variant in plan}
    runs = {run: {name: metrics.get(name) for name in wanted} for run, metrics in last.items()}
    summary = []
    for label, members in groups(plan).items():
        returns = [x for v in members if (x := runs[v.name]["episode_return"]) is not None]
        found = interval(returns).to_json() if returns else None
        summary.append({"settings": label, "seeds": len(members), "with_return": len(returns), "return": found})
    return {"format": FORMAT, "groups": summary, "runs": runs}


def resume_sweep(
    place: str | Path,
    *,
    steps: int | None = None,
    policy: PolicyLike | None = None,
    env: EnvLike | None = None,
    value: PolicyLike | None = None,
    callbacks: Sequence[Callback] = (),
    changes: Mapping[str, Any] | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> list[Agent]:
    """Go on with all runs of a sweep from the newest iteration of which each has an intact checkpoint.

    ``changes`` are those of :func:`trpo.resume`, for all runs; ``trust`` is that of :func:`trpo.load`.
    """
    keep_programs()
    hosts.require_alone("a sweep")
    place = Path(place)
    plan = read_sweep(place)
    changes = dict(changes or {}) | ({} if steps is None else {"steps": steps})
    for name in changes:
        if any(name.replace("-", "_") in variant.changes for variant in plan):
            raise ValueError(
                f"{name}: it is what the runs of {place} differ in; change it in one, "
                f"such as trpo resume {place / plan[0].name}"
            )
    described = [read_config(place / variant.name) for variant in plan]
    if is_jax_name(described[0]["config"]["env"]["id"]):
        use_cores(len(plan))
    read = functools.partial(read_run, policy=policy, env=env, value=value, trust=trust, going_on=True)

    def newest(directory: Path, not_after: int | None = None) -> tuple[Agent, TrainingState]:
        agent, state, problems = read(directory, not_after=not_after)
        for problem in () if quiet else problems:
            print(f"{directory}: {problem}; using the one before", file=sys.stderr, flush=True)
        return agent, state

    with used_directory(place) as lock, contextlib.ExitStack() as members:
        locks = [members.enter_context(used_directory(place / variant.name)) for variant in plan]
        runs = [Run.go_on(*newest(each.directory), each, each.directory) for each in locks]
        target = env_of(runs[0].agent)
        # Runs that train together go on together; a crash may have come between the checkpoints of two of them.
        while is_in_jax(target) and len({run.state.iteration for run in runs}) > 1:
            earliest = min(run.state.iteration for run in runs)
            for run, each in zip(runs, locks, strict=True):
                if run.state.iteration > earliest:
                    run.state = newest(each.directory, not_after=earliest)[1]
        for run in runs:
            run.change(changes)
        check_runs(target, [run.agent for run in runs])
        return _train(target, runs, quiet, lock, plan, callbacks)
