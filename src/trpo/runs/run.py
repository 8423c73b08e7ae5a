"""Runs: training with a directory, a progress line, checkpoints and a graceful end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trpo.envs import EnvSpec
from trpo.envs.names import EnvLike, imported_module
from trpo.envs.protocol import UnknownEnvironmentError
from trpo.policies.protocol import PolicyLike
from trpo.programs import keep_programs
from trpo.rollout import Seat, Snapshot, Source
from trpo.rules.protocol import Rule
from trpo.runs.checkpoint import newest_checkpoint, prune, write_checkpoint
from trpo.runs.disk import CHECKPOINTS, replace_durably
from trpo.runs.files import CONFIG, new_directory, read_config, used_directory, write_config
from trpo.runs.interrupts import Interrupted, Stop, end_soon, graceful_stop
from trpo.runs.lock import DirectoryLostError, RunLock
from trpo.runs.progress import Reporter, joint_metrics
from trpo.runs.schema import check_spec, explained
from trpo.runs.sinks import JsonLines, Sink, TensorBoard
from trpo.runs.trust import Untrusted, remember, trained_here
from trpo.settings.config import Config, merge
from trpo.settings.presets import AUTO, NONE, apply_preset
from trpo.spelling import in_words
from trpo.training.agent import Agent
from trpo.training.loop import advance, check_runs, make_agent
from trpo.training.state import NonFiniteBatchError, TrainingState
from trpo.trees import from_named_arrays


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and how to resume."""


def read_run(
    run: str | Path,
    policy: PolicyLike | None = None,
    env: EnvLike | Source | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    not_after: int | None = None,
    trust: bool = False,
) -> tuple[Agent, TrainingState, list[str]]:
    """Return agent and state of a run's newest intact checkpoint, and a line about each newer one that is damaged.

    ``not_after`` leaves out checkpoints of later iterations. The others are needed again where the run was given them:
    code is never stored, so loading never executes any. With ``trust``, or if the run was trained here, its environment
    may be made although it is imported.
    """
    run = Path(run)
    data = read_config(run)
    for part, given, how in (("policy", policy, _MODULE), ("value", value, _MODULE), ("rule", rule, "it")):
        if data["custom"][part] and given is None:
            raise ValueError(f"{run} was trained with a {part} of its own: pass {how} as {part}=…")
    with explained(str(run / CONFIG)):
        spec, config = check_spec(EnvSpec.from_json(data["spec"])), Config.from_json(data["config"])
        env = _env_of_run(run, data, trust) if env is None else env
        agent = Agent.create(spec, config, policy, None if isinstance(env, Source) else env, rule, value)
    check = functools.partial(_check_state, agent, bool(data["custom"]["env"]))
    state, problems = newest_checkpoint(run / CHECKPOINTS, agent.learner, not_after, check)
    return agent.at(state), state, problems


def _env_of_run(run: Path, data: dict[str, Any], trust: bool) -> EnvLike:
    """Return the name of a run's environment, or what refuses to make it."""
    env_id = data["config"]["env"]["id"]
    if data["custom"]["env"]:
        return _missing_env
    allowed = trust or imported_module(env_id) is None or trained_here(data.get("run"), env_id)
    return env_id if allowed else Untrusted(run, env_id)


def _check_state(agent: Agent, own_env: bool, state: TrainingState) -> None:
    """Raise ValueError unless a state on the host is one of environments with these spaces."""
    episodes = state.episodes or {}
    count = len(episodes.get("running_return", range(agent.config.env.count)))
    for name in ("running_length", "first"):
        if len(episodes.get(name, range(count))) != count:
            raise ValueError(f"{name} has {len(episodes[name])} entries, expected {count}")
    if isinstance(state.source, Snapshot) and not own_env:
        seat = Seat(agent.spec.observation.zeros(count), agent.policy.start(count), np.ones(count, bool))
        from_named_arrays(jax.eval_shape(lambda: seat), state.source.seat)  # type: ignore[arg-type]
        if not isinstance(state.source.environments, list) or len(state.source.environments) != count:
            raise ValueError(f"it has no snapshots of {count} environments")


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

    Raises:
        ValueError: not a run, or no intact checkpoint.
    """
    return read_run(run, policy, env, rule, value, trust=trust)[0]


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
    config = configure(env, config, preset, steps=steps, seed=seed)
    agent = make_agent(env, config, policy, rule, value)
    if out is not None:
        check_runs(env, [agent])
    with new_directory(out) as lock:
        return train_runs(env, [Run.begin(agent, lock)], quiet)[0]


def configure(env: EnvLike | Source, config: Config | None, preset: str, **changes: Any) -> Config:
    """Return the settings of a run: ``config`` or else the preset's, with ``changes`` that aren't None."""
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
    return merge(settings, {name: value for name, value in changes.items() if value is not None})


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    policy: PolicyLike | None = None,
    env: EnvLike | Source | None = None,
    rule: Rule | None = None,
    value: PolicyLike | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> Agent:
    """Go on with a run from its newest intact checkpoint, to its configured number of steps or to ``steps``.

    ``trust`` is that of :func:`trpo.load`.
    """
    keep_programs()
    read_config(Path(run))  # what is no run is left as it is
    with used_directory(Path(run)) as lock:
        agent, state, problems = read_run(run, policy, env, rule, value, trust=trust)
        said = [f"{problem}; using the one before" for problem in problems]
        resumed = Run.go_on(agent, state, lock)
        if steps is not None:
            resumed.change_steps(steps)
        if not resumed.finished:
            said.append(f"resuming {run} at iteration {state.iteration}, {state.steps:,} steps")
            if state.source is None and state.iteration > 0:
                said.append("the simulators' state is not in the checkpoint (they don't offer it): new episodes begin")
        if said and not quiet:
            print(*said, sep="\n", file=sys.stderr, flush=True)
        return train_runs(env if isinstance(env, Source) else env_of(agent), [resumed], quiet)[0]


def env_of(agent: Agent) -> EnvLike:
    """Return what ``agent`` was made for: an environment's name, or the object that was given."""
    return agent.env if agent.env is not None else agent.config.env.id


@dataclasses.dataclass
class Run:
    """One run, alone or trained together with others."""

    agent: Agent
    state: TrainingState
    lock: RunLock | None
    """Of its directory; None if nothing is written."""
    identity: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    renew_above: Callable[[], None] = lambda: None
    """Writes what is missing in the directory that this one is in."""
    sinks: list[Sink] = dataclasses.field(default_factory=list)

    @classmethod
    def begin(cls, agent: Agent, lock: RunLock | None) -> Run:
        """Return a new run, and write what it starts from."""
        run = cls(agent, TrainingState(agent.learner), lock)
        run.describe()
        run.save()
        return run

    @classmethod
    def go_on(cls, agent: Agent, state: TrainingState, lock: RunLock) -> Run:
        """Return a run that was read from a directory; ValueError if its environment must not be imported."""
        if isinstance(agent.env, Untrusted):
            agent.env()
        identity = read_config(lock.directory).get("run")
        return cls(agent, state, lock) if identity is None else cls(agent, state, lock, identity)

    @property
    def directory(self) -> Path | None:
        """Where it is written; None if nothing is."""
        return None if self.lock is None else self.lock.directory

    def describe(self) -> None:
        """Write ``config.json``, and note that the run is trained here."""
        if self.directory is not None:
            write_config(self.directory, self.agent, self.identity)
            if not self.agent.custom["env"]:
                remember(self.identity, self.agent.config.env.id)

    def change_steps(self, steps: Any) -> None:
        """Train to another number of steps, and remember it."""
        self.agent = dataclasses.replace(self.agent, config=merge(self.agent.config, {"steps": steps}))
        self.describe()

    def open_sinks(self) -> list[Sink]:
        """Open what its metrics go to."""
        if self.directory is not None:
            self.sinks = [
                JsonLines(self.directory, self.state.iteration),
                TensorBoard(self.directory, self.state.steps),
            ]
        return self.sinks

    @property
    def finished(self) -> bool:
        """Whether it has all its steps."""
        return self.state.steps >= self.agent.config.steps

    @property
    def total(self) -> int:
        """The steps that it ends with, in whole iterations."""
        config, taken = self.agent.config, self.state.steps
        return taken + -(-max(0, config.steps - taken) // config.batch) * config.batch

    def save(self) -> None:
        """Write a checkpoint, and whatever else of the run was deleted meanwhile.

        Where the simulators' state cannot be written, it is left out.
        """
        if self.directory is None:
            return
        self.renew_above()
        self.renew()
        place = self.directory / CHECKPOINTS
        try:
            write_checkpoint(place, self.state)
        except (TypeError, ValueError, RecursionError) as error:  # what a user's snapshot() returned is not JSON
            if self.state.source is None:
                raise
            lost = f"the simulators' state cannot be saved ({in_words(error)}): a resumed run begins new episodes"
            warnings.warn(lost, stacklevel=2)
            write_checkpoint(place, dataclasses.replace(self.state, source=None))

    def renew(self) -> None:
        """Write what is missing of the run's directory again, if it was deleted or moved away while it trained."""
        if self.lock is not None:
            self.lock.renew()
            if not os.path.lexists(self.lock.directory / CONFIG):
                self.describe()
            for sink in self.sinks:
                sink.renew()

    def prune(self) -> None:
        """Remove checkpoints that are not to be kept."""
        if self.directory is not None:
            prune(self.directory / CHECKPOINTS, self.state.iteration, self.agent.config.keep_checkpoints)


TRACEBACK = "traceback.txt"
"""Where in a run's directory it stands what ended it, if that was an error."""
CHECKPOINT_SHARE = 0.1
"""The most of a run's time that checkpoints may take where iterations are faster than the disk."""


class _Saver:
    """When to save: every so many iterations, but where many pass in a second not so often that it holds up the run."""

    def __init__(self, runs: list[Run], place: Path | None):
        self.runs, self.place, self.saved = runs, place, runs[0].state.iteration
        self.latest: Callable[[], list[TrainingState]] | None = None
        """Fetches the runs' states, which may have to come from a device, where they are newer than what is known."""
        self.began = False
        """Whether an iteration was finished since."""
        self._ended, self._took = time.perf_counter(), 0.0

    def finished(self, states: Callable[[], list[TrainingState]]) -> None:
        """Take note of a finished iteration, all of whose metrics are written."""
        self.latest, self.began = states, True

    def save(self) -> str:
        """Save all runs as they are now; return what to tell the user."""
        if self.latest is not None:
            for run, state in zip(self.runs, self.latest(), strict=True):
                run.state = state
            self.latest = None
        if self.place is None:
            return "no run directory, so nothing was saved"
        began, iteration = time.perf_counter(), self.runs[0].state.iteration
        due = self.runs if iteration != self.saved else []
        for run in due:
            run.save()
        for run in due:  # when all are saved: runs that train together go on together
            run.prune()
        self.saved, self._ended = iteration, time.perf_counter()
        self._took = self._ended - began
        return f"checkpoint of iteration {iteration} is in {self.place}; go on with: trpo resume {self.place}"

    def ended(self, error: BaseException) -> RunFailed | KeyboardInterrupt:
        """Save the last finished iteration, whatever ended the run; return what to raise, which says how to go on."""
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            error = error.__context__  # nobody reads on, for which Rich exits
        if isinstance(error, NonFiniteBatchError):
            states = error.states
            self.latest = lambda: states
        expected = isinstance(error, NonFiniteBatchError | KeyboardInterrupt | OSError)
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            error = Interrupted()
        what = in_words(error)
        try:
            how = self.save()
        except Exception as second:
            why = "" if in_words(second) == what else f" ({in_words(second)})"
            how = f"what came after iteration {self.saved} could not be saved{why}"
            how += f"; once that is mended, go on with: trpo resume {self.place}"
            expected = expected or isinstance(second, DirectoryLostError)  # it is another's: nothing is written there
        if isinstance(error, Interrupted):
            end_soon(error.number, f"{what}; {how}")  # what is closed now may never end
            return Interrupted(error.number, f"{what}; {how}")
        if isinstance(error, NonFiniteBatchError):
            what += "; stopped as configured (on_nonfinite=stop)"
        if self.place is not None and not expected:
            with contextlib.suppress(OSError):
                lines = "".join(traceback.format_exception(error))
                replace_durably(self.place / TRACEBACK, lines.encode(errors="backslashreplace"))
                what += f" (all of it in {self.place / TRACEBACK})"
        return RunFailed(f"{what}; {how}")

    def due(self, iteration: int, many: bool) -> bool:
        """Return whether it is time; ``many``: several iterations passed since this was asked last."""
        every = self.runs[0].agent.config.checkpoint_every
        if self.place is None or iteration // every == self.saved // every:
            return False
        return not many or time.perf_counter() - self._ended >= self._took / CHECKPOINT_SHARE


def train_runs(env: EnvLike | Source, runs: list[Run], quiet: bool, place: Path | None = None) -> list[Agent]:
    """Train ``runs`` to their configured steps, with sinks, checkpoints, a progress line and a graceful end.

    ``place`` is what a user resumes: the runs' common directory, by default the only one's.
    """
    place = place or runs[0].directory
    if all(run.finished for run in runs):
        for run in () if quiet else runs:
            which = run.directory or "the run"
            more = f"to train on: trpo resume {place or 'RUN'} --steps N"
            print(f"{which} is finished: {run.state.steps:,} steps; {more}", file=sys.stderr, flush=True)
        return [run.agent.at(run.state) for run in runs]
    show = Reporter(sum(run.total for run in runs), quiet)
    saver = _Saver(runs, place)
    # All is saved before anything is closed: environments may never end to close, and from what sinks hold is written
    # again what was deleted meanwhile.
    with contextlib.closing(show), graceful_stop() as stop:
        with contextlib.ExitStack() as ending:
            try:
                _train_and_save(env, runs, show, saver, stop, ending)
            except BaseException as error:
                if isinstance(error, ValueError | OSError) and not saver.began and not stop.raised:
                    raise  # refused before anything happened
                stop.saving()
                raise saver.ended(Interrupted(stop.number) if stop.raised else error) from error
        if stop.number:  # while the last one was saved, or environments were closed
            raise saver.ended(Interrupted(stop.number))
    return [run.agent.at(run.state) for run in runs]


def _train_and_save(
    env: EnvLike | Source,
    runs: list[Run],
    show: Reporter,
    saver: _Saver,
    stop: Stop,
    ending: contextlib.ExitStack,
) -> None:
    sinks = [[ending.enter_context(contextlib.closing(sink)) for sink in run.open_sinks()] for run in runs]
    for progress in advance(env, [r.agent for r in runs], [r.state for r in runs], tell=show.say, ending=ending):
        for its_sinks, records in zip(sinks, progress.metrics, strict=True):
            for sink in its_sinks:
                sink.write(records)
        saver.finished(progress.states)
        stop.iterating = True
        show.update(joint_metrics([records[-1] for records in progress.metrics]))
        stop.check()
        if saver.due(progress.iteration, many=len(progress.metrics[0]) > 1):
            saver.save()
    saver.save()
