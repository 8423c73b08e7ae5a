"""Gymnasium environments, several in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs import Bits, Box, Choice, Choices, Dict, EnvSpec, Space, Tree, Tuple, UnsupportedSpaceError
from trpo.envs.bounds import Bound, Number
from trpo.envs.meeting import kept
from trpo.envs.protocol import EnvironmentFailure, Transition, UnknownEnvironmentError
from trpo.envs.spec import Leaf, flat
from trpo.spelling import nearest

MakeEnv = Callable[[], gym.Env]

SUPPORTED = (
    "observations: Box of any shape, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these (flattened); "
    "actions: Box, Discrete, MultiDiscrete, MultiBinary"
)


def space_of(space: gym.Space, of_actions: bool = False, part: str = "") -> Space:
    """Describe a space; where a part of it (of actions, all of it) is not supported, raise, naming that part.

    Actions keep the environment's own type. Observations are kept in one that JAX has: see :func:`_kept`.
    """
    shape = tuple(space.shape or ())
    dtype = str(space.dtype if of_actions else _kept(space))
    match space:
        case gym.spaces.Dict() if not of_actions:
            return Dict(tuple((k, space_of(v, part=f"{part}[{k!r}]")) for k, v in space.spaces.items()))
        case gym.spaces.Tuple() if not of_actions:
            return Tuple(tuple(space_of(child, part=f"{part}[{i}]") for i, child in enumerate(space.spaces)))
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
    where = f"action space {space}" if of_actions else f"observation space{f' at {part}' if part else ''}: {space}"
    raise UnsupportedSpaceError(f"{where} is not supported; supported are {SUPPORTED}")


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
    except ImportError:
        yield
        return
    previous = mujoco.get_mju_user_warning()

    def report(message: str) -> None:
        if "deprecated" not in message:
            gym.logger.warn(message)

    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def make_registered(env_id: str, **kwargs: Any) -> gym.Env:
    """Make a Gymnasium environment by id."""
    try:
        return gym.make(env_id, disable_env_checker=True, **kwargs)
    except ImportError as error:
        raise UnknownEnvironmentError(f"environment {env_id!r} cannot be imported: {error}") from error
    except gym.error.DependencyNotInstalled as error:
        raise UnknownEnvironmentError(f"environment {env_id!r} needs another package: {error}") from error
    except gym.error.Error as error:  # unregistered, malformed, or a version that is gone
        if env_id.split(":")[-1] in gym.registry:
            raise
        near = nearest(env_id, list(gym.registry), "see `gymnasium.pprint_registry()` for the names", cutoff=0.5)
        raise UnknownEnvironmentError(f"unknown environment {env_id!r}; {near}") from error


def make_one(make: MakeEnv) -> gym.Env:
    """Make one environment, quietly."""
    with quiet_mujoco():
        env = make()
    if not isinstance(env, gym.Env):
        raise ValueError(f"the environment function returned {type(env).__name__}, not a gymnasium.Env")
    return env


def _writer(space: Space) -> Callable[[Tree, int, Tree], Any]:
    """Return ``(columns, i, x) ↦``, which writes one environment's observation into row i."""
    if not isinstance(space, Leaf):
        writers = space.map(_writer)
        return lambda columns, i, x: space.map(lambda _, write, to, part: write(to, i, part), writers, columns, x)
    shape, plain = space.shape, isinstance(space, Box) and np.dtype(space.dtype).kind == "f"

    def write(column: np.ndarray, i: int, x: Any) -> None:
        x = x if plain else kept(space, x)
        # Without the test, what has one element would silently fill the row.
        column[i] = x if getattr(x, "shape", None) == shape else np.reshape(x, shape)

    return write


class GymnasiumEnvs:
    """N environments stepped one after the other in this process, with same-step auto-reset.

    This differs from ``gymnasium.vector.SyncVectorEnv`` in: 1. an observation is copied before any environment is
    touched again, so that those which hand out the same array every time, even all of them one, still have true
    observations; 2. ``info`` is ignored, so its shapes and types may vary.
    """

    def __init__(self, name: str, make: MakeEnv, count: int, rescale_actions: bool = True, flatten: bool = False):
        self.count, self._valid = count, np.ones(count, bool)
        self._envs: list[Any] = []
        try:
            self._envs.extend(make_one(make) for _ in range(count))
            first = self._envs[0]
            self._space = space_of(first.observation_space)
            self._write, self._flatten = _writer(self._space), flatten
            seen = self._space
            shape = seen.shape if isinstance(seen, Box) and seen.dtype == "float32" else ()
            self._length = shape[0] if len(shape) == 1 else -1
            spec = EnvSpec(name, self._space, space_of(first.action_space, of_actions=True))
            self.spec = spec.with_options(rescale_actions, flatten)
            self.time_limit = None if first.spec is None else first.spec.max_episode_steps
        except BaseException:
            self.close()
            raise

    def _failure(self, error: Exception) -> EnvironmentFailure:
        return EnvironmentFailure(f"environment {self.spec.id} raised {type(error).__name__}: {error}")

    def _seen(self, columns: Tree) -> Tree:
        return flat(self._space, columns) if self._flatten else columns

    def _begin(self, keywords: dict[int, dict[str, Any]]) -> Tree:
        columns = self._space.zeros(len(keywords))
        try:
            for row, (i, keyword) in enumerate(keywords.items()):
                self._write(columns, row, self._envs[i].reset(**keyword)[0])
        except Exception as error:
            raise self._failure(error) from error
        return self._seen(columns)

    def reset(self, seeds: list[int]) -> Tree:
        return self._begin({i: {"seed": seed} for i, seed in enumerate(seeds)})

    def restart(self, which: np.ndarray) -> Tree:
        return self._begin({i: {} for i in which.tolist()})

    def step(self, action: Tree) -> Transition:
        write, length, converted = self._write, self._length, self.spec.action.to_env(action)
        terminated, truncated = np.zeros(self.count, bool), np.zeros(self.count, bool)
        reward: list[Any] = []  # an array at once: writing single numbers into one costs more than a cheap simulator
        final, first = self._space.zeros(self.count), None
        try:
            for i, env in enumerate(self._envs):
                after, gained, ended, cut, _ = env.step(converted[i])
                reward.append(gained)
                try:  # the usual case, one vector, without a call
                    if len(after) != length:
                        raise ValueError
                    final[i] = after
                except (TypeError, ValueError):
                    write(final, i, after)
                if ended or cut:
                    terminated[i], truncated[i] = ended, cut
                    first = self._space.zeros(self.count) if first is None else first
                    write(first, i, env.reset()[0])
            final = self._seen(final)
        except Exception as error:
            raise self._failure(error) from error
        observation = final
        if first is not None:
            done = terminated | truncated
            observation = self.spec.observation.map(
                lambda leaf, new, old: np.where(done.reshape(-1, *(1,) * len(leaf.shape)), new, old),
                self._seen(first),
                final,
            )
        return Transition(observation, np.array(reward, np.float32), terminated, truncated, final, self._valid.copy())

    def snapshot(self) -> Any | None:
        able = all(hasattr(env, "snapshot") and hasattr(env, "restore") for env in self._envs)
        return [env.snapshot() for env in self._envs] if able else None

    def restore(self, snapshot: Any) -> None:
        for env, state in zip(self._envs, snapshot, strict=True):
            env.restore(state)

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs = []
