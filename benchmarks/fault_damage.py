"""Run directories that were damaged by accident, or on purpose by somebody who mends the checksums."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import Broken, Canary, check, check_line, check_said, check_unbroken, tensors
from benchmarks.fault_mutations import FILES, TEXTS, altered, flipped, retold, seal
from benchmarks.fault_runs import SMALL, Injected, Kind


def command(*arguments: object) -> tuple[int, str]:
    """Run a command of the command line in this process; return its exit code and all that it said."""
    from trpo.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    return code, said.getvalue()


def base(place: Path, env: str) -> Path:
    """Return a small run of three iterations, a checkpoint each, made once; in JAX one at a time, or they are one."""
    run = place / f"base-{env.replace(':', '-')}"
    if not run.exists():
        flags = ["--steps", 32, "--fragment", 8, "--env.count", 4, *SMALL, "--checkpoint-every", 1]
        more = ["--keep-checkpoints", 9, "--quiet", "--out", run]
        code, said = command("train", env, *flags, *more)
        check_said(code, said, {0})
        for steps in (64, 96):
            code, said = command("resume", run, "--steps", steps, "--quiet")
            check_said(code, said, {0})
    return run


def scene(place: Path, env: str) -> tuple[Path, Canary]:
    """Return a copy of a small run to damage, and a canary beside it."""
    run = base(place, env)
    shutil.rmtree(place / "scene", ignore_errors=True)
    (place / "scene" / "outside").mkdir(parents=True)
    canary = Canary(place / "scene" / "outside")
    return Path(shutil.copytree(run, place / "scene" / "run")), canary


def _loaded(run: Path) -> tuple[Any, list[str]]:
    """Load a run; return its state, or what was said, which must be one line, and the lines about checkpoints."""
    from trpo.runs.train import read_run

    try:
        agent, state, problems = read_run(run)
    except Exception as error:
        check_line(error)
        return str(error), []
    for problem in problems:
        check(problem and "\n" not in problem, f"not one line: {problem!r}")
    return (agent, state), problems


def _arrays(state: Any) -> dict[str, bytes]:
    import numpy as np

    from trpo.trees import named_arrays

    return {name: np.asarray(leaf).tobytes() for name, leaf in named_arrays(state.learner).items()}


def _use(run: Path, chance: random.Random, canary: Canary, hit: str) -> None:
    """Evaluate and go on with what was accepted: it works, or one line says why not."""
    code, said = command("evaluate", run, "--episodes", 2)
    check_said(code, said, {0, 1, 2})
    if chance.random() < 0.3:
        code, said = command("resume", run, "--steps", 192, "--quiet")
        check_said(code, said, {0, 1, 2})
        if code == 0:
            check_unbroken(run, 0, hit)
    canary.check()


def _checkpoint(index: int, place: Path) -> Injected:
    chance = random.Random(f"checkpoint {index}")
    run, canary = scene(place, ("probe:both", "jax-probe:both")[index % 2])
    found = sorted((run / "checkpoints").iterdir())
    hit = found[-1] if chance.random() < 0.8 else chance.choice(found)
    sealed, what = chance.random() < 0.6, ""
    problem = ""
    try:
        if sealed:
            kind = chance.choice(("array", "array", "state", "text", "bytes"))
            if kind == "array":
                what = retold(hit, chance)
            elif kind == "state":
                text, what = altered((hit / FILES[1]).read_text(), chance)
                (hit / FILES[1]).write_text(text)
            elif kind == "text":
                (hit / FILES[1]).write_text(chance.choice(TEXTS), encoding="latin-1")
                what = "another text"
            else:
                content, what = flipped((hit / FILES[0]).read_bytes(), chance)
                (hit / FILES[0]).write_bytes(content)
            seal(hit)
        else:
            file = chance.choice(FILES)
            what = chance.choice(("flipped", "flipped", "flipped", "gone", "exchanged"))
            if what == "flipped":
                content, what = flipped((hit / file).read_bytes(), chance)
                (hit / file).write_bytes(content)
            elif what == "gone":
                (hit / file).unlink()
            else:
                other = next(path for path in found if path != hit)
                shutil.copy(other / file, hit / file)
        _check_checkpoint(run, base(place, ("probe:both", "jax-probe:both")[index % 2]), hit, sealed, index)
        _use(run, chance, canary, hit.name)
    except Broken as error:
        problem = str(error)
    yield f"{'sealed' if sealed else 'unsealed'}, {what}", problem


def _check_checkpoint(run: Path, intact: Path, hit: Path, sealed: bool, index: int) -> None:
    """Check that what is loaded is what a sound checkpoint holds, or, if sealed, what its arrays are."""
    import numpy as np

    read, problems = _loaded(run)
    check(not isinstance(read, str), f"other checkpoints are sound: {read}")
    state, names = read[1], sorted(path.name for path in (intact / "checkpoints").iterdir())
    newest = hit.name == names[-1]
    used = hit.name if newest and not problems else names[-2] if newest else names[-1]
    held = [
        [(at / f).read_bytes() if (at / f).exists() else None for f in FILES[:2]]
        for at in (hit, intact / "checkpoints" / hit.name)
    ]
    same = held[0] == held[1]
    if newest and not sealed and not same:
        check(problems, "a damaged checkpoint is used")
    if problems:
        check(len(problems) == 1 and hit.name in problems[0], f"names another checkpoint: {problems}")
    source = (run if used == hit.name else intact) / "checkpoints" / used
    if used != hit.name:
        check(state.iteration == int(used), f"iteration {state.iteration} of checkpoint {used}")
    known = tensors(source)
    for name, content in _arrays(state).items():
        check(name in known and known[name][2] == content, f"{name} is not what the checkpoint {used} holds")
        kind = np.asarray(_leaf(state, name)).dtype
        check(kind.kind != "f" or np.isfinite(_leaf(state, name)).all(), f"{name} is not finite")


def _leaf(state: Any, name: str) -> Any:
    from trpo.trees import named_arrays

    return named_arrays(state.learner)[name]


def _configuration(index: int, place: Path) -> Injected:
    chance = random.Random(f"configuration {index}")
    run, canary = scene(place, ("probe:both", "jax-probe:both")[index % 2])
    file = chance.choice(("config.json",) * 8 + ("metrics.jsonl", "sweep.json"))
    what = problem = ""
    try:
        path = run / file
        if file == "sweep.json":
            record = {
                "name": chance.choice(("run", "../other-run", "..", "", "/etc", "a\\b", 3)),
                "changes": {},
                "seed": 0,
            }
            path.write_text(json.dumps({"format": 1, "runs": [record]}))
        content = path.read_bytes()
        how = chance.random()
        if how < 0.6 and file != "metrics.jsonl":
            text, what = altered(content.decode(), chance)
            path.write_text(text)
        elif how < 0.9:
            damaged, what = flipped(content, chance)
            path.write_bytes(damaged)
        else:
            path.write_text(chance.choice(TEXTS), encoding="latin-1")
            what = "another text"
        said_by = chance.choice(("evaluate", "evaluate", "resume", "plot"))
        more = {"evaluate": ["--episodes", 2], "resume": ["--quiet", "--steps", 128], "plot": []}[said_by]
        code, said = command(said_by, run, *more)
        check_said(code, said, {0, 1, 2})
        _loaded(run)
        canary.check()
    except Broken as error:
        problem = str(error)
    yield f"{file}: {what}", problem


KINDS = (
    Kind(
        "damaged checkpoints", 1000, _checkpoint, "what is loaded is what a sound checkpoint holds, bit for bit", True
    ),
    Kind("damaged configurations", 1000, _configuration, "it is read, or one line names what is wrong", True),
)
