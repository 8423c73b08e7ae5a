"""Links that lead elsewhere, files that are none, and disks that are full, read-only or in the way."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_checks import Broken, check, check_said, check_unbroken, ends
from benchmarks.fault_processes import trpo
from benchmarks.fault_runs import BASES, EVERY, Base, Injected, Kind, Scene, finished, undisturbed

BASE = Base("short", "probe:both", iterations=40)
NAMES = [
    "config.json",
    "metrics.jsonl",
    "checkpoints",
    "checkpoints/00000040",
    ".lock",
    ".tmp-config.json",
    "sweep.json",
]
NAMES += ["checkpoints/.tmp-00000060", ".tmp-metrics.jsonl", "traceback.txt", "checkpoints/00000060"]
NAMES += ["checkpoints/00000040/state.json", "checkpoints/00000040/state.safetensors", "curves.png"]
LEADS = ("to a file", "to a directory", "nowhere", "to a pipe", "to a device", "hard")


def _lead(name: str, how: str, scene: Scene) -> None:
    """Put something at a name of the run that leads elsewhere, or is no file."""
    path, outside = scene.place / "run" / name, scene.place / "outside"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if how == "to a pipe":
        os.mkfifo(path)
    elif how == "hard":
        os.link(outside / "victim", path)
    else:
        ends_at = {"to a file": outside / "victim", "to a directory": outside / "photos", "to a device": "/dev/zero"}
        path.symlink_to(ends_at.get(how, outside / "nothing-yet"))


def _link(index: int, place: Path) -> Injected:
    combinations = list(itertools.product(LEADS, NAMES))
    random.Random("links").shuffle(combinations)
    how, name = combinations[index % len(combinations)]
    scene = Scene(place / "scene")
    problem = ""
    try:
        done = finished(BASE, place / "references")
        shutil.copytree(done, scene.place / "run", symlinks=True)
        _lead(name, how, scene)
        command = ["plot", "run"] if name == "curves.png" else ["resume", "run", "--steps", 32 * 60]
        process = trpo(command, scene.place)
        check_said(process.wait(), process.output, {0, 2})
        scene.close()
    except Broken as error:
        problem = str(error)
    yield f"{name.rpartition('/')[2]} {how}", problem


FULL: dict[str, tuple[int, tuple[str, ...]]] = {
    "no space": (errno.ENOSPC, ("no space",)),
    "quota": (errno.EDQUOT, ("quota",)),
    "an error of the device": (errno.EIO, ("input/output error",)),
    "read-only": (errno.EROFS, ("read-only",)),
    "no permission": (errno.EACCES, ("permission",)),
}
CALLS = ("fsync", "mkdir", "replace", "open")


def _failing(call: str, code: int, after: int, place: Path) -> Callable[[], None]:
    """Return what makes a call of the system fail from its ``after``-th time on, for what is in ``place``."""

    def patch() -> None:
        real, count = getattr(os, call), itertools.count()

        def failing(path: object, *more: object, **options: object) -> object:
            writes = call != "open" or (more and more[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            ours = call == "fsync" or str(place) in os.path.abspath(str(path))
            if writes and ours and next(count) >= after:
                raise OSError(code, os.strerror(code), *([] if call == "fsync" else [str(path)]))
            return real(path, *more, **options)

        setattr(os, call, failing)

    return patch


def _limited(size: int) -> Callable[[], None]:
    # What it says goes to a file, too, which must find room.
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def _nobody() -> None:
    """Give up the rights of the superuser, for whom nothing is forbidden."""
    header = struct.pack("<Ii", 0x20080522, 0)  # the version of the interface, and this process
    if ctypes.CDLL(None).capset(header, bytes(24)):
        raise OSError("capset")


def _disk(index: int, place: Path) -> Injected:
    chance = random.Random(f"disk {index}")
    scene = Scene(place / "scene")
    base = list(BASES.values())[index % 2 * 2] if index % 4 == 0 else BASE
    ways = (
        "a full disk",
        "a call that fails",
        "a call that fails",
        "a file as parent",
        "a long name",
        "nobody's",
        "nowhere",
    )
    what = ways[index % len(ways)]
    problem = ""
    try:
        undisturbed(base, place / "references")
        if what == "a full disk":
            _train_and_go_on(
                scene, base, _limited(chance.choice((2000, 4000, 8000, 20_000, 50_000))), ("file too large",), place
            )
        elif what == "a call that fails":
            name = chance.choice(list(FULL))
            code, words = FULL[name]
            call = chance.choice(CALLS)
            what = f"{name}, in {call}"
            patch = _failing(call, code, chance.choice((0, 1, 5, 9, 14, 30)), scene.place / "run")
            _train_and_go_on(scene, base, patch, words, place)
        else:
            _refused(scene, base, what)
        scene.close()
    except Broken as error:
        problem = str(error)
    yield what, problem


def _train_and_go_on(scene: Scene, base: Base, before: Callable, words: tuple[str, ...], place: Path) -> None:
    """Train where the disk fails, and go on when it does no more."""
    process = trpo(base.train(), scene.place, before=before)
    code = process.wait()
    check_said(code, process.output, {0, 1, 2}, *(words if code else ()))
    run = scene.place / "run"
    kept = (run / "config.json").exists() and list((run / "checkpoints").glob("[0-9]*"))
    if kept:
        check_unbroken(run, EVERY if base.most_lost else None)
    else:
        check(code == 2 or not (run / "metrics.jsonl").exists(), "iterations but no checkpoint")
        shutil.rmtree(run, ignore_errors=True)
    process = trpo(["resume", "run"] if kept else base.train(), scene.place)
    check_said(process.wait(), process.output, {0})
    check(check_unbroken(run, 0) == base.iterations, "iterations are missing")
    check(ends(run) == undisturbed(base, place / "references")["."], "another end than the undisturbed run's")


def _refused(scene: Scene, base: Base, what: str) -> None:
    """Train where no directory can be made: exit code 2, before anything is trained."""
    (scene.place / "file").write_text("a file\n")
    (scene.place / "nowhere").symlink_to(scene.place / "gone" / "away")
    (scene.place / "locked").mkdir(mode=0o555)
    out = {"a file as parent": "file/run", "a long name": "x" * 300, "nobody's": "locked/run", "nowhere": "nowhere"}[
        what
    ]
    before = _nobody if what == "nobody's" else int
    process = trpo(base.train(out), scene.place, before=before)
    words = {"a file as parent": ("not a directory", "is a file"), "a long name": ("too long",)}
    words |= {"nobody's": ("permission denied",), "nowhere": ("nowhere",)}
    code = process.wait()
    check_said(code, process.output, {0, 2} if what == "nowhere" else {2}, *(words[what] if code else ()))
    check((scene.place / "file").read_text() == "a file\n", "the file was written to")
    check(not (scene.place / "gone").exists(), "a directory was made through a link")


KINDS = (
    Kind("links and names", 20, _link, "no link is followed; a pipe or device is not read"),
    Kind("disk", 30, _disk, "the cause is named, and once it is mended the run goes on to the same bits"),
)
