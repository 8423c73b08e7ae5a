"""Run directories of the first format, as they are read today.

There, observations were one flat vector whatever their space, and policies were networks with a distribution, which
the names of arrays said.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from trpo.trees import named_leaves

_ARRAYS = {
    r"^(policy|average)\.network\.": r"\1.trunk.",
    r"^(policy|average)\.log_std$": r"\1.head.log_std",
    r"^value\.params\.network\.": "value.params.trunk.",
}
_KINDS = {"box": "box", "discrete": "choice", "multi_discrete": "choices", "multi_binary": "bits"}


def config_today(data: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` of the first format in today's form."""
    spec, config = data["spec"], settings_today(data["config"])
    config["env"] = {**config["env"], "flatten": True}
    custom = {part: data[f"custom_{part}"] for part in ("policy", "env", "rule")}
    observation = {"kind": "box", "shape": [spec["observation_size"]], "low": None, "high": None}
    action = _action_today(spec["action"], config["env"]["rescale_actions"])
    spec = {"id": spec["id"], "observation": observation, "action": action}
    return {"spec": spec, "config": config, "custom": custom | {"value": False}}


def settings_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of that time under today's names, but for observations, which were always flattened."""
    today = dict(settings)
    first = today.pop("observed_elements", 0)
    return today | {group: {**today[group], "sees": f":{first}"} for group in ("policy", "value") if first}


def before_encoders(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a run from before images had encoders: all parts were normalised and put in a row."""
    flat = {group: {**settings.get(group, {}), "encoder": "flat"} for group in ("policy", "value")}
    return settings | flat | {"normalise_all": True}


def _action_today(action: dict[str, Any], rescale: bool) -> dict[str, Any]:
    common = {"kind": _KINDS[action["kind"]], "shape": action["shape"], "dtype": action["dtype"]}
    match action["kind"]:
        case "box":
            return common | {"low": action["low"], "high": action["high"], "rescale": rescale}
        case "discrete":
            return common | {"n": action["sizes"][0], "start": action["start"][0]}
        case "multi_discrete":
            return common | {"sizes": action["sizes"], "start": action["start"]}
    return common


def arrays_today(arrays: dict[str, np.ndarray], like: Any) -> dict[str, np.ndarray]:
    """Return a learner's arrays under today's names, where the agent has such; one's own policy keeps its names."""
    known, renamed = named_leaves(like).keys(), {}
    for name, leaf in arrays.items():
        new = functools.reduce(lambda text, rule: re.sub(rule[0], rule[1], text), _ARRAYS.items(), name)
        renamed[new if new.replace("average", "policy", 1) in known or new in known else name] = leaf
    return renamed


def with_reset(rollout: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a source with where episodes begin: it matters to a policy with memory alone."""
    count = next((len(rollout[name]) for name in ("running_return", "observation") if name in rollout), None)
    return rollout if count is None else rollout | {"reset": np.zeros(count, bool)}
