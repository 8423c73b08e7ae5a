"""Runs: training with a directory, a progress line, checkpoints and a graceful end."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trpo.envs import EnvironmentFailure, EnvSpec
from trpo.runs.checkpoint import newest_checkpoint, write_checkpoint
from trpo.runs.files import CHECKPOINTS, claim_directory, read_config, write_config
from trpo.runs.progress import reporter, summarise
from trpo.runs.sinks import FILE, JsonLines, Sink, TensorBoard
from trpo.settings.config import Config
from trpo.settings.presets import AUTO, apply_preset
from trpo.training.agent import Agent
from trpo.training.loop import advance, check_runs, make_agent
from trpo.training.state import NonFiniteBatchError, TrainingState


class RunInterrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and how to resume."""


@dataclasses.dataclass
class _Stop:
    """Set by the first Ctrl-C or termination signal; the run then ends after the iteration under way."""

    requested: bool = False


@contextlib.contextmanager
def _graceful() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        _say("\nstopping after this iteration; once more to stop at once")

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def load_run(
    run: str | Path, policy: Any = None, env: Any = None, rule: Any = None, not_after: int | None = None
) -> tuple[Agent, TrainingState, list[str]]:
    """Return agent and state of a run's newest intact checkpoint, and a line about each newer one that is damaged.

    ``not_after`` leaves out checkpoints of later iterations.

    ``policy`` and ``env`` are needed again for a policy of your own and for an environment given as a function: code
    is never stored, so loading never executes any.
    """
    run = Path(run)
    data = read_config(run)
    if data["custom_policy"] and policy is None:
        raise ValueError(f"{run} was trained with a policy of its own: pass a module of the same structure as policy=…")
    if data["custom_rule"] and rule is None:
        raise ValueError(f"{run} was trained with a rule of its own: pass it as rule=…")
    agent = Agent.create(EnvSpec.from_json(data["spec"]), Config.from_json(data["config"]), policy, env, rule)
    if data["custom_env"] and env is None:
        agent = dataclasses.replace(agent, env=_missing_env)
    state, problems = newest_checkpoint(run / CHECKPOINTS, agent.learner, not_after)
    return agent.at(state), state, problems


def _missing_env() -> Any:
    raise ValueError("this run's environment was given as an object, which is not stored: pass it as env=…")


def load(run: str | Path, policy: Any = None, env: Any = None, rule: Any = None) -> Agent:
    """Load the agent of a run from its newest intact checkpoint. Never executes code; needs no simulator.

    Args:
        run: the run's directory.
        policy: a module of the same structure, if the run was trained with a policy of your own.
        env: the function that makes the environment, if the run was given one.
        rule: the update rule, if the run was trained with one of your own.

    Raises:
        ValueError: not a run, or no intact checkpoint.
    """
    return load_run(run, policy, env, rule)[0]


def train(
    env: Any,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    preset: str = AUTO,
    policy: Any = None,
    rule: Any = None,
    quiet: bool = False,
) -> Agent:
    """Train an agent from the beginning, with a progress line.

    Args:
        env: an environment id, a function without arguments that makes a ``gymnasium.Env``, or a
            :class:`~trpo.envs.device.JaxEnv`.
        steps: environment steps; overrides the configuration's.
        seed: overrides the configuration's.
        out: directory of the run (created; must be empty). Without it nothing is written.
        config: settings, used as they are; by default those of the preset.
        preset: name of a preset, ``auto`` (by environment id) or ``none``; only without ``config``.
        policy: a policy of your own: any callable pytree from observations to a distribution.
        rule: an update rule of your own (see :class:`~trpo.rules.protocol.Rule`), in place of the configuration's.
        quiet: show nothing.

    Returns:
        The trained agent.

    Raises:
        ValueError: a wrong argument.
        RunFailed: the environment raised or a batch was not finite; with ``out`` a checkpoint was written.
        KeyboardInterrupt: with ``out`` a checkpoint was written.

    >>> import trpo
    >>> config = trpo.Config(steps=512, fragment=16, env=trpo.EnvConfig(count=8))
    >>> agent = trpo.train("probe:action", config=config, quiet=True)
    >>> agent.act([0.0]).shape
    ()
    """
    config = configure(env, config, preset, steps=steps, seed=seed)
    agent = make_agent(env, config, policy, rule)
    run = None
    if out is not None:
        check_runs(env, [agent])
        run = claim_directory(Path(out))
        create_run(run, agent, policy is not None)
    with unless_refused(run):
        return go_on(env, [Member(agent, TrainingState(agent.learner), run)], quiet)[0]


@contextlib.contextmanager
def unless_refused(place: Path | None) -> Iterator[None]:
    """Remove the directory of a new run if its settings turn out to be impossible before its first iteration."""
    try:
        yield
    except ValueError:
        if place is not None and not any(file.stat().st_size for file in place.rglob(FILE)):
            shutil.rmtree(place)
        raise


def configure(env: Any, config: Config | None, preset: str, **changes: Any) -> Config:
    """Return the settings of a run: ``config`` or else the preset's, with ``changes`` that aren't None."""
    named = isinstance(env, str)
    if config is None:
        config = Config()
        if named:
            config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
            config = apply_preset(config, preset)[0]
    if named:
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


def create_run(run: Path, agent: Agent, custom_policy: bool) -> None:
    """Write what a run starts from."""
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, agent, custom_policy)
    write_checkpoint(run / CHECKPOINTS, TrainingState(agent.learner), agent.config.keep_checkpoints)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    policy: Any = None,
    env: Any = None,
    rule: Any = None,
    quiet: bool = False,
) -> Agent:
    """Go on with a run from its newest intact checkpoint, to its configured number of steps or to ``steps``."""
    run = Path(run)
    agent, state, problems = load_run(run, policy, env, rule)
    if not quiet:
        for problem in problems:
            _say(f"{problem}; using the one before")
        _say(f"resuming {run} at iteration {state.iteration}, {state.steps:,} steps")
        if state.environments is None and state.rollout is None and state.iteration > 0:
            _say("the simulators' state is not in the checkpoint (they don't offer it): new episodes begin")
    if steps is not None:
        agent = dataclasses.replace(agent, config=dataclasses.replace(agent.config, steps=steps))
        write_config(run, agent, policy is not None)
    target = agent.env if agent.env is not None else agent.config.env.id
    return go_on(target, [Member(agent, state, run)], quiet)[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Member:
    """One run, alone or trained together with others."""

    agent: Agent
    state: TrainingState
    run: Path | None
    """Its directory; None if nothing is written."""
    sinks: list[Sink] = dataclasses.field(default_factory=list)
    saved: int = 0
    """Iteration of the newest checkpoint."""

    def open(self) -> None:
        """Open what its metrics go to."""
        self.saved = self.state.iteration
        if self.run is not None:
            self.sinks = [JsonLines(self.run, self.state.iteration), TensorBoard(self.run, self.state.steps)]

    def save(self) -> None:
        """Write a checkpoint, if there is anything new."""
        if self.run is not None and self.saved != self.state.iteration:
            write_checkpoint(self.run / CHECKPOINTS, self.state, self.agent.config.keep_checkpoints)
            self.saved = self.state.iteration


CHECKPOINT_SHARE = 0.1
"""The most of a run's time that checkpoints may take where iterations are faster than the disk."""


class _Checkpoints:
    """When to save: every so many iterations, but where many pass in a second not so often that it holds up the run."""

    def __init__(self, members: list[Member], place: Path | None):
        self.members, self.place = members, place
        self.every = members[0].agent.config.checkpoint_every
        self.latest: Callable[[], list[TrainingState]] | None = None
        self._ended, self._took = time.perf_counter(), 0.0

    def now(self) -> str:
        """Save all members; return what to tell the user."""
        self.take()
        if self.place is None:
            return "no run directory, so nothing was saved"
        began = time.perf_counter()
        for member in self.members:
            member.save()
        self._ended = time.perf_counter()
        self._took = self._ended - began
        iteration = self.members[0].state.iteration
        return f"checkpoint of iteration {iteration} is in {self.place}; go on with: trpo resume {self.place}"

    def take(self) -> None:
        """Fetch the members' states, which may have to come from a device."""
        if self.latest is not None:
            for member, state in zip(self.members, self.latest(), strict=True):
                member.state = state
            self.latest = None

    def due(self, iteration: int, many: bool) -> bool:
        """Return whether it is time; ``many``: several iterations passed since this was asked last."""
        if iteration // self.every == self.members[0].saved // self.every:
            return False
        return not many or time.perf_counter() - self._ended >= self._took / CHECKPOINT_SHARE


def go_on(env: Any, members: list[Member], quiet: bool, place: Path | None = None) -> list[Agent]:
    """Train ``members`` to their configured steps, with sinks, checkpoints, a progress line and a graceful end.

    ``place`` is what a user resumes: the members' common directory, by default the only one's.
    """
    place = place or members[0].run
    config = members[0].agent.config
    show = reporter(config.steps * len(members), quiet)
    checkpoints = _Checkpoints(members, place)
    for member in members:
        member.open()

    with _graceful() as stop:
        try:
            for progress in advance(env, [m.agent for m in members], [m.state for m in members], tell=show.say):
                for member, records in zip(members, progress.metrics, strict=True):
                    for sink in member.sinks:
                        sink.write(records)
                show.update(summarise([records[-1] for records in progress.metrics]))
                checkpoints.latest = progress.states
                if stop.requested:
                    raise RunInterrupted(f"interrupted; {checkpoints.now()}")
                if place is not None and checkpoints.due(progress.iteration, many=len(progress.metrics[0]) > 1):
                    checkpoints.now()
        except EnvironmentFailure as error:
            raise RunFailed(f"{error}; {checkpoints.now()}") from error
        except NonFiniteBatchError as error:
            states = error.states
            checkpoints.latest = lambda: states
            raise RunFailed(f"{error}; stopped as configured (on_nonfinite=stop); {checkpoints.now()}") from error
        finally:
            show.close()
            for member in members:
                for sink in member.sinks:
                    sink.close()
    checkpoints.take()
    checkpoints.now()
    return [member.agent.at(member.state) for member in members]
