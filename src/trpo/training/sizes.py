"""What training takes of memory at the least, from spaces and settings; what cannot fit is refused.

An estimate counts only what is certain to be there at the same time, so that nothing is refused which fits.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.capacity import machine_memory, require_room
from trpo.envs.images import image_of, is_normalised
from trpo.envs.spaces import Box
from trpo.envs.spec import EnvSpec
from trpo.policies.encoders import flattened, make_encoder
from trpo.policies.recurrent import GATES
from trpo.settings.config import Config
from trpo.training.layout import capacity

SOLVE = 6
"""Vectors as long as θ that an update has beside it: the gradient, the solve's x, r, p and F p, and the trial."""
INFO = 60
"""Bytes of what one update of a batch tells."""
FLAT = 4000
"""Elements of one part of an observation in a row of which a run says how large they make a network."""
RUN = 4096
"""Bytes of a run's settings, and of the objects that hold its arrays."""


def _width() -> int:
    return jnp.dtype(jnp.result_type(float)).itemsize


def size_of(tree: Any) -> int:
    """Return the bytes of a tree of arrays."""
    return sum(np.size(leaf) * jnp.result_type(leaf).itemsize for leaf in jax.tree.leaves(tree))


def _outputs(spec: EnvSpec, config: Config) -> int:
    """Return the numbers that the parameters of a distribution over actions are."""
    twice = config.policy.state_dependent_std or config.policy.distribution == "beta"
    leaves = [leaf for _, leaf in spec.action.leaves()]
    return sum(math.prod(leaf.number_shape) * (2 if twice and isinstance(leaf, Box) else 1) for leaf in leaves)


def networks(spec: EnvSpec, config: Config, own: frozenset[str] = frozenset()) -> dict[str, list[tuple[int, int]]]:
    """Return the shapes of all weights of the networks that ``config`` describes, but for the user's ``own``.

    They are in the order of layers; the inputs count one more where there is a bias. A layer of kernels has the inputs
    that one of its outputs sees.
    """
    parts: dict[str, tuple[Any, int]] = {"policy": (config.policy, _outputs(spec, config)), "value": (config.value, 1)}
    found = {}
    for name, (part, outputs) in parts.items():
        if name not in own:
            encoder = make_encoder(spec.seen(part.sees), part.sees, part.encoder)
            kernels = [x.shape for x in jax.tree.leaves(encoder) if np.ndim(x) > 1]
            found[name] = [(math.prod(shape[:-1]) + 1, shape[-1]) for shape in kernels]
            found[name] += _weights(encoder.size, part, outputs)
    return found


def flat_images(spec: EnvSpec, config: Config, own: frozenset[str] = frozenset()) -> list[str]:
    """Return a line for each network that takes very many elements of one part of an observation in a row."""
    said = []
    for name in ("policy", "value"):
        part = getattr(config, name)
        for path, size in () if name in own else flattened(make_encoder(spec.seen(part.sees), part.sees, part.encoder)):
            if size > FLAT:
                units = (*part.hidden, _outputs(spec, config) if name == "policy" else 1)[0]
                where = "/".join(map(str, path)) or "observation"
                said.append(
                    f"{name}: {where} is put in a row of {size:,} elements, so that its first layer has {size:,} × "
                    f"{units} = {size * units:,} weights; images, of three axes and of uint8 or with the bounds 0 and "
                    f"255 or 1, go through convolutions with {name}.encoder=auto"
                )
    return said


def _weights(inputs: int, part: Any, outputs: int) -> list[tuple[int, int]]:
    gates, memory = GATES.get(part.trunk, 0), part.memory
    widths = inputs, *part.hidden, gates * memory or outputs
    layers = [(n + 1, m) for n, m in itertools.pairwise(widths)]
    return [*layers, (memory, gates * memory), (memory + 1, outputs)] if gates else layers


def count_parameters(spec: EnvSpec, config: Config, own: frozenset[str] = frozenset()) -> int:
    """Return how many parameters they have."""
    weights = [shape for network in networks(spec, config, own).values() for shape in network]
    return sum(inputs * outputs for inputs, outputs in weights)


def check_networks(spec: EnvSpec, config: Config, own: frozenset[str] = frozenset()) -> None:
    """Refuse networks whose parameters alone are larger than this machine's memory."""
    for name, layers in networks(spec, config, own).items():
        count = sum(inputs * outputs for inputs, outputs in layers)
        part = getattr(config, name)
        # An orthogonal matrix is drawn and decomposed in double precision; each gate has one of its own.
        drawing = 2 * 8 * max(inputs * outputs for inputs, outputs in layers) // GATES.get(part.trunk, 1)
        memory = f", {name}.memory={part.memory}" if part.trunk in GATES else ""
        inputs = layers[-len(_weights(1, part, 1))][0] - 1
        what = (
            f"{name}.hidden={part.hidden}{memory}, with {inputs:,} inputs and {layers[-1][1]:,} outputs: "
            f"{count:,} parameters"
        )
        require_room(f"{what} take", max(_width() * count, drawing), "use narrower layers, or smaller spaces")


def check_number_of_runs(runs: int, learner: Any = None) -> None:
    """Refuse more runs than this machine's memory can hold, each with a ``learner`` of its own."""
    cure = "use fewer seeds, or vary fewer values"
    require_room(f"seeds: {runs:,} runs take", runs * (RUN + size_of(learner)), cure)


def check_training(agent: Any, on_host: bool, runs: int = 1, devices: int = 1) -> None:
    """Refuse settings with which an iteration of ``runs`` like this ``agent`` could not fit.

    ``on_host``: environments are stepped there, and the batch is then moved; else all is divided over ``devices``.
    """
    width = _width()
    config, spec, learner, batch = agent.config, agent.spec, agent.learner, agent.config.batch
    met = sum(leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in spec.observation.leaves())
    # What a step keeps: observations and successors, reward, ends; what the policy was shown, and its gradient needs.
    once = on_host and any(image_of(leaf) for _, leaf in spec.observation.leaves())
    trajectory = (1 if once else 2) * met + width + 3
    kept = 0
    if config.normalise_observations:
        shown = (leaf for _, leaf in spec.observation.leaves() if config.normalise_all or is_normalised(leaf))
        kept = sum(math.prod(leaf.number_shape) for leaf in shown)
    if "policy" not in agent.own:
        kept += sum(config.policy.hidden) + _outputs(spec, config)
        kept += (GATES.get(config.policy.trunk, -1) + 1) * config.policy.memory
    size = f"env.count={config.env.count}, fragment={config.fragment}: a batch of {batch:,} steps"
    fewer = "use fewer environments or shorter fragments"
    if on_host:
        require_room(f"{size} takes", batch * trajectory, fewer)
    room, where = capacity(), f"each {jax.devices()[0].platform} device"
    if on_host and jax.devices()[0].platform == "cpu":
        room, where = machine_memory(), "this machine"
    if room is None:
        return
    if (plan := agent.program().vine) is not None:
        vine, steps = config.vine, plan.branch_steps(config.env.count, config.fragment)
        every, length = min(vine.every, config.fragment), vine.length
        what = f"vine.every={every}, vine.length={length}: {steps // length:,} branches of {length:,} steps take"
        # Of each step reward and whether it was taken; of each branch what followed it.
        require_room(
            what, (steps * (width + 1) + steps // length * met) // devices, "use fewer or shorter ones", room, where
        )
    learned = size_of(learner) * runs // devices + SOLVE * size_of(learner.policy)
    per_step = (trajectory if on_host else met) + width * kept
    what = f"{size} and an update of {size_of(learner.policy) // width:,} parameters take"
    require_room(what, learned + batch * per_step // devices, f"{fewer}, or smaller networks", room, where)
    value = config.value
    if value.method == "adam" and 0 < 2 * value.minibatch <= batch:
        what = f"value.epochs={value.epochs}: the order of {batch:,} steps in each takes"
        require_room(what, 4 * value.epochs * batch // devices, "use fewer; 10 is usual", room, where)
    what = f"updates_per_batch={config.updates_per_batch}: what each tells takes"
    require_room(what, INFO * config.updates_per_batch, "use fewer; 1 is usual", room, where)
