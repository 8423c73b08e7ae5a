"""What is wrong with an environment: every fault with its cure, before anything is trained."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.utils.env_checker import check_env

from trpo.envs import Box, EnvironmentFailure, EnvSpec, HostEnv, UnsupportedSpaceError
from trpo.envs.device.protocol import JaxEnv
from trpo.envs.device.returned import begun, wrong_answers
from trpo.envs.findings import Findings, drawn, outside
from trpo.envs.host.check import Walk, look_again, look_at_spaces
from trpo.envs.host.frames import Frames
from trpo.envs.host.masks import told_by
from trpo.envs.host.returned import described
from trpo.envs.host.saving import Keeper, UnsavableError
from trpo.envs.masks import MASK
from trpo.envs.meeting import not_finite
from trpo.envs.names import Origin, make_single, refusal, resolve
from trpo.envs.plain import from_plain, to_plain
from trpo.envs.protocol import UnusableEnvironmentError
from trpo.envs.spaces import at
from trpo.report.recording import frame_of, make_drawn
from trpo.rollout.host import require_allowed, step_all
from trpo.runs.train import configure
from trpo.settings.config import Config
from trpo.settings.presets import AUTO
from trpo.spelling import in_words
from trpo.training.agent import require_seed
from trpo.training.sizes import check_networks, flat_images

STEPS = 1000
LONGEST = 0.5
"""Seconds after which no further steps are taken to measure how fast the environments are."""


@dataclasses.dataclass(frozen=True)
class EnvironmentCheck:
    """What was found in an environment."""

    id: str
    faults: tuple[str, ...]
    """What is against the interface, or stops or spoils training, each with its cure."""
    notes: tuple[str, ...]
    """What training takes, and is worth knowing."""
    facts: dict[str, str]
    """What the environment is."""

    def __str__(self) -> str:
        count = len(self.faults)
        said = f"{count} fault{'s' * (count > 1)}" if count else "no fault found"
        lines = [f"{self.id}: {said}", *(f"  ✗ {text}" for text in self.faults)]
        lines += [f"  {name:<13}{text}" for name, text in self.facts.items()]
        return "\n".join([*lines, *(f"  note: {text}" for text in self.notes)])


def check_environment(
    env: Any, config: Config | None = None, *, preset: str = AUTO, steps: int = STEPS, seed: int = 0
) -> EnvironmentCheck:
    """Step an environment at random and look for everything that would stop or spoil training in it.

    Besides Gymnasium's own checker: spaces and their bounds, what ``reset`` and ``step`` return, masks, episodes' ends,
    copies, seeds, ``snapshot`` and ``restore``; at last the environments are opened and stepped as a run does it.

    Args:
        env: as :func:`trpo.train` takes it; one that is made already is a fault, and looked at all the same.
        config: settings, of which those of ``env`` count; by default those of the preset.
        preset: as in :func:`trpo.train`.
        steps: how many to take.
        seed: of environments and actions.

    Raises:
        ValueError: there is no environment of that name, a package for it is missing, or a setting is wrong.

    >>> import trpo
    >>> trpo.check_environment("probe:both", steps=50).faults
    ()
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be ≥ 1; {STEPS} is usual")
    require_seed(seed)
    config = config or Config() if isinstance(env, gym.Env) else configure(env, config, preset)
    looked = _Look(env, config, steps, seed)
    looked.go()
    return EnvironmentCheck(looked.name, tuple(looked.found.faults.values()), tuple(looked.found.notes), looked.facts)


class _Look:
    """One look at an environment."""

    def __init__(self, env: Any, config: Config, steps: int, seed: int):
        self.env, self.config, self.steps, self.seed = env, config, steps, seed
        self.found, self.facts = Findings(), dict[str, str]()
        self.name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)

    def go(self) -> None:
        options = self.config.env
        if isinstance(self.env, gym.Env):  # one that is made already: it can be looked at all the same
            self.found.fault("made already", refusal(self.env, type(self.env).__name__))
            self._look_at_one(lambda: self.env, copies=False)
            return
        origin = resolve(self.env, options)
        try:
            device = origin.device
        except UnusableEnvironmentError as error:
            self.found.fault("made", str(error))
            return
        if device is not None:
            self._look_at_device(device)
        elif origin.ours and not str(self.env).startswith("envpool:"):
            kwargs = options.kwargs if isinstance(self.env, str) else {}
            self._look_at_one(partial(make_single, self.env, Frames.of(options), options.wrappers, **kwargs))
        if not self.found.faults:
            self._look_at_door(origin)

    @contextlib.contextmanager
    def _noting(self, kind: str) -> Iterator[None]:
        """Note what is refused as a fault."""
        try:
            yield
        except (UnusableEnvironmentError, UnsupportedSpaceError, EnvironmentFailure) as error:
            self.found.fault(kind, str(error))

    # ---------------------------------------------------------------- one on the host

    def _look_at_one(self, make: Callable[[], Any], copies: bool = True) -> None:
        found, drop = self.found, self.config.env.drop
        env: Any = None
        with self._noting("made"):
            env = make()
        if env is None:
            return
        spaces = look_at_spaces(self.name, env, drop, found)
        self._tell(env, copies)
        if all(isinstance(getattr(env, f"{what}_space", None), gym.Space) for what in ("observation", "action")):
            before = copy.deepcopy((env.observation_space, env.action_space))
            walk = Walk(env, spaces, drop, self.seed, found)
            whole = walk.go(self.steps)
            walk.look_at_spaces_again(before)
            self._tell_walk(walk, env)
            if whole and spaces is not None and copies and not found.faults.keys() & {"step", "begun", MASK}:
                look_again(self.name, make, drop, spaces, self.seed, found)
                self._look_at_snapshots(env, spaces)
        if spaces is not None and told_by(env, spaces.action):
            found.note("Gymnasium's own checker was not asked: it takes actions that a mask forbids")
        else:
            self._ask_gymnasium(env)
        if copies:
            with contextlib.suppress(Exception):
                env.close()

    def _tell(self, env: Any, named: bool) -> None:
        for what in ("observation", "action"):
            self.facts[what] = " ".join(str(getattr(env, f"{what}_space", None)).split())
        modes = [str(mode) for mode in (getattr(env, "metadata", None) or {}).get("render_modes") or ()]
        self.facts["drawn"] = f"render modes {', '.join(modes)}" if modes else "no: it has no render modes"
        if "rgb_array" in modes and named and not self.found.faults:
            self.facts["drawn"] += f"; {self._try_to_draw()}"
        elif modes and "rgb_array" not in modes:
            self.facts["drawn"] += "; trpo record needs rgb_array"

    def _try_to_draw(self) -> str:
        try:
            with contextlib.closing(make_drawn(self.env, self.config.env, self.name)) as env:
                env.reset(seed=self.seed)
                height, width = frame_of(env, self.name).shape[:2]
                return f"a picture has {width} × {height} pixels"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return f"but no picture here ({in_words(error)})"

    def _tell_walk(self, walk: Walk, env: Any) -> None:
        limit = None if getattr(env, "spec", None) is None else env.spec.max_episode_steps
        self.facts["episodes"] = f"{walk.ends:,} ended in {walk.taken:,} steps of random actions"
        self.facts["time limit"] = f"{limit:,} steps" if limit else "none that is known"
        if not walk.ends and walk.taken >= self.steps and not limit:
            self.found.note(
                f"no episode ended within {walk.taken:,} steps and no time limit is known: returns are told of ended "
                "episodes alone; register it with max_episode_steps, or end them in step"
            )
        if walk.ends > 1 and len(walk.returns) == 1:
            self.found.note(
                f"all {walk.ends:,} episodes of random actions had the return {next(iter(walk.returns)):g}: nothing is "
                "learned until another is met"
            )

    def _look_at_snapshots(self, env: Any, spec: EnvSpec) -> None:
        """See that what is put back goes on as before, and can be written to a checkpoint."""
        try:
            env.reset(seed=self.seed)
            keeper = Keeper(env)
            kept = to_plain(keeper.save())
            self.facts["saved"] = "whole: a resumed run goes on within its episodes, and vines can branch"
            action = env.action_space.sample()
            first = copy.deepcopy(env.step(action)[:4])
            keeper.restore(from_plain(json.loads(json.dumps(kept))))
            if str(first) != str(env.step(action)[:4]):
                self.found.fault(
                    "snapshot",
                    "after restore(snapshot()) the same action gave something else: a snapshot must have all that the "
                    "future depends on, the random generator included",
                )
        except KeyboardInterrupt:
            raise
        except UnsavableError as error:
            self.facts["saved"] = f"no, {error}: a resumed run begins new episodes"
        except (TypeError, ValueError, OverflowError) as error:
            self.found.fault("snapshot", f"snapshot() cannot be saved ({described(error)}): return JSON-able data")
        except BaseException as error:
            self.found.fault("snapshot", f"snapshot or restore raised {described(error)}")

    def _ask_gymnasium(self, env: Any) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                check_env(env, skip_render_check=True, skip_close_check=True)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.found.fault("gymnasium", f"Gymnasium's own checker: {described(error)}")
                return
        for warning in [] if self.found.faults else said:  # of what is a fault it speaks too
            text = " ".join(re.sub(r"\x1b\[\d*m|^WARN: ", "", str(warning.message)).split()).removeprefix("WARN: ")
            if not any(part in text for part in _OF_NO_CONCERN):
                self.found.note(f"Gymnasium's own checker: {text}")

    # ---------------------------------------------------------------- one in JAX

    def _look_at_device(self, env: JaxEnv) -> None:
        fault, spec = self.found.fault, env.spec
        try:
            if hash(env) != hash(env) or env != env:
                fault("hash", "it does not equal itself: make it a frozen dataclass")
        except Exception as error:
            cure = "make it a frozen dataclass, with eq=False if it holds arrays"
            fault("hash", f"it cannot be hashed ({described(error)}): {cure}")
        if not isinstance(spec, EnvSpec):
            fault("spec", f"its spec is {type(spec).__name__}: must be a trpo.EnvSpec")
            return
        self.facts |= {"observation": str(spec.observation), "action": str(spec.action)}
        self.facts["saved"] = "yes: its state is an array of the checkpoint"
        self.facts["drawn"] = "no: environments in JAX are not drawn"
        action = spec.action.to_env(jax.tree.map(jnp.asarray, drawn(spec.action, np.random.default_rng(0), 1)))
        one = jax.tree.map(lambda leaf: leaf[0], action)

        def trace(key: Any) -> None:
            for text in wrong_answers(env, begun(env, key)[0], one, key):
                fault(text, text)

        with self._noting("begun"):
            jax.eval_shape(trace, jax.random.key(self.seed))
        if not self.found.faults:
            key = jax.random.key(self.seed)
            first, again = (jax.tree.map(np.asarray, begun(env, key)[1]) for _ in range(2))
            if str(first) != str(again):
                fault("seed", "reset gave another observation for the same key: draw all that is random from the key")

    # ---------------------------------------------------------------- as a run opens them

    def _look_at_door(self, origin: Origin) -> None:
        options = self.config.env
        with self._noting("door"):
            envs = origin.open(options.count, options.workers)
            try:
                with self._noting("sizes"):
                    self._tell_sizes(envs.spec)
                self._step(envs)
            finally:
                if origin.ours:
                    envs.close()

    def _tell_sizes(self, spec: EnvSpec) -> None:
        self.facts.setdefault("observation", str(spec.observation))
        self.facts.setdefault("action", str(spec.action))
        self.facts.setdefault("saved", "no: a resumed run begins new episodes")
        try:
            check_networks(spec, self.config)
            for text in flat_images(spec, self.config):
                self.found.note(text)
        except ValueError as error:
            self.found.fault("size", str(error))

    def _step(self, envs: HostEnv) -> None:
        random, count, spec = np.random.default_rng(self.seed), envs.count, envs.spec
        observation = envs.reset([self.seed + i for i in range(count)])
        fits = [(path, leaf) for path, leaf in spec.observation.leaves() if isinstance(leaf, Box)]
        taken, spent = 0, 0.0
        while taken < max(self.steps, 2 * count) and spent < LONGEST:
            if bad := not_finite(spec.observation, observation):
                self.found.fault("finite", f"{bad}: observations must be finite")
                return
            for path, leaf in fits:
                part = "".join(["observation", *(f"[{key!r}]" for key in path)])
                if bad := outside(leaf, at(observation, path), part):
                    self.found.fault("bounds", bad)
            if spec.masked:
                require_allowed(envs, observation)
            action = drawn(spec.action, random, count, observation[MASK] if spec.masked else None)
            start = time.perf_counter()
            after = step_all(envs, action)
            spent += (time.perf_counter() - start) if taken else 0.0  # the first may compile
            if not np.isfinite(after.reward).all():
                bad = after.reward[~np.isfinite(after.reward)][0]
                self.found.fault("reward", f"reward is {bad}: training refuses such a batch; look for a division")
                return
            taken, observation = taken + int(after.valid.sum()), after.observation
        if spent:
            workers = f", env.workers={self.config.env.workers}" if self.config.env.workers else ""
            self.facts["speed"] = f"{(taken - count) / spent:,.0f} steps a second ({count} copies{workers})"


_OF_NO_CONCERN = (
    "different from the unwrapped",
    "is -infinity",
    "is infinity",
    "symmetric and normalized",
    "Not able to test alternative render modes",
)
"""Of Gymnasium's warnings: bounds of observations mean nothing here, those of actions are scaled at the door."""
