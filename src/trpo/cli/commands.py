"""The commands: what each takes, and which part of the library does it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from trpo._version import __version__
from trpo.cli.output import foreign
from trpo.runs.interrupts import begin_work

RunDirectory = Positional[Annotated[Path, arg(metavar="RUN")]]


class HelpShown(Exception):
    """The flags of a command were shown: there is nothing to run."""


def say(text: str) -> None:
    """Say something that is no result."""
    print(f"trpo: {text}", file=sys.stderr, flush=True)


def fail(message: str, code: int) -> int:
    """Say what ended a command; return its exit code."""
    say(message)
    return code


def _parse(kind: Any, command: str, arguments: Sequence[str], **options: Any) -> Any:
    from trpo.cli.help import parse  # loads JAX, for which a question about the version need not wait

    try:
        return parse(kind, command, arguments, **options)
    except SystemExit:
        raise HelpShown from None


def _command(run: Callable[..., int]) -> Callable[[Sequence[str]], int]:
    """Turn a function of flags, which its docstring explains, into one of the command line's arguments."""

    @functools.wraps(run)
    def bound(**flags: Any) -> Callable[[], int]:  # tyro calls what it parses for: it must not run in there
        return functools.partial(run, **flags)

    def command(arguments: Sequence[str]) -> int:
        return int(_parse(bound, run.__name__.strip("_"), arguments)())

    command.flags = bound  # type: ignore[attr-defined]
    return command


def _train(arguments: Sequence[str]) -> int:
    from trpo.cli.help import few_flags
    from trpo.cli.local import run_locally
    from trpo.cli.options import Train, flags_of, gathered, varied
    from trpo.runs.starting import with_networks_of
    from trpo.runs.sweep import settings_of_run
    from trpo.runs.train import configure, train
    from trpo.settings.config import Config, with_file
    from trpo.settings.presets import NONE, apply_preset, describe
    from trpo.training.hosts import join, speaks

    # Parsed twice: the first pass finds ENV and --preset, the second lets explicit flags override the preset.
    given_arguments, helps = arguments, {"-h", "--help", "--help-all"}.intersection(arguments)
    arguments = gathered([argument for argument in arguments if argument not in helps])
    # The first pass has the settings of the file, in which flags must fit.
    file = next((value for flag, value in flags_of(arguments) if flag == "--config"), None)
    first = Train("")
    options = {} if file is None or helps else {"default": Train("", with_file(Config(), file))}
    with contextlib.suppress(ValueError) if helps else contextlib.nullcontext():
        first = _parse(Train, "train", arguments, **options)
    if not (first.env_id or helps):
        raise ValueError("train needs an environment: trpo train ENV (see trpo train --help)")
    base, name, settings = apply_preset(configure(first.env_id, Config(), NONE), first.preset)
    if first.start_from is not None:
        base = with_networks_of(base, settings_of_run(first.start_from))
    if first.settings is not None:
        base = configure(first.env_id, with_file(base, first.settings), NONE)  # ENV is not the file's to say
    default = dataclasses.replace(first, config=base)
    if "--help-all" in helps:
        _parse(Train, "train", ["--help"], default=default)
    options = _parse(Train, "train", arguments, default=default) if first.env_id or not helps else first
    if helps:
        print(few_flags(options, name, settings))
        return 0
    env, config = options.env_id, options.config
    if options.seeds < 1:
        raise ValueError(f"seeds={options.seeds}: must be ≥ 1")
    if options.hosts.local > 1:
        return run_locally(options.hosts.local, ["train", *given_arguments])
    join(options.hosts)
    quiet = options.quiet or not speaks()
    start = {"start_from": options.start_from, "checkpoint": options.checkpoint}
    several = options.seeds > 1 or bool(options.vary)
    out = options.out or _fresh_directory(env, "sweep" if several else f"s{config.seed}")
    if not quiet:
        changes = f": {describe(settings)}" if settings else ""
        print(f"trpo {__version__} · {env} · preset {name}{changes} · run {out}", file=sys.stderr)
    with foreign():
        if several:
            from trpo.runs.sweep import sweep

            sweep(env, seeds=options.seeds, vary=varied(options.vary), config=config, out=out, quiet=quiet, **start)
        else:
            train(env, config=config, out=out, quiet=quiet, **start)
    if not quiet:
        from trpo.report.recording import can_record

        more = "" if several or not can_record(env) else f" · trpo record {out}"
        print(f"done: {out} · next: trpo evaluate {out} · trpo plot {out}{more}", file=sys.stderr)
    return 0


def _check(arguments: Sequence[str]) -> int:
    from trpo.cli.options import Check, gathered
    from trpo.report.check import check_environment
    from trpo.runs.train import configure
    from trpo.settings.config import Config
    from trpo.settings.presets import NONE, apply_preset

    helps = {"-h", "--help"}.intersection(arguments)
    if helps:
        _parse(Check, "check", ["--help"])
    # Parsed twice, as for train: explicit flags override the preset.
    first = _parse(Check, "check", gathered(arguments))
    config = apply_preset(configure(first.env_id, Config(), NONE), first.preset)[0]
    options = _parse(Check, "check", gathered(arguments), default=dataclasses.replace(first, env=config.env))
    config = dataclasses.replace(config, env=options.env)
    with foreign():
        found = check_environment(options.env_id, config, steps=options.steps, seed=options.seed)
    print(found)
    return 1 if found.faults else 0


def _fresh_directory(env_id: str, kind: str) -> Path:
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in env_id)
    names = itertools.chain([f"{safe}-{kind}"], (f"{safe}-{kind}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := Path("runs", name)).exists())


def _resume(arguments: Sequence[str]) -> int:
    from trpo.cli.help import resume_flags
    from trpo.cli.local import run_locally
    from trpo.cli.options import Resume, gathered, given
    from trpo.runs.sweep import is_sweep, resume_sweep, settings_of_run
    from trpo.runs.train import resume
    from trpo.training.hosts import join

    if {"-h", "--help"}.intersection(arguments):
        print(resume_flags())
        return 0
    arguments = gathered(arguments)
    # Parsed with the run's own settings, in which those that are given must fit.
    values = [Path(argument) for argument in arguments if not argument.startswith("-")]
    named = next((path for path in values if path.is_dir()), values[0] if values else None)
    default = {} if named is None else {"default": Resume(named, settings_of_run(named))}
    options = _parse(Resume, "resume", arguments, **default)
    if options.hosts.local > 1:
        return run_locally(options.hosts.local, ["resume", *arguments])
    join(options.hosts)
    go_on: Callable[..., Any] = resume_sweep if is_sweep(options.run) else resume
    with foreign():
        go_on(options.run, changes=given(arguments, options.config), quiet=options.quiet, trust=options.trust)
    return 0


@_command
def _evaluate(
    run: RunDirectory,
    episodes: int = 10,
    stochastic: bool = False,
    seed: int = 0,
    max_steps: int = 30_000,
    checkpoint: str = "last",
    as_json: Annotated[bool, arg(name="json")] = False,
    trust: bool = False,
) -> int:
    """Run whole episodes with a checkpoint, the newest by default, and report undiscounted returns.

    Args:
        run: Directory of the run.
        episodes: Episodes to run.
        stochastic: Sample actions instead of taking the distribution's mode.
        seed: Of the environments and of sampled actions.
        max_steps: Steps after which an episode that has not ended is cut; how many were is said.
        checkpoint: last, best (where training evaluated), or the iteration of one.
        as_json: Print one JSON object.
        trust: Import the module that the run names for its environment, although it was not trained here.
    """
    from trpo.runs.aggregate import interval
    from trpo.runs.sweep import groups, is_sweep, read_sweep
    from trpo.runs.train import read_run

    plan = read_sweep(run) if is_sweep(run) else []
    results = {}
    for place in [run / variant.name for variant in plan] or [run]:
        with foreign():
            agent, state, problems = read_run(place, trust=trust, checkpoint=checkpoint)
            for problem in problems:
                say(f"{problem}; using the one before")
            results[place.name] = result = agent.evaluate(episodes, not stochastic, seed, max_steps)
        if not as_json:
            how = "stochastic" if stochastic else "deterministic"
            cut = f"; {result.cut} cut at {max_steps:,} steps (--max-steps)" if result.cut else ""
            told = "".join(f", {key} {'–' if x is None else format(x, '.3g')}" for key, x in result.info.items())
            print(
                f"{place} at {state.steps:,} steps: return {result.mean_return:.1f} ± {result.std_return:.1f}{told} "
                f"({len(result.returns)} episodes, {how}; length {sum(result.lengths) / len(result.lengths):.0f}{cut})"
            )
    found = {}
    for label, members in groups(plan).items():
        found[label] = interval([results[v.name].mean_return for v in members]).to_json()
        if not as_json:
            of = f"{label}, {len(members)} seeds" if label else f"{len(members)} seeds"
            scores = "interquartile mean {iqm:.1f} [{low:.1f}, {high:.1f}]".format(**found[label])
            print(f"{of}: {scores}, 95 % bootstrap")
    if as_json:
        runs = {name: result.to_json() for name, result in results.items()}
        print(json.dumps({"groups": found, "runs": runs} if plan else result.to_json()))
    return 0


@_command
def _record(
    run: RunDirectory,
    out: Path | None = None,
    episodes: int = 1,
    stochastic: bool = False,
    seed: int = 0,
    max_steps: int = 30_000,
    checkpoint: str = "last",
    trust: bool = False,
) -> int:
    """Render episodes of a checkpoint, the newest by default, to a video, headless.

    Args:
        run: Directory of the run.
        out: A .mp4 (needs the extra `video`) or .gif file; by default in the run's directory.
        episodes: Episodes to show.
        stochastic: Sample actions instead of taking the distribution's mode.
        seed: Of the environment and of sampled actions.
        max_steps: Steps after which an episode that has not ended is cut, which is said.
        checkpoint: last, best (where training evaluated), or the iteration of one.
        trust: Import the module that the run names for its environment, although it was not trained here.
    """
    from trpo.report.recording import record
    from trpo.runs.train import load

    how: dict[str, Any] = {"episodes": episodes, "deterministic": not stochastic, "seed": seed, "max_steps": max_steps}
    with foreign():
        file = record(load(run, trust=trust, checkpoint=checkpoint), out, run=run, **how, tell=say)
    print(file)
    return 0


@_command
def _watch(
    run: RunDirectory,
    checkpoint: str = "last",
    follow: bool = True,
    episodes: int = 0,
    stochastic: bool = False,
    seed: int = 0,
    max_steps: int = 30_000,
    trust: bool = False,
) -> int:
    """Show a run's policy at work in a window, or in text where there is no display; Ctrl-C ends it.

    Args:
        run: Directory of the run, which may be in progress.
        checkpoint: last, best (where training evaluated), or the iteration of one.
        follow: Go on with a newer checkpoint, once an episode has ended, as soon as there is one.
        episodes: Episodes to show; 0: until Ctrl-C, or until the window is closed.
        stochastic: Sample actions instead of taking the distribution's mode.
        seed: Of the environment and of sampled actions.
        max_steps: Steps after which an episode that has not ended is cut, which is said.
        trust: Import the module that the run names for its environment, although it was not trained here.
    """
    from trpo.report.watching import watch

    begin_work()
    results, terminal = sys.stdout, sys.stdout.isatty()

    def tell(text: str) -> None:
        print(f"\r\x1b[K{text}" if terminal else text, file=results, flush=True)

    def live(text: str) -> None:  # one line takes the place of the one before; pictures of several follow each other
        if terminal or "\n" in text:
            one = f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}"
            print(text if "\n" in text else one, end="\n" if "\n" in text else "", file=results, flush=True)

    how: dict[str, Any] = {"deterministic": not stochastic, "seed": seed, "max_steps": max_steps, "trust": trust}
    with foreign():
        watch(run, checkpoint=checkpoint, follow=follow, episodes=episodes, **how, tell=tell, live=live)
    return 0


@_command
def _plot(runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")] = (), out: Path | None = None) -> int:
    """Draw learning curves and diagnostics of one or more runs.

    Args:
        runs: Directories of runs.
        out: A PNG file; by default curves.png in the first run's directory.
    """
    from trpo.report.plots import plot_runs
    from trpo.report.sweep_plots import plot_sweeps
    from trpo.runs.sweep import is_sweep

    begin_work()
    if not runs:
        raise ValueError("plot needs at least one run: trpo plot RUN...")
    kinds = {is_sweep(run) for run in runs}
    if len(kinds) > 1:
        raise ValueError("plot either runs or sweeps; a sweep's own runs are the directories in it")
    draw = plot_sweeps if kinds.pop() else plot_runs
    print(draw(runs, out or runs[0] / "curves.png"))
    return 0


@_command
def _export(run: RunDirectory, to: Path | None = None, checkpoint: str = "last", overwrite: bool = False) -> int:
    """Write a policy that acts without JAX, with its statistics and the conversion of its actions.

    Args:
        run: Directory of the run.
        to: A file ending in .npz, beside which policy.py is written (NumPy alone), or in .onnx; by default policy.npz
            in RUN.
        checkpoint: last, best (where training evaluated), or the iteration of one.
        overwrite: Replace files that are there.
    """
    from trpo.deploy.export import export

    begin_work()
    print(export(run, to or run / "policy.npz", checkpoint=checkpoint, overwrite=overwrite))
    return 0


@_command
def _report(runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")] = (), out: Path | None = None) -> int:
    """Write one HTML file about runs: settings, curves, evaluations, videos, and what their metrics say.

    Args:
        runs: Directories of runs, finished or not, or of sweeps.
        out: The file; by default report.html in the first run's directory.
    """
    from trpo.report.page import report_runs

    begin_work()
    if not runs:
        raise ValueError("report needs at least one run: trpo report RUN...")
    print(report_runs(runs, out or runs[0] / "report.html"))
    return 0


@_command
def _study(
    file: Annotated[Positional[Path], arg(metavar="STUDY.toml")],
    out: Path | None = None,
    jobs: int = 0,
    array: str = "0/1",
    table: bool = False,
) -> int:
    """Train tasks × settings × seeds of one file, whatever is missing, and write tables and figures.

    Args:
        file: TOML file that says what is compared.
        out: Directory of its runs, tables and figures; by default runs/ and the file's name.
        jobs: Runs at once, a core each; 0: as many as there are cores.
        array: i/n takes every n-th run from the i-th on, for job arrays.
        table: Train nothing; write tables and figures of what there is.
    """
    from trpo.capacity import cores
    from trpo.report.study import write_tables
    from trpo.runs.study import read_study, results, run_study

    out = out or Path("runs", file.stem)
    study, failed = read_study(file), 0
    if not table:
        failed = run_study(file, out, jobs or cores(), array, say)
    if table or len(list(results(study, out))) == len(study.jobs()):
        for written in write_tables(study, out):
            print(written)
    if failed:
        say(f"{failed} runs failed; the same command tries them again")
    return 1 if failed else 0


@_command
def _theory(
    out: Path = Path("runs/theory"), mdps: int = 1024, seed: int = 0, only: tuple[str, ...] = (), quiet: bool = False
) -> int:
    """Check every claim of the theory on exact MDPs, draw the figures and write a page; exit 1 if a claim fails.

    Args:
        out: Directory for index.html, claims.json, claims.md, equations.md and figures/.
        mdps: Random MDPs for each claim, at least 16.
        seed: Of the random MDPs.
        only: Names of the claims to check, such as fisher; all by default.
        quiet: Print the table alone, no progress.
    """
    import jax

    from trpo.theory.claims import CLAIMS
    from trpo.theory.pages.table import print_table
    from trpo.theory.run import run_theory

    def tell(record: dict[str, Any]) -> None:
        if not quiet:
            mark = "✓" if record["passed"] else "✗"
            number = f"{record['number']:>2} of {len(CLAIMS)}"
            print(f"{mark} {number} · {record['title']} · {record['seconds']:.0f} s", file=sys.stderr, flush=True)

    begin_work()
    jax.devices()  # one error, where there is none, and not one for each claim
    report = run_theory(out, mdps, seed, only, tell=tell)
    print_table(report)
    print(f"{out / 'index.html'} · {out / 'claims.json'} · {report['seconds']:.0f} s")
    failed = [f"{record['number']} ({record['name']})" for record in report["claims"] if not record["passed"]]
    return fail(f"claims that do not hold: {', '.join(failed)}", 1) if failed else 0


@_command
def _presets(which: Annotated[Positional[str | None], arg(metavar="NAME or ENV")] = None) -> int:
    """List the presets: what each is for, and its settings.

    Args:
        which: A preset, or an environment, to show only its preset.
    """
    from trpo.cli.help import list_presets

    print(list_presets(which))
    return 0


@_command
def _completion(shell: Annotated[Positional[str], arg(metavar="bash|zsh|fish")]) -> int:
    """Print a script that completes commands and flags.

    Args:
        shell: For bash: eval "$(trpo completion bash)".
    """
    from trpo.cli.help import completion
    from trpo.cli.options import Check, Resume, Train

    kinds: dict[str, Any] = {"check": Check, "train": Train, "resume": Resume}
    commands = {name: kinds.get(name) or command.flags for name, command in COMMANDS.items()}  # type: ignore[attr-defined]
    print(completion(shell, commands))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "check": _check,
    "resume": _resume,
    "evaluate": _evaluate,
    "record": _record,
    "watch": _watch,
    "plot": _plot,
    "report": _report,
    "export": _export,
    "presets": _presets,
    "study": _study,
    "theory": _theory,
    "completion": _completion,
}
