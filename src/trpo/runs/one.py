"""One run, alone or trained together with others, and what of it is written in its directory."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trpo.runs.callbacks import Callback, Moment
from trpo.runs.changing import changed, setting
from trpo.runs.checkpoint import prune, write_checkpoint
from trpo.runs.disk import CHECKPOINTS, is_regular
from trpo.runs.evaluating import EvaluateEvery
from trpo.runs.files import CONFIG, read_config, write_config
from trpo.runs.lock import RunLock
from trpo.runs.logs import CsvLog, WandbLog
from trpo.runs.sinks import JsonLines, Sink, TensorBoard
from trpo.runs.trust import Untrusted, imported, remember
from trpo.settings.config import Config, settings_of
from trpo.spelling import in_words
from trpo.training.agent import Agent
from trpo.training.record import Metrics
from trpo.training.state import TrainingState


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
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of its settings, one record each: from which iteration on, the old value and the new one."""
    start: dict[str, Any] | None = None
    """Where what it began with comes from; None: it began with nothing."""
    described: bool = True
    """Whether ``config.json`` says all of this."""

    @classmethod
    def begin(cls, agent: Agent, lock: RunLock | None, start: dict[str, Any] | None = None) -> Run:
        """Return a new run, and write what it starts from; ``start`` says whose that is, if it is another's."""
        run = cls(agent, TrainingState(agent.learner), lock, start=start)
        run.describe()
        run.save()
        return run

    @classmethod
    def go_on(cls, agent: Agent, state: TrainingState, lock: RunLock) -> Run:
        """Return a run that was read from a directory; ValueError if its environment must not be imported."""
        if isinstance(agent.env, Untrusted):
            agent.env()
        data = read_config(lock.directory)
        run = cls(agent, state, lock, **({"identity": data["run"]} if "run" in data else {}))
        run.changes, run.start = data.get("changes", []), data.get("from")
        return run

    @property
    def directory(self) -> Path | None:
        """Where it is written; None if nothing is."""
        return None if self.lock is None else self.lock.directory

    def describe(self) -> None:
        """Write ``config.json``, and note that the run is trained here."""
        if self.directory is not None:
            write_config(self.directory, self.agent, self.identity, self.start, self.changes)
            self.described = True
            env = self.agent.config.env
            if imported(None if self.agent.custom["env"] else env.id, env.wrappers):
                remember(self.identity, env.id, *env.wrappers)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Go on with other settings; they are written down with the first iteration that has them."""
        self.agent, records = changed(self.agent, changes, self.directory or Path("the run"))
        here = {"iteration": self.state.iteration, "steps": self.state.steps}
        # What changed after the checkpoint that it goes on from has changed from here on.
        before = [change | here if change["iteration"] > here["iteration"] else change for change in self.changes]
        self.changes = [*before, *(here | record for record in records)]
        self.described = not records

    def open_sinks(self, quiet: bool = False) -> list[Sink]:
        """Open what its metrics go to; ``quiet``: let none of them say anything."""
        run, log = self.directory, self.agent.config.log
        if run is None:
            return self.sinks
        settings = {name: setting(self.agent.config, name) for name in settings_of(Config)}
        self.sinks = []
        try:
            self.sinks += [JsonLines(run, self.state.iteration), TensorBoard(run, self.state.steps, settings)]
            self.sinks += [CsvLog(run)] if log.csv else []
            self.sinks += [WandbLog(run, log.wandb, self.identity, settings, quiet)] if log.wandb else []
        except BaseException:
            for sink in self.sinks:
                sink.close()
            raise
        return self.sinks

    def callbacks(self) -> list[Callback]:
        """Return the callbacks that its settings ask for."""
        import trpo  # what draws is in a room above

        evaluated, filmed = self.agent.config.evaluate, self.agent.config.video
        found: list[Callback] = [EvaluateEvery(**vars(evaluated))] if evaluated.every else []
        return [*found, trpo.FilmEvery(**vars(filmed))] if filmed.every else found

    def beginning(self) -> Moment:
        """Return the moment before its next iteration."""
        metrics: Metrics = {"iteration": self.state.iteration, "steps": self.state.steps}
        return Moment(metrics, self.agent, lambda: self.state, self.directory, self.sinks)

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
            if not is_regular(self.lock.directory / CONFIG):
                self.describe()
            for sink in self.sinks:
                sink.renew()

    def prune(self) -> None:
        """Remove checkpoints that are not to be kept."""
        if self.directory is not None:
            prune(self.directory / CHECKPOINTS, self.state.iteration, self.agent.config.keep_checkpoints)
