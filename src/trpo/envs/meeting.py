"""Where an agent meets an environment: their spaces must mean the same, and an observation be of its space."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from trpo.envs.bounds import meaning
from trpo.envs.masks import MASK, blocked, choices, flat_mask
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Leaf, Space, Tree, Tuple, UnsupportedSpaceError, at
from trpo.envs.spec import EnvSpec
from trpo.spelling import on_one_line

Path = tuple[str | int, ...]

# ---------------------------------------------------------------- spaces


def require_same_spaces(agent: EnvSpec, env: EnvSpec) -> None:
    """Raise ValueError, naming both spaces, unless an agent made for ``agent`` may act in ``env``.

    Ids may differ, and so may what changes no meaning: bounds of observations, the widths of types, the order of a
    dict. An action's number, its bounds and whether it is rescaled do change it, beyond single precision.
    """
    found = [
        f"{what}s of the agent are {ours}, those of environment {env.id!r} {theirs}{how}"
        for what, ours, theirs, how in (
            ("observation", agent.observation, env.observation, ""),
            ("action", agent.action, env.action, _rescaled(agent.action, env.action)),
        )
        if not _same(ours, theirs, of_actions=what == "action")
    ]
    if found:
        raise ValueError(f"{'; '.join(found)}: an agent acts only where its spaces are those that it was made for")


def require_alike(first: EnvSpec, others: Iterable[EnvSpec]) -> None:
    """Raise ValueError, naming the spaces, unless all copies of an environment have the same."""
    for other in others:
        for what in ("observation", "action"):
            here, there = getattr(first, what), getattr(other, what)
            if not _same(here, there, of_actions=what == "action"):
                raise UnsupportedSpaceError(
                    f"environment {first.id!r}: its {what} space is {here} in one copy and {there} in another; all "
                    "must have the same, so let nothing random choose it"
                )


def _rescaled(ours: Space, theirs: Space) -> str:
    how = [{leaf.rescale for _, leaf in space.leaves() if isinstance(leaf, Box)} for space in (ours, theirs)]
    if how[0] == how[1] or not all(len(each) == 1 for each in how):
        return ""
    return f", with env.rescale_actions={how[0].pop()} and {how[1].pop()}"


def _same(ours: Space, theirs: Space, of_actions: bool) -> bool:
    match ours, theirs:
        case Dict(), Dict():
            mine, other = dict(ours.items), dict(theirs.items)
            return mine.keys() == other.keys() and all(_same(mine[k], other[k], of_actions) for k in mine)
        case Tuple(), Tuple():
            pairs = list(zip(ours.items, theirs.items, strict=False))
            return len(ours.items) == len(theirs.items) and all(_same(a, b, of_actions) for a, b in pairs)
        case Box(), Box():
            same = ours.shape == theirs.shape and _is_float(ours) == _is_float(theirs)
            if same and of_actions:  # the same bound may come in single and in double precision
                both = zip(meaning(ours), meaning(theirs), strict=True)
                return all(np.allclose(a, b, rtol=1e-6, atol=0) for a, b in both)
            return same
        case (Choice(), Choice()) | (Choices(), Choices()) | (Bits(), Bits()):
            return {**vars(ours), "dtype": ""} == {**vars(theirs), "dtype": ""}
    return False


def _is_float(box: Box) -> bool:
    return np.dtype(box.dtype).kind == "f"


# ---------------------------------------------------------------- observations


def kept(leaf: Leaf, x: Any, part: str = "observation") -> np.ndarray:
    """Return an array in the type of ``leaf``, of any shape; ValueError where that would change what ``part`` says.

    NaN and infinity may stand among floats: they are another's to refuse.
    """
    try:
        given = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{part} of type {type(x).__name__} is not an array: {error}") from error
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{part} {on_one_line(x, 60)} is not a number or an array of numbers")
    with np.errstate(invalid="ignore", over="ignore"):
        array = given.astype(leaf.dtype, copy=False)
    if array.dtype.kind in "biu" and not np.can_cast(given.dtype, array.dtype) and not np.array_equal(array, given):
        raise ValueError(f"{part} {on_one_line(x, 60)} must be whole numbers that {leaf.dtype} holds, for {leaf}")
    if not np.all(_inside(leaf, array)):
        raise ValueError(f"{part} {on_one_line(x, 60)} is not of {leaf}")
    return array


def _inside(leaf: Leaf, x: np.ndarray) -> Any:
    match leaf:
        case Choice():
            return (x >= leaf.start) & (x < leaf.start + leaf.n)
        case Choices() if x.shape[x.ndim - len(leaf.shape) :] == leaf.shape:
            low = np.reshape(leaf.start, leaf.shape)
            return (x >= low) & (x < low + np.reshape(leaf.sizes, leaf.shape))
        case Bits():
            return (x == 0) | (x == 1)
    return True


def not_finite(space: Space, x: Tree) -> str:
    """Return which part of observations has NaN or infinity, such as ``joints[3] is nan``; empty if none has."""
    for path, leaf in space.leaves():
        part = at(x, path)
        if np.dtype(leaf.dtype).kind == "f" and not np.isfinite(part).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(part))[0])
            return f"{_name(path)}{list(index) or ''} is {np.asarray(part)[index]}"
    return ""


def _name(path: Path) -> str:
    return "/".join(map(str, path)) or "observation"


def taken(space: Space, x: Any) -> tuple[Tree, bool]:
    """Return observations as a tree of arrays ``[N, …]``, and whether it was a single one.

    Taken are: one observation as the environment gives it; a batch of them, every part with a leading axis N; and for
    a Box of another number of axes than one, its numbers in a row, ``(size,)`` or ``(N, size)``. Nothing is guessed
    from sizes. In particular an array for a Discrete space is a batch of its integers: a vector of floats or bools
    (a one-hot vector) is refused.

    Raises:
        ValueError: it is something else, has another structure or shape, is not finite, or its numbers would change in
            the type that observations are kept in.
    """
    tree = _walk(space, x, ())
    if isinstance(space, Box):
        tree = _from_row(space, tree)
    leading = space.fits(tree)
    if leading is None or len(leading) > 1:
        shapes = ", ".join(f"{_name(path)} of shape {at(tree, path).shape}" for path, _ in space.leaves())
        raise ValueError(f"{shapes}: {_expected(space)}")
    bad = not_finite(space, tree)
    if bad:
        raise ValueError(f"{bad}: observations must be finite")
    return (tree, False) if leading else (space.map(lambda leaf, part: part[None], tree), True)


def without(space: Space, x: Any, drop: Collection[str], path: str = "") -> Any:
    """Return an observation without the parts of Dicts that ``drop`` names, such as ``arm/joints``, if it has them."""
    if not (drop and isinstance(space, Dict) and isinstance(x, Mapping)):
        return x
    known, there = dict(space.items), {name: part for name, part in x.items() if f"{path}{name}" not in drop}
    return {
        name: without(known[name], part, drop, f"{path}{name}/") if name in known else part
        for name, part in there.items()
    }


def observed(spec: EnvSpec, observation: Any, mask: Any = None, drop: Collection[str] = ()) -> tuple[Tree, bool]:
    """Return observations as :func:`taken` does, with their masks: parts of them, or given apart from them.

    Parts that ``drop`` names, which the agent is not shown (``env.drop``), may be there.

    Raises:
        ValueError: as in :func:`taken`; a mask is missing, is none, or allows no action.
    """
    observation = without(spec.observation, observation, drop)
    if not spec.masked:
        if mask is not None:
            raise ValueError(f"{MASK}: observations of environment {spec.id!r} have no mask; leave it out")
        return taken(spec.observation, observation)
    names = {path[0] for path, _ in spec.features.leaves()}
    if mask is not None and not (isinstance(observation, Mapping) and MASK in observation):
        whole = names == {"observation"} and not (isinstance(observation, Mapping) and observation.keys() == names)
        observation = {**({"observation": observation} if whole else observation), MASK: mask}
    elif mask is not None:
        raise ValueError(f"{MASK}: the observation has it already; give it once")
    if not isinstance(observation, Mapping) or MASK not in observation:
        raise ValueError(f"{MASK}: environment {spec.id!r} tells which actions are allowed; give it what it tells")
    flat = flat_mask(spec.action, observation[MASK])
    x, single = taken(spec.observation, {**observation, MASK: flat})
    if (none := blocked(choices(spec.action), x[MASK])).any():
        raise ValueError(f"{MASK} allows no action{'' if single else f' in row {int(np.argmax(none))}'}")
    return x, single


def _from_row(box: Box, x: np.ndarray) -> np.ndarray:
    given = box.shape in (x.shape, x.shape[1:]) or x.shape not in ((box.size,), (*x.shape[:1], box.size))
    return x if given or len(box.shape) == 1 else x.reshape(x.shape[:-1] + box.shape)


def _expected(space: Space) -> str:
    if not isinstance(space, Leaf):
        parts = ", ".join(f"{_name(path)} {leaf.shape}" for path, leaf in space.leaves())
        return f"must be one of {space}, with shapes {parts}, or a batch, all parts with one leading axis N"
    batch = f"({', '.join(['N', *map(str, space.shape)])}{'' if space.shape else ','})"
    row = f", or its numbers in a row, ({space.size},) or (N, {space.size})"
    return f"must be one of {space}, or a batch {batch}" + row * (isinstance(space, Box) and len(space.shape) > 1)


def _walk(space: Space, x: Any, path: Path) -> Tree:
    match space:
        case Dict():
            names = [name for name, _ in space.items]
            if not isinstance(x, Mapping):
                raise ValueError(f"{_name(path)} is of type {type(x).__name__}: {_expected(space)}")
            if set(x) != set(names):
                has = ", ".join(map(str, x)) or "none"
                raise ValueError(f"{_name(path)} has parts {has}: must have {', '.join(names)}")
            return {name: _walk(part, x[name], (*path, name)) for name, part in space.items}
        case Tuple():
            if not isinstance(x, tuple | list) or len(x) != len(space.items):
                of = f" of {len(x)}" if isinstance(x, tuple | list) else ""
                raise ValueError(f"{_name(path)} is of type {type(x).__name__}{of}: {_expected(space)}")
            return tuple(_walk(part, x[i], (*path, i)) for i, part in enumerate(space.items))
    assert isinstance(space, Leaf)
    try:
        array = kept(space, x)
        if isinstance(space, Choice) and array.ndim and np.asarray(x).dtype.kind not in "iu":
            raise ValueError(
                f"observation {on_one_line(x, 60)} is not an array of integers; one-hot vectors are not taken"
            )
    except ValueError as error:
        raise ValueError(f"{f'{_name(path)}: ' if path else ''}{error}; {_expected(space)}") from error
    return array
