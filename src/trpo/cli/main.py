"""The command line: ``trpo train | check | resume | evaluate | record | plot | report | …``.

Exit codes: 0 done; 2 the user's mistake (one line, no traceback); 130 interrupted, 143 terminated (a checkpoint
was written); 1 anything else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from trpo._version import __version__
from trpo.cli.commands import COMMANDS, HelpShown, fail
from trpo.cli.local import end_of_one
from trpo.cli.output import give_up_output, prepare_streams, results_apart
from trpo.runs.interrupts import heed_signals, interruption, number_of, over
from trpo.spelling import in_words, nearest

USAGE = """\
usage: trpo COMMAND …

  trpo train ENV [--steps N] [--seed S] [--out DIR] [--preset NAME]
             [any setting as a flag, e.g. --rule.max-kl 0.02]
             [--from RUN]  begin with what another run has learned
  trpo train … --seeds N [--vary SETTING=VALUE,VALUE ...]
             several runs, each with a directory of its own
  trpo check ENV [--steps N] [--env.kwargs ...]
             every fault of an environment, with its cure;
             exit code 1 if there is one
  trpo resume RUN [--steps N] [--rule.max-kl 0.02 ...]
             go on from the newest checkpoint, with other settings
  trpo evaluate RUN [--episodes N] [--stochastic] [--max-steps N] [--json]
             [--checkpoint last|best|N]
  trpo watch RUN [--checkpoint last|best|N]
             a live window, that follows a run in progress; text
             where there is no display
  trpo record RUN [--out FILE]       video of an episode (mp4 or gif)
  trpo plot RUN... [--out FILE]      curves (PNG)
  trpo report RUN... [--out FILE]    one HTML file: settings, curves, videos,
             evaluations, and what the metrics say
  trpo export RUN [--to FILE]        a policy that acts without JAX
  trpo presets [NAME or ENV]         best-known settings, and for what
  trpo study STUDY.toml [--jobs N] [--array i/n] [--table]
             tasks × settings × seeds of one file, with tables and figures
  trpo theory [--out DIR]            check every claim of the theory;
                                     exit code 1 if one fails
  trpo completion bash|zsh|fish      a script that completes commands and flags

ENV is a Gymnasium id (Hopper-v5), module:Id-v0 or module:Class to import your
own first (from this directory, too), envpool:Hopper-v4, or probe:delayed; in
JAX, whole iterations on the device: gymnax:CartPole-v1, brax:ant,
playground:CartpoleBalance, jax:MODULE:FUNCTION.
RUN is a run's directory, or that of several (--seeds).
`trpo train ENV --help` shows the flags that people use with their values for
ENV, `trpo train --help-all` all; `trpo COMMAND --help` those of a command.
"""


def main(argv: Sequence[str] | None = None, for_good: bool = False) -> int:
    """Run a command and return its exit code; ``for_good``: standard output is not needed afterwards."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with results_apart(for_good):
        try:
            code = _run(arguments)
            sys.stdout.flush()
            return code
        except HelpShown:
            return 0
        except BaseException as error:
            try:
                return _explain(error)
            except OSError:  # nobody can be told
                give_up_output()
                return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"trpo {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        near = nearest(arguments[0], list(COMMANDS), f"commands are {', '.join(COMMANDS)}")
        raise ValueError(f"unknown command {arguments[0]!r}; {near}")
    from trpo.programs import keep_programs

    keep_programs()
    return command(arguments[1:])


TRACEBACK = "TRPO_TRACEBACK"
"""Set in the environment, it shows where an error came from."""


def _explain(error: BaseException) -> int:
    """Say in one line what ended a command, and return the exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if "trpo.training.hosts" in sys.modules and (code := end_of_one(error)) is not None:
        return code
    if not isinstance(error, KeyboardInterrupt):
        error = interruption() or error
    if isinstance(error, BrokenPipeError):
        give_up_output()  # who read it has seen enough
        return 1
    if isinstance(error, KeyboardInterrupt):
        return fail(str(error) or "interrupted", 128 + number_of(error))
    if isinstance(error, ValueError):
        return fail(" ".join(str(error).split()), 2)
    if isinstance(error, OSError):
        with contextlib.suppress(ValueError):
            try:
                sys.stdout.flush()
            except OSError:  # of which alone it is not said where
                error.filename = error.filename or "standard output"
        return fail(in_words(error), 2)
    if type(error).__module__.partition(".")[0] == "trpo":
        return fail(in_words(error), 1)
    if not _has_device():
        chosen = os.environ.get("JAX_PLATFORMS", "")
        return fail(f"JAX_PLATFORMS={chosen}: JAX finds no such device ({in_words(error)}); cpu is always there", 2)
    return fail(f"{in_words(error)} ({TRACEBACK}=1 shows where)", 1)


def _has_device() -> bool:
    """Return whether JAX has a device to compute on: what it raises where it has none differs with the platform."""
    try:
        import jax

        return bool(jax.devices())
    except Exception:
        return False


def entry_point() -> None:
    """Console script. Modules of the current directory can be named, as with ``python -m trpo``."""
    heed_signals()
    prepare_streams()
    with contextlib.suppress(OSError):  # the directory was removed
        if not sys.flags.safe_path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # at the end: no file that lies about takes the place of an installed module
    try:
        code = over(main(for_good=True))
    except KeyboardInterrupt:  # while it was said how the command ended
        code = over(1)
    sys.exit(code)
