"""Evaluation on the side of training: the best policy is kept, and training may stop."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from trpo.envs.names import EnvLike
from trpo.runs.callbacks import Moment
from trpo.runs.checkpoint import checkpoints, write_checkpoint
from trpo.runs.disk import BEST, directory_to_be, read_regular, remove, replace_durably
from trpo.runs.schema import Count, conform, one_line, parse_json
from trpo.settings.config import EvaluateConfig
from trpo.training.agent import check_evaluation, evaluate

EVALUATIONS = "evaluations.jsonl"
_BYTES = 2**28
"""The largest file of evaluations that is read."""
_RECORD = {"iteration": Count, "steps": Count, "mean_return": float | None, "std_return": float | None, "best": bool}


@dataclasses.dataclass
class EvaluateEvery:
    """Evaluates every so many steps, in environments of its own, which changes nothing in training.

    Results go to ``evaluations.jsonl``, the best policy's checkpoint to ``best/`` in the run's directory. The same
    ``episodes`` are run each time: those of ``seed``.
    """

    every: int
    """Environment steps between two evaluations."""
    episodes: int = 10
    deterministic: bool = True
    seed: int = 0
    max_steps: int = 30_000
    stop_return: float | None = None
    """Stop at this mean return."""
    stop_success: float | None = None
    """Stop at this success rate: the mean of ``is_success``, or else of the first key of ``env.info``."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a better one."""
    env: EnvLike | None = None
    """Where to evaluate; None: where the agent is trained."""
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False)
    """One record an evaluation, as in ``evaluations.jsonl``."""

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(EvaluateConfig)]
        for name, value in vars(EvaluateConfig(**{name: getattr(self, name) for name in names})).items():
            setattr(self, name, value)
        if not self.every:
            raise ValueError(f"evaluate.every={self.every}: must be ≥ 1")

    @property
    def best(self) -> dict[str, Any] | None:
        """The best result so far; of equal ones the first."""
        return next((result for result in reversed(self.results) if result["best"]), None)

    def begin(self, moment: Moment) -> None:
        """Take up the results of the run until now, and drop those that came after where it goes on from."""
        self.results = []
        check_evaluation(self.episodes, self.max_steps, self.seed, "evaluate.")
        if self.stop_success is not None and not moment.template.config.env.info:
            raise ValueError("evaluate.stop_success: env.info names no key; add env.info=('is_success',)")
        if self.env is None and moment.template.custom["env"] and moment.template.env is None:
            raise ValueError(
                "evaluate.every: environments that are handed in are trained in, not evaluated; "
                "pass callbacks=[trpo.EvaluateEvery(..., env=...)] with a name, or a function that makes one"
            )
        if moment.directory is None:
            return
        found = read_evaluations(moment.directory)
        self.results = [record for record in found if record["iteration"] <= moment.iteration]
        if len(self.results) < len(found):
            replace_durably(moment.directory / EVALUATIONS, _lines(self.results))
        for path in checkpoints(directory_to_be(moment.directory / BEST)):
            if int(path.name) > moment.iteration:
                remove(path)

    def __call__(self, moment: Moment) -> str | None:
        """Evaluate the agent as it is."""
        found = evaluate(
            moment.agent,
            self.env,
            episodes=self.episodes,
            deterministic=self.deterministic,
            seed=self.seed,
            max_steps=self.max_steps,
        )
        score = found.mean_return
        known = None if self.best is None else self.best["mean_return"]
        best = -math.inf if known is None else known
        better = score > best
        record = {"iteration": moment.iteration, "steps": moment.steps, **found.to_json(), "best": better}
        self.results.append(record)
        if moment.directory is not None:
            if better:
                self._keep(moment, moment.directory / BEST)
            replace_durably(moment.directory / EVALUATIONS, _lines(self.results))
        told = {"mean_return": score, "std_return": found.std_return, "best_return": max(score, best)}
        moment.tell("evaluation", told | found.info)
        return self._reason(score, found.info)

    def _keep(self, moment: Moment, place: Path) -> None:
        write_checkpoint(place, moment.state)
        for old in checkpoints(place):
            if int(old.name) != moment.iteration:
                remove(old)

    def _reason(self, score: float, info: dict[str, float | None]) -> str | None:
        if self.stop_return is not None and score >= self.stop_return:
            return f"evaluated return {score:.6g} reached evaluate.stop_return={self.stop_return:g}"
        key = "is_success" if "is_success" in info else next(iter(info), "")
        rate = info.get(key)
        if self.stop_success is not None and rate is not None and rate >= self.stop_success:
            return f"evaluated {key} {rate:.6g} reached evaluate.stop_success={self.stop_success:g}"
        since = next((i for i, result in enumerate(reversed(self.results)) if result["best"]), len(self.results))
        if self.patience is not None and since >= self.patience:
            return f"{since} evaluations without a better one (evaluate.patience={self.patience})"
        return None


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Return a run's evaluations; none if there is no such file. ValueError if it is damaged."""
    try:
        content = read_regular(run / EVALUATIONS, _BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    records = []
    for number, line in enumerate(filter(None, content.split(b"\n")), start=1):
        try:
            record = parse_json(line, constants=False)
            conform(record, _RECORD)
        except ValueError as error:
            what = f"{run / EVALUATIONS}, line {number}: {one_line(error)}"
            raise ValueError(f"{what}; delete the file to go on") from error
        records.append(record)
    return records


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(_finite(record), allow_nan=False) + "\n" for record in records).encode()


def _finite(value: Any) -> Any:
    """Return plain data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
