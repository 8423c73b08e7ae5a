"""Spaces as trees of plain data, and the one place where actions are clipped and converted."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from trpo.envs.bounds import Bound, affine, whole

Tree: TypeAlias = Any
"""Arrays in the form of a :class:`Space`: nested dicts and tuples of NumPy's on the host, of JAX's in compiled code."""

_DOUBLE = np.dtype(np.float64)


TANH = "tanh"
"""An action of a Box may be ``{"tanh": u}``: then tanh(u) is mapped onto the bounds. Near them u has more to say."""


class UnsupportedSpaceError(ValueError):
    """A space that no policy here can handle."""


class Space(abc.ABC):
    """A leaf (:class:`Box`, :class:`Choice`, :class:`Choices`, :class:`Bits`), or a dict or tuple of spaces."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Return what a person reads, in Gymnasium's words."""

    @abc.abstractmethod
    def map(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        """Return the tree of ``f(leaf, *parts)`` over the leaves of this space and the same parts of ``trees``."""

    @abc.abstractmethod
    def leaves(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
        """Yield every leaf with its path, in the space's own order."""

    def zeros(self, *leading: int) -> Tree:
        """Return zeros with these leading axes."""
        return self.map(lambda leaf: np.zeros((*leading, *leaf.shape), leaf.dtype))

    def fits(self, x: Tree) -> tuple[int, ...] | None:
        """Return the leading axes that ``x`` has before this space's own shapes, or None if it does not fit."""
        try:
            found = {_leading(leaf, at(x, path)) for path, leaf in self.leaves()}
        except (KeyError, IndexError, TypeError):
            return None
        return found.pop() if len(found) == 1 else None

    @property
    def number_count(self) -> int:
        """How many :meth:`numbers` there are of one element of this space."""
        return sum(math.prod(leaf.number_shape) for _, leaf in self.leaves())

    def numbers(self, x: Tree) -> Tree:
        """Return ``x`` as floating-point numbers: boxes and bits in their shape, choices one-hot ``[..., n]``."""
        return self.map(lambda leaf, part: leaf.to_numbers(part), x)

    def to_env(self, action: Tree) -> Tree:
        """Convert a policy's actions ``[N, …]`` to the environment's ``[N, *shape]``."""
        return self.map(lambda leaf, part: leaf.to_env_action(part), action)


def flat(space: Space, x: Tree) -> Any:
    """Return the numbers of ``x``, all leaves side by side in the space's order, ``[..., size]``."""
    parts = []
    for path, leaf in space.leaves():
        part = at(x, path)
        numbers = leaf.to_numbers(part)
        parts.append(rows(numbers, numbers.ndim - part.ndim + len(leaf.shape)))
    return parts[0] if len(parts) == 1 else parts[0].__array_namespace__().concatenate(parts, axis=-1)


def without(space: Space, drop: Sequence[str], path: str = "") -> Space:
    """Return a space without the parts of Dicts that ``drop`` names, such as ``mission`` or ``arm/joints``."""
    if not path and drop:
        require_parts(drop, _names(space))
    if not drop or not isinstance(space, Dict):
        return space
    parts = [(name, part) for name, part in space.items if f"{path}{name}" not in drop]
    return Dict(tuple((name, without(part, drop, f"{path}{name}/")) for name, part in parts))


def _names(space: Space, path: str = "") -> list[str]:
    if not isinstance(space, Dict):
        return []
    return [n for name, part in space.items for n in (f"{path}{name}", *_names(part, f"{path}{name}/"))]


def require_parts(drop: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError for names that are no part of an observation."""
    for name in drop:
        if name not in known:
            has = ", ".join(known) or "none: it is no Dict"
            raise ValueError(f"env.drop={name}: an observation has no such part; those that may be left out: {has}")


def by_name(space: Dict | Tuple) -> list[tuple[str | int, Space]]:
    """Return the parts of a space with their keys, in an order that a Dict's own does not matter to."""
    return sorted(space.items) if isinstance(space, Dict) else list(enumerate(space.items))


def each(space: Space, x: Tree, count: int) -> Any:
    """Return ``count`` rows, one after the other: each of the form of ``space``."""
    return x if isinstance(space, Leaf) else [space.map(lambda leaf, part, i=i: part[i], x) for i in range(count)]


def changed(space: Space, f: Callable[[Leaf], Space]) -> Space:
    """Return the space with ``f(leaf)`` in the place of each leaf."""
    match space:
        case Dict():
            return Dict(tuple((name, changed(part, f)) for name, part in space.items))
        case Tuple():
            return Tuple(tuple(changed(part, f) for part in space.items))
    assert isinstance(space, Leaf)
    return f(space)


def rows(x: Any, ndim: int) -> Any:
    """Return ``x`` with its last ``ndim`` axes in one."""
    leading = x.shape[: x.ndim - ndim]
    return x.reshape((*leading, math.prod(x.shape[x.ndim - ndim :])))


def at(x: Tree, path: tuple[str | int, ...]) -> Any:
    """Return the part of a tree at the path of a leaf."""
    return functools.reduce(lambda tree, key: tree[key], path, x)


def _leading(leaf: Leaf, x: Any) -> tuple[int, ...] | None:
    shape, own = np.shape(x), len(leaf.shape)
    return shape[: len(shape) - own] if len(shape) >= own and shape[len(shape) - own :] == leaf.shape else None


class Leaf(Space):
    """A space without parts."""

    shape: tuple[int, ...]
    dtype: str

    def map(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        return f(self, *trees)

    def leaves(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
        yield path, self

    @property
    def size(self) -> int:
        """Elements of one array of this space."""
        return math.prod(self.shape)

    @property
    def number_shape(self) -> tuple[int, ...]:
        """Shape of :meth:`to_numbers` of one array."""
        return self.shape

    @abc.abstractmethod
    def to_numbers(self, x: Any) -> Any:
        """Return ``x`` as floating-point numbers."""

    @abc.abstractmethod
    def to_env_action(self, action: Any) -> Any:
        """Convert a policy's actions ``[N, size]``, or ``[N]`` for a single choice, to ``[N, *shape]``."""


def _short(values: Bound) -> str:
    if not isinstance(values, tuple):
        return f"{values:.6g}"
    ends = values if len(values) <= 8 else (*values[:4], *values[-3:])
    words = [f"{x:.6g}" for x in ends]
    return f"[{' '.join(words if ends is values else [*words[:4], '…', *words[4:]])}]"


def _float(x: Any) -> Any:
    xp = x.__array_namespace__()
    return x if xp.issubdtype(x.dtype, xp.floating) else x.astype("float32")


def _one_hot(x: Any, n: int, start: int) -> Any:
    numbers = x.__array_namespace__().arange(start, start + n)
    return (x[..., None] == numbers.reshape((1,) * x.ndim + (n,))).astype("float32")


@dataclasses.dataclass(frozen=True)
class Box(Leaf):
    """Numbers in an array, with or without bounds."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: Bound = -math.inf
    high: Bound = math.inf
    rescale: bool = False
    """For actions: map [−1, 1] onto the bounds of every element that has both, so that the initial σ means the same
    share of the range everywhere. The ends of floats and of integers of 32 bits and more are no bounds."""

    def __str__(self) -> str:
        return f"Box({_short(self.low)}, {_short(self.high)}, {self.shape}, {self.dtype})"

    def to_numbers(self, x: Any) -> Any:
        return _float(x)

    def to_env_action(self, action: Any) -> Any:
        # Only what the simulator gets is clipped; in the data the policy's own action stays as it is. A NaN becomes 0:
        # the batch is refused anyway, and a simulator that is fed NaN may never recover.
        box = self
        if isinstance(action, dict):
            action, box = action[TANH], dataclasses.replace(self, rescale=True)
            action = action.__array_namespace__().tanh(action)
        xp = action.__array_namespace__()
        dtype = np.dtype(self.dtype)
        low, high, middle, half = affine(box, _DOUBLE if xp is np else action.dtype)
        with np.errstate(invalid="ignore"):  # 0 · ∞, where a Box has one number alone
            value = middle + half * action
        value = xp.minimum(xp.maximum(xp.where(xp.isnan(value), 0.0, value), low), high)
        if dtype.kind in "iub":
            value = xp.rint(value)
        with np.errstate(invalid="ignore"):  # a large integer may have no double between its bounds: see below
            value = value.astype(dtype)
        if dtype.kind in "iu":
            least, most = whole(self, value.dtype)
            value = xp.minimum(xp.maximum(value, least), most)
        return value.reshape(action.shape[:1] + self.shape)


@dataclasses.dataclass(frozen=True)
class Choice(Leaf):
    """One of ``n`` numbers from ``start`` on."""

    n: int
    start: int = 0
    dtype: str = "int32"
    shape: tuple[int, ...] = ()

    @property
    def number_shape(self) -> tuple[int, ...]:
        return (self.n,)

    def __str__(self) -> str:
        return f"Discrete({self.n}{f', start={self.start}' if self.start else ''})"

    def to_numbers(self, x: Any) -> Any:
        return _one_hot(x, self.n, self.start)

    def to_env_action(self, action: Any) -> Any:
        return action.astype(self.dtype) + np.asarray(self.start, self.dtype)


@dataclasses.dataclass(frozen=True)
class Choices(Leaf):
    """An array of choices, element i one of ``sizes[i]`` numbers from ``start[i]`` on."""

    sizes: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str = "int32"

    @property
    def number_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    def __str__(self) -> str:
        start = f", start={_short(self.start)}" if any(self.start) else ""
        return f"MultiDiscrete({_short(self.sizes)}{start}{f', {self.shape}' if len(self.shape) != 1 else ''})"

    def to_numbers(self, x: Any) -> Any:
        rows = x.reshape((*x.shape[: x.ndim - len(self.shape)], self.size))
        each = zip(self.sizes, self.start, strict=True)
        parts = [_one_hot(rows[..., i], n, start) for i, (n, start) in enumerate(each)]
        return x.__array_namespace__().concatenate(parts, axis=-1)

    def to_env_action(self, action: Any) -> Any:
        numbers = action.astype(self.dtype) + np.asarray(self.start, self.dtype)[None]
        return numbers.reshape(action.shape[:1] + self.shape)


@dataclasses.dataclass(frozen=True)
class Bits(Leaf):
    """An array of zeros and ones."""

    shape: tuple[int, ...]
    dtype: str = "int8"

    def __str__(self) -> str:
        return f"MultiBinary({self.shape})"

    def to_numbers(self, x: Any) -> Any:
        return _float(x)

    def to_env_action(self, action: Any) -> Any:
        return action.astype(self.dtype).reshape(action.shape[:1] + self.shape)


@dataclasses.dataclass(frozen=True)
class Dict(Space):
    """Spaces by name, in an order of their own."""

    items: tuple[tuple[str, Space], ...]

    def __str__(self) -> str:
        return f"Dict({', '.join(f'{name}: {space}' for name, space in self.items)})"

    def map(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        return {name: space.map(f, *(tree[name] for tree in trees)) for name, space in self.items}

    def leaves(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
        for name, space in self.items:
            yield from space.leaves((*path, name))


@dataclasses.dataclass(frozen=True)
class Tuple(Space):
    """Spaces by position."""

    items: tuple[Space, ...]

    def __str__(self) -> str:
        return f"Tuple({', '.join(map(str, self.items))})"

    def map(self, f: Callable[..., Any], *trees: Tree) -> Tree:
        return tuple([space.map(f, *parts) for space, *parts in zip(self.items, *trees, strict=True)])

    def leaves(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
        for i, space in enumerate(self.items):
            yield from space.leaves((*path, i))
