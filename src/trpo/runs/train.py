"""Training with a directory: begin a run, go on with one, load what it has learned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trpo.capacity import gigabytes
from trpo.envs import EnvSpec
from trpo.envs.names import EnvLike
from trpo.envs.protocol import UnknownEnvironmentError
from trpo.policies.protocol import PolicyLike
from trpo.programs import keep_programs
from trpo.rollout import Seat, Snapshot, Source
from trpo.rules.protocol import Rule
from trpo.runs.callbacks import Callback
from trpo.runs.checkpoint import CheckpointError, checkpoints, largest_checkpoint, newest_checkpoint
from trpo.runs.disk import BEST, CHECKPOINTS, refuse_link
from trpo.runs.files import CONFIG, new_directory, read_config, used_directory
from trpo.runs.one import Run
from trpo.runs.run import train_runs
from trpo.runs.schema import explained
from trpo.runs.starting import Start, provenance, started, with_networks_of
from trpo.runs.trust import Untrusted, imported, trained_here
from trpo.settings.config import Config, merge
from trpo.settings.presets import AUTO, NONE, apply_preset
from trpo.training import hosts
from trpo.training.agent import Agent
from trpo.training.loop import check_of_state, check_runs, make_agent
from trpo.training.sizes import count_parameters
from trpo.training.state import TrainingState
from trpo.trees import require_same


def read_run(
    run: str | Path,
    policy: PolicyLike | None = None,
    env: EnvLike | Source | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    not_after: int | None = None,
    trust: bool = False,
    going_on: bool = False,
    checkpoint: str | int = "last",
) -> tuple[Agent, TrainingState, list[str]]:
    """Return agent and state of a run's newest intact checkpoint, and a line about each newer one that is damaged.

    ``not_after`` leaves out checkpoints of later iterations. The others are needed again where the run was given them:
    code is never stored, so loading never executes any. With ``trust``, or if the run was trained here, its environment
    may be made although it is imported. For ``going_on``, one in JAX is made, and a checkpoint of other environments is
    damaged; if all are, the run has another environment now. ``checkpoint`` is that of :func:`load`.
    """
    run = Path(run)
    data = read_config(run)
    for part, given, how in (("policy", policy, _MODULE), ("value", value, _MODULE), ("rule", rule, "it")):
        if data["custom"][part] and given is None:
            raise ValueError(f"{run} was trained with a {part} of its own: pass {how} as {part}=…")
    with explained(str(run / CONFIG)):
        spec, config = EnvSpec.from_json(data["spec"]), Config.from_json(data["config"])
        env = _env_of_run(run, data, env, trust)
        own = frozenset(part for part, module in (("policy", policy), ("value", value)) if module is not None)
        least = 4 * count_parameters(spec, config, own)
    place, not_after = (run / CHECKPOINTS, not_after) if checkpoint == "last" else _chosen(run, checkpoint)
    _check_sizes(run, place, least)
    jax.devices()  # where there is none, that is not a fault of the file
    with explained(str(run / CONFIG)):
        agent = Agent.create(spec, config, policy, None if isinstance(env, Source) else env, rule, value)
    if data["custom"]["env"]:  # a source is not kept in the agent, but the run still has one of its own
        agent = dataclasses.replace(agent, own=agent.own | {"env"})
    check = functools.partial(_check_state, agent, bool(data["custom"]["env"]))
    fits = check_of_state(env if isinstance(env, Source) else env_of(agent), agent) if going_on else None
    newest = functools.partial(newest_checkpoint, place, agent.learner, not_after)
    try:
        state, problems = newest(functools.partial(check, fits=fits))
    except CheckpointError:
        if fits is None:
            raise
        state, problems = newest(check)
    if problems and checkpoint != "last":
        raise CheckpointError(problems[0])
    return agent.at(state), state, problems


def _chosen(run: Path, checkpoint: str | int) -> tuple[Path, int]:
    """Return the directory in which ``checkpoint``, best or an iteration, is looked for, and its iteration."""
    best, all_of_it = ([int(path.name) for path in checkpoints(refuse_link(run / of))] for of in (BEST, CHECKPOINTS))
    if checkpoint == "best" and best:
        return run / BEST, best[0]
    if checkpoint == "best":
        raise ValueError(f"{run} has no best checkpoint: it is kept where training evaluates (--evaluate.every 50000)")
    for place, found in ((CHECKPOINTS, all_of_it), (BEST, best)):
        if str(checkpoint) in map(str, found):
            return run / place, int(checkpoint)
    there = ", ".join(map(str, sorted({*all_of_it, *best}))) or "none"
    raise ValueError(f"checkpoint={checkpoint!r}: must be last, best or an iteration that {run} has: {there}")


def _check_sizes(run: Path, place: Path, least: int) -> None:
    """Refuse settings that call for more parameters than a checkpoint has, before they are made."""
    found = largest_checkpoint(place)
    if found is None:
        newest_checkpoint(place, None)  # says what is wrong
    elif least > found:
        raise ValueError(
            f"{run / CONFIG}: its networks have at least {gigabytes(least)} of parameters, which do not fit its "
            f"checkpoints, of at most {gigabytes(found)}"
        )


def _env_of_run(run: Path, data: dict[str, Any], env: Any, trust: bool) -> Any:
    """Return ``env``, or the name of a run's environment, or what refuses to make it."""
    wrappers = tuple(data["config"]["env"].get("wrappers", ()))
    env_id = None if env is not None or data["custom"]["env"] else data["config"]["env"]["id"]
    modules = imported(env_id, wrappers)
    if modules and not (trust or trained_here(data.get("run"), data["config"]["env"]["id"], *wrappers)):
        return Untrusted(run, data["config"]["env"]["id"], tuple(modules))
    return env if env is not None else _missing_env if env_id is None else env_id


def _check_state(
    agent: Agent, own_env: bool, state: TrainingState, fits: Callable[[TrainingState], None] | None = None
) -> None:
    """Raise ValueError unless a state on the host is one of environments with these spaces, and ``fits`` any other."""
    episodes = state.episodes or {}
    count = len(episodes.get("running_return", range(agent.config.env.count)))
    for name in ("running_length", "first"):
        if len(episodes.get(name, range(count))) != count:
            raise ValueError(f"{name} has {len(episodes[name])} entries, expected {count}")
    if isinstance(state.source, Snapshot) and not own_env:
        if not isinstance(state.source.environments, list) or len(state.source.environments) != count:
            raise ValueError(f"it has no snapshots of {count} environments")
        seat = Seat(agent.spec.observation.zeros(count), agent.policy.start(count), np.ones(count, bool))
        require_same(jax.eval_shape(lambda: seat), state.source.seat)  # type: ignore[arg-type]
    if fits is not None:
        fits(state)


_MODULE = "a module of the same structure"


def _missing_env() -> Any:
    raise UnknownEnvironmentError(
        "this run's environment was given as an object, which is not stored: pass it as env=…"
    )


def load(
    run: str | Path,
    policy: PolicyLike | None = None,
    env: EnvLike | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    trust: bool = False,
    checkpoint: str | int = "last",
) -> Agent:
    """Load the agent of a run from its newest intact checkpoint. Never executes code; needs no simulator.

    Args:
        run: the run's directory.
        policy: a module of the same structure, if the run was trained with a policy of your own.
        env: the function that makes the environment, if the run was given one.
        rule: the update rule, if the run was trained with one of your own.
        value: a module of the same structure, if the run was trained with a value function of your own.
        trust: the agent may import the module that the run names for its environment (``module:Id``, ``jax:…``) when
            it is evaluated; runs that you trained here may anyway.
        checkpoint: ``last``, the newest intact one; ``best``, of the best evaluation (:class:`~trpo.EvaluateEvery`); or
            the iteration of one that is there.

    Raises:
        ValueError: not a run, no intact checkpoint, or not the one that was asked for.
    """
    return read_run(run, policy, env, rule, value, trust=trust, checkpoint=checkpoint)[0]


def save(agent: Agent, out: str | Path) -> None:
    """Write an agent to a new directory: what :meth:`trpo.Agent.save` does."""
    with new_directory(out) as lock:
        Run.begin(agent, lock)


def train(
    env: EnvLike | Source,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    preset: str = AUTO,
    policy: PolicyLike | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    start_from: str | Path | Agent | None = None,
    checkpoint: str | int = "last",
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Agent:
    """Train an agent from the beginning, with a progress line.

    Args:
        env: an environment id, a function without arguments that makes a ``gymnasium.Env``, a
            :class:`~trpo.JaxEnv`, or a :class:`~trpo.Source` of your own.
        steps: environment steps; overrides the configuration's.
        seed: overrides the configuration's.
        out: directory of the run (created; must be empty). Without it nothing is written.
        config: settings, used as they are; by default those of the preset.
        preset: name of a preset, ``auto`` (by environment id) or ``none``. A preset's name and ``config`` together are
            refused: which of the two should win cannot be told.
        policy: a policy of your own: any callable pytree from observations to a distribution.
        rule: an update rule of your own (see :class:`~trpo.rules.protocol.Rule`), in place of the configuration's.
        value: a value function of your own: any callable pytree from observations to numbers.
        start_from: a run's directory, or an agent: training begins with its policy, its value function and its
            statistics of observations and returns. Its spaces must be those of ``env``; its networks are kept, unless
            ``config`` says otherwise, which is refused.
        checkpoint: of the run in ``start_from``, as in :func:`trpo.load`.
        callbacks: called after iterations (see :class:`~trpo.runs.callbacks.Callback`); each may stop the run.
        quiet: show nothing.

    Returns:
        The trained agent.

    Raises:
        ValueError: a wrong argument.
        RunFailed: something ended the run, such as an error of the environment, a batch that was not finite or a
            full disk, which is its cause; with ``out`` the last finished iteration was saved first.
        KeyboardInterrupt: with ``out`` the last finished iteration was saved first.

    >>> import trpo
    >>> config = trpo.Config(steps=512, fragment=16, env=trpo.EnvConfig(count=8))
    >>> agent = trpo.train("probe:action", config=config, quiet=True)
    >>> agent.act([0.0]).shape
    ()
    """
    keep_programs()
    with contextlib.ExitStack() as held:
        with hosts.together():
            source = start_of(start_from, checkpoint, policy, rule, value)
            config = configure(env, config, preset, source, steps=steps, seed=seed)
            agent = make_agent(env, config, policy, rule, value)
            if source is not None:
                agent = started(agent, source.agent, source.name)
            if out is not None:
                check_runs(env, [agent])
            lock = held.enter_context(new_directory(out if hosts.speaks() else None))
            run = Run.begin(agent, lock, None if source is None else source.provenance)
        return train_runs(env, [run], quiet, callbacks=callbacks)[0]


def start_of(
    start_from: str | Path | Agent | None,
    checkpoint: str | int = "last",
    policy: PolicyLike | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
) -> Start | None:
    """Return what a run begins with: what an agent, or a run's, has learned; None if it begins with nothing."""
    if start_from is None and checkpoint != "last":
        raise ValueError(f"checkpoint={checkpoint!r}: it is that of start_from (--from RUN), which is not given")
    if start_from is None:
        return None
    if isinstance(start_from, Agent):
        return Start(start_from, "the agent in start_from", provenance(start_from))
    run = Path(start_from)
    if os.path.lexists(run / "sweep.json"):
        raise ValueError(f"start_from={run}: is a sweep; give the directory of one of its runs")
    agent, state, problems = read_run(run, policy, None, rule, value, checkpoint=checkpoint)
    for problem in problems:
        warnings.warn(f"{run}: {problem}; using the one before", stacklevel=3)
    return Start(agent, str(run), provenance(agent, run, state))


def configure(
    env: EnvLike | Source, config: Config | None, preset: str, start: Start | None = None, **changes: Any
) -> Config:
    """Return the settings of a run: ``config`` or else the preset's, with ``changes`` that aren't None.

    Where it begins with what another has learned, and no ``config`` is given, networks are that one's.
    """
    if config is not None and preset not in (AUTO, NONE):
        raise ValueError(
            f"preset={preset!r}: a config is used as it is; pass one of the two, or "
            f"config=trpo.settings.presets.apply_preset(config, {preset!r})[0] to have the preset's settings in it"
        )
    settings = config or Config()
    if isinstance(env, str):
        settings = dataclasses.replace(settings, env=dataclasses.replace(settings.env, id=env))
    if config is None and (isinstance(env, str) or preset != AUTO):
        settings = apply_preset(settings, preset)[0]
    if config is None and start is not None:
        settings = with_networks_of(settings, start.agent.config)
    return merge(settings, {name: value for name, value in changes.items() if value is not None})


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    policy: PolicyLike | None = None,
    env: EnvLike | Source | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    callbacks: Sequence[Callback] = (),
    changes: Mapping[str, Any] | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> Agent:
    """Go on with a run from its newest intact checkpoint, to its configured number of steps or to ``steps``.

    Args:
        run: the run's directory.
        steps: environment steps to train to, all told.
        policy: as in :func:`trpo.load`; so are ``env``, ``rule``, ``value`` and ``trust``.
        env: the function that makes the environment, or the source.
        rule: the update rule, if it is one of your own.
        value: a module of the same structure.
        callbacks: as in :func:`trpo.train`.
        changes: settings that are others from here on, such as ``{"rule.max_kl": 0.02}``. They are kept, and noted in
            ``config.json`` under ``changes``.
        quiet: show nothing.
        trust: the environment may be imported.

    Raises:
        ValueError: not a run that can go on, or a setting that does not change, such as those of networks.
        RunFailed: as in :func:`trpo.train`.
    """
    keep_programs()
    with contextlib.ExitStack() as held:
        with hosts.together():
            read_config(Path(run))  # what is no run is left as it is
            lock = held.enter_context(used_directory(Path(run))) if hosts.speaks() else None
            agent, state, problems = read_run(run, policy, env, rule, value, trust=trust, going_on=True)
            said = [f"{problem}; using the one before" for problem in problems]
            resumed = Run.go_on(agent, state, lock, Path(run))
            resumed.change(dict(changes or {}) | ({} if steps is None else {"steps": steps}))
            target = env if isinstance(env, Source) else env_of(agent)
            check_runs(target, [resumed.agent])
            if not resumed.finished:
                said.append(f"resuming {run} at iteration {state.iteration}, {state.steps:,} steps")
                if state.source is None and state.iteration > 0:
                    lost = "the simulators' state is not in the checkpoint (they don't offer it)"
                    said.append(f"{lost}: new episodes begin")
            if said and not quiet and hosts.speaks():
                print(*said, sep="\n", file=sys.stderr, flush=True)
        return train_runs(target, [resumed], quiet or not hosts.speaks(), callbacks=callbacks)[0]


def env_of(agent: Agent) -> EnvLike:
    """Return what ``agent`` was made for: an environment's name, or the object that was given."""
    return agent.env if agent.env is not None else agent.config.env.id
