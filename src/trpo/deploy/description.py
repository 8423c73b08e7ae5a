"""What an agent's policy is, as plain data and arrays by name: what :mod:`trpo.deploy.policy` and ONNX are made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from trpo._version import __version__
from trpo.deploy.policy import FORMAT
from trpo.envs.bounds import affine, whole
from trpo.envs.images import image_of
from trpo.envs.spaces import Box, at, by_name
from trpo.policies.convolutions import Convolutions
from trpo.policies.encoders import Flatten, Join
from trpo.policies.function import to_numpy
from trpo.policies.heads import (
    BernoulliHead,
    BetaHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    ProductHead,
    SquashedHead,
    StateDependentGaussianHead,
)
from trpo.policies.networks import Policy
from trpo.policies.recurrent import Gated
from trpo.policies.trunks import MLP
from trpo.training.agent import Agent

Arrays = dict[str, Any]
HEADS: dict[Any, str] = {
    ProductHead: "product",
    CategoricalHead: "categorical",
    MultiCategoricalHead: "categorical",
    BernoulliHead: "bernoulli",
    BetaHead: "beta",
    GaussianHead: "gaussian",
    StateDependentGaussianHead: "gaussian",
    SquashedHead: "squashed",
}
"""What a description calls the heads."""


class NoExportError(ValueError):
    """A policy has a part of one's own, which nothing but its code can compute."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A policy taken apart."""

    about: dict[str, Any]
    """JSON-able: spaces, and by which encoders, layers and heads an observation becomes an action."""
    arrays: Arrays
    """Parameters, statistics, and bounds of actions."""


def describe(agent: Agent) -> Description:
    """Take an agent's policy apart, with statistics frozen.

    Raises:
        NoExportError: a part of the policy is none of the library's.
    """
    module = agent.module
    if type(module) is not Policy:
        raise _no_export("policy", module, "a trpo.Policy of the library's encoders, trunks and heads")
    module, actor, spec = to_numpy(module), to_numpy(agent.actor()), agent.spec
    arrays: Arrays = {}
    leaves = list(spec.observation.leaves())
    normalised = []
    for i, (path, _) in enumerate(leaves):
        normaliser = None if actor.normalisers is None else at(actor.normalisers, path)
        if normaliser is not None:
            normalised.append(i)
            arrays |= {f"observation.{i}.mean": normaliser.mean, f"observation.{i}.scale": normaliser.scale}
    about = {
        "format": FORMAT,
        "made_by": f"trpo {__version__}",
        **spec.to_json(),
        "masked": spec.masked,
        "dropped": list(agent.config.env.drop),
        "frame_stack": agent.config.env.frame_stack,
        "flattened": agent.config.env.flatten,
        "normalised": normalised,
        "clip": None if math.isinf(agent.config.observation_clip) else agent.config.observation_clip,
        "encoders": _encoders(module.encoder, leaves, arrays),
        **_trunk(module.trunk, arrays),
        "head": _head(module.head, spec.action, arrays, "action."),
    }
    _mark_images(about["observation"], leaves, normalised)
    return Description(about, {name: np.asarray(array) for name, array in arrays.items()})


def _no_export(part: str, found: Any, known: str) -> NoExportError:
    kind = type(found)
    return NoExportError(
        f"the {part} of this policy is a {kind.__module__}.{kind.__qualname__}, which only its own code can compute: "
        f"exported are {known}"
    )


def _mark_images(space: dict[str, Any], leaves: list[Any], normalised: list[int]) -> None:
    """Note in a space's description which leaves an encoder gets as they are."""
    images = {path for i, (path, leaf) in enumerate(leaves) if image_of(leaf) is not None and i not in normalised}
    for path in images:
        part = space
        for key in path:
            part = part["items"][key]
        part["image"] = True


def _encoders(encoder: Any, leaves: list[Any], arrays: Arrays) -> list[dict[str, Any]]:
    places = {path: i for i, (path, _) in enumerate(leaves)}
    pairs = zip(encoder.paths, encoder.parts, strict=True) if type(encoder) is Join else [((), encoder)]
    described = []
    for i, (path, part) in enumerate(pairs):
        if type(part) is Flatten:
            about = {"kind": "row", "begin": part.begin, "end": part.end, "unit": part.unit}
        elif type(part) is Convolutions:
            about = _convolutions(part, arrays, f"encoder.{i}.")
        else:
            raise _no_export("encoder", part, "those that trpo.make_encoder makes")
        described.append({"part": places[path], "name": "/".join(map(str, path)), **about})
    return described


def _convolutions(part: Convolutions, arrays: Arrays, name: str) -> dict[str, Any]:
    for i, (kernel, bias) in enumerate(zip(part.kernels, part.biases, strict=True)):
        arrays |= {f"{name}kernel.{i}": kernel, f"{name}kernel.{i}.bias": bias}
    arrays |= {f"{name}weight": part.weight, f"{name}bias": part.bias}
    image = dataclasses.asdict(part.image)
    first = image.pop("first")
    return {
        "kind": "convolutions",
        "strides": list(part.strides),
        "channels_first": first,
        "grey": part.ndim == 2,
        **image,
    }


def _trunk(trunk: Any, arrays: Arrays) -> dict[str, Any]:
    if type(trunk) not in (MLP, Gated):
        raise _no_export("trunk", trunk, "trpo.MLP and the library's GRU and LSTM (policy.trunk)")
    mlp, memory = (trunk.before, trunk.cell) if type(trunk) is Gated else (trunk, None)
    for i, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        arrays |= {f"layer.{i}.weight": weight, f"layer.{i}.bias": bias}
    if memory:
        (weight,), (bias,) = trunk.after.weights, trunk.after.biases
        arrays |= {"memory.weight": trunk.weight, "after.weight": weight, "after.bias": bias}
    return {"layers": len(mlp.weights), "activation": mlp.activation, "memory": memory}


def _head(head: Any, space: Any, arrays: Arrays, name: str) -> dict[str, Any]:
    kind = type(head)
    if kind not in HEADS:  # exactly these: what a subclass does is its own business
        raise _no_export("head", head, "those that trpo.policies.heads.make_head makes")
    about = {"kind": HEADS[kind], "size": head.size}
    if kind is ProductHead:
        each = enumerate(zip(head.parts, by_name(space), strict=True))
        parts = [_head(part, of, arrays, f"{name}{i}.") for i, (part, (_, of)) in each]
        return {**about, "names": None if head.names is None else list(head.names), "parts": parts}
    if isinstance(space, Box):
        _bounds(space, kind in (BetaHead, SquashedHead), arrays, name)
    if kind is BetaHead:
        return {**about, "offset": head.offset}
    if kind in (GaussianHead, StateDependentGaussianHead, SquashedHead):
        gaussian = head.gaussian if kind is SquashedHead else head
        arrays[f"{name}log_std"] = gaussian.log_std
        return {**about, "min_std": gaussian.min_std}
    return about


def _bounds(space: Any, rescale: bool, arrays: Arrays, name: str) -> None:
    """Note what a Box maps actions by, as :meth:`~trpo.envs.spaces.Box.to_env_action` does in double precision."""
    box = dataclasses.replace(space, rescale=space.rescale or rescale)
    rows = zip(("low", "high", "middle", "half"), affine(box, np.dtype(np.float64)), strict=True)
    arrays |= {f"{name}{row}": values[0] for row, values in rows}
    dtype = np.dtype(box.dtype)
    if dtype.kind in "iu":
        arrays |= {f"{name}{row}": values[0] for row, values in zip(("least", "most"), whole(box, dtype), strict=True)}
