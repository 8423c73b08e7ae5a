"""Frames of games as policies see them: by Gymnasium's own wrappers, or by EnvPool's own options, which agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from trpo.envs.host.gymnasium import MakeEnv
from trpo.envs.packages import register
from trpo.envs.protocol import MissingExtraError

LONGEST = 108_000
"""Frames of an Atari game, half an hour, after which it is truncated."""
STICKY = 0.25
"""Probability that a version-5 game repeats the last action instead of taking the new one."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """What is done with observations at an environment's door; see the settings of the same names."""

    stack: int = 1
    screen: int = 0
    skip: int = 4
    noops: int = 30

    @classmethod
    def of(cls, options: Any) -> Frames:
        """Take it from a :class:`~trpo.EnvConfig`."""
        return cls(options.frame_stack, options.screen, options.frame_skip, options.noops)

    def __str__(self) -> str:
        """Return the settings in force, by their names."""
        screen, stack = f"env.screen={self.screen}", f"env.frame_stack={self.stack}"
        return " and ".join([screen] * bool(self.screen) + [stack] * (self.stack > 1))

    def wrapped(self, name: str | None, make: MakeEnv) -> MakeEnv:
        """Return ``make`` with Gymnasium's wrappers; ``name`` is the environment's id, where it has one."""
        if self.screen and name is not None:
            _require_game(name, self)
            # The wrapper skips frames, and reads grey ones; the game must neither skip again nor make coloured ones.
            game: Any = make
            make = partial(game, frameskip=1, obs_type="grayscale")
        return partial(_wrap, self, make) if str(self) else make

    def of_envpool(self, env_id: str, known: Collection[str]) -> dict[str, Any]:
        """Return EnvPool's options for it, of the ``known`` ones of this environment."""
        options: dict[str, Any] = {"stack_num": self.stack} if self.stack > 1 else {}
        if self.screen:
            options = {
                "stack_num": self.stack,
                "img_height": self.screen,
                "img_width": self.screen,
                "frame_skip": self.skip,
                "noop_max": self.noops,
                # Without these EnvPool's games would not be those that Gymnasium has by the same name.
                "max_episode_steps": LONGEST // self.skip,
                "repeat_action_probability": STICKY,
                "use_fire_reset": False,
            }
        if options.keys() - known:
            raise ValueError(f"{self}: EnvPool's {env_id!r} is no Atari game; use env.screen=0 and env.frame_stack=1")
        return options


PLAIN = Frames()
"""Observations as the environment has them."""


def _require_game(name: str, frames: Frames) -> None:
    try:
        register(name)
        options = gym.spec(name).kwargs
    except Exception:  # making it says what is wrong with its name
        return
    if "frameskip" not in options:
        raise ValueError(f"{frames}: environment {name!r} is no Atari game; use env.screen=0")


def _wrap(frames: Frames, make: Any, **kwargs: Any) -> gym.Env:
    env = make(**kwargs)
    if frames.screen:
        try:
            env = AtariPreprocessing(env, frames.noops, frames.skip, frames.screen)
        except gym.error.DependencyNotInstalled as error:
            raise MissingExtraError(
                f"{frames} needs OpenCV, which is not installed: pip install 'trpo[atari]'"
            ) from error
    return FrameStackObservation(env, frames.stack) if frames.stack > 1 else env
