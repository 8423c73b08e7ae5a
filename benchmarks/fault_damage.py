"""Run directories that were damaged by accident, or on purpose by somebody who mends the checksums."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import Broken, Canary, check, check_line, check_said, check_unbroken, tensors
from benchmarks.fault_runs import SMALL, Injected, Kind

WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    1e308,
    10**400,
    2**63,
    float("nan"),
    float("inf"),
    "x",
    "\x1b[2J\n",
    "\ud800",
]
WRONG += [
    [],
    {},
    [None],
    [[[]]],
    ["x", 1],
    {"x": {"y": [1]}},
    "../../outside/victim",
    "jax:os:abort",
    "__gone__",
    "__twice__",
]
TEXTS = [
    "[]",
    "",
    "null",
    "{",
    "7",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"format": 2, "format": 2}',
    "\xff\xfe",
]
TEXTS += ["\0" * 100, '{"format": 1e999}', '{"format": true}', '{"format": 3}', "NaN", '"' + "x" * 10_000 + '"']
FILES = ("state.safetensors", "state.json", "SHA256SUMS")


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


def ways(data: Any, path: tuple = ()) -> Iterator[tuple]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from ways(value, (*path, key))


def altered(text: str, chance: random.Random) -> tuple[str, str]:
    """Return JSON with one thing of another kind, gone or twice; and what was done."""
    other = place = copy.deepcopy(json.loads(text))
    way = chance.choice(list(ways(other)))
    wrong = chance.choice(WRONG)
    for key in way[:-1]:
        place = place[key]
    if wrong == "__gone__":
        del place[way[-1]]
    elif wrong == "__twice__":
        key = json.dumps(str(way[-1]))
        return json.dumps(other).replace(f"{key}:", f"{key}: 1, {key}:", 1), "an entry twice"
    else:
        place[way[-1]] = wrong
    return json.dumps(other), "an entry gone" if wrong == "__gone__" else "an entry of another kind"


def flipped(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return bytes with some accident of a disk, and what it was."""
    what = chance.choice(("a bit", "bytes", "cut", "longer", "zeros", "empty", "moved"))
    at = chance.randrange(len(content))
    if what == "a bit":
        changed = bytearray(content)
        changed[at] ^= 1 << chance.randrange(8)
        return bytes(changed), what
    rubbish = chance.randbytes(chance.randint(1, 40))
    rest = content[at + 1 :]
    found = {"bytes": content[:at] + rubbish + rest, "cut": content[:at], "longer": content + rubbish, "empty": b""}
    found |= {"zeros": content[:at] + bytes(len(rest) + 1), "moved": rest + content[: at + 1]}
    return found[what], what


def seal(checkpoint: Path) -> None:
    """Mend the checksums, as somebody would who damages on purpose."""
    names = [name for name in FILES[:2] if (checkpoint / name).exists()]
    lines = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


def retold(checkpoint: Path, chance: random.Random) -> str:
    """Change one array of a checkpoint, in type, shape, name or numbers; return what was done."""
    found = tensors(checkpoint)
    name = chance.choice(sorted(found))
    kind, shape, data = found[name]
    what = chance.choice(("type", "shape", "name", "gone", "more", "not finite", "numbers", "offsets", "header"))
    if what == "type":
        kind = chance.choice(
            [k for k in ("F64", "F32", "BF16", "F16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X9") if k != kind]
        )
        size = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}.get(kind, 1)
        data = bytes(size * max(1, _product(shape)) if _product(shape) else 0)
    elif what == "shape":
        shape = chance.choice([[*shape, 1], [_product(shape)], [*shape[::-1], 0], [2**40], [-1], shape[1:]])
        data = bytes(4 * _product(shape)) if 0 <= _product(shape) < 2**20 else data
    elif what == "not finite":
        words = {"F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"], "F64": [struct.pack("<d", float("nan"))]}
        word = chance.choice(words.get(kind, [b""]))
        data = word + data[len(word) :]
    elif what == "numbers":
        data = chance.randbytes(len(data))
    found[name] = (kind, shape, data)
    if what in ("name", "gone"):
        moved = found.pop(name)
        found |= (
            {chance.choice(("x", "../../x", name.upper() + "\n", "device.x", "rollout.x")): moved}
            if what == "name"
            else {}
        )
    elif what == "more":
        found[chance.choice(("x", "device.x", "rollout.x", "policy", ""))] = (kind, shape, data)
    header, end = {}, 0
    for key, (its_kind, its_shape, its_data) in found.items():
        header[key] = {"dtype": its_kind, "shape": its_shape, "data_offsets": [end, end + len(its_data)]}
        end += len(its_data)
    if what == "offsets":
        header[name]["data_offsets"] = chance.choice(([0, 2**40], [8, 4], [-1, 3], [0], None, [0, end], ["0", "4"]))
    text = json.dumps(header).encode()
    size = len(text)
    if what == "header":
        text = chance.choice((b"[]", b"{", b"[" * 9999, b"\xff", b'{"a": 1}', text[:-1]))
        size = chance.choice((len(text), 2**62, 0, len(text) + 10**6))
    (checkpoint / FILES[0]).write_bytes(struct.pack("<Q", size) + text + b"".join(d for _, _, d in found.values()))
    return f"array: {what}"


def _product(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _loaded(run: Path) -> tuple[Any, list[str]]:
    """Load a run; return its state, or what was said, which must be one line, and the lines about checkpoints."""
    from trpo.runs.run import read_run

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
