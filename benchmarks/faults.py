"""A campaign of injected faults against real runs, and the page that says what survived.

    python -m benchmarks.faults [--quick] [--only KIND ...] [--fresh] [--page]

Processes are killed, interrupted and set on each other; checkpoints and configurations are damaged, by accident and on
purpose; links lead elsewhere; disks are full; environments misbehave; settings are absurd; threads train at once. What
is checked afterwards (``fault_checks.py``) is independent of the code under test. Results are kept below
``benchmarks/results/faults``, so a campaign that was interrupted goes on, and the commits of ``src`` under test are
noted; ``--fresh`` begins anew. ``docs/reliability.md`` is written from them. ``--quick`` injects a tenth and keeps
nothing. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "faults"
WITNESSES = 20
"""Faults that did not survive which are kept in full."""
LIMIT = 300.0
"""Seconds after which an injection in this process counts as hung."""


def prepare(place: Path) -> None:
    """Keep this process's files, and those of all that it starts, in one place; import what they would."""
    os.environ.update(TRPO_CACHE=str(place / "programs"), XDG_STATE_HOME=str(place / "state"))
    os.environ.update(XDG_CACHE_HOME=str(place / "cache"), JAX_PLATFORMS="cpu", COLUMNS="80")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parent / "src")])
    import trpo.cli.main
    import trpo.cli.options
    import trpo.runs.sweep  # noqa: F401


def kinds() -> dict:
    from benchmarks import fault_damage, fault_disk, fault_environments, fault_kills, fault_limits

    modules = (fault_kills, fault_damage, fault_disk, fault_environments, fault_limits)
    return {kind.name: kind for module in modules for kind in module.KINDS}


class Account:
    """What was injected of a kind, and what survived; in a file, so that it can go on."""

    def __init__(self, kind, commit: str, count: int, kept: bool):
        self.path = RESULTS / f"{kind.name.replace(' ', '-')}.json" if kept else None
        self.data = {"kind": kind.name, "holds": kind.holds, "commit": commit, "wanted": count, "next": 0}
        self.data |= {"injected": 0, "survived": 0, "faults": {}, "lost": []}
        if self.path and self.path.exists():
            found = json.loads(self.path.read_text())
            if found["wanted"] == count:
                self.data = found
                if not self.complete and commit not in found["commit"]:
                    found["commit"] += f", {commit}"

    def add(self, number: int, outcomes: list[tuple[str, str]]) -> None:
        for fault, problem in outcomes:
            counts = self.data["faults"].setdefault(fault, [0, 0])
            counts[0] += 1
            counts[1] += not problem
            self.data["injected"] += 1
            self.data["survived"] += not problem
            if problem:
                print(f"\n  LOST {self.data['kind']} {number}: {fault}: {problem}", flush=True)
                self.data["lost"] = [*self.data["lost"], [number, fault, problem]][:WITNESSES]
        self.data["next"] = number + 1
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            room = self.path.with_suffix(".tmp")
            room.write_text(json.dumps(self.data, indent=1) + "\n")
            room.replace(self.path)

    @property
    def complete(self) -> bool:
        return self.data["injected"] >= self.data["wanted"]


def watched(kind, start: int, place: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Run a kind's injections in one process, which is replaced where one hangs or ends it."""
    from benchmarks.fault_processes import fork

    while True:
        reader, writer = os.pipe()

        def work(first: int = start, end: int = writer) -> int:
            for number in range(first, 10**9):
                line = json.dumps([number, list(kind.inject(number, place))]) + "\n"
                os.write(end, line.encode())
            return 0

        process = fork(work, place / f"{kind.name.replace(' ', '-')}.txt")
        os.close(writer)
        try:
            with os.fdopen(reader, "rb", buffering=0) as lines:
                buffered, why = b"", ""
                while not why:
                    if not select.select([lines], [], [], LIMIT)[0]:
                        why = f"hung for {LIMIT:.0f} s"
                    elif not (found := lines.read(65536)):
                        why = f"the process ended, exit code {process.wait()}: {process.output[-4000:]}"
                    else:
                        *complete, buffered = (buffered + found).split(b"\n")
                        for line in complete:
                            number, outcomes = json.loads(line)
                            start = number + 1
                            yield number, [tuple(outcome) for outcome in outcomes]
            process.end()
            yield start, [("what was injected", why)]
            start += 1
        finally:
            process.end()


def direct(kind, start: int, place: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    for number in range(start, 10**9):
        yield number, list(kind.inject(number, place))


def campaign(names: list[str], quick: bool, fresh: bool, place: Path) -> bool:
    """Inject all kinds of faults; return whether all survived."""
    from benchmarks.fault_page import commit

    survived = True
    for kind in (kind for kind in kinds().values() if not names or kind.name in names):
        count = -(-kind.count // 10) if quick else kind.count
        account = Account(kind, commit(), count, kept=not quick)
        if fresh:
            account.data |= {"commit": commit(), "next": 0, "injected": 0, "survived": 0, "faults": {}, "lost": []}
        began, room = time.monotonic(), place / kind.name.replace(" ", "-")
        room.mkdir(exist_ok=True)
        run = watched if kind.inside else direct
        if not account.complete:
            with contextlib.closing(run(kind, account.data["next"], room)) as outcomes:
                for number, found in outcomes:
                    account.add(number, found)
                    if account.complete:
                        break
        data = account.data
        seconds = f"{time.monotonic() - began:.0f} s"
        print(f"{kind.name}: {data['survived']} of {data['injected']} survived, {seconds}", flush=True)
        survived = survived and data["survived"] == data["injected"]
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, of which nothing is kept")
    parser.add_argument("--only", nargs="*", default=[], metavar="KIND", help="these kinds alone")
    parser.add_argument("--fresh", action="store_true", help="inject again what was")
    parser.add_argument("--page", action="store_true", help="write the page from the results, and inject nothing")
    options = parser.parse_args()
    from benchmarks.fault_page import write_page

    if options.page:
        write_page()
        return 0
    place = Path(tempfile.mkdtemp())  # no object that removes it: forked processes would, at their end
    try:
        prepare(place)
        unknown = set(options.only) - kinds().keys()
        if unknown:
            parser.error(f"no kind {sorted(unknown)}; there are {list(kinds())}")
        survived = campaign(options.only, options.quick, options.fresh, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if not options.quick:
        write_page()
    return 0 if survived else 1


if __name__ == "__main__":
    raise SystemExit(main())
