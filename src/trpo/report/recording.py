"""Videos of an agent at work, rendered without a display."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium.envs.registration import load_env_creator

from trpo.envs import EnvironmentFailure, MissingExtraError
from trpo.envs.host.closing import close_all
from trpo.envs.host.frames import Frames
from trpo.envs.host.gymnasium import named, opengl_cure, quiet_mujoco, with_spec
from trpo.envs.host.returned import WrongAnswerError, begun, described, stepped, writer
from trpo.envs.meeting import not_finite, require_same_spaces
from trpo.envs.names import EnvLike, is_in_jax, make_single
from trpo.envs.packages import gymnasium_id
from trpo.envs.protocol import UnusableEnvironmentError
from trpo.report.video import FASTEST, can_write_mp4, check_video, write_video
from trpo.rollout.whole_episodes import MAX_STEPS
from trpo.training.agent import Agent, require_seed, require_trust

PROBE = "import mujoco.{0} as gl; context = gl.GLContext(16, 16); context.make_current(); context.free()"


def default_path(run: Path) -> Path:
    """Return RUN/video.mp4 where the ``video`` extra is installed, else RUN/video.gif, which needs nothing."""
    return Path(run) / ("video.mp4" if can_write_mp4() else "video.gif")


def record(
    agent: Agent,
    out: Path | None = None,
    *,
    run: Path | None = None,
    episodes: int = 1,
    deterministic: bool = True,
    seed: int = 0,
    fps: float | None = None,
    max_frames: int = 10_000,
    max_steps: int = MAX_STEPS,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Film whole episodes of ``agent`` and return the file.

    No display is needed. Frames go to the encoder one by one, so memory does not grow with length. The file appears
    under its name when it is complete.

    Args:
        agent: its environment is made anew by id with ``render_mode="rgb_array"``; if it was made from a function of
            yours, that function must pass this to the environment itself.
        out: a ``.mp4`` (needs the ``video`` extra) or a ``.gif``; by default ``default_path(run)``.
        run: the run's directory, for the default of ``out``.
        episodes: whole episodes, one after the other, started from ``seed``, ``seed`` + 1, …
        deterministic: take the distribution's mode, otherwise sample.
        seed: of environments and samples.
        fps: simulator steps shown in a second; by default real time, as the environment's metadata has it.
        max_frames: the recording ends here even if an episode has not.
        max_steps: an episode that has not ended after so many steps is cut.
        tell: what to do with a line that says that something was cut.

    Raises:
        ValueError: the file type is unknown, the environment offers no images, or a package is missing; the message
            has the cure.
        EnvironmentFailure: the environment raised.
    """
    if out is None and run is None:
        raise ValueError("out: give a file that ends in .mp4 or .gif, or a run directory")
    out = Path(out or default_path(Path(str(run))))
    for name, value in (("episodes", episodes), ("max_frames", max_frames), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be ≥ 1")
    require_seed(seed)
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps}: must be > 0; the default is the environment's own")
    check_video(out)
    env = _drawn(agent)
    try:
        speed = fps or float(env.metadata.get("render_fps") or 30)
        every = math.ceil(speed / FASTEST[out.suffix.lower()])
        frames = _frames(env, agent, episodes, deterministic, seed, every, max_steps, tell)
        write_video(out, speed / every, frames, max_frames)
        if next(frames, None) is not None:
            tell(f"the recording was cut at {max_frames:,} frames, before the last episode had ended")
    finally:
        close_all([env], agent.spec.id, tell=lambda text: None)  # some renderers fail in closing what they never opened
    return out


def can_record(env: str) -> bool:
    """Return whether :func:`record` is expected to draw an environment that was used here, from its registration."""
    try:
        spec = gym.spec(gymnasium_id(env))
        kind = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except Exception:  # not one of Gymnasium's: what its name says is not known
        return False
    modes = getattr(kind, "metadata", {}).get("render_modes") or ()
    module = str(getattr(kind, "__module__", ""))
    by_pygame = module.startswith(("gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "gymnasium.envs.box2d"))
    return "rgb_array" in modes and (not by_pygame or importlib.util.find_spec("pygame") is not None)


def check_drawn(agent: Agent) -> None:
    """Raise ValueError, which says why, where the environment of ``agent`` cannot be drawn."""
    _drawn(agent).close()


def _drawn(agent: Agent) -> gym.Env:
    require_trust(agent)
    return make_drawn(agent.env if agent.env is not None else agent.spec.id, agent.config.env, agent.spec.id)


def make_drawn(env: EnvLike, options: Any, name: str, mode: str = "rgb_array") -> gym.Env:
    """Make one environment that draws itself: as an array, or with ``mode`` ``human`` in a window.

    ``options`` are those of :class:`~trpo.EnvConfig`, ``name`` is what messages call it.

    Raises:
        ValueError: it offers no images, or MuJoCo cannot draw here; the message has the cure.
    """
    if is_in_jax(env):
        raise ValueError(f"environment {name!r} offers no images: environments in JAX are not drawn")
    backend = "display" if has_display() else headless_backend()
    kwargs = options.kwargs if isinstance(env, str) else {}
    try:
        with quiet_mujoco():
            made = make_single(env, Frames.of(options), options.wrappers, **{**kwargs, "render_mode": mode})
    except UnusableEnvironmentError as error:
        if not isinstance(error.__cause__, TypeError) or "render_mode" not in str(error):
            raise
        raise ValueError(f"environment {name!r} offers no images: it takes no render_mode") from error
    offered = made.metadata.get("render_modes") or ()
    if made.render_mode != mode or (mode != "rgb_array" and mode not in offered):
        made.close()
        modes = ", ".join(map(repr, offered)) or "none"
        cure = f"pass render_mode={mode!r} in the function that makes it; " if callable(env) else ""
        what = "images to record" if mode == "rgb_array" else "window"
        raise ValueError(f"environment {name!r} offers no {what}: {cure}its render modes are {modes}")
    if backend is None:
        from gymnasium.envs.mujoco import MujocoEnv

        if isinstance(made.unwrapped, MujocoEnv):
            made.close()
            raise ValueError(
                "MuJoCo cannot render: there is no display, and neither EGL nor OSMesa works; "
                "install one, such as Debian's libegl1 or libosmesa6, or set MUJOCO_GL"
            )
    return made


def has_display() -> bool:
    """Return whether a window can be opened; where there is no X or Wayland, it is not asked."""
    return bool(sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def headless_backend() -> str | None:
    """Choose the OpenGL backend and video driver for a machine without a display; None if MuJoCo has none.

    Sets ``MUJOCO_GL`` and SDL's drivers for the rest of the process, unless they are set. MuJoCo's and
    Gymnasium's own choice would be GLFW, which without a display imports well and then fails.
    """
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(driver, "dummy")
    backend = os.environ.get("MUJOCO_GL") or _working_backend()
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    return backend


@functools.cache
def _working_backend() -> str | None:
    # In a process of its own: a backend whose import fails leaves PyOpenGL bound to it, and the next cannot be tried.
    for name in ("egl", "osmesa"):
        environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": name}
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            command = [sys.executable, "-c", PROBE.format(name)]
            if subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0:
                return name
    return None


def _frames(
    env: gym.Env,
    agent: Agent,
    episodes: int,
    deterministic: bool,
    seed: int,
    every: int,
    max_steps: int,
    tell: Callable[[str], None],
) -> Iterator[np.ndarray]:
    """Yield every ``every``-th frame of the episodes."""
    step, name, options = 0, agent.spec.id, agent.config.env
    (env,), here = with_spec(name, [env], options.drop)
    space, write = here.observation, writer(here.observation)
    require_same_spaces(agent.spec, here.with_options(options.rescale_actions, options.flatten))

    def seen(observation: Any) -> Any:
        columns = space.zeros(1)
        write(columns, 0, observation)
        if bad := not_finite(space, columns):
            raise WrongAnswerError(f"gave an observation that is not finite: {bad}")
        columns = here.flatten(columns) if options.flatten else columns
        return jax.tree.map(lambda column: column[0], columns)

    for episode in range(episodes):
        with named(name):
            observation = seen(begun(env.reset(seed=seed + episode)))
        carry, done, began = agent.start(), False, step
        while not done and step - began < max_steps:
            if step % every == 0:
                yield frame_of(env, name)
            key = None if deterministic else int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
            action, carry = agent.act(observation, carry, deterministic=deterministic, seed=key)
            with named(name):
                after, done = stepped(env.step(action))
                observation, step = seen(after), step + 1
        if not done:
            tell(f"episode {episode + 1} was cut at {max_steps:,} steps (max_steps)")
        yield frame_of(env, name)


@contextlib.contextmanager
def drawing(env_id: str) -> Iterator[None]:
    """Say of what is raised while an environment is drawn that it was this one, and what package is missing."""
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        extra = re.search(r"gymnasium\[([\w,-]+)\]", str(error))
        cure = f"pip install 'gymnasium[{extra[1]}]'" if extra else error
        message = f"drawing environment {env_id!r} needs a package that is not installed: {cure}"
        raise MissingExtraError(message) from error
    except Exception as error:
        raise EnvironmentFailure(f"environment {env_id} cannot be drawn: {described(error)}{opengl_cure()}") from error


def frame_of(env: gym.Env, env_id: str) -> np.ndarray:
    """Return an environment's picture, ``[height, width, 3]``; ValueError or EnvironmentFailure where it has none."""
    with drawing(env_id):
        frame = np.asarray(env.render())
    if frame.ndim != 3 or frame.shape[-1] not in (3, 4):
        raise ValueError(f"environment {env_id!r} rendered an array of shape {frame.shape}, not an RGB image")
    return np.ascontiguousarray(frame[..., :3], dtype=np.uint8)
