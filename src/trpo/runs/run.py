"""Runs under way: a progress line, checkpoints and a graceful end."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from trpo.envs.names import EnvLike
from trpo.rollout import Source
from trpo.runs.callbacks import Callback, Moment, begin, call, iterations_until
from trpo.runs.disk import replace_durably
from trpo.runs.interrupts import Interrupted, Stop, end_soon, graceful_stop
from trpo.runs.lock import DirectoryLostError
from trpo.runs.one import Run
from trpo.runs.progress import Reporter, joint_metrics
from trpo.spelling import in_words
from trpo.training.agent import Agent
from trpo.training.loop import advance
from trpo.training.record import Metrics
from trpo.training.state import NonFiniteBatchError, TrainingState


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and how to resume."""


TRACEBACK = "traceback.txt"
"""Where in a run's directory it stands what ended it, if that was an error."""
CHECKPOINT_SHARE = 0.1
"""The most of a run's time that checkpoints may take where iterations are faster than the disk."""


class Saver:
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


def train_runs(
    env: EnvLike | Source,
    runs: list[Run],
    quiet: bool,
    place: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Agent]:
    """Train ``runs`` to their configured steps, with sinks, checkpoints, a progress line and a graceful end.

    ``place`` is what a user resumes: the runs' common directory, by default the only one's. Each run has copies of
    ``callbacks`` of its own where there are several.
    """
    place = place or runs[0].directory
    if all(run.finished for run in runs):
        _describe(runs)
        for run in () if quiet else runs:
            which = run.directory or "the run"
            more = f"to train on: trpo resume {place or 'RUN'} --steps N"
            print(f"{which} is finished: {run.state.steps:,} steps; {more}", file=sys.stderr, flush=True)
        return [run.agent.at(run.state) for run in runs]
    show = Reporter(sum(run.total for run in runs), quiet)
    saver = Saver(runs, place)
    # All is saved before anything is closed: environments may never end to close, and from what sinks hold is written
    # again what was deleted meanwhile.
    with contextlib.closing(show), graceful_stop() as stop:
        with contextlib.ExitStack() as ending:
            try:
                reason = _train_and_save(env, runs, show, saver, stop, ending, callbacks)
                if reason:
                    show.say(f"stopped at {runs[0].state.steps:,} steps: {reason}")
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
    saver: Saver,
    stop: Stop,
    ending: contextlib.ExitStack,
    callbacks: Sequence[Callback],
) -> str | None:
    sinks = [[ending.enter_context(contextlib.closing(sink)) for sink in run.open_sinks(show.quiet)] for run in runs]
    called = [_Called(run, callbacks if len(runs) == 1 else copy.deepcopy(callbacks)) for run in runs]
    agents, states = [run.agent for run in runs], [run.state for run in runs]
    for progress in advance(env, agents, states, called[0].iterations, tell=show.say, ending=ending):
        _describe(runs)  # not before: what cannot begin has changed nothing
        for its_sinks, records in zip(sinks, progress.metrics, strict=True):
            for sink in its_sinks:
                sink.write(records)
        fetch = functools.cache(progress.states)
        saver.finished(fetch)
        stop.iterating = True
        show.update(joint_metrics([records[-1] for records in progress.metrics]))
        stop.check()
        for i, one in enumerate(called):
            one.look(progress.metrics[i][-1], lambda i=i, fetch=fetch: fetch()[i])  # type: ignore[misc]
        if saver.due(progress.iteration, many=len(progress.metrics[0]) > 1):
            saver.save()
        if all(one.reason for one in called):  # runs that train together end together
            break
    saver.save()
    return called[0].reason


def _describe(runs: list[Run]) -> None:
    for run in runs:
        if not run.described:
            run.describe()


class _Called:
    """The callbacks of one run."""

    def __init__(self, run: Run, callbacks: Sequence[Callback]):
        self._run, self._callbacks, self._steps = run, (*run.callbacks(), *callbacks), run.state.steps
        self.reason: str | None = None
        """Why it is to stop, if one said so."""
        begin(self._callbacks, run.beginning())

    def iterations(self, most: int) -> int:
        """Return after how many iterations, of at most ``most``, the next is to be called."""
        return iterations_until(self._callbacks, self._steps, self._run.agent.config.batch, most)

    def look(self, metrics: Metrics, fetch: Callable[[], TrainingState]) -> None:
        """Call those that are due."""
        moment = Moment(metrics, self._run.agent, fetch, self._run.directory, self._run.sinks)
        self.reason = call(self._callbacks, moment, self._steps) or self.reason
        self._steps = moment.steps
