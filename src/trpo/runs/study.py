"""A study: tasks × settings × seeds from one file, each an ordinary run, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trpo.runs.checkpoint import checkpoints
from trpo.runs.disk import CHECKPOINTS, is_regular, replace_durably
from trpo.runs.files import CONFIG, read_config
from trpo.runs.interrupts import SIGNALS, Interrupted, begin_work, heed_signals
from trpo.runs.train import configure, resume, train
from trpo.settings.config import Config, merge
from trpo.settings.files import load_toml, named
from trpo.settings.presets import AUTO
from trpo.settings.values import require
from trpo.spelling import in_words

RESULT = "result.json"
ONE_CORE = {
    # Runs side by side, a core each, get more done than one run on all cores.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, and the scores that its returns are measured by."""

    env: str
    steps: int
    low: float | None = None
    """Return of a normalised score 0, such as that of a random policy."""
    high: float | None = None
    """Return of a normalised score 1."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study."""

    task: Task
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """Of its directory, below the study's."""
        return f"{_safe(self.task.env)}/{self.setting}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's file says."""

    tasks: tuple[Task, ...]
    settings: Mapping[str, Mapping[str, Any]]
    """Changes, in groups, of each setting's preset; ``preset`` is its name."""
    seeds: tuple[int, ...]
    episodes: int = 20
    """Of the evaluation at the end of every run."""

    def jobs(self) -> list[Job]:
        """Return all runs: every seed of all tasks before the next one."""
        return [Job(task, name, seed) for seed in self.seeds for task in self.tasks for name in self.settings]

    def config(self, job: Job) -> Config:
        """Return a run's settings."""
        changes = dict(self.settings[job.setting])
        base = configure(job.task.env, None, changes.pop("preset", AUTO))
        return merge(base, changes | {"steps": job.task.steps, "seed": job.seed})


def read_study(file: str | Path) -> Study:
    """Read a study's file.

    It is TOML::

        steps = 1_000_000
        seeds = 10                  # 0 to 9; or a list
        episodes = 20               # of the evaluation at the end
        [tasks]
        "Hopper-v5" = { low = 20, high = 3400 }     # returns of the normalised scores 0 and 1, if there are any
        "Pendulum-v1" = { steps = 100_000 }
        [settings.trpo]             # its preset, as ``trpo train``
        [settings.ppo]
        preset = "none"
        rule.name = "ppo"

    Raises:
        ValueError: it is not TOML, or says something that a study has no use for; the message names it.
        OSError: it cannot be read.
    """
    data = load_toml(file)
    try:
        _known(data, {"steps", "seeds", "episodes", "tasks", "settings"}, "")
        steps, seeds = data.get("steps"), data.get("seeds", 1)
        seeds = range(seeds) if _is_count(seeds) else seeds
        allowed = "a number of seeds, or a list of different ones between 0 and 2³² − 1"
        fine = isinstance(seeds, (list, range)) and all(type(s) is int and 0 <= s < 2**32 for s in seeds)
        require(fine and 0 < len(set(seeds)) == len(seeds), "seeds", data.get("seeds"), allowed)
        episodes = data.get("episodes", Study.episodes)
        require(_is_count(episodes), "episodes", episodes, "an integer ≥ 1")
        tables = data.get("tasks"), data.get("settings")
        for name, table in zip(("tasks", "settings"), tables, strict=True):
            require(isinstance(table, dict) and bool(table), name, table, f"a table [{name}] with at least one entry")
        for name, changes in data["settings"].items():
            require(isinstance(changes, dict), f"settings.{name}", changes, "a table")
            require(
                name == _safe(name), f"settings.{name}", "", "named by letters, digits, - and _: it names directories"
            )
        tasks = tuple(_task(env, table, steps) for env, table in data["tasks"].items())
        study = Study(
            tasks, {name: named(changes) for name, changes in data["settings"].items()}, tuple(seeds), episodes
        )
        names = [job.name for job in study.jobs()]
        require(len(set(names)) == len(names), "tasks", list(data["tasks"]), "names of different directories")
        for job in study.jobs()[: len(tasks) * len(study.settings)]:
            study.config(job)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return study


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _task(env: str, table: Any, steps: Any) -> Task:
    require(isinstance(table, dict), f"tasks.{env}", table, "a table, {} if it has nothing to say")
    _known(table, {"steps", "low", "high"}, f"tasks.{env}.")
    steps = table.get("steps", steps)
    require(_is_count(steps), f"tasks.{env}.steps", steps, "an integer ≥ 1, here or as steps of all tasks")
    low, high = table.get("low"), table.get("high")
    numbers = [type(x) in (int, float) for x in (low, high) if x is not None]
    fine = not numbers or (numbers == [True, True] and low != high)
    require(fine, f"tasks.{env}", table, "with two different numbers low and high, or with neither")
    return Task(env, steps, low, high)


def _known(table: Mapping[str, Any], names: set[str], where: str) -> None:
    for name in table:
        require(name in names, f"{where}{name}", "", f"one of {', '.join(sorted(names))}")


def _is_count(x: Any) -> bool:
    return type(x) is int and x >= 1


def part_of(text: str, jobs: Sequence[Job]) -> list[Job]:
    """Return the i-th of n shares of the runs for ``i/n``, i from 0 on."""
    i, slash, n = text.partition("/")
    fine = bool(slash) and i.isdecimal() and n.isdecimal() and int(i) < int(n)
    require(fine, "array", text, "i/n with 0 ≤ i < n, as in --array 0/4")
    return list(jobs[int(i) :: int(n)])


def results(study: Study, out: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield every run that has ended, with its result."""
    for job in study.jobs():
        if is_regular(out / job.name / RESULT):
            yield job, json.loads((out / job.name / RESULT).read_text(encoding="utf-8"))


def perform(study: Study, job: Job, out: Path) -> None:
    """Train one run to its end, from where it was left, and evaluate it."""
    place, config = out / job.name, study.config(job)
    if (place / RESULT).exists():
        return
    start = time.perf_counter()
    if (place / CONFIG).exists() and not checkpoints(place / CHECKPOINTS):
        shutil.rmtree(place)  # it ended before its first checkpoint
    if (place / CONFIG).exists():
        begun = Config.from_json(read_config(place)["config"])
        if begun != config:
            raise ValueError(f"{place} was begun with other settings: remove it, or give the setting another name")
        agent = resume(place, quiet=True)
    else:
        agent = train(job.task.env, config=config, out=place, quiet=True)
    found: dict[str, Any] = {"env": job.task.env, "setting": job.setting, "seed": job.seed, "steps": job.task.steps}
    for how, deterministic in (("deterministic", True), ("stochastic", False)):
        returns = agent.evaluate(study.episodes, deterministic=deterministic, seed=2**31 + job.seed).returns
        found[how] = sum(returns) / len(returns)
    found["seconds"] = round(time.perf_counter() - start, 1)
    replace_durably(place / RESULT, (json.dumps(found) + "\n").encode())


def run_study(file: Path, out: Path, processes: int, array: str = "0/1", say: Any = print) -> int:
    """Run what is missing of a study, so many runs at once; return how many failed.

    A run that fails is said, and the others go on. Interrupted, all write their checkpoints, and the same call goes on
    from there.
    """
    study = read_study(file)
    require(processes >= 1, "jobs", processes, "≥ 1")
    share = part_of(array, study.jobs())
    left = [job for job in share if not is_regular(out / job.name / RESULT)]
    say(f"{len(share)} runs, {len(share) - len(left)} of them done")
    failed, ended, running = 0, 0, set[subprocess.Popen[str]]()
    with _passed_on(running) as stopped, concurrent.futures.ThreadPoolExecutor(processes) as pool:
        waiting = {pool.submit(_process, file, out, job, running, stopped): job for job in left}
        while waiting:
            done, _ = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
            for one in done:
                job, (code, words) = waiting.pop(one), one.result()
                if words:
                    failed, ended = failed + (code != 0), ended + 1
                    say(f"{ended}/{len(left)} {job.name}: {words}")
    if stopped:
        raise Interrupted(
            stopped[0], f"interrupted with {len(left) - ended + failed} runs left: the same command goes on"
        )
    return failed


@contextlib.contextmanager
def _passed_on(running: set[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Pass signals on to the runs, which write their checkpoints; yield those that came."""
    came: list[int] = []

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        for child in list(running):
            child.send_signal(signal.SIGINT)

    begin_work()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if callable(handler) or handler == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, handle)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _process(
    file: Path, out: Path, job: Job, running: set[subprocess.Popen[str]], stopped: list[int]
) -> tuple[int, str]:
    """Return how a run ended, in words; none where it was interrupted."""
    if stopped:
        return 130, ""
    command = [sys.executable, "-m", "trpo.runs.study", str(file), str(out), job.name]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # Its own group: a Ctrl-C reaches it once, from its parent.
    with subprocess.Popen(command, env=os.environ | ONE_CORE, start_new_session=True, **streams) as child:  # type: ignore[call-overload]
        running.add(child)
        if stopped:  # the signal came before this could be told
            child.send_signal(signal.SIGINT)
        told = child.communicate()[1].strip().splitlines()
        running.discard(child)
    if child.returncode:
        words = told[-1] if told else f"ended with code {child.returncode}"
        return child.returncode, "" if stopped and child.returncode == 130 else words
    result = json.loads((out / job.name / RESULT).read_text(encoding="utf-8"))
    return 0, f"{result['deterministic']:.5g}, {result['seconds']:.0f} s"


def main(file: str, out: str, name: str) -> int:
    """Perform one run in this process; say on one line what ends it."""
    heed_signals()
    study = read_study(file)
    try:
        perform(study, next(job for job in study.jobs() if job.name == name), Path(out))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        print(in_words(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
