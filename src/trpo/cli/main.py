"""The command line: ``trpo train | resume | evaluate | record | plot | theory``.

Exit codes: 0 done; 2 the user's mistake (one line, no traceback); 130 interrupted (a checkpoint was written);
1 anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from trpo._version import __version__

USAGE = """\
usage: trpo COMMAND …

  trpo train ENV [--steps N] [--seed S] [--out DIR] [--preset NAME] [any setting as a flag, e.g. --rule.max-kl 0.02]
  trpo resume RUN [--steps N]                go on from the newest checkpoint
  trpo evaluate RUN [--episodes N] [--stochastic] [--json]
  trpo record RUN [--out FILE]               video of an episode (mp4 or gif)
  trpo plot RUN... [--out FILE]              curves (PNG)
  trpo train … --seeds N [--vary SETTING=VALUE,VALUE ...]   several runs, each with a directory of its own
  trpo theory [--out DIR]                    check every claim of the theory; exit code 1 if one fails

ENV is a Gymnasium id (Hopper-v5), module:Id-v0 to import your own first, envpool:Hopper-v4, or probe:delayed;
in JAX, whole iterations on the device: gymnax:CartPole-v1, brax:ant, playground:CartpoleBalance, jax:MODULE:FUNCTION.
RUN is a run's directory, or that of several (--seeds). `trpo COMMAND --help` lists all flags.
"""


def _fail(message: str, code: int) -> int:
    print(f"trpo: {message}", file=sys.stderr)
    return code


def _parse(kind: Any, command: str, arguments: Sequence[str], default: Any = None) -> Any:
    extra = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"trpo {command}", args=list(arguments), **extra)
    except SystemExit as error:
        if error.code:
            raise ValueError(_one_line(said.getvalue(), command)) from error
        raise


def _one_line(boxed: str, command: str) -> str:
    """Reduce tyro's boxed explanation to its first paragraph, on one line."""
    lines = [line.strip("│╭╮╰╯ ") for line in boxed.splitlines()[1:]]
    paragraph = itertools.takewhile(lambda line: line.strip("─"), lines)
    return f"{' '.join(paragraph)} (see trpo {command} --help)"


def _train(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Train
    from trpo.runs.run import train
    from trpo.settings.config import Config
    from trpo.settings.presets import apply_preset, describe

    # Parsed twice: the first pass finds ENV and --preset, the second lets explicit flags override the preset.
    first = _parse(Train, "train", arguments)
    base = Config()
    base = dataclasses.replace(base, env=dataclasses.replace(base.env, id=first.env_id))
    base, name, settings = apply_preset(base, first.preset)
    options = _parse(Train, "train", arguments, Train(first.env_id, base, first.out, first.preset, first.quiet))
    config = options.config
    if options.seeds < 1:
        raise ValueError(f"seeds={options.seeds}: must be ≥ 1")
    several = options.seeds > 1 or bool(options.vary)
    out = options.out or _fresh_directory(options.env_id, config.seed, "sweep" if several else None)
    if not options.quiet:
        changes = f": {describe(settings)}" if settings else ""
        print(f"trpo {__version__} · {options.env_id} · preset {name}{changes} · run {out}", file=sys.stderr)
    if several:
        from trpo.runs.sweep import sweep

        sweep(
            options.env_id, seeds=options.seeds, vary=_varied(options.vary), config=config, out=out, quiet=options.quiet
        )
    else:
        train(options.env_id, config=config, out=out, quiet=options.quiet)
    if not options.quiet:
        more = "" if several else f" · trpo record {out}"
        print(f"done: {out} · next: trpo evaluate {out} · trpo plot {out}{more}", file=sys.stderr)
    return 0


def _varied(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """Turn ``rule.max-kl=0.01,0.02`` into ``{"rule.max_kl": [0.01, 0.02]}``; values are JSON, or names."""
    varied: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, sign, values = assignment.partition("=")
        if not (name and sign and values):
            raise ValueError(f"vary {assignment!r}: must be SETTING=VALUE,VALUE,…, such as rule.max-kl=0.01,0.02")
        name = name.replace("-", "_")
        if name == "seed":
            raise ValueError("vary 'seed': use --seeds N")
        varied[name] = [_value(text) for text in values.split(",")]
    return varied


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fresh_directory(env_id: str, seed: int, kind: str | None = None) -> Path:
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in env_id)
    path = Path("runs") / f"{safe}-{kind or f's{seed}'}"
    stem, number = path.name, 2
    while path.exists():
        path = path.with_name(f"{stem}-{number}")
        number += 1
    return path


def _resume(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Resume
    from trpo.runs.run import resume
    from trpo.runs.sweep import is_sweep, resume_sweep

    options = _parse(Resume, "resume", arguments)
    if is_sweep(options.run):
        resume_sweep(options.run, steps=options.steps, quiet=options.quiet)
    else:
        resume(options.run, steps=options.steps, quiet=options.quiet)
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Evaluate
    from trpo.runs.sweep import is_sweep, read_sweep

    options = _parse(Evaluate, "evaluate", arguments)
    if not is_sweep(options.run):
        result = _evaluate_run(options.run, options)
        if options.json:
            print(json.dumps(result.to_json()))
        return 0
    from trpo.runs.aggregate import interval
    from trpo.runs.sweep import groups

    plan = read_sweep(options.run)
    results = {variant.name: _evaluate_run(options.run / variant.name, options) for variant in plan}
    found = {}
    for label, members in groups(plan).items():
        found[label] = interval([results[v.name].mean_return for v in members]).to_json()
        if not options.json:
            of = f"{label}, {len(members)} seeds" if label else f"{len(members)} seeds"
            scores = "interquartile mean {iqm:.1f} [{low:.1f}, {high:.1f}]".format(**found[label])
            print(f"{of}: {scores}, 95 % bootstrap")
    if options.json:
        print(json.dumps({"groups": found, "runs": {name: result.to_json() for name, result in results.items()}}))
    return 0


def _evaluate_run(run: Path, options: Any) -> Any:
    from trpo.runs.run import read_run

    agent, state, problems = read_run(run)
    for problem in problems:
        print(f"trpo: {problem}; using the one before", file=sys.stderr)
    result = agent.evaluate(options.episodes, deterministic=not options.stochastic, seed=options.seed)
    if not options.json:
        how = "stochastic" if options.stochastic else "deterministic"
        print(
            f"{run} at {state.steps:,} steps: return {result.mean_return:.1f} ± {result.std_return:.1f} "
            f"({len(result.returns)} episodes, {how}; length {sum(result.lengths) / len(result.lengths):.0f})"
        )
    return result


def _record(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Record
    from trpo.report.recording import record
    from trpo.runs.run import load

    options = _parse(Record, "record", arguments)
    agent = load(options.run)
    out = record(
        agent,
        options.out,
        run=options.run,
        episodes=options.episodes,
        deterministic=not options.stochastic,
        seed=options.seed,
    )
    print(out)
    return 0


def _plot(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Plot
    from trpo.report.plots import plot_runs
    from trpo.runs.sweep import is_sweep

    options = _parse(Plot, "plot", arguments)
    if not options.runs:
        raise ValueError("plot needs at least one run: trpo plot RUN...")
    sweeps = [run for run in options.runs if is_sweep(run)]
    if sweeps and len(sweeps) < len(options.runs):
        raise ValueError("plot either runs or sweeps; a sweep's own runs are the directories in it")
    if sweeps:
        from trpo.report.sweep_plots import plot_sweeps

        print(plot_sweeps(sweeps, options.out or sweeps[0] / "curves.png"))
        return 0
    print(plot_runs(options.runs, options.out or options.runs[0] / "curves.png"))
    return 0


def _theory(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Theory
    from trpo.theory.claims import CLAIMS
    from trpo.theory.pages.table import print_table
    from trpo.theory.run import run_theory

    options = _parse(Theory, "theory", arguments)

    def tell(record: dict[str, Any]) -> None:
        if not options.quiet:
            mark = "✓" if record["passed"] else "✗"
            number = f"{record['number']:>2} of {len(CLAIMS)}"
            print(f"{mark} {number} · {record['title']} · {record['seconds']:.0f} s", file=sys.stderr, flush=True)

    report = run_theory(options.out, options.mdps, options.seed, options.only, tell=tell)
    print_table(report)
    print(f"{options.out / 'index.html'} · {options.out / 'claims.json'} · {report['seconds']:.0f} s")
    failed = [f"{record['number']} ({record['name']})" for record in report["claims"] if not record["passed"]]
    return _fail(f"claims that do not hold: {', '.join(failed)}", 1) if failed else 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "record": _record,
    "plot": _plot,
    "theory": _theory,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"trpo {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        return _fail(f"unknown command {arguments[0]!r}; commands are {', '.join(COMMANDS)}", 2)
    from trpo.runs.run import RunFailed

    try:
        return command(arguments[1:])
    except ValueError as error:
        return _fail(str(error), 2)
    except RunFailed as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def entry_point() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
