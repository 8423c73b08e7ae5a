"""Run the claims, side by side in a few processes, and write what they found."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from trpo._version import __version__
from trpo.envs.host.families import lead, signals_held
from trpo.theory.claims import CLAIMS, claim, text
from trpo.theory.pages.markdown import claims_page, equations_page
from trpo.theory.pages.page import html_page
from trpo.theory.records import Outcome

_LONG_RUNS = ("minorization", "mean_kl", "sample_reuse")
"""Thousands of iterations: worth optimised code. For the others compiling takes longer than running."""
LEAST_SIZE = 16
"""Fewer MDPs than this cannot show the statistical laws."""


def check_claim(name: str, size: int, figures: Path | None, seed: int = 0) -> dict[str, Any]:
    """Run one claim in float64 and return its record; an exception is a claim that failed, with its reason."""
    import jax

    begin = time.perf_counter()
    module, said, error = claim(name), text(name), None
    try:
        with jax.enable_x64(True):
            outcome = module.run(size, figures, seed)
        found = said.caption(outcome.to_json())
    except Exception as raised:
        if os.environ.get("TRPO_TRACEBACK"):
            traceback.print_exc()
        outcome, error = Outcome(()), f"{type(raised).__name__}: {raised}"
        found = outcome.to_json()
    return {
        "number": CLAIMS.index(name) + 1,
        "name": name,
        "title": said.title,
        "passed": outcome.passed,
        "error": error,
        "cases": max((check.cases for check in outcome.checks), default=0),
        "seconds": round(time.perf_counter() - begin, 1),
        **found,
        "code": said.code,
        "tests": said.tests,
    }


def _begin(quickly: bool) -> None:
    """Begin a process, which ends with its parent; ``quickly``: ask XLA for simple code, before it is loaded."""
    lead()
    if not quickly:
        return
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def run_claims(
    names: Sequence[str],
    size: int,
    figures: Path | None,
    seed: int,
    processes: int,
    tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Run claims in ``processes`` processes; ``tell`` hears of each as it ends. Records come in the claims' order."""
    records = []
    if processes == 1:
        for name in names:
            records.append(check_claim(name, size, figures, seed))
            tell(records[-1])
        return sorted(records, key=lambda record: record["number"])
    # Fresh interpreters: a fork of a process that has used JAX may hang.
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _begin, (False,)) as optimising,
        ProcessPoolExecutor(processes - 1, spawn, _begin, (True,)) as quick,
    ):
        before = set(active_children())
        try:
            with signals_held():
                futures = [
                    (optimising if name in _LONG_RUNS else quick).submit(check_claim, name, size, figures, seed)
                    for name in names
                ]
            for future in as_completed(futures):
                records.append(future.result())
                tell(records[-1])
        except BaseException:
            for process in set(active_children()) - before:  # nobody waits for what they are at
                process.kill()
            raise
    return sorted(records, key=lambda record: record["number"])


def run_theory(
    out: Path,
    size: int = 1024,
    seed: int = 0,
    only: Sequence[str] = (),
    processes: int | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Check the claims and write ``claims.json``, ``index.html``, two Markdown pages and the figures into ``out``.

    Args:
        out: directory; made if need be. Files of an earlier run are replaced.
        size: random MDPs for each claim, at least 16.
        seed: of the random MDPs.
        only: names of the claims to run; all if empty.
        processes: how many to run at once; by default two, or one on a machine with one core.
        tell: called with the record of each claim as it ends.

    Returns:
        What ``claims.json`` holds; its ``passed`` says whether every claim held.

    Raises:
        ValueError: an unknown claim, too few MDPs, or an ``out`` that cannot be a directory.
    """
    unknown = [name for name in only if name not in CLAIMS]
    if unknown:
        raise ValueError(f"unknown claim {unknown[0]!r}; claims are {', '.join(CLAIMS)}")
    if size < LEAST_SIZE:
        raise ValueError(f"mdps={size}: must be at least {LEAST_SIZE}; fewer cannot show the statistical laws")
    if seed < 0:
        raise ValueError(f"seed={seed}: must not be negative")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a directory")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "equations.md", equations_page())  # first: where nothing can be written, before hours of work
    figures = out / "figures"
    if not only:
        shutil.rmtree(figures, ignore_errors=True)
    begin = time.perf_counter()
    names = tuple(dict.fromkeys(only)) or CLAIMS
    processes = min(processes or 2, os.cpu_count() or 1, len(names))
    records = run_claims(names, size, figures, seed, processes, tell)
    report = {
        "trpo": __version__,
        "versions": _versions(),
        "mdps": size,
        "seed": seed,
        "passed": all(record["passed"] for record in records),
        "seconds": round(time.perf_counter() - begin, 1),
        "claims": records,
    }
    _write(out / "claims.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _write(out / "claims.md", claims_page(report))
    _write(out / "index.html", html_page(report, figures))
    return report


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("jax", "numpy")}}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
