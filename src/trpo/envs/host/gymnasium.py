"""Gymnasium environments, several in one process."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs import Bits, Box, Choice, Choices, Dict, EnvSpec, Space, Tree, Tuple, UnsupportedSpaceError
from trpo.envs.bounds import Bound, Number
from trpo.envs.host.closing import close_all
from trpo.envs.host.masks import told_by, with_masks
from trpo.envs.host.returned import (
    WrongAnswerError,
    begun,
    described,
    flag,
    not_a_step,
    number_in,
    plain,
    rewards,
    writer,
)
from trpo.envs.host.saving import Keeper, UnsavableError
from trpo.envs.meeting import require_alike
from trpo.envs.packages import PREFIXES, package_of, register
from trpo.envs.protocol import (
    EnvironmentFailure,
    MissingExtraError,
    Transition,
    UnknownEnvironmentError,
    UnusableEnvironmentError,
    made_with,
)
from trpo.envs.spaces import Leaf, each, require_parts
from trpo.spelling import nearest

MakeEnv = Callable[[], gym.Env]

SUPPORTED = "Box of any shape, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def space_of(space: gym.Space | None, of_actions: bool = False, part: str = "") -> Space:
    """Describe a space; where a part of it (of actions, all of it) is not supported, raise, naming that part.

    Actions keep the environment's own type. Observations are kept in one that JAX has: see :func:`_kept`.
    """
    if not isinstance(space, gym.Space):
        kind = "action" if of_actions else "observation"
        raise UnsupportedSpaceError(f"{kind} space {space!r} is not one of gymnasium.spaces")
    shape = tuple(space.shape or ())
    dtype = str(space.dtype if of_actions else _kept(space))
    match space:
        case gym.spaces.Dict():
            return Dict(tuple((k, space_of(v, of_actions, f"{part}[{k!r}]")) for k, v in space.spaces.items()))
        case gym.spaces.Tuple():
            return Tuple(tuple(space_of(child, of_actions, f"{part}[{i}]") for i, child in enumerate(space.spaces)))
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete() if not of_actions and not _has_room(space):
            where = f"observation space{f' at {part}' if part else ''}: {space}"
            raise UnsupportedSpaceError(f"{where}: its numbers must fit 32 bits; begin at 0")
        case gym.spaces.Box():
            # Gymnasium puts the ends of an integer type for infinity, but remembers that it did.
            low = bound_of(space.low, space.bounded_below, -np.inf)
            return Box(shape, dtype, low, bound_of(space.high, space.bounded_above, np.inf))
        case gym.spaces.Discrete():
            return Choice(int(space.n), int(space.start), dtype, shape)
        case gym.spaces.MultiDiscrete():
            sizes, start = (tuple(int(x) for x in np.ravel(a)) for a in (space.nvec, space.start))
            return Choices(sizes, start, shape, dtype)
        case gym.spaces.MultiBinary():
            return Bits(shape, dtype)
    kind, at = "action" if of_actions else "observation", f" at {part}:" if part else "" if of_actions else ":"
    cure = "" if of_actions else _cure_of(space, part)
    raise UnsupportedSpaceError(f"{kind} space{at} {space} is not supported; {cure}supported are {SUPPORTED}")


def _cure_of(space: gym.Space, part: str) -> str:
    """Return what to do about a space that has no arrays of a fixed shape."""
    if not isinstance(space, gym.spaces.Text | gym.spaces.Sequence | gym.spaces.Graph):
        return ""
    name = "/".join(re.findall(r"\['([^']*)'\]", part))
    leave_out = f"leave it out (--env.drop {name})" if name and name.count("/") + 1 == part.count("[") else ""
    if isinstance(space, gym.spaces.Text):
        return f"{leave_out or 'wrap the environment so that it shows numbers'}; "
    padded = "wrap the environment so that it shows arrays of one shape, padded"
    return f"{f'{leave_out}, or {padded}' if leave_out else padded}; "


def without(space: Any, drop: Sequence[str]) -> Any:
    """Return a space of observations without the parts of Dicts that ``drop`` names (``mission``, ``arm/joints``)."""
    if not drop:
        return space

    def kept(space: Any, path: str = "") -> Any:
        if not isinstance(space, gym.spaces.Dict):
            return space
        known.update({f"{path}{key}": None for key in space.spaces})
        parts = space.spaces.items()
        left = [(key, kept(part, f"{path}{key}/")) for key, part in parts if f"{path}{key}" not in drop]
        return gym.spaces.Dict(collections.OrderedDict(left))

    known: dict[str, None] = {}
    left = kept(space)
    require_parts(drop, known)
    return left


def with_spec(name: str, envs: list[Any], drop: Sequence[str] = ()) -> tuple[list[Any], EnvSpec]:
    """Return copies of an environment, their masks in their observations if they tell any, and their spaces."""
    action = space_of(getattr(envs[0], "action_space", None), of_actions=True)
    told = told_by(envs[0], action)
    envs = [with_masks(env, action, told) for env in envs]

    def spec_of(env: Any) -> EnvSpec:
        seen = space_of(without(getattr(env, "observation_space", None), drop))
        return EnvSpec(name, seen, space_of(getattr(env, "action_space", None), of_actions=True))

    spec = spec_of(envs[0])
    require_alike(spec, [spec_of(env) for env in envs[1:] if not _same_spaces(envs[0], env)])
    return envs, spec


def _same_spaces(a: Any, b: Any) -> bool:
    """Return whether two environments have equal spaces, as is usual: describing them would take longer."""
    return all(getattr(a, x, None) == getattr(b, x, None) for x in ("observation_space", "action_space"))


def _has_room(space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> bool:
    sizes = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
    each = zip(np.ravel(space.start).tolist(), np.ravel(sizes).tolist(), strict=True)
    return all(start >= -(2**31) and start + n <= 2**31 for start, n in each)


def bound_of(values: Any, present: Any = True, missing: float = 0.0) -> Bound:
    """Return the bounds of every element of an array: one number, where they are all the same.

    Where not ``present``, it is ``missing``. Numbers are floats, except integers that no float is.
    """

    def plain(x: Any) -> Number:
        return float(x) if float(x) == x else x

    pairs = zip(np.ravel(values).tolist(), np.ravel(np.broadcast_to(present, np.shape(values))).tolist(), strict=True)
    each = tuple(plain(x) if there else float(missing) for x, there in pairs)
    return each[0] if len(set(each)) == 1 else each


def _kept(space: gym.Space) -> np.dtype | None:
    """Return the type that observations are kept in: float32, or integers of up to 32 bits where they hold them."""
    if space.dtype is None or np.can_cast(space.dtype, np.int32):
        return space.dtype
    low, high, limits = getattr(space, "low", 0), getattr(space, "high", 0), np.iinfo(np.int32)
    fits = space.dtype.kind != "f" and np.all(low >= limits.min) and np.all(high <= limits.max)
    return np.dtype(np.int32 if fits else np.float32)


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Hide the deprecation warnings that MuJoCo prints while it compiles the models of Gymnasium's environments.

    They concern those models' authors, come once for every environment, and cannot be acted on by a user.
    Everything else that MuJoCo has to say is passed on as a Python warning.
    """
    try:
        import mujoco
    except Exception:  # not installed, or no such backend as MUJOCO_GL says: those who need it will hear of it
        yield
        return
    with _REPORTING:
        _BEFORE.append(mujoco.get_mju_user_warning())
        mujoco.set_mju_user_warning(_report)
    try:
        yield
    finally:
        with _REPORTING:
            before = _BEFORE.pop()
            if not _BEFORE:
                mujoco.set_mju_user_warning(before)


_REPORTING = threading.Lock()
_BEFORE: list[Any] = []
"""Where MuJoCo's warnings went when each thread that is in :func:`quiet_mujoco` came there; the last to leave puts the
first back."""


def _report(message: str) -> None:
    if "deprecated" not in message:
        gym.logger.warn(message)


def make_registered(env_id: str, **kwargs: Any) -> gym.Env:
    """Make a Gymnasium environment by id."""
    try:
        register(env_id)
        with made_with(env_id, kwargs):
            return gym.make(env_id, disable_env_checker=True, **kwargs)
    except ImportError as error:
        module = env_id.partition(":")[0]
        missing = isinstance(error, ModuleNotFoundError) and ":" in env_id and f"'{module}'" in str(error)
        cure = (package_of(env_id, []) or nearest(module, PREFIXES, "")) if missing else ""
        cure = cure and f"; {cure}"
        said = str(error).partition(". Environment registration")[0]
        raise UnknownEnvironmentError(f"environment {env_id!r} cannot be imported: {said}{cure}") from error
    except gym.error.DependencyNotInstalled as error:
        raise UnknownEnvironmentError(f"environment {env_id!r} needs another package: {error}") from error
    except gym.error.Error as error:  # unregistered, malformed, or a version that is gone
        name, known = env_id.split(":")[-1], list(gym.registry)
        if name in gym.registry:
            raise
        near = nearest(name, known, "see `gymnasium.pprint_registry()` for the names", cutoff=0.5)
        cure = "" if ":" in env_id else package_of(env_id, known)
        raise UnknownEnvironmentError(f"unknown environment {env_id!r}; {cure or near}") from error


def make_one(name: str, make: MakeEnv) -> gym.Env:
    """Make one environment, quietly."""
    try:
        with quiet_mujoco():
            env = make()
    except (
        KeyboardInterrupt,
        UnknownEnvironmentError,
        UnusableEnvironmentError,
        UnsupportedSpaceError,
        MissingExtraError,
    ):
        raise
    except BaseException as error:  # whatever the user's code raises, SystemExit included
        cure = "" if "mujoco" in sys.modules else opengl_cure()
        raise UnusableEnvironmentError(f"environment {name!r} cannot be made: {described(error)}{cure}") from error
    if not isinstance(env, gym.Env):
        raise UnusableEnvironmentError(f"the environment function returned {type(env).__name__}, not a gymnasium.Env")
    return env


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Say of whatever an environment raises, or returns that is wrong, that it was this one."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except WrongAnswerError as error:
        raise EnvironmentFailure(f"environment {name}: {error}") from error
    except BaseException as error:  # an environment may even call sys.exit
        # contextlib takes a RuntimeError whose cause is a StopIteration for that StopIteration, and raises it instead.
        cause = None if isinstance(error, StopIteration) else error
        raise EnvironmentFailure(f"environment {name} raised {described(error)}") from cause


def opengl_cure() -> str:
    """Return what to do about OpenGL where the user has chosen how to draw."""
    chosen = os.environ.get("MUJOCO_GL")
    return f"; MUJOCO_GL={chosen}: unset it, or set it to one of egl, osmesa, glfw that works here" if chosen else ""


class GymnasiumEnvs:
    """N environments stepped one after the other in this process, with same-step auto-reset.

    This differs from ``gymnasium.vector.SyncVectorEnv`` in: 1. an observation is copied before any environment is
    touched again, so that those which hand out the same array every time, even all of them one, still have true
    observations; 2. of ``info`` only an ``action_mask`` and the keys that are asked for are read, so the rest may vary.
    """

    def __init__(
        self,
        name: str,
        make: MakeEnv,
        count: int,
        rescale_actions: bool = True,
        flatten: bool = False,
        drop: Sequence[str] = (),
        info: Sequence[str] = (),
    ):
        self.info, self.given = tuple(info), frozenset[str]()
        """Keys of ``info`` that are read where an episode ends, and all that the last such ``info`` had."""
        self.count, self._name, self._valid = count, name, np.ones(count, bool)
        self._envs: list[Any] = []
        self._keepers: list[Keeper] = []
        self._unsavable = False
        self.first = 0
        """What messages call the first of these copies: others may be in other processes."""
        try:
            for _ in range(count):
                self._envs.append(make_one(name, make))
            self._envs, spec = with_spec(name, self._envs, drop)
            first, self._plain_spec, self._space = self._envs[0], spec, spec.observation
            self._write, self._flatten = writer(self._space), flatten
            leaf = self._space if isinstance(self._space, Leaf) else None
            self._shape: tuple[int, ...] | None
            self._shape, self._plain = (None, "") if leaf is None else (leaf.shape, plain(leaf))
            self.spec = spec.with_options(rescale_actions, flatten)
            self.time_limit = None if first.spec is None else first.spec.max_episode_steps
        except BaseException:
            self.close()
            raise

    def number_from(self, first: int) -> None:
        """Have messages call the first of these copies ``first``."""
        self.first = first

    def _seen(self, columns: Tree) -> Tree:
        return self._plain_spec.flatten(columns) if self._flatten else columns

    def _begin(self, keywords: dict[int, dict[str, Any]]) -> Tree:
        columns = self._space.zeros(len(keywords))
        with named(self._name):
            for row, (i, keyword) in enumerate(keywords.items()):
                self._write(columns, row, begun(self._envs[i].reset(**keyword)))
        return self._seen(columns)

    def reset(self, seeds: list[int]) -> Tree:
        return self._begin({i: {"seed": seed} for i, seed in enumerate(seeds)})

    def restart(self, which: np.ndarray) -> Tree:
        return self._begin({i: {} for i in which.tolist()})

    def step(self, action: Tree) -> Transition:
        converted = each(self.spec.action, self.spec.action.to_env(action), self.count)
        terminated, truncated = np.zeros(self.count, bool), np.zeros(self.count, bool)
        told = np.full((self.count, len(self.info)), np.nan, np.float32) if self.info else None
        gains: list[Any] = []  # an array at once: writing single numbers into one costs more than a cheap simulator
        final, first = self._space.zeros(self.count), None
        with named(self._name):
            for i, env in enumerate(self._envs):
                gained, info = self._step_one(i, converted, final, terminated, truncated)
                gains.append(gained)
                if terminated[i] or truncated[i]:
                    if told is not None:
                        told[i], self.given = [number_in(info, key) for key in self.info], frozenset(map(str, info))
                    first = self._space.zeros(self.count) if first is None else first
                    self._write(first, i, begun(env.reset()))
            reward = rewards(gains)
        observation = final = self._seen(final)
        if first is not None:
            done = terminated | truncated
            observation = self.spec.observation.map(
                lambda leaf, new, old: np.where(done.reshape(-1, *(1,) * len(leaf.shape)), new, old),
                self._seen(first),
                final,
            )
        return Transition(observation, reward, terminated, truncated, final, self._valid.copy(), told)

    def _step_one(self, i: int, action: Any, following: Tree, terminated: np.ndarray, truncated: np.ndarray) -> Any:
        """Step one environment, write its row of what follows and of how it ended; return its reward and its info."""
        answer = self._envs[i].step(action[i])
        try:
            after, gained, ended, cut, info = answer
        except (TypeError, ValueError):
            raise not_a_step(answer) from None
        if type(after) is np.ndarray and after.dtype.char in self._plain and after.shape == self._shape:
            following[i] = after  # the usual case, without a call
        else:
            self._write(following, i, after)
        if ended is not False or cut is not False:
            terminated[i], truncated[i] = flag(ended, "terminated"), flag(cut, "truncated")
        return gained, info

    def step_some(self, which: np.ndarray, action: Tree) -> Transition:
        """Step the environments with the indices ``which``, with no new episode where one ends; other rows are 0."""
        converted = each(self.spec.action, self.spec.action.to_env(action), self.count)
        following = self._space.zeros(self.count)
        terminated, truncated = np.zeros(self.count, bool), np.zeros(self.count, bool)
        reward = np.zeros(self.count, np.float32)
        with named(self._name):
            gains = [self._step_one(i, converted, following, terminated, truncated)[0] for i in which.tolist()]
            reward[which] = rewards(gains)
        following = self._seen(following)
        return Transition(following, reward, terminated, truncated, following, self._valid.copy())

    def require_savable(self) -> None:
        """Raise :class:`UnsavableError` where environments' states cannot be taken."""
        self.keepers()

    def keepers(self) -> list[Keeper]:
        """Return what takes and puts back the state of each environment, which has begun an episode."""
        if not self._keepers:
            self._keepers = [Keeper(env) for env in self._envs]
        return self._keepers

    def snapshot(self) -> Any | None:
        if self._unsavable:
            return None
        with named(self._name):
            try:
                return [keeper.save() for keeper in self.keepers()]
            except UnsavableError:
                self._unsavable = True
                return None

    def restore(self, snapshot: Any) -> None:
        with named(self._name):
            for keeper, state in zip(self.keepers(), snapshot, strict=True):
                keeper.restore(state)

    def close(self) -> None:
        envs, self._envs = self._envs, []
        close_all(envs, self._name)
