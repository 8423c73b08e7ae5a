"""What an environment in JAX returns: converted, and refused in words where it is not what it must be.

All of it happens while a program is traced, and costs nothing when it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo.envs.device.protocol import JaxEnv, Step
from trpo.envs.protocol import UnusableEnvironmentError
from trpo.envs.spaces import Leaf, Tree


def begun(env: JaxEnv, key: Any) -> tuple[Any, Tree]:
    """Return the state and the observation of ``env.reset``."""
    with _named(env, "reset"):
        answer = env.reset(key)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise TypeError(f"it returned {type(answer).__name__}, not a tuple (state, observation)")
        return answer[0], _observation(env, answer[1])


def stepped(env: JaxEnv, state: Any, action: Tree, key: Any) -> tuple[Any, Step]:
    """Return the state after ``env.step``, which has the form of the one before, and what it tells."""
    after, seen = _answer(env, state, action, key)
    with _named(env, "step"):
        _check_form(state, after)
        return after, Step(**{part: take() for part, take in _parts(env, seen).items()})


def wrong_answers(env: JaxEnv, state: Any, action: Tree, key: Any) -> list[str]:
    """Return everything that :func:`stepped` would refuse."""
    found = []
    try:
        after, seen = _answer(env, state, action, key)
    except UnusableEnvironmentError as error:
        return [str(error)]
    for check in (lambda: _check_form(state, after), *_parts(env, seen).values()):
        try:
            with _named(env, "step"):
                check()
        except UnusableEnvironmentError as error:
            found.append(str(error))
    return found


def _answer(env: JaxEnv, state: Any, action: Tree, key: Any) -> tuple[Any, Any]:
    with _named(env, "step"):
        answer = env.step(state, action, key)
        if not (isinstance(answer, tuple) and len(answer) == 2 and all(hasattr(answer[1], f) for f in Step._fields)):
            raise TypeError("it must return a tuple (state, trpo.Step), a step with observation, reward and both ends")
        return answer


def _parts(env: JaxEnv, seen: Any) -> dict[str, Callable[[], Any]]:
    """Return what converts each part of what ``step`` tells."""
    return {
        "observation": lambda: _observation(env, seen.observation),
        "reward": lambda: _number(seen.reward, "reward").astype(jnp.result_type(float)),
        "terminated": lambda: _number(seen.terminated, "terminated").astype(bool),
        "truncated": lambda: _number(seen.truncated, "truncated").astype(bool),
    }


@contextlib.contextmanager
def _named(env: JaxEnv, call: str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, UnusableEnvironmentError):
        raise
    except BaseException as error:
        first = str(error).strip().partition("\n")[0]
        raise UnusableEnvironmentError(
            f"environment {env.spec.id}: {call} cannot be compiled: {type(error).__name__}: {first}"
        ) from error


def _array(x: Any, name: str) -> Any:
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError):
        array = None
    if array is None or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(f"{name} is {type(x).__name__}, not an array of real numbers")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} is of type {array.dtype}, not an array of real numbers")
    return array


def _number(x: Any, name: str) -> Any:
    array = _array(x, name)
    if array.size != 1:
        raise TypeError(f"{name} has shape {array.shape}, but it must be one number, of shape ()")
    return array.reshape(())


def _observation(env: JaxEnv, observation: Tree) -> Tree:
    space = env.spec.observation

    def checked(leaf: Leaf, x: Any) -> Any:
        array, kind = _array(x, "observation"), np.dtype(leaf.dtype).kind
        if array.shape != leaf.shape:
            raise TypeError(f"observation has shape {array.shape}, but its space has {leaf.shape}")
        whole = not jnp.issubdtype(array.dtype, jnp.floating)
        if kind == "f":
            return array.astype(float) if whole else array
        if not whole:
            raise TypeError(f"observation is of type {array.dtype}, but its space has {leaf.dtype}")
        return array.astype(leaf.dtype)

    try:
        return space.map(checked, observation)
    except (KeyError, IndexError) as error:
        raise TypeError(f"observation lacks {error} of its space") from error


def _check_form(before: Any, after: Any) -> None:
    """Refuse a state that is not of the form of the one before: compiled loops carry one form."""
    given: Any = jax.tree.structure(before)
    if given != jax.tree.structure(after):
        raise TypeError("it returned a state of another structure than it was given")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        here, there = (f"{jnp.result_type(leaf)}{jnp.shape(leaf)}" for leaf in (x, y))
        if here != there:
            raise TypeError(f"it was given state{jax.tree_util.keystr(path)} as {here}, and returned {there}")
