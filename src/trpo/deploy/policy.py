"""A policy that trpo has trained, in NumPy alone. All it needs is this file and the ``.npz`` that was written with it.

    from policy import Policy

    policy = Policy("policy.npz")
    action = policy(observation)                                 # the distribution's mode
    action = policy(observation, rng=np.random.default_rng(0))   # or a sample

    carry = policy.start()                                       # of a policy with memory, at an episode's beginning
    action, carry = policy(observation, carry)

An observation is taken as the environment gives it, or a batch, with a leading axis N in every part; anything else is a
ValueError. Actions are ready for the environment: clipped, rescaled, of its shapes and types. Where it tells outside of
its observations which actions are allowed, give that as ``action_mask``. ``policy.description`` says what the policy
is: spaces, what it sees of an observation, network, distribution. This file is the same for every policy; the .npz
tells them apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MASK = "action_mask"


class Policy:
    """Observations ↦ actions: see above."""

    def __init__(self, file: str | Path = "policy.npz"):
        self.description, arrays = read(file)
        about = self.description
        self._taken = Observations(about)
        self._encoders: list[tuple[int, Any]] = [
            (encoder["part"], (Row if encoder["kind"] == "row" else Convolutions)(encoder, arrays, f"encoder.{i}."))
            for i, encoder in enumerate(about["encoders"])
        ]
        self._numbers = [
            Numbers(leaf, arrays if i in about["normalised"] else None, f"observation.{i}.", about["clip"] or math.inf)
            for i, leaf in enumerate(self._taken.leaves)
        ]
        self._layers = [(arrays[f"layer.{i}.weight"], arrays[f"layer.{i}.bias"][None]) for i in range(about["layers"])]
        self._activation: Any = {"tanh": np.tanh, "relu": relu}[about["activation"]]
        self._memory = Memory(about["memory"], arrays) if about["memory"] else None
        self._head = head_of(about["head"], about["action"], arrays, "action.")

    def start(self, count: int | None = None) -> Any:
        """Return the memory at the start of an episode, or of ``count`` together; ``()`` if it has none."""
        return self._memory.start(() if count is None else (count,)) if self._memory else ()

    def __call__(
        self,
        observation: Any,
        carry: Any = None,
        *,
        action_mask: Any = None,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """Return the action, and if a ``carry`` was given, the memory after it as well."""
        parts, mask, single = self._taken(observation, action_mask)
        seen = {i: self._numbers[i](parts[i]) for i, _ in self._encoders}
        features = [encode(seen[i]) for i, encode in self._encoders]
        x = features[0] if len(features) == 1 else np.concatenate(features, axis=-1)
        *hidden, (last_weight, last_bias) = self._layers
        for weight, bias in hidden:
            x = self._activation(x @ weight + bias)
        x = x @ last_weight + last_bias
        after = carry
        if self._memory:
            x, after = self._memory(x, carry, single)
        action = self._head(x, mask, rng)
        if single:
            action = first(action)
        return action if carry is None else (action, after)


def read(file: str | Path) -> tuple[dict[str, Any], Arrays]:
    """Return description and arrays of a policy's file. No code of the file's is executed."""
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = Arrays({name: found[name] for name in found.files})
        description = json.loads(str(arrays.pop("description")))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{file} is no policy that trpo export has written, or it is damaged: {error}") from error
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {description.get('format')}, and {Path(__file__).name} reads {FORMAT}: use the "
            "policy.py that trpo export wrote with it"
        )
    return description, arrays


class Arrays(dict[str, np.ndarray]):
    """Arrays by name."""

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"the policy's file has no array {name!r}: export it again, with its policy.py")


# ---------------------------------------------------------------- observations


class Leaf:
    """A space without parts: ``box`` and ``bits`` are numbers, ``choice`` and ``choices`` integers from a start on."""

    def __init__(self, name: str, about: dict[str, Any]):
        self.name, self.kind, self.dtype = name, about["kind"], np.dtype(about["dtype"])
        self.shape = tuple(about["shape"])
        self.sizes: Any = about.get("sizes", [about.get("n")])
        self.starts: Any = about["start"] if self.kind == "choices" else [about.get("start")]
        self.image = about.get("image", False)
        """Whether its encoder gets it as it is."""

    def kept(self, x: Any) -> np.ndarray:
        """Return an array in the type that the policy takes; ValueError where that would change what it says."""
        given = np.asarray(x)
        if given.dtype.kind not in "biuf":
            raise ValueError(f"{self.name} must be numbers; found {given.dtype}")
        array = given.astype(self.dtype, copy=False)
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise ValueError(f"{self.name} must be finite; found {array[~np.isfinite(array)][0]}")
        elif not np.can_cast(given.dtype, array.dtype) and not np.array_equal(array, given):
            raise ValueError(f"{self.name} must be whole numbers that {self.dtype} holds; found {given}")
        if self.kind == "choice" and given.ndim and given.dtype.kind not in "iu":
            raise ValueError(f"{self.name} must be integers, not one-hot vectors; found {given.dtype}")
        if self.kind == "bits" and not ((array == 0) | (array == 1)).all():
            raise ValueError(f"{self.name} must be zeros and ones; found {array}")
        if self.sizes[0] is not None and self.leading(array) is not None:
            low, sizes = np.reshape(self.starts, self.shape), np.reshape(self.sizes, self.shape)
            if not ((array >= low) & (array < low + sizes)).all():
                raise ValueError(f"{self.name} must be from {low} on, of {sizes}; found {array}")
        return array

    def leading(self, x: np.ndarray) -> tuple[int, ...] | None:
        """Return the axes before those of this space, None if ``x`` does not have these."""
        own = x.ndim - len(self.shape)
        return x.shape[:own] if own >= 0 and x.shape[own:] == self.shape else None


def leaves(space: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield the leaves of a space in its order."""
    if space["kind"] in ("dict", "tuple"):
        for key, part in parts_of(space):
            yield from leaves(part, (*path, str(key)))
    else:
        yield Leaf("/".join(path) or "observation", space)


def parts_of(space: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the parts of a Dict or Tuple with their keys."""
    return list(space["items"].items() if space["kind"] == "dict" else enumerate(space["items"]))


class Observations:
    """Takes an observation apart, or a batch: its leaves as arrays ``[N, …]``."""

    def __init__(self, about: dict[str, Any]):
        self.space, self.action, self.masked, self.dropped = (
            about[name] for name in ("observation", "action", "masked", "dropped")
        )
        self.leaves = list(leaves(self.space))
        self.sizes = choices(self.action) if self.masked else []

    def __call__(self, x: Any, action_mask: Any) -> tuple[list[np.ndarray], np.ndarray | None, bool]:
        """Return leaves, mask, and whether it was a single observation."""
        x = self._with_mask(x, action_mask)
        arrays = [leaf.kept(part) for leaf, part in zip(self.leaves, self._walk(self.space, x, ""), strict=True)]
        if self.space["kind"] == "box" and self.leaves[0].leading(arrays[0]) is None:
            arrays = [self._from_row(arrays[0])]
        leading = {leaf.leading(array) for leaf, array in zip(self.leaves, arrays, strict=True)}
        axes = leading.pop()
        if leading or axes is None or len(axes) > 1:
            found = ", ".join(f"{leaf.name} {a.shape}" for leaf, a in zip(self.leaves, arrays, strict=True))
            right = ", ".join(f"{leaf.name} {leaf.shape}" for leaf in self.leaves)
            raise ValueError(
                f"observation of shapes {found}: must be {right}, or a batch, all with one more axis first"
            )
        arrays = arrays if axes else [array[None] for array in arrays]
        mask = arrays[[leaf.name for leaf in self.leaves].index(MASK)] if self.masked else None
        if mask is not None:
            parts = np.split(mask, np.cumsum(self.sizes)[:-1], axis=-1)
            if not all(part.any(axis=-1).all() for part in parts):
                raise ValueError(f"{MASK} allows no action")
        return arrays, mask, not axes

    def _walk(self, space: dict[str, Any], x: Any, name: str) -> Iterator[Any]:
        if space["kind"] not in ("dict", "tuple"):
            yield x
            return
        keys = [key for key, _ in parts_of(space)]
        if space["kind"] == "tuple":
            fits = isinstance(x, tuple | list) and len(x) == len(keys)
        else:
            fits = isinstance(x, Mapping) and {key for key in x if f"{name}{key}" not in self.dropped} == set(keys)
        if not fits:
            found = ", ".join(map(str, x)) if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(f"{name.strip('/') or 'observation'}: must be a {space['kind']} of {keys}; found {found}")
        for key, part in parts_of(space):
            yield from self._walk(part, x[key], f"{name}{key}/")

    def _from_row(self, x: np.ndarray) -> np.ndarray:
        """Return numbers in a row, ``(size,)`` or ``(N, size)``, in their shape."""
        shape = self.leaves[0].shape
        return x.reshape(x.shape[:-1] + shape) if 0 < x.ndim < 3 and x.shape[-1] == math.prod(shape) else x

    def _with_mask(self, x: Any, action_mask: Any) -> Any:
        """Return an observation with its mask, which may be given apart from it, as one vector."""
        if not self.masked:
            if action_mask is not None:
                raise ValueError(f"{MASK}: observations of this policy have no mask; leave it out")
            return x
        if action_mask is None:
            if not isinstance(x, Mapping) or x.get(MASK) is None:
                raise ValueError(f"{MASK}: the environment tells which actions are allowed; give what it tells")
            action_mask = x[MASK]
        elif isinstance(x, Mapping) and MASK in x:
            raise ValueError(f"{MASK}: the observation has it already; give it once")
        whole = set(self.space["items"]) == {"observation", MASK}
        if whole and not (isinstance(x, Mapping) and "observation" in x):
            x = {"observation": x}
        return {**x, MASK: flat_mask(self.action, action_mask)} if isinstance(x, Mapping) else x


def choices(action: dict[str, Any]) -> list[int]:
    """Return how many actions each choice has that a mask tells of: those of a Dict in the order of its names."""
    if action["kind"] in ("dict", "tuple"):
        return [n for _, part in sorted(parts_of(action), key=lambda item: item[0]) for n in choices(part)]
    return [action["n"]] if action["kind"] == "choice" else list(action.get("sizes", []))


def flat_mask(action: dict[str, Any], mask: Any) -> np.ndarray:
    """Return a mask as one vector ``[…, n]``; it may be nested as the action is, None where all is allowed."""
    size = sum(choices(action))
    if mask is None:
        return np.ones(size, np.int8)
    nested = isinstance(mask, tuple | list) and any(part is None or np.ndim(part) for part in mask)
    if action["kind"] == "dict" and isinstance(mask, Mapping):
        parts = [flat_mask(part, mask.get(name)) for name, part in sorted(parts_of(action))]
    elif action["kind"] == "tuple" and nested:
        parts = [flat_mask(part, of) for (_, part), of in zip(parts_of(action), mask, strict=True)]
    elif action["kind"] == "choices" and nested:
        parts = [np.asarray(flat_mask(action, of) if isinstance(of, tuple | list) else of) for of in mask]
    else:
        return np.asarray(mask)
    leading = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return np.concatenate([np.broadcast_to(part, (*leading, part.shape[-1])) for part in parts], axis=-1)


# ---------------------------------------------------------------- what the network is shown


class Numbers:
    """A leaf as numbers: choices one-hot, normalised if it has statistics; images as they are."""

    def __init__(self, leaf: Leaf, arrays: Arrays | None, name: str, clip: float):
        self.leaf, self.clip = leaf, clip
        self.statistics = None if arrays is None else (arrays[f"{name}mean"][None], arrays[f"{name}scale"][None])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.leaf.kind in ("choice", "choices"):
            each = zip(x.reshape(len(x), -1).T, self.leaf.sizes, self.leaf.starts, strict=True)
            hot = [column[:, None] == np.arange(start, start + n)[None] for column, n, start in each]
            x = np.concatenate(hot, axis=-1).astype(np.float32)
        elif x.dtype.kind != "f" and not self.leaf.image:
            x = x.astype(np.float32)
        if self.statistics is not None:
            mean, scale = self.statistics
            x = np.minimum(np.maximum((x - mean) * scale, -self.clip), self.clip)
        return x


class Row:
    """Elements ``begin`` to ``end`` of a leaf in a row, divided by their unit: that of pixels."""

    def __init__(self, about: dict[str, Any], arrays: Arrays, name: str):
        self.begin, self.end, self.unit = about["begin"], about["end"], about["unit"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1)[:, self.begin : self.end]
        return x if self.unit == 1 else x.astype(np.float32) / self.unit


class Convolutions:
    """Images by layers of kernels without padding, and a dense layer after them, with ReLU after each."""

    def __init__(self, about: dict[str, Any], arrays: Arrays, name: str):
        self.unit, self.channels_first, self.strides = about["unit"], about["channels_first"], about["strides"]
        self.grey = about["grey"]
        layers = range(len(self.strides))
        self.kernels = [arrays[f"{name}kernel.{i}"] for i in layers]  # [height, width, channels, outputs]
        self.biases = [arrays[f"{name}kernel.{i}.bias"][None, None, None] for i in layers]
        self.weight, self.bias = arrays[f"{name}weight"], arrays[f"{name}bias"][None]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = (x[..., None] if self.grey else x).astype(self.weight.dtype) / self.unit
        x = np.moveaxis(x, 1, 3) if self.channels_first else x
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
            x = relu(np.tensordot(windows[:, ::stride, ::stride], kernel, ((4, 5, 3), (0, 1, 2))) + bias)
        return relu(x.reshape(len(x), -1) @ self.weight + self.bias)


def relu(x: np.ndarray) -> np.ndarray:
    """Return x where it is positive, else 0."""
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + e^−x), which overflows nowhere in this form."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


# ---------------------------------------------------------------- what it remembers


class Memory:
    """A GRU or an LSTM: it is shown p, its gates' part that is of the input, and its outputs are of its memory."""

    def __init__(self, cell: str, arrays: Arrays):
        self.cell, self.names = {"gru": (self._gru, ("h",)), "lstm": (self._lstm, ("h", "c"))}[cell]
        self.weight, self.last, self.bias = arrays["memory.weight"], arrays["after.weight"], arrays["after.bias"][None]

    def start(self, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {name: np.zeros((*leading, len(self.weight)), self.weight.dtype) for name in self.names}

    def __call__(self, p: np.ndarray, carry: Any, single: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        state = self.start((len(p),))
        if carry is not None:
            right = {name: x.shape[1:] if single else x.shape for name, x in state.items()}
            if not isinstance(carry, Mapping) or {name: np.shape(x) for name, x in carry.items()} != right:
                raise ValueError(f"carry: must be a memory of the shapes {right}, as start gives it")
            state = {name: np.asarray(carry[name])[None] if single else np.asarray(carry[name]) for name in state}
        state = self.cell(p, state["h"] @ self.weight, state)
        outputs = state["h"] @ self.last + self.bias
        return outputs, {name: x[0] for name, x in state.items()} if single else state

    def _gru(self, p: np.ndarray, q: np.ndarray, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        m = q.shape[-1] // 3
        gates = sigmoid(p[:, : 2 * m] + q[:, : 2 * m])
        z, r = gates[:, :m], gates[:, m:]
        n = np.tanh(p[:, 2 * m :] + r * q[:, 2 * m :])
        return {"h": n + z * (state["h"] - n)}

    def _lstm(self, p: np.ndarray, q: np.ndarray, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        m, a = q.shape[-1] // 4, p + q
        gates = sigmoid(a[:, : 3 * m])
        i, f, o = gates[:, :m], gates[:, m : 2 * m], gates[:, 2 * m :]
        c = f * state["c"] + i * np.tanh(a[:, 3 * m :])
        return {"h": o * np.tanh(c), "c": c}


# ---------------------------------------------------------------- actions

Head = Callable[[np.ndarray, Any, Any], Any]
"""(outputs [N, size], mask [N, n] or None, generator or None for the mode) ↦ the environment's actions [N, …]."""


def head_of(about: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str) -> Any:
    """Return what makes actions of a space from the network's outputs."""
    if about["kind"] == "product":
        return Product(about, space, arrays, name)
    return {"gaussian": Box, "squashed": Box, "beta": Box, "categorical": Choices, "bernoulli": Bits}[about["kind"]](
        about, space, arrays, name
    )


class Product:
    """Independent parts, to which outputs and masks are divided; those of a Dict in the order of their names."""

    def __init__(self, about: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str):
        spaces = dict(parts_of(space))
        self.names = about["names"]
        keys = self.names or range(len(spaces))
        self.parts = [
            head_of(part, spaces[key], arrays, f"{name}{i}.")
            for i, (key, part) in enumerate(zip(keys, about["parts"], strict=True))
        ]
        self.size, self.mask_size = (sum(getattr(part, n) for part in self.parts) for n in ("size", "mask_size"))

    def __call__(self, outputs: np.ndarray, mask: Any, rng: Any) -> Any:
        actions, begin, first = [], 0, 0
        for part in self.parts:
            allowed = None if mask is None else mask[:, first : first + part.mask_size]
            actions.append(part(outputs[:, begin : begin + part.size], allowed, rng))
            begin, first = begin + part.size, first + part.mask_size
        return tuple(actions) if self.names is None else dict(zip(self.names, actions, strict=True))


class Box:
    """Numbers from a Gaussian, clipped to their bounds; or within them, from a Gaussian through tanh or a Beta."""

    mask_size = 0

    def __init__(self, about: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str):
        self.kind, self.size, self.offset = about["kind"], about["size"], about.get("offset", 0.0)
        self.shape, self.dtype = tuple(space["shape"]), np.dtype(space["dtype"])
        self.low, self.high, self.middle, self.half = (
            arrays[f"{name}{row}"][None] for row in ("low", "high", "middle", "half")
        )
        self.dimensions = self.low.shape[1]
        self.whole = (arrays[f"{name}least"][None], arrays[f"{name}most"][None]) if self.dtype.kind in "iu" else None
        if self.kind != "beta":
            self.log_std, self.min_std = arrays[f"{name}log_std"][None], about["min_std"]

    def __call__(self, outputs: np.ndarray, mask: Any, rng: Any) -> np.ndarray:
        action = self._beta(outputs, rng) if self.kind == "beta" else self._gaussian(outputs, rng)
        if self.kind != "gaussian":
            action = np.tanh(action)
        with np.errstate(invalid="ignore"):
            value = self.middle + self.half * action
        value = np.minimum(np.maximum(np.where(np.isnan(value), 0.0, value), self.low), self.high)
        value = (value if self.dtype.kind == "f" else np.rint(value)).astype(self.dtype)
        if self.whole:  # a double cannot hold every bound of 64 bits
            value = np.minimum(np.maximum(value, self.whole[0]), self.whole[1])
        return value.reshape(len(outputs), *self.shape)

    def _gaussian(self, outputs: np.ndarray, rng: Any) -> np.ndarray:
        """Return the mean, or a sample with σ = min_std + exp(log_std), to which outputs after the means are added."""
        mean, offset = outputs[:, : self.dimensions], outputs[:, self.dimensions :]
        if rng is None:
            return mean
        std = self.min_std + np.exp(self.log_std + offset if offset.size else self.log_std)
        return mean + std * rng.standard_normal(mean.shape).astype(mean.dtype)

    def _beta(self, outputs: np.ndarray, rng: Any) -> np.ndarray:
        """Return half the logit of Beta(α, β)'s mode, or of a sample: α and β are 1 + softplus(output + offset)."""
        logs = np.log1p(np.logaddexp(outputs + self.offset, np.zeros_like(outputs)))
        alpha, beta = logs[:, : self.dimensions], logs[:, self.dimensions :]
        if rng is not None:
            x, y = (np.log(rng.standard_gamma(np.exp(log))).astype(outputs.dtype) for log in (alpha, beta))
        else:
            least = np.finfo(outputs.dtype).tiny
            x, y = (np.log(np.maximum(np.expm1(log), least)) for log in (alpha, beta))
        return 0.5 * (x - y)


class Choices:
    """One of several for each element, the likeliest, or a sample by Gumbel's noise."""

    def __init__(self, about: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str):
        self.sizes, self.shape = choices(space), tuple(space["shape"])
        self.size = self.mask_size = sum(self.sizes)
        self.ends = np.cumsum(self.sizes)[:-1]
        self.start = np.atleast_1d(np.asarray(space["start"], space["dtype"]))[None]

    def __call__(self, outputs: np.ndarray, mask: Any, rng: Any) -> np.ndarray:
        logits = outputs if mask is None else np.where(mask > 0, outputs, -math.inf)
        if rng is not None:
            logits = logits + rng.gumbel(size=logits.shape)
        parts = [logits] if len(self.sizes) == 1 else np.split(logits, self.ends, axis=-1)
        chosen = np.stack([part.argmax(axis=-1) for part in parts], axis=-1)
        return (chosen.astype(self.start.dtype) + self.start).reshape(len(outputs), *self.shape)


class Bits:
    """Independent zeros and ones."""

    mask_size = 0

    def __init__(self, about: dict[str, Any], space: dict[str, Any], arrays: Arrays, name: str):
        self.size, self.shape, self.dtype = about["size"], tuple(space["shape"]), space["dtype"]

    def __call__(self, outputs: np.ndarray, mask: Any, rng: Any) -> np.ndarray:
        logits = outputs if rng is None else outputs + rng.logistic(size=outputs.shape)
        return (logits > 0).astype(self.dtype).reshape(len(outputs), *self.shape)


def first(action: Any) -> Any:
    """Return the only one of a batch."""
    if isinstance(action, dict):
        return {name: first(part) for name, part in action.items()}
    return tuple(map(first, action)) if isinstance(action, tuple) else np.asarray(action[0])
