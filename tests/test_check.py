"""``trpo check``: every fault is named with its cure, all of them at once, and nothing is said of what is right."""

from __future__ import annotations

import itertools
import re
import types
from typing import Any, ClassVar

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest

import trpo
from tests.test_faults import Task
from trpo.envs import Box, Choice
from trpo.envs.findings import drawn
from trpo.rollout.host import require_allowed, step_all

BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
ZEROS = np.zeros(2, np.float32)


class Mine(Task):
    """A task whose ``answer`` of step, and of reset, another test changes."""

    observation_space, action_space = BOX, gym.spaces.Discrete(2)

    def begin(self, observation: Any) -> Any:
        return observation, {}

    def answer(self, *parts: Any) -> Any:
        return parts

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.begin(super().reset(seed=seed)[0])

    def step(self, action: Any) -> Any:
        return self.answer(*super().step(action))


def mine(**otherwise: Any) -> Any:
    def mine() -> gym.Env:
        return Mine(**otherwise)

    return mine


def faults(env: Any, **how: Any) -> list[str]:
    return list(trpo.check_environment(env, trpo.Config(env=trpo.EnvConfig(count=2)), **{"steps": 30, **how}).faults)


def seen(x: Any) -> dict[str, Any]:
    return {"seen": lambda: x}


def once(x: Any, then: Any = ZEROS) -> Any:
    """Return a function that gives ``x`` the first time."""
    first = [x]
    return lambda *_: first.pop() if first else then


def buffer() -> dict[str, Any]:
    array, numbers = np.zeros(2, np.float32), iter(range(10**6))

    def seen() -> np.ndarray:
        array[:] = next(numbers) % 7 / 7
        return array

    return {"seen": seen}


class Ends(Mine):
    """It cannot begin a second time."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.time:
            raise RuntimeError("still running")
        return super().reset(seed=seed)


class OldReset(Mine):
    def reset(self) -> Any:  # type: ignore[override]
        return ZEROS, {}


class Shared(Mine):
    """All of its copies are one."""

    place: ClassVar[list[float]] = [0.0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.place[0] = 0.0
        return super().reset(seed=seed)

    def seen(self) -> Any:
        self.place[0] = (self.place[0] + 0.1) % 1
        return np.full(2, self.place[0], np.float32)


class Changes(Mine):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.action_space = gym.spaces.Discrete(2 + self.time)
        return super().reset(seed=seed)


class Forgets(Mine):
    """Its snapshot has the time, but not the generator."""

    def snapshot(self) -> Any:
        return self.time

    def restore(self, snapshot: Any) -> None:
        self.time = snapshot


class Unsaved(Forgets):
    def snapshot(self) -> Any:
        return self


class Masked(Mine):
    mask: Any = staticmethod(lambda self: [1, 0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], {"action_mask": self.mask(self)}

    def step(self, action: Any) -> Any:
        assert action == 0
        return (*super().step(action)[:4], {"action_mask": self.mask(self)})


def masked(mask: Any) -> Any:
    return lambda: Masked(mask=mask)


class NoBounds(gym.spaces.Box):
    """Whose bounds somebody wrote into afterwards."""

    def __init__(self, low: float, high: float):
        super().__init__(-1, 1, (2,), np.float32)
        self.low[:], self.high[:] = low, high


FAULTS: dict[str, tuple[Any, list[str]]] = {
    "shape": (mine(**seen(np.zeros(3, np.float32))), ["observation has shape (3,), but its space has (2,): return"]),
    "type": (mine(**seen(np.zeros(2))), ["observation is of type float64", "astype(np.float32)"]),
    "a list": (mine(**seen([0.0, 0.0])), ["observation is a list of 2", "np.asarray(…, np.float32)"]),
    "bounds": (mine(**seen(2 * np.ones(2, np.float32))), ["observation[0] is 2, but its space ends at -1 and 1"]),
    "NaN seen": (mine(**seen(np.full(2, np.nan, np.float32))), ["observation[0] is nan: observations must be finite"]),
    "no array": (mine(**seen("far")), ["observation far is not a number"]),
    "part missing": (
        mine(**seen({"a": ZEROS}), observation_space=gym.spaces.Dict(a=BOX, b=BOX)),
        ["observation is {'a'", "its space asks for a part 'b'"],
    ),
    "part too many": (
        mine(**seen({"a": ZEROS, "c": 1}), observation_space=gym.spaces.Dict(a=BOX)),
        ["observation has parts that its space has not: c; declare"],
    ),
    "one buffer": (mine(**buffer()), ["observation is one array that step changes", "return a copy"]),
    "reset": (mine(begin=lambda x: x), ["reset returned an array of shape (2,): must be a tuple (observation, info)"]),
    "info of reset": (mine(begin=lambda x: (x, None)), ["reset returned a tuple of 2: must be", "info a dict"]),
    "reset's seed": (OldReset, ["reset raised TypeError", "seed", "define reset(self, *, seed=None, options=None)"]),
    "four values": (mine(answer=lambda x, r, e, c, i: (x, r, e, i)), ["step returned a tuple of 4: must be", "0.26"]),
    "no step": (mine(answer=lambda *_: None), ["step returned None: must be a tuple"]),
    "info": (mine(answer=lambda x, r, e, c, i: (x, r, e, c, None)), ["info of step is None: must be a dict"]),
    "reward array": (mine(reward=lambda a: np.ones(1)), ["reward is an array of shape (1,): step must"]),
    "no reward": (mine(reward=lambda a: None), ["reward is None: step must return one real number"]),
    "NaN reward": (mine(reward=lambda a: np.nan), ["reward is nan (step 1): training refuses", "division"]),
    "ends": (mine(answer=lambda x, r, e, c, i: (x, r, int(e), None, i)), ["terminated is 0: step", "truncated is No"]),
    "raises": (mine(reward=lambda a: 1 / 0), ["step raised ZeroDivisionError: division by zero (step 1)"]),
    "again": (Ends, ["reset raised RuntimeError: still running after an episode has ended"]),
    "seeds": (mine(seen=lambda: np.random.default_rng().random(2).astype(np.float32)), ["gave another observation of"]),
    "copies": (Shared, ["two copies disturb each other", "in self"]),
    "spaces change": (Changes, ["action space was Discrete(2) and is Discrete(12) after 30 steps: it must not change"]),
    "copies differ": (
        lambda: Mine(observation_space=gym.spaces.Box(-1, 1, (2,), WIDTHS())),
        ["its observation space is", "in one copy and", "let nothing random choose"],
    ),
    "Text": (
        mine(**seen({}), observation_space=gym.spaces.Dict(a=gym.spaces.Text(3), b=gym.spaces.Sequence(BOX))),
        ["at ['a']: Text", "--env.drop a", "at ['b']: Sequence", "--env.drop b"],
    ),
    "actions": (mine(action_space=gym.spaces.Graph(BOX, None)), ["action space Graph", "is not supported"]),
    "no space": (mine(observation_space=None), ["observation space None is not one of gymnasium.spaces"]),
    "empty": (mine(**seen({}), observation_space=gym.spaces.Dict()), ["observation space Dict() is empty"]),
    "NaN bound": (mine(action_space=NoBounds(np.nan, 1)), ["action space: Box([nan nan]", "has a bound that is NaN"]),
    "low > high": (mine(action_space=NoBounds(1, -1)), ["action space: Box(1, -1", "lower bound above the upper one"]),
    "no action": (masked(lambda env: [0, 0]), ["the action_mask allows no action; end episodes where none is left"]),
    "mask lost": (masked(lambda env: None if env.time else [1, 0]), ["info has no 'action_mask', which it had"]),
    "snapshot": (Forgets, ["after restore(snapshot()) the same action gave something else", "generator"]),
    "no JSON": (Unsaved, ["snapshot() cannot be saved", "JSON"]),
    "not made": (lambda: 1 / 0, ["cannot be made: ZeroDivisionError"]),
    "no environment": (lambda: 3, ["the environment function returned int, not a gymnasium.Env"]),
}  # fmt: skip


def WIDTHS() -> Any:  # noqa: N802
    return next(_widths)


_widths = iter([np.float32, np.float32, np.int32] * 9)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_with_its_cure(name: str) -> None:
    env, words = FAULTS[name]
    found = faults(env)
    for word in words:
        assert any(word in fault for fault in found), found


def steps_of_training(env: Any) -> None:
    envs = trpo.make_envs(env, 1)
    observation = envs.reset([0])
    for _ in range(12):
        if envs.spec.masked:
            require_allowed(envs, observation)
        observation = step_all(envs, np.zeros(1, int)).observation


@pytest.mark.parametrize(
    "name",
    ["shape", "no array", "part missing", "reset", "four values", "no step", "no reward", "ends", "Text", "no action",
     "mask lost", "no environment", "not made", "empty"],
)  # fmt: skip
def test_training_has_the_same_words(name: str) -> None:
    env = FAULTS[name][0]
    found = faults(env)
    with pytest.raises((ValueError, trpo.EnvironmentFailure)) as error:
        steps_of_training(env)
    said = re.sub("^environment [^ ']*: ", "", str(error.value)).replace(" of copy 0", "")
    assert any(said in fault for fault in found), (said, found)


def test_what_is_too_large_for_this_machine() -> None:
    config = trpo.Config(policy=trpo.PolicyConfig(hidden=(2**19, 2**19)))
    (fault,) = trpo.check_environment("probe:both", config, steps=20).faults
    assert "parameters take" in fault


def test_all_of_them_at_once() -> None:
    found = faults(
        mine(
            seen=lambda: np.zeros(3, np.float32),
            reward=lambda action: None,
            begin=lambda x: x,
            answer=lambda x, r, e, c, i: (x, r, int(e), i),
        )
    )
    words = (
        "reset returned",
        "observation has shape",
        "step returned a tuple of 4",
        "reward is None",
        "terminated is 0",
    )
    assert all(any(word in fault for fault in found) for word in words)
    assert len(found) == len(words) + 1  # Gymnasium's own checker stops at the first


def test_one_that_is_made_already_is_looked_at_all_the_same() -> None:
    found = faults(Mine(reward=lambda action: None))
    assert "pass lambda: … that makes a new one" in found[0]
    assert any("reward is None" in fault for fault in found)


@pytest.mark.parametrize(
    "env",
    ["CartPole-v1", "probe:memory", "jax-probe:continuous", mine(), masked(lambda env: [1, 0])],
)
def test_nothing_is_said_of_what_is_right(env: Any) -> None:
    found = trpo.check_environment(env, steps=40)
    assert found.faults == ()
    assert {"observation", "action", "drawn", "saved", "speed"} <= found.facts.keys()
    assert "no fault found" in str(found)


def test_slow_environments_are_measured_for_two_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = itertools.count(), []
    monkeypatch.setattr("trpo.report.check.time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr("trpo.report.check.step_all", lambda *given: taken.append(1) or step_all(*given))
    found = trpo.check_environment("probe:both", trpo.Config(env=trpo.EnvConfig(count=4)), steps=100)
    assert found.faults == ()
    assert len(taken) == 2
    assert found.facts["speed"] == "4 steps a second (4 copies)"


def test_envpool() -> None:
    pytest.importorskip("envpool")
    found = trpo.check_environment("envpool:CartPole-v1", steps=40)
    assert found.faults == ()
    assert "steps a second" in found.facts["speed"]


class Arm:
    """An environment in JAX, with what it is told to get wrong."""

    cheap_reset = True

    def __init__(self, **otherwise: Any):
        self.spec = trpo.EnvSpec("arm", Box((2,), low=-1.0, high=1.0), Choice(3))
        for name, value in otherwise.items():
            setattr(self, name, value)

    def seen(self) -> Any:
        return jnp.zeros(2)

    def told(self, state: Any) -> Any:
        return state, trpo.Step(self.seen(), jnp.zeros(()), jnp.asarray(False), state > 5)

    def reset(self, key: Any) -> Any:
        return jnp.zeros((), int), self.seen()

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return self.told(state + 1)


@pytest.mark.parametrize(
    ("otherwise", "words"),
    [
        ({"seen": lambda: jnp.zeros(3)}, ["reset cannot be compiled: TypeError: observation has shape (3,)"]),
        ({"seen": lambda: jnp.full(2, jnp.nan)}, ["observation[0, 0] is nan: observations must be finite"]),
        ({"seen": lambda: jnp.full(2, 3.0)}, ["observation[0] is 3, but its space ends at -1 and 1"]),
        ({"seen": lambda: jnp.asarray(np.random.default_rng().random(2))}, ["another observation for the same key"]),
        (
            {"told": lambda state: (state * 1.0, trpo.Step(jnp.zeros(3), jnp.zeros(2), jnp.zeros(2), None))},
            [
                "was given state",
                "observation has shape (3,)",
                "reward has shape (2,)",
                "terminated has",
                "truncated is",
            ],
        ),
        ({"told": lambda state: state}, ["must return a tuple (state, trpo.Step)"]),
        ({"told": lambda state: (state, trpo.Step(jnp.zeros(2), jnp.inf, False, False))}, ["reward is inf"]),
        ({"spec": 3}, ["its spec is int: must be a trpo.EnvSpec"]),
        ({"__eq__": None}, ["does not equal itself"]),
    ],
)
def test_environments_in_jax(otherwise: dict[str, Any], words: list[str]) -> None:
    kind = type("Arm", (Arm,), {"__eq__": lambda a, b: False, "__hash__": lambda a: 0} if "__eq__" in otherwise else {})
    found = faults(kind(**{name: x for name, x in otherwise.items() if name != "__eq__"}))
    for word in words:
        assert any(word in fault for fault in found), found


def test_what_is_worth_knowing_is_no_fault() -> None:
    free = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    found = trpo.check_environment(
        mine(action_space=free, reward=lambda action: 0.0, answer=lambda x, r, e, c, i: (x, r, False, False, i)),
        steps=20,
    )
    assert found.faults == ()
    assert [note for note in found.notes if "have no bounds" in note and "initial_std" in note]
    assert [note for note in found.notes if "no episode ended within 20 steps" in note]
    nothing = trpo.check_environment(mine(reward=lambda action: 0.0), steps=40)
    assert [note for note in nothing.notes if "episodes of random actions had the return 0" in note]
    wide = gym.spaces.Box(-1, 1, (5000,), np.float32)
    large = trpo.check_environment(mine(observation_space=wide, seen=lambda: np.zeros(5000, np.float32)), steps=20)
    assert [note for note in large.notes if "row of 5,000 elements" in note]


def test_random_actions_are_those_that_a_mask_allows() -> None:
    from trpo.envs import Bits, Choices, Dict

    space = Dict((("b", Choice(3)), ("a", Choices((2, 4), (0, 0), (2,))), ("c", Bits((2,))), ("d", Box((2,)))))
    mask = np.array([[1, 0, 0, 1, 0, 0, 0, 0, 1]] * 50)  # by name: a's two, then b's three
    mask[:, [2, 3, 5]] = [1, 0, 1]
    mask[:25, 7] = 1
    found = drawn(space, np.random.default_rng(0), 50, mask)
    assert np.array_equal(np.unique(found["a"], axis=0), [[0, 0], [0, 3]]) or set(map(tuple, found["a"])) <= {
        (0, 0),
        (0, 3),
    }
    assert set(found["b"][:25]) == {1, 2}
    assert set(found["b"][25:]) == {2}
    assert set(np.ravel(found["c"])) == {0, 1}
    assert found["d"].shape == (50, 2)


MODULE = """
import gymnasium as gym, numpy as np
class Right(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def __init__(self, gain=1.0):
        self.gain = gain
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), float(action) * self.gain, True, False, {}
class Wrong(Right):
    def step(self, action):
        return np.zeros(2, np.float32), np.ones(3), True, False, {}
made = Right()
number = 3
"""


def test_the_command(here: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checked_arm.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--steps", 20, "--env.count", 2)
    right = here("check", "checked_arm:Right", *flags, "--env.kwargs", "gain=2")
    assert (right.returncode, right.stdout.partition("\n")[0]) == (0, "checked_arm:Right: no fault found")
    wrong = here("check", "checked_arm:Wrong", *flags)
    assert wrong.returncode == 1
    assert "✗ reward is an array of shape (3,): step must return one real number for it" in wrong.stdout
    made = here("check", "checked_arm:made", *flags)
    assert made.returncode == 1
    assert "this one is made already, and several are needed" in made.stdout
    badly = here("check", "checked_arm:Right", *flags, "--env.kwargs", "gian=2")
    assert badly.returncode == 1
    assert "cannot be made with env.kwargs gian=2" in badly.stdout
    for arguments, words in [
        (["Hoper-v5"], "nearest: Hopper-v5"),
        (["checked_arm:number"], "unknown environment"),
        (["checked_arm:Right", "--steps", "0"], "steps=0: must be ≥ 1"),
        (["checked_arm:Right", "--env.dorp", "a"], "did you mean --env.drop?"),
        (["checked_arm:Right", "--env.drop", "a"], "env.drop=a: an observation has no such part"),
    ]:
        done = here("check", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert trpo.make_envs("checked_arm:Right", 1, kwargs={"gain": 2}).spec.id == "checked_arm:Right"


def test_a_picture_is_tried() -> None:
    pytest.importorskip("pygame")
    assert "600 × 400 pixels" in trpo.check_environment("CartPole-v1", steps=5).facts["drawn"]
    assert "no picture here" in checking_of_a_fault()


def checking_of_a_fault() -> str:
    class Drawn(Mine):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

        def __init__(self, render_mode: str | None = None):
            super().__init__()
            self.render_mode = render_mode

        def render(self) -> Any:
            raise OSError("no screen")

    return trpo.check_environment(Drawn, steps=5).facts["drawn"]
