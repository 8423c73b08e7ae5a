"""A run's directory for a loop of one's own."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trpo.envs.meeting import require_same_spaces
from trpo.programs import keep_programs
from trpo.runs import callbacks as calls
from trpo.runs.callbacks import Callback, Moment
from trpo.runs.changing import changed
from trpo.runs.files import CONFIG, new_directory, used_directory
from trpo.runs.interrupts import Interrupted, Stop, graceful_stop
from trpo.runs.lock import RunLock
from trpo.runs.one import Run
from trpo.runs.run import Saver
from trpo.runs.train import read_run
from trpo.training.agent import Agent
from trpo.training.record import Metrics
from trpo.training.state import TrainingState


class OwnRun:
    """What :func:`run` lends: write each iteration, and it is on disk as ``trpo.train`` would have it."""

    def __init__(self, one: Run, callbacks: Sequence[Callback], stop: Stop, ending: contextlib.ExitStack):
        self._run, self._stop, self._callbacks = one, stop, (*one.callbacks(), *callbacks)
        self._saver = Saver([one], one.directory)
        self.directory = one.directory
        self._sinks = [ending.enter_context(contextlib.closing(sink)) for sink in one.open_sinks()]
        self._steps = one.state.steps
        calls.begin(self._callbacks, one.beginning())

    @property
    def agent(self) -> Agent:
        """The agent, with what was learned until the last iteration that was written."""
        return self._run.agent.at(self.state)

    @property
    def state(self) -> TrainingState:
        """Where the run goes on: what to give to :func:`trpo.iterations`."""
        if self._saver.latest is not None:
            (self._run.state,) = self._saver.latest()
            self._saver.latest = None
        return self._run.state

    def write(self, state: TrainingState, metrics: Metrics) -> str | None:
        """Write an iteration: metrics now, a checkpoint if one is due; then call the callbacks.

        Returns:
            Why the loop shall stop, if a callback says so; else None.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since the last call; everything is saved.
        """
        if not self._run.described:  # what changed has changed with the first iteration
            self._run.describe()
        for sink in self._sinks:
            sink.write([metrics])
        self._saver.finished(lambda: [state])
        self._stop.iterating = True
        self._stop.check()
        moment = Moment(metrics, self._run.agent, lambda: state, self._run.directory, self._sinks)
        reason = calls.call(self._callbacks, moment, self._steps)
        self._steps = moment.steps
        if self._saver.due(moment.iteration, many=False):
            self._saver.save()
        return reason


@contextlib.contextmanager
def run(
    out: str | Path,
    agent: Agent,
    *,
    callbacks: Sequence[Callback] = (),
    changes: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Iterator[OwnRun]:
    """Give a loop of one's own what ``trpo.train`` has: checkpoints, metrics, TensorBoard, a graceful Ctrl-C.

    A directory that has a run already goes on from its newest intact checkpoint: ``run.agent`` and ``run.state`` are
    then those of the run, not of ``agent``, which only lends what is not stored (a policy, a rule, an environment of
    one's own). Whatever ends the block, the last iteration that was written is saved first.

    Args:
        out: directory of the run; made if it is not there.
        agent: an agent, from :func:`trpo.make_agent`.
        callbacks: called in :meth:`OwnRun.write`.
        changes: settings that are others from here on, as in :func:`trpo.resume`; ``run.agent`` has them, and a run
            that is begun has them from the beginning.
        trust: as in :func:`trpo.load`.

    Raises:
        ValueError: another process has the directory, the run in it is of other spaces, or a setting does not change.
        KeyboardInterrupt: Ctrl-C was pressed; everything is saved.

    >>> import tempfile, trpo
    >>> config = trpo.Config(steps=256, fragment=16, env=trpo.EnvConfig("probe:action", count=8))
    >>> agent = trpo.make_agent("probe:action", config)
    >>> with tempfile.TemporaryDirectory() as place, trpo.run(f"{place}/mine", agent) as run:
    ...     for state, metrics in trpo.iterations("probe:action", run.agent, state=run.state):
    ...         if reason := run.write(state, metrics):
    ...             break
    ...     print(run.state.steps, (run.directory / "config.json").is_file())
    256 True
    """
    keep_programs()
    place = Path(out)
    begun = os.path.lexists(place / CONFIG)
    directory: contextlib.AbstractContextManager[Any] = used_directory(place) if begun else new_directory(place)
    with directory as lock, graceful_stop() as stop, contextlib.ExitStack() as ending:
        asked = dict(changes or {})
        one = _gone_on(agent, lock, trust) if begun else Run.begin(changed(agent, asked, place)[0], lock)
        one.change(asked)  # of one that is begun, nothing is left
        own = OwnRun(one, callbacks, stop, ending)
        try:
            yield own
            own._saver.save()
            stop.check()  # Ctrl-C after the last iteration that was written
        except BaseException as error:
            stop.saving()
            if isinstance(error, KeyboardInterrupt) or stop.raised:
                raise own._saver.ended(Interrupted(stop.number) if stop.number else error) from error
            with contextlib.suppress(Exception):  # the block's own error is what matters
                error.add_note(own._saver.save())
            raise


def _gone_on(agent: Agent, lock: RunLock, trust: bool) -> Run:
    """Return the run in a directory; ``agent`` lends what is not stored."""

    def module(function: Any, params: Any) -> Any:
        return getattr(function, "function", function).bind(params)

    own = agent.custom
    read, state, problems = read_run(
        lock.directory,
        policy=module(agent.policy, agent.learner.policy) if own["policy"] else None,
        env=agent.env if own["env"] else None,
        rule=agent.rule,
        value=module(agent.value, agent.learner.value.params) if own["value"] else None,
        trust=trust,
    )
    for problem in problems:
        warnings.warn(f"{problem}; using the one before", stacklevel=4)
    require_same_spaces(read.spec, agent.spec)
    return Run.go_on(read, state, lock)
