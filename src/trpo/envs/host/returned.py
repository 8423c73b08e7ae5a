"""What one environment returns: taken apart, converted, and refused in words where it is not what it must be.

What is usual passes by a comparison; everything else is looked at closely.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo.envs.meeting import kept
from trpo.envs.spaces import Box, Choice, Dict, Leaf, Space, Tree, Tuple
from trpo.spelling import on_one_line

Write = Callable[[Tree, int, Tree], None]
"""(columns, i, x) ↦, which writes one environment's observation into row i."""


class WrongAnswerError(ValueError):
    """An environment returned something else than the interface asks for; the message says what, and the cure."""


def begun(answer: Any) -> Any:
    """Return the observation that ``reset`` returned."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict | None):
        return answer[0]
    raise not_a_beginning(answer)


def not_a_beginning(answer: Any) -> WrongAnswerError:
    """Say what is wrong with something that ``reset`` returned."""
    return WrongAnswerError(
        f"reset returned {shown(answer)}: must be a tuple (observation, info), info a dict; {_CURE.format('reset')}"
    )


def stepped(answer: Any) -> tuple[Any, bool]:
    """Return the observation that ``step`` returned, and whether the episode has ended."""
    try:
        observation, reward, terminated, truncated, _ = answer
    except (TypeError, ValueError):
        raise not_a_step(answer) from None
    rewards([reward])
    return observation, flag(terminated, "terminated") | flag(truncated, "truncated")


def not_a_step(answer: Any) -> WrongAnswerError:
    """Say what is wrong with something that ``step`` returned and that has not five parts."""
    return WrongAnswerError(
        f"step returned {shown(answer)}: must be a tuple (observation, reward, terminated, truncated, info); "
        f"{_CURE.format('step')}"
    )


_CURE = "if it was written for gym before 0.26, return this from its {} or wrap it"


def shown(x: Any) -> str:
    """Return what something is, in one line."""
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape}"
    return on_one_line(repr(x))


def flag(x: Any, name: str) -> bool:
    """Return whether an episode has ended: a bool, or one number that is 0 or 1, in an array or not."""
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if (number := _number(x)) in (0, 1):
        return bool(number)
    raise not_a_flag(x, name)


def not_a_flag(x: Any, name: str) -> WrongAnswerError:
    """Say that ``terminated`` or ``truncated`` is neither."""
    return WrongAnswerError(f"{name} is {shown(x)}: step must return True or False for it")


def rewards(each: list[Any]) -> np.ndarray:
    """Return the rewards of a step ``[N]``, each a real number or an array of one."""
    array = _array(each)
    if array is None or array.shape != (len(each),) or array.dtype.kind not in "fiub":
        found = [_number(x) for x in each]
        if None in found:
            raise not_a_reward(each[found.index(None)])
        array = np.array(found, float)
    return array.astype(np.float32)


def not_a_reward(x: Any) -> WrongAnswerError:
    """Say that a reward is no number."""
    return WrongAnswerError(f"reward is {shown(x)}: step must return one real number for it")


def _number(x: Any) -> float | None:
    """Return the real number that ``x`` is, or the only one in an array; None if it is neither."""
    array = _array(x)
    if array is not None and array.size == 1 and array.dtype.kind in "fiub":
        return float(array.item())
    return float(x) if isinstance(x, numbers.Real) else None


def _array(x: Any) -> np.ndarray | None:
    try:
        return np.asarray(x)
    except Exception:  # rows of different lengths, or an object with ideas of its own
        return None


def writer(space: Space, part: str = "observation") -> Write:
    """Return what writes an observation of ``space`` into a row of columns; ``part`` is what messages call it."""
    if isinstance(space, Dict | Tuple):
        items = space.items if isinstance(space, Dict) else enumerate(space.items)
        writers = [(key, writer(child, f"{part}[{key!r}]")) for key, child in items]

        def write_parts(columns: Tree, i: int, x: Any) -> None:
            for key, write in writers:
                try:
                    below = x[key]
                except (KeyError, IndexError, TypeError) as error:
                    raise lacks(part, x, key) from error
                write(columns[key], i, below)

        return write_parts
    assert isinstance(space, Leaf)
    return _leaf_writer(space, part)


def lacks(part: str, x: Any, key: str | int) -> WrongAnswerError:
    """Say that an observation has not a part of its space."""
    return WrongAnswerError(f"{part} is {shown(x)}: its space asks for a part {key!r}")


def plain(leaf: Leaf) -> str:
    """Return the types, by their characters, of which an array of the right shape need not be looked at."""
    if not isinstance(leaf, Box):
        return ""
    return "fd" if np.issubdtype(leaf.dtype, np.floating) else np.dtype(leaf.dtype).char


def _leaf_writer(leaf: Leaf, part: str) -> Write:
    shape, size = leaf.shape, leaf.size
    one_of, usual = leaf if isinstance(leaf, Choice) else None, plain(leaf)

    def write(column: np.ndarray, i: int, x: Any) -> None:
        if type(x) is np.ndarray and x.dtype.char in usual and x.shape == shape:
            column[i] = x
            return
        if one_of is not None and isinstance(x, int | np.integer) and one_of.start <= x < one_of.start + one_of.n:
            column[i] = x
            return
        try:
            array = kept(leaf, x, part)
        except ValueError as error:
            raise WrongAnswerError(str(error)) from error
        if array.shape != shape:
            if array.size != 1 or size != 1:
                raise WrongAnswerError(
                    f"{part} has shape {array.shape}, but its space has {shape}: return arrays of that shape, or "
                    "declare the space that they have"
                )
            array = array.reshape(shape)
        column[i] = array

    return write


def described(error: BaseException) -> str:
    """Return the kind of an error and what it says, in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
