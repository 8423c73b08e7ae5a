"""A run's policy at work, live: in a window, or in text where there is no display."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trpo.envs import HostEnv, MissingExtraError
from trpo.envs.host.closing import close_all
from trpo.envs.host.frames import Frames
from trpo.envs.host.gymnasium import GymnasiumEnvs
from trpo.envs.masks import MASK
from trpo.envs.meeting import not_finite, require_same_spaces
from trpo.envs.names import is_in_jax, make_single, resolve
from trpo.envs.protocol import EnvironmentFailure
from trpo.envs.spaces import flat
from trpo.report.recording import drawing, has_display, make_drawn
from trpo.rollout.acting import HostPolicy
from trpo.rollout.host import require_allowed, step_all
from trpo.rollout.whole_episodes import MAX_STEPS, drawn_noise
from trpo.runs.checkpoint import checkpoints
from trpo.runs.disk import BEST, CHECKPOINTS, refuse_link
from trpo.runs.train import env_of, read_run
from trpo.training.agent import Agent, require_seed, require_trust

SHOWN = 6
"""Numbers of an observation or action that a line of text has."""
PERIOD = 0.1
"""Seconds between two lines of text that take each other's place."""
FPS = 30.0
"""Steps a second in text, where the environment does not say how many it shows."""


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Where it is shown."""

    envs: HostEnv
    why_text: str = ""
    """Why there is no window; empty where there is one."""
    picture: Callable[[], Any] | None = None
    """Returns what the environment shows of itself in text, if it does."""
    fps: float = FPS


def watch(
    run: str | Path,
    *,
    checkpoint: str | int = "last",
    follow: bool = True,
    episodes: int = 0,
    deterministic: bool = True,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
    trust: bool = False,
    tell: Callable[[str], None] = print,
    live: Callable[[str], None] | None = None,
) -> int:
    """Show episodes of a run's policy until they are enough, or Ctrl-C or closing the window ends it.

    Where there is no display, or no package that draws, it says why and shows text.

    Args:
        run: the run's directory; the run may be in progress.
        checkpoint: ``last``, ``best`` or an iteration, as in :func:`trpo.load`.
        follow: take a newer checkpoint, once an episode has ended, as soon as there is one.
        episodes: how many to show; 0: until it is ended.
        deterministic: take the distribution's mode, otherwise sample.
        seed: of the environment and of sampled actions.
        max_steps: an episode that has not ended after so many steps is cut.
        trust: as in :func:`trpo.load`.
        tell: what to do with a line about each episode.
        live: what to do with a line about each moment, where there is no window.

    Returns:
        How many episodes were shown.

    Raises:
        ValueError: a wrong argument, or not a run.
        EnvironmentFailure: the environment raised.
    """
    for name, value, least in (("episodes", episodes, 0), ("max_steps", max_steps, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: must be ≥ {least}")
    require_seed(seed)
    run = Path(run)
    agent, state, problems = read_run(run, trust=trust, checkpoint=checkpoint)
    for problem in problems:
        tell(f"{problem}; using the one before")
    stage = _open(agent)
    if stage.why_text:
        tell(f"no window: {stage.why_text}; text instead")
    known, shown = _newest(run, checkpoint), 0
    try:
        require_same_spaces(agent.spec, stage.envs.spec)
        performance = _Performance(stage, deterministic, seed, max_steps, live or (lambda text: None))
        performance.cast(agent)
        while not episodes or shown < episodes:
            found = performance.episode()
            if found is None:
                tell("the window was closed")
                break
            shown += 1
            total, length, cut = found
            of = f"checkpoint {state.iteration}, {state.steps:,} steps"
            tell(f"episode {shown}: return {total:.6g}, {length:,} steps{' (cut)' if cut else ''} · {of}")
            if follow and (newest := _newest(run, checkpoint)) != known:
                with contextlib.suppress(ValueError, OSError):  # one that is being removed: the next time
                    agent, state, _ = read_run(run, trust=trust, checkpoint=checkpoint)
                    known = newest
                    performance.cast(agent)
    finally:
        stage.envs.close()
    return shown


def _newest(run: Path, checkpoint: str | int) -> str:
    """Return the name of the checkpoint that ``checkpoint`` means now."""
    places = {"last": CHECKPOINTS, "best": BEST}
    found = checkpoints(refuse_link(run / places[str(checkpoint)])) if checkpoint in places else []
    return found[0].name if found else ""


# ---------------------------------------------------------------- where


def _open(agent: Agent) -> _Stage:
    require_trust(agent)
    env, options, name = env_of(agent), agent.config.env, agent.spec.id
    if is_in_jax(env):
        return _Stage(resolve(env, options).open(1), "environments in JAX are not drawn")
    door = options.rescale_actions, options.flatten, options.drop
    kwargs = options.kwargs if isinstance(env, str) else {}
    with contextlib.closing(make_single(env, Frames.of(options), options.wrappers, **kwargs)) as plain:
        offered, fps = plain.metadata.get("render_modes") or (), float(plain.metadata.get("render_fps") or FPS)
    if not has_display():
        why = "there is no display (DISPLAY and WAYLAND_DISPLAY are not set)"
    elif "human" not in offered:
        why = f"environment {name!r} offers none: its render modes are {', '.join(map(str, offered)) or 'none'}"
    else:
        window: Any = None
        try:
            window = make_drawn(env, options, name, "human")
            _require_glfw(window)
            with drawing(name):
                window.reset(seed=0)  # opens it
            _require_seen()
            return _Stage(GymnasiumEnvs(name, lambda: window, 1, *door))
        except (ValueError, EnvironmentFailure) as error:
            why = str(error)
            if window is not None:
                close_all([window], name, tell=lambda text: None)
    if "ansi" in offered:
        told = make_drawn(env, options, name, "ansi")
        return _Stage(GymnasiumEnvs(name, lambda: told, 1, *door), why, told.render, fps)
    return _Stage(resolve(env, options).open(1), why, fps=fps)


def _require_glfw(window: Any) -> None:
    """Raise ValueError where MuJoCo's windows cannot be opened: its package would end the process."""
    from gymnasium.envs.mujoco import MujocoEnv

    if not isinstance(window.unwrapped, MujocoEnv):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import glfw

            opens = glfw.init()
        except ImportError as error:
            raise MissingExtraError(f"MuJoCo's windows need GLFW: pip install glfw ({error})") from error
    if not opens:
        raise ValueError(f"GLFW cannot open one{_where()}")


def _require_seen() -> None:
    """Raise ValueError if SDL has found no screen, and draws where nobody sees it without having been asked to."""
    pygame = sys.modules.get("pygame")
    asked = os.environ.get("SDL_VIDEODRIVER")
    if pygame is not None and not asked and pygame.display.get_init():
        driver = pygame.display.get_driver()
        if driver in ("dummy", "offscreen", "evdev"):
            raise ValueError(f"SDL has opened none{_where()} (its driver is {driver})")


def _where() -> str:
    found = [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
    return f" with {' '.join(found)}" if found else ""


# ---------------------------------------------------------------- what


class _Performance:
    """Episodes one after the other, by an agent that may be another each time."""

    def __init__(self, stage: _Stage, deterministic: bool, seed: int, max_steps: int, live: Callable[[str], None]):
        self._stage, self._envs, self._most, self._live = stage, stage.envs, max_steps, live
        self._deterministic, self._seed, self._begun = deterministic, seed, 0
        self._due = self._line = 0.0

    def cast(self, agent: Agent) -> None:
        """Let this agent act from now on."""
        actor = agent.actor()
        self._policy = HostPolicy(agent.policy, actor)
        self._noise = None if self._deterministic else functools.partial(drawn_noise, agent.policy, actor, 1)

    def episode(self) -> tuple[float, int, bool] | None:
        """Show an episode; return its return and length, and whether it was cut; None if the window was closed."""
        envs, policy, seed = self._envs, self._policy, self._seed + self._begun
        noise = None if self._noise is None else self._noise(seed)
        observation, carry, reset = envs.reset([seed]), policy.start(1), np.ones(1, bool)
        self._begun, total, length, step = self._begun + 1, 0.0, 0, 0
        while length < self._most:
            if bad := not_finite(envs.spec.observation, observation):
                raise EnvironmentFailure(f"environment {envs.spec.id} gave an observation that is not finite: {bad}")
            if envs.spec.masked:
                require_allowed(envs, observation)
            action, carry = policy(observation, carry, reset, None if noise is None else noise(step))
            after = step_all(envs, action)
            if not self._stage.why_text and _closed():
                return None
            step, total = step + 1, total + float(np.where(after.valid, after.reward, 0.0)[0])
            length, reset = length + int(after.valid[0]), ~after.valid
            done = bool((after.terminated | after.truncated)[0])
            if self._stage.why_text and not done:  # where it has ended, the environment shows the next episode
                self._tell(observation, action, total, length)
            if done:
                return total, length, False
            observation = after.observation
        return total, length, True

    def _tell(self, observation: Any, action: Any, total: float, length: int) -> None:
        """Show a moment as text, at the environment's own pace."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        now = time.monotonic()
        self._due = max(now, self._due) + 1 / self._stage.fps
        if self._stage.picture is not None:
            self._live(str(self._stage.picture()))
        elif now >= self._line:
            self._line = now + PERIOD
            spec = self._envs.spec
            converted = spec.action.map(lambda leaf, x: x[0], spec.action.to_env(action))
            seen = flat(spec.features, observation)[0]
            self._live(f"step {length} · return {total:.6g} · action {_short(converted)} · observation {_short(seen)}")


def _short(x: Any) -> str:
    """Return the first numbers of an array, or of all arrays of a tree."""
    if isinstance(x, dict):
        return " ".join(f"{name} {_short(part)}" for name, part in x.items() if name != MASK)
    if isinstance(x, tuple):
        return " ".join(map(_short, x))
    numbers = np.ravel(x)
    words = [f"{number:.3g}" for number in numbers[:SHOWN].tolist()]
    return " ".join([*words, *["…"] * (len(numbers) > SHOWN)])


def _closed() -> bool:
    """Return whether somebody has closed the window; environments with pygame do not look."""
    pygame = sys.modules.get("pygame")
    return pygame is not None and pygame.display.get_init() and bool(pygame.event.get(pygame.QUIT))
