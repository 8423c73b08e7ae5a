"""The whole state of a Gymnasium environment: taken, and put back bit for bit.

An environment is a chain of wrappers around a simulator. Each of them is saved by the first of these that knows it:
its own ``snapshot()`` and ``restore(state)``; every array of the simulation for MuJoCo's tasks; the emulator with its
random state for Atari's games; for Gymnasium's other environments and wrappers, their attributes that are plain data.
What is put back must be of the kind that is there: a state may come out of somebody else's checkpoint.
"""

from __future__ import annotations

import collections
import copy
import types
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from trpo.envs.host.masks import MaskedEnv
from trpo.envs.plain import from_plain, to_plain

LAYERS = "layers"
"""The key of a state as plain data: before it, files had what the environment's own ``snapshot`` returned."""
_CONSTANT = {
    *("env", "spec", "metadata", "render_mode", "model", "data", "ale", "mujoco_renderer", "observation_structure"),
    *("_metadata", "_action_set", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"),
    *("init_qpos", "init_qvel", "_np_random_seed", "P", "desc", "initial_state_distrib"),
    *("screen", "clock", "window", "window_surface", "surf"),
}
"""Attributes that never change after an environment was made, that only drawing needs, or that a simulator has."""
_OTHERS = (gym.Space, gym.envs.registration.EnvSpec, gym.Env, types.FunctionType, types.MethodType, type)
"""Descriptions and code."""
_NUMBERS = (bool, int, float, np.generic)


class UnsavableError(ValueError):
    """An environment whose state cannot be taken: the message says which part of it and what would help."""


@runtime_checkable
class Part(Protocol):
    """One layer of an environment."""

    def save(self) -> Any:
        """Return its state, which nothing changes any more."""

    def restore(self, state: Any) -> None:
        """Put a state back; ValueError if it is not that of such a layer."""


class Own:
    """What offers ``snapshot()`` and ``restore(state)`` itself."""

    def __init__(self, env: Any):
        self._env = env

    def save(self) -> Any:
        return to_plain(self._env.snapshot())  # copied: a simulator may hand out what it goes on to change

    def restore(self, state: Any) -> None:
        self._env.restore(from_plain(state))


class Attributes:
    """Attributes that are numbers, texts, arrays, random generators, and lists, tuples, deques or dicts of these."""

    def __init__(self, env: Any):
        self._env, self._name = env, type(env).__name__
        # A wrapper's texts are names and places; of a game, such as the suit of a card, they are state.
        self._others = (*_OTHERS, str) if isinstance(env, gym.Wrapper) else _OTHERS
        for name in vars(env):
            if self._is_state(name):
                try:
                    _copied(getattr(env, name))
                except TypeError as error:
                    raise UnsavableError(f"attribute {name} of {self._name} is {error}") from None

    def _is_state(self, name: str) -> bool:
        value = vars(self._env)[name]
        drawing = type(value).__module__.partition(".")[0] == "pygame"
        return name not in _CONSTANT and not isinstance(value, self._others) and not drawing

    def save(self) -> Any:
        # Asked anew each time: an attribute may be there only after the first reset, or only for a while.
        values = vars(self._env)
        return {name: _copied(value) for name, value in values.items() if self._is_state(name)}

    def restore(self, state: Any) -> None:
        values = vars(self._env)
        for name, value in state.items():
            if name not in values or not self._is_state(name):
                raise ValueError(f"{self._name} has no {str(name)[:40]!r} of such a kind")
            values[name] = _put_back(values[name], value, f"{self._name}.{name}")


class MuJoCo:
    """A simulation of MuJoCo with all its arrays, and the task's own attributes.

    The state vector of the integration would not do: Ant and Humanoid compute their reward from positions of bodies of
    the step before. Arrays whose size changes with the contacts are computed anew in every step.
    """

    def __init__(self, env: Any):
        import mujoco

        self._env, self._attributes, self._data = env, Attributes(env), None
        fresh = mujoco.MjData(env.model)
        found = {name: getattr(fresh, name) for name in dir(fresh) if not name.startswith("_")}
        self._names = [name for name, x in found.items() if isinstance(x, np.ndarray) and x.size]
        self._views: dict[str, np.ndarray] = {}

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the simulation's own arrays, which are found once: to find them takes longer than to copy them."""
        if self._data is not self._env.data:
            self._data = self._env.data
            self._views = {name: getattr(self._data, name) for name in self._names}
        return self._views

    def save(self) -> Any:
        arrays = {name: view.copy() for name, view in self._arrays().items()}
        return {"time": self._env.data.time, "arrays": arrays, "attributes": self._attributes.save()}

    def restore(self, state: Any) -> None:
        for name, view in self._arrays().items():
            value = state["arrays"][name]
            if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != (view.shape, view.dtype):
                raise ValueError(f"array {name} is not that of such a simulation")
            view[...] = value
        self._env.data.time = _put_back(0.0, state["time"], "time")
        self._attributes.restore(state["attributes"])


class Atari:
    """An emulator with its random state."""

    def __init__(self, env: Any):
        self._env, self._attributes = env, Attributes(env)

    def save(self) -> Any:
        state = self._env.ale.cloneState(include_rng=True)
        return {"emulator": np.frombuffer(state.serialize(), np.uint8), "attributes": self._attributes.save()}

    def restore(self, state: Any) -> None:
        from ale_py import ALEState

        self._env.ale.restoreState(ALEState(np.asarray(state["emulator"], np.uint8).tobytes()))
        self._attributes.restore(state["attributes"])


def _part(env: Any) -> Part:
    # Its own: what a wrapper only passes on to what is inside says nothing of the wrapper.
    if all(hasattr(type(env), name) or name in vars(env) for name in ("snapshot", "restore")):
        return Own(env)
    module = type(env).__module__
    if module.startswith("gymnasium.envs.mujoco."):
        return MuJoCo(env)
    if module.startswith("ale_py."):
        return Atari(env)
    if module.startswith(("gymnasium.wrappers.", "gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")):
        return Attributes(env)
    raise UnsavableError(f"{type(env).__name__} cannot be saved; give it snapshot() and restore(state)")


class Keeper:
    """Takes and puts back the state of one environment.

    Raises:
        UnsavableError: one of its layers has none that can be taken.
    """

    def __init__(self, env: Any):
        self._parts: list[Part] = []
        layer: Any = env.unmasked if isinstance(env, MaskedEnv) else env
        while True:
            self._parts.append(_part(layer))
            if isinstance(self._parts[-1], Own) or not isinstance(layer, gym.Wrapper):
                break
            layer = layer.env

    def save(self) -> dict[str, Any]:
        return {LAYERS: [part.save() for part in self._parts]}

    def restore(self, state: Any) -> None:
        whole = isinstance(state, dict) and set(state) == {LAYERS}
        if not whole and not isinstance(self._parts[0], Own):
            raise ValueError("it is not the state of such an environment")
        for part, one in zip(self._parts, state[LAYERS] if whole else [state], strict=True):
            part.restore(one)


def _copied(value: Any) -> Any:
    """Copy plain data; TypeError, naming the type, for anything else."""
    match value:
        case np.ndarray() if value.dtype != object:
            return value.copy()
        case np.random.Generator():
            return copy.deepcopy(value.bit_generator.state)
        case dict():
            return {name: _copied(part) for name, part in value.items()}
        case list() | collections.deque():
            return [_copied(part) for part in value]
        case tuple():
            return tuple(_copied(part) for part in value)
        case None | str() | bool() | int() | float() | np.generic():
            return value
        case _ if _is_record(value):
            return _copied(vars(value))
    raise TypeError(f"of type {type(value).__name__}, which is no plain data")


def _put_back(present: Any, value: Any, where: str) -> Any:
    """Return a value as what is there, ``present``, has it; ValueError if it is of another kind, or no plain data."""
    fits = True
    if _shape(present) == _shape(value) is not None:
        # The same numbers may be an array after a reset, and a tuple, wider ones or a plain number after a step.
        return _copied(value)
    match present:
        case np.random.Generator():
            fits = isinstance(value, dict)
            if fits:
                present.bit_generator.state = copy.deepcopy(value)
                return present
        case str():  # NumPy's texts too, which are no numbers
            fits = isinstance(value, str)
        case np.ndarray() | bool() | int() | float() | np.generic():
            fits = value is None  # such as a last action at the beginning of an episode
        case dict():
            fits = isinstance(value, dict)
        case collections.deque():
            fits = isinstance(value, list)
            value = collections.deque(value, present.maxlen) if fits else value
        case list() | tuple():
            fits = isinstance(value, list | tuple)
            value = type(present)(value) if fits and type(present) in (list, tuple) else value
        case _ if _is_record(present):
            fits = isinstance(value, dict) and value.keys() == vars(present).keys()
            if fits:
                vars(present).update({k: _put_back(x, value[k], f"{where}.{k}") for k, x in vars(present).items()})
                return present
    if not fits:
        raise ValueError(f"{where} is {type(present).__name__}, which {type(value).__name__} in the state does not fit")
    if isinstance(value, collections.deque):
        return collections.deque(map(_copied, value), value.maxlen)
    return _copied(value)


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a number, or of an array, a tuple or a list of numbers; None of anything else."""
    if isinstance(value, (np.ndarray, *_NUMBERS)):
        return np.shape(value) if np.asarray(value).dtype.kind in "biuf" else None
    if type(value) in (tuple, list) and all(isinstance(x, _NUMBERS) for x in value):
        return (len(value),)
    return None


def _is_record(value: Any) -> bool:
    """Return whether a value is one of Gymnasium's own small records, such as running statistics."""
    return type(value).__module__.startswith("gymnasium.wrappers.")
