"""Whose an environment is that Gymnasium does not know by itself. A simulator's process uses it: no JAX."""

from __future__ import annotations

import fnmatch

PREFIXES = ("envpool", "gymnax", "brax", "playground", "probe", "jax", "jax-probe")
"""What may stand before a name instead of a module."""
PACKAGES = {
    ("ale-py", "ale_py"): ["ale/*", "*noframeskip-v*"],
    ("minigrid", "minigrid"): ["minigrid*", "babyai-*"],
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


def package_of(env_id: str, registered: list[str]) -> str:
    """Return how to get an environment of a package that is known but not imported, or ``""``."""
    module, _, name = env_id.rpartition(":")
    for (package, home), patterns in PACKAGES.items():
        if module and module.partition(".")[0] == home.partition(".")[0]:
            return f"pip install {package}"
        known = any(fnmatch.fnmatchcase(one.lower(), p) for p in patterns for one in registered)
        if not module and not known and any(fnmatch.fnmatchcase(name.lower(), p) for p in patterns):
            return f"it is in another package: pip install {package}, then name it {home}:{name}"
    return ""
