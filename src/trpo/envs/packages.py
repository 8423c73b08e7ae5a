"""Whose an environment is that Gymnasium does not know by itself. A simulator's process uses it: no JAX."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.metadata
import os
from collections.abc import Iterable

import gymnasium as gym

PREFIXES = ("envpool", "gymnax", "brax", "playground", "probe", "jax", "jax-probe")
"""What may stand before a name instead of a module."""
PACKAGES = {
    ("'trpo[atari]'", "ale_py"): ["ale/*", "*noframeskip-v*"],
    ("'trpo[minigrid]'", "minigrid"): ["minigrid*", "babyai-*"],
    ("popgym", "popgym"): ["popgym-*"],
    ("miniworld", "miniworld"): ["miniworld*"],
    ("'shimmy[dm-control]'", "shimmy"): ["dm_control*", "dm-control*"],
    ("'shimmy[bsuite]'", "shimmy"): ["bsuite/*"],
    ("metaworld", "metaworld"): ["metaworld*", "meta-world*"],
    ("highway-env", "highway_env"): [
        "highway-*", "merge-v*", "roundabout-*", "parking-*", "intersection-*", "racetrack-*", "exit-v*", "two-way-v*",
        "u-turn-v*", "lane-keeping-v*",
    ],
    ("gymnasium-robotics", "gymnasium_robotics"): [
        "fetch*", "handreach*", "handmanipulate*", "pointmaze_*", "antmaze_*", "adroithand*", "frankakitchen*",
    ],
    ("panda-gym", "panda_gym"): ["pandareach*", "pandapush*", "pandaslide*", "pandapick*", "pandastack*", "pandaflip*"],
    ("flappy-bird-gymnasium", "flappy_bird_gymnasium"): ["flappybird*"],
    ("vizdoom", "vizdoom.gymnasium_wrapper"): ["vizdoom*"],
}  # fmt: skip
"""What to install and which module to import, by patterns of ids in small letters."""


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def register(env_id: str) -> None:
    """Import the package that registers an environment of this id, if it is a known one, installed and not imported.

    Installed packages alone count: a file of that name in the current directory is code that nobody has named.
    """
    if env_id in gym.registry or ":" in env_id:
        return
    for (_, home), patterns in PACKAGES.items():
        if _matches(patterns, env_id):
            try:
                importlib.metadata.distribution(home.partition(".")[0])
            except importlib.metadata.PackageNotFoundError:
                continue
            os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it would greet on standard output
            importlib.import_module(home)


def package_of(env_id: str, registered: list[str]) -> str:
    """Return how to get an environment of a package that is known but not imported, or ``""``."""
    module, _, name = env_id.rpartition(":")
    for (package, home), patterns in PACKAGES.items():
        if module and module.partition(".")[0] == home.partition(".")[0]:
            return f"pip install {package}"
        if not module and _matches(patterns, name) and not any(_matches(patterns, one) for one in registered):
            return f"it is in another package: pip install {package}"
    return ""


def gymnasium_id(env_id: str) -> str:
    """Return the id in Gymnasium of what EnvPool simulates, any other as it is; its package is imported, if need be."""
    name = env_id.removeprefix("envpool:")
    game = f"ALE/{name}" if name != env_id and name not in gym.registry else name
    register(game)
    return game if game in gym.registry else name
