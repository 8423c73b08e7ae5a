"""What is wrong with an environment on the host, all of it at once: it is stepped, and looked at closely.

What training would meet has the words that training has for it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from trpo.envs.bounds import meaning
from trpo.envs.findings import Findings, drawn, outside
from trpo.envs.host.gymnasium import space_of, with_spec, without
from trpo.envs.host.masks import MaskedEnv, told_by
from trpo.envs.host.returned import (
    WrongAnswerError,
    begun,
    described,
    lacks,
    not_a_beginning,
    not_a_flag,
    not_a_reward,
    not_a_step,
    shown,
    writer,
)
from trpo.envs.masks import MASK, blocked, choices, none_left
from trpo.envs.meeting import not_finite, require_alike
from trpo.envs.spaces import Box, Leaf, UnsupportedSpaceError, each
from trpo.envs.spec import EnvSpec

ALIKE = 20
"""Steps of which it is compared whether they come again."""
SIGNATURE = "define reset(self, *, seed=None, options=None)"


class _FailedError(Exception):
    """The environment raised, or returned something with which nothing can go on; it is noted."""


def unsupported(space: Any, of_actions: bool, part: str = "") -> Iterator[str]:
    """Yield what :func:`space_of` refuses, of every part."""
    parts = getattr(space, "spaces", None) if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) else None
    for key, child in parts.items() if isinstance(parts, dict) else enumerate(parts or ()):
        yield from unsupported(child, of_actions, f"{part}[{key!r}]")
    try:
        if parts is None:
            space_of(space, of_actions, part)
    except UnsupportedSpaceError as error:
        yield str(error)


def look_at_spaces(name: str, env: Any, drop: Sequence[str], found: Findings) -> EnvSpec | None:
    """Note what is wrong with the spaces; return them, if training would take them."""
    seen = without(getattr(env, "observation_space", None), drop)
    for what, space in (("observation", seen), ("action", getattr(env, "action_space", None))):
        wrong = list(unsupported(space, what == "action"))
        for text in wrong:
            found.fault(text, text)
        if not wrong:
            _look_at_bounds(what, space, found)
    if found.faults:
        return None
    try:
        return with_spec(name, [env], drop)[1]
    except UnsupportedSpaceError as error:
        found.fault("spaces", str(error))
        return None


def _look_at_bounds(what: str, space: Any, found: Findings) -> None:
    for path, leaf in space_of(space, what == "action").leaves():
        if not isinstance(leaf, Box):
            continue
        part = f"{what} space{f' at {_keys(path)}' if path else ''}: {leaf}"
        low, high = (np.asarray(bound, float) for bound in (leaf.low, leaf.high))
        if np.isnan(low).any() or np.isnan(high).any():
            found.fault(part, f"{part} has a bound that is NaN; use -np.inf and np.inf where there is none")
        elif (low > high).any():
            found.fault(part, f"{part} has a lower bound above the upper one; exchange them")
        elif what == "action" and (free := np.isinf(meaning(leaf)[0]) | np.isinf(meaning(leaf)[1])).any():
            found.note(
                f"{part}: {int(free.sum())} of {leaf.size} elements have no bounds, so nothing scales them: actions "
                "begin with a deviation of policy.initial_std; give bounds where a range is known"
            )


def _keys(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)


class Walk:
    """An environment that is stepped at random, and all that it returns."""

    def __init__(self, env: Any, spec: EnvSpec | None, drop: Sequence[str], seed: int, found: Findings):
        self.env, self.found, self.seed, self.taken, self.ends = env, found, seed, 0, 0
        self.returns, self._return = set[float](), 0.0
        """Of the episodes that ended, and of the one under way."""
        self._random, self._given = np.random.default_rng(seed), env.observation_space
        self._spec, self._told = spec, None
        self._space = None
        with contextlib.suppress(UnsupportedSpaceError):
            self._space = space_of(without(self._given, drop))
        if spec is not None and (told := told_by(env, spec.action)):
            self._told = MaskedEnv(env, spec.action, told)
        if isinstance(env.action_space, gym.Space):
            env.action_space.seed(seed)
        self._shown: list[tuple[str, np.ndarray, np.ndarray]] = []

    @property
    def where(self) -> str:
        """The moment."""
        return f"(step {self.taken})" if self.taken else "(after reset)"

    def go(self, steps: int) -> bool:
        """Take so many steps, over as many episodes; return whether nothing broke off."""
        with contextlib.suppress(_FailedError):
            mask = self._reset(seed=self.seed)
            while self.taken < steps:
                ended, mask = self._step(mask)
                if ended:
                    self.returns.add(self._return)
                    self.ends, self._return = self.ends + 1, 0.0
                    mask = self._reset()
            return True
        return False

    def _call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return getattr(self.env, method)(*arguments, **keywords)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an environment may even call sys.exit
            cure = f"; {SIGNATURE}" if isinstance(error, TypeError) and "seed" in str(error) else ""
            after = " after an episode has ended" if method == "reset" and self.ends else ""
            after = f" (step {self.taken + 1})" if method == "step" else after
            self.found.fault(method, f"{method} raised {described(error)}{after}{cure}")
            raise _FailedError from error

    def _reset(self, **keywords: Any) -> Any:
        answer = self._call("reset", **keywords)
        try:
            observation = begun(answer)
        except WrongAnswerError as error:
            self.found.fault("begun", str(error))
            observation = answer[0] if isinstance(answer, tuple) and answer else answer
            info = answer[1] if isinstance(answer, tuple) and len(answer) > 1 else {}
        else:
            info = answer[1]
            if info is None:
                self.found.fault("begun", str(not_a_beginning(answer)))
        return self._look(observation, info, ended=False)

    def _step(self, mask: Any) -> tuple[bool, Any]:
        answer = self._call("step", self._action(mask))
        self.taken += 1
        self._look_at_buffer()
        if not isinstance(answer, tuple | list) or len(answer) != 5:
            self.found.fault("step", str(not_a_step(answer)))
            if not isinstance(answer, tuple | list) or len(answer) != 4:
                raise _FailedError
            answer = (*answer[:3], False, answer[3])
        observation, reward, terminated, truncated, info = answer
        if isinstance(reward, bool | np.bool_) or not isinstance(reward, int | float | np.integer | np.floating):
            self.found.fault("reward", f"{not_a_reward(reward)} {self.where}")
        elif not np.isfinite(np.asarray(reward, np.float64).astype(np.float32)):
            self.found.fault(
                "reward", f"reward is {reward} {self.where}: training refuses such a batch; look for a division"
            )
        else:
            self._return += float(reward)
        ended = False
        for name, x in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(x, bool | np.bool_):
                self.found.fault(name, f"{not_a_flag(x, name)} {self.where}")
            with contextlib.suppress(ValueError, TypeError):
                ended |= bool(x)
        if not isinstance(info, dict):
            self.found.fault("info", f"info of step is {shown(info)}: must be a dict, which may be empty")
        return ended, self._look(observation, info, ended)

    def _action(self, mask: Any) -> Any:
        if self._spec is None:  # of a kind that no policy here has
            try:
                return self.env.action_space.sample()
            except Exception as error:
                raise _FailedError from error
        action = self._spec.action
        raw = drawn(action, self._random, 1, mask)
        return each(action, action.to_env(raw), 1)[0]

    def _look(self, observation: Any, info: Any, ended: bool) -> Any:
        """Look at an observation; return the mask of what may follow it."""
        if self._space is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._look_at(observation)
        if self._told is None or ended or self._spec is None:
            return None
        try:
            mask = self._told.mask_of(observation, info)
        except WrongAnswerError as error:
            self.found.fault(MASK, f"{error} {self.where}")
            return None
        if blocked(choices(self._spec.action), mask):
            self.found.fault(MASK, f"{none_left()} {self.where}")
            return None
        return mask[None]

    def _look_at(self, x: Any) -> None:
        assert self._space is not None
        right = True
        for path, leaf in self._space.leaves():
            part, below, given = "observation", x, self._given
            try:
                for key in path:
                    below, given = below[key], given[key]
                    part += f"[{key!r}]"
            except (KeyError, IndexError, TypeError):
                self.found.fault(part, f"{lacks(part, below, key)} {self.where}")
                right = False
                continue
            if text := wrong(leaf, given, below, part):
                self.found.fault(part, f"{text} {self.where}")
                right = False
            if isinstance(below, np.ndarray):
                self._shown.append((part, below, below.copy()))
        if right and not _contains(self._given, x):
            extra = (
                set(x) - set(self._given) if isinstance(self._given, gym.spaces.Dict) and isinstance(x, dict) else ()
            )
            has = f"has parts that its space has not: {', '.join(sorted(map(str, extra)))}"
            what = f"observation {has if extra else f'{shown(x)} is not of its space'}"
            self.found.fault("observation", f"{what}; declare the space that it has {self.where}")

    def _look_at_buffer(self) -> None:
        for part, array, before in self._shown:
            if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
                self.found.fault(
                    f"{part} buffer",
                    f"{part} is one array that step changes after it was returned: who keeps observations keeps the "
                    "last one many times; return a copy (training here makes one)",
                )
        self._shown = []

    def look_at_spaces_again(self, before: tuple[Any, Any]) -> None:
        """Note spaces that are others than ``before``."""
        for what, was in zip(("observation", "action"), before, strict=True):
            if (now := getattr(self.env, f"{what}_space", None)) != was:
                text = f"{what} space was {was} and is {now} after {self.taken} steps: it must not change"
                self.found.fault(f"{what} space", text)


def wrong(leaf: Leaf, given: Any, x: Any, part: str) -> str:
    """Return what is wrong with a part of an observation of the space ``given``, described by ``leaf``."""
    columns = leaf.zeros(1)
    try:
        writer(leaf, part)(columns, 0, x)
    except WrongAnswerError as error:
        return str(error)
    if bad := not_finite(leaf, columns[0]):
        return f"{part}{bad.removeprefix('observation')}: observations must be finite"
    if isinstance(leaf, Box) and not isinstance(x, np.ndarray | np.generic):
        return f"{part} is {shown(x)}: return an array, np.asarray(…, np.{given.dtype})"
    if not isinstance(leaf, Box) or _contains(given, x):
        return "" if _contains(given, x) else f"{part} is {shown(x)}, which is not of its space {given}"
    if not np.can_cast(x.dtype, given.dtype):
        return (
            f"{part} is of type {x.dtype}, but its space has {given.dtype}: return it as that, "
            f".astype(np.{given.dtype}), or declare {x.dtype}"
        )
    if x.shape != given.shape:
        return f"{part} has shape {x.shape}, but its space has {given.shape}: return arrays of that shape"
    return outside(leaf, np.asarray(x), part)


def _contains(space: Any, x: Any) -> bool:
    try:
        return bool(space.contains(x))
    except Exception:
        return False


# ---------------------------------------------------------------- the same again


def _episode(env: Any, spec: EnvSpec, seed: int, between: Callable[[], Any] = lambda: None) -> list[Any]:
    """Return what a beginning and some steps give, for the same actions each time."""
    random, told = np.random.default_rng(seed), told_by(env, spec.action)
    asked = MaskedEnv(env, spec.action, told) if told else None
    observation, info = env.reset(seed=seed)
    seen = [copy.deepcopy([observation])]
    for _ in range(ALIKE):
        mask = None if asked is None else asked.mask_of(observation, info)[None]
        action = each(spec.action, spec.action.to_env(drawn(spec.action, random, 1, mask)), 1)[0]
        between()
        observation, *rest, info = env.step(action)
        seen.append(copy.deepcopy([observation, *rest]))
        if any(map(bool, rest[1:])):
            break
    return seen


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True))
    except TypeError:
        return bool(a == b)


def _difference(first: list[Any], second: list[Any]) -> str:
    """Return where two episodes begin to differ; empty if they do not."""
    for t, (a, b) in enumerate(zip(first, second, strict=False)):
        for name, x, y in zip(("observation", "reward", "terminated", "truncated"), a, b, strict=False):
            if not _same(x, y):
                return f"{name} {f'of step {t}' if t else 'of reset'}"
    return "" if len(first) == len(second) else "length of the episode"


def look_again(
    name: str, make: Callable[[], Any], drop: Sequence[str], spec: EnvSpec, seed: int, found: Findings
) -> None:
    """Note whether the same seed and actions give something else, and whether copies differ or disturb each other."""
    env, other = make(), make()
    try:
        spaces = [with_spec(name, [one], drop)[1] for one in (env, other)]
        require_alike(spaces[0], spaces[1:])
        if getattr(env.spec, "nondeterministic", False):
            found.note("it says that it is not deterministic, so it was not tried whether a seed gives the same again")
            return
        first = _episode(env, spec, seed)
        again = _difference(first, _episode(env, spec, seed)) or _difference(first, _episode(other, spec, seed))
        if again:
            found.fault(
                "seed",
                f"reset(seed={seed}) and the same actions gave another {again} the second time: draw all that is "
                "random from self.np_random, after super().reset(seed=seed)",
            )
            return
        other.reset(seed=seed + 1)

        def disturb() -> None:
            if any(map(bool, other.step(other.action_space.sample())[2:4])):
                other.reset()

        if not told_by(env, spec.action) and (what := _difference(first, _episode(env, spec, seed, disturb))):
            found.fault(
                "copies",
                f"two copies disturb each other ({what}): keep what changes in self, not in the class or module",
            )
    except UnsupportedSpaceError as error:
        found.fault("copies", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found.fault("again", f"a second copy, or a second episode of the first, raised {described(error)}")
    finally:
        for one in (env, other):
            with contextlib.suppress(Exception):
                one.close()
