"""Runs: training with a directory, a progress line, checkpoints and a graceful end (L8)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo._version import __version__
from trpo.agent import Agent
from trpo.checkpoint import CheckpointError, load_latest, replace_durably, save
from trpo.config import Config
from trpo.envs import EnvironmentFailure, EnvSpec
from trpo.metrics import JsonLines, Sink, TensorBoard
from trpo.presets import AUTO, apply_preset
from trpo.progress import reporter
from trpo.training import NonFiniteBatchError, TrainingState, iterations, make_agent

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
FORMAT = 1


class RunInterrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and how to resume."""


@dataclasses.dataclass
class _Stop:
    """Set by the first Ctrl-C or termination signal; the run then ends after the iteration under way."""

    requested: bool = False


@contextlib.contextmanager
def _graceful() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        _say("\nstopping after this iteration; once more to stop at once")

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def write_config(run: Path, agent: Agent, custom: bool) -> None:
    """Write ``config.json``: settings and spaces, all that is needed to rebuild the agent without a simulator."""
    data = {
        "format": FORMAT,
        "trpo": __version__,
        "custom_policy": custom,
        "custom_env": callable(agent.env),
        "custom_rule": agent.rule is not None,
        "spec": agent.spec.to_json(),
        "config": agent.config.to_json(),
    }
    replace_durably(run / CONFIG, (json.dumps(data, indent=2) + "\n").encode())


def _read_config(run: Path) -> dict[str, Any]:
    path = run / CONFIG
    if not path.is_file():
        raise ValueError(f"{run} is not the directory of a run: it has no {CONFIG}")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.get('format')!r}, but this version reads format {FORMAT}")
    return data


def load_run(
    run: str | Path, policy: Any = None, env: Any = None, rule: Any = None
) -> tuple[Agent, TrainingState, list[str]]:
    """Return agent and state of a run's newest intact checkpoint, and a line about each newer one that is damaged.

    ``policy`` and ``env`` are needed again for a policy of your own and for an environment given as a function: code
    is never stored, so loading never executes any.
    """
    run = Path(run)
    data = _read_config(run)
    if data["custom_policy"] and policy is None:
        raise ValueError(f"{run} was trained with a policy of its own: pass a module of the same structure as policy=…")
    if data["custom_rule"] and rule is None:
        raise ValueError(f"{run} was trained with a rule of its own: pass it as rule=…")
    agent = Agent.create(EnvSpec.from_json(data["spec"]), Config.from_json(data["config"]), policy, env, rule)
    if data["custom_env"] and env is None:
        agent = dataclasses.replace(agent, env=_missing_env)
    state, problems = load_latest(run / CHECKPOINTS, agent.learner)
    return agent.at(state), state, problems


def _missing_env() -> Any:
    raise ValueError("this run's environment was given as a function, which is not stored: pass it as env=…")


def load(run: str | Path, policy: Any = None, env: Any = None, rule: Any = None) -> Agent:
    """Load the agent of a run from its newest intact checkpoint. Never executes code; needs no simulator.

    Args:
        run: the run's directory.
        policy: a module of the same structure, if the run was trained with a policy of your own.
        env: the function that makes the environment, if the run was given one.
        rule: the update rule, if the run was trained with one of your own.

    Raises:
        ValueError: not a run, or no intact checkpoint.
    """
    return load_run(run, policy, env, rule)[0]


def train(
    env: Any,
    *,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    preset: str = AUTO,
    policy: Any = None,
    rule: Any = None,
    quiet: bool = False,
) -> Agent:
    """Train an agent from the beginning, with a progress line.

    Args:
        env: an environment id, or a function without arguments that makes a ``gymnasium.Env``.
        steps: environment steps; overrides the configuration's.
        seed: overrides the configuration's.
        out: directory of the run (created; must be empty). Without it nothing is written.
        config: settings, used as they are; by default those of the preset.
        preset: name of a preset, ``auto`` (by environment id) or ``none``; only without ``config``.
        policy: a policy of your own: any callable pytree from observations to a distribution.
        rule: an update rule of your own (see :class:`~trpo.results.Rule`), in place of the configuration's.
        quiet: show nothing.

    Returns:
        The trained agent.

    Raises:
        ValueError: a wrong argument.
        RunFailed: the environment raised or a batch was not finite; with ``out`` a checkpoint was written.
        KeyboardInterrupt: with ``out`` a checkpoint was written.

    >>> import trpo
    >>> config = trpo.Config(steps=512, fragment=16, env=trpo.EnvConfig(count=8))
    >>> agent = trpo.train("probe:action", config=config, quiet=True)
    >>> agent.act([0.0]).shape
    ()
    """
    if config is None:
        base = Config()
        if isinstance(env, str):
            base = dataclasses.replace(base, env=dataclasses.replace(base.env, id=env))
            base = apply_preset(base, preset)[0]
        config = base
    if isinstance(env, str):
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, id=env))
    config = dataclasses.replace(
        config, steps=config.steps if steps is None else steps, seed=config.seed if seed is None else seed
    )
    agent = make_agent(env, config, policy, rule)
    run = None
    if out is not None:
        run = Path(out)
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise ValueError(f"out={run}: already exists and is not empty; choose another, or `trpo resume {run}`")
        run.mkdir(parents=True, exist_ok=True)
        write_config(run, agent, policy is not None)
        save(run / CHECKPOINTS, TrainingState(agent.learner), config.keep_checkpoints)
    return _go_on(agent, TrainingState(agent.learner), run, env, quiet)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    policy: Any = None,
    env: Any = None,
    rule: Any = None,
    quiet: bool = False,
) -> Agent:
    """Go on with a run from its newest intact checkpoint, to its configured number of steps or to ``steps``."""
    run = Path(run)
    agent, state, problems = load_run(run, policy, env, rule)
    if not quiet:
        for problem in problems:
            _say(f"{problem}; using the one before")
        _say(f"resuming {run} at iteration {state.iteration}, {state.steps:,} steps")
        if state.environments is None and state.iteration > 0:
            _say("the simulators' state is not in the checkpoint (they don't offer it): new episodes begin")
    if steps is not None:
        agent = dataclasses.replace(agent, config=dataclasses.replace(agent.config, steps=steps))
        write_config(run, agent, policy is not None)
    target = agent.env if agent.env is not None else agent.config.env.id
    return _go_on(agent, state, run, target, quiet)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _go_on(agent: Agent, state: TrainingState, run: Path | None, env: Any, quiet: bool) -> Agent:
    config = agent.config
    sinks: list[Sink] = []
    if run is not None:
        sinks = [JsonLines(run, state.iteration), TensorBoard(run, state.steps)]
    beginning, saved = state, state.iteration
    show = reporter(config.steps, quiet)

    def checkpoint() -> str:
        nonlocal saved
        if run is None:
            return "no run directory, so nothing was saved"
        if saved != state.iteration:
            save(run / CHECKPOINTS, state, config.keep_checkpoints)
            saved = state.iteration
        return f"checkpoint of iteration {state.iteration} is in {run}; go on with: trpo resume {run}"

    with _graceful() as stop:
        try:
            for state, metrics in iterations(env, agent, config, beginning):
                for sink in sinks:
                    sink.write(metrics)
                show.update(metrics)
                if stop.requested:
                    raise RunInterrupted(f"interrupted; {checkpoint()}")
                if run is not None and state.iteration % config.checkpoint_every == 0:
                    checkpoint()
        except EnvironmentFailure as error:
            raise RunFailed(f"{error}; {checkpoint()}") from error
        except NonFiniteBatchError as error:
            state = error.state
            raise RunFailed(f"{error}; stopped as configured (on_nonfinite=stop); {checkpoint()}") from error
        finally:
            show.close()
            for sink in sinks:
                sink.close()
    checkpoint()
    return agent.at(state)


__all__ = ["CheckpointError", "RunFailed", "RunInterrupted", "load", "load_run", "resume", "train"]
