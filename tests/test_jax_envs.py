"""Environments in JAX: adapters keep dynamics, clocks and final observations; names, batches and actions."""

from __future__ import annotations

import dataclasses
import importlib
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import trpo
from trpo.envs import Bits, Box, Choice, Choices, Dict, EnvSpec, MissingExtraError, Space, Tuple, UnsupportedSpaceError
from trpo.envs.device import Flattened, JaxEnv, Step, batch
from trpo.envs.device.brax import from_brax
from trpo.envs.device.gymnax import from_gymnax
from trpo.envs.host.gymnasium import space_of
from trpo.envs.host.probes import MEMORY_STEPS, NAMES, TIME_LIMIT, Probe
from trpo.envs.names import as_jax_env, make_envs
from trpo.envs.protocol import UnknownEnvironmentError
from trpo.policies.function import memoryless
from trpo.rollout import noise_of
from trpo.rollout.device import DeviceSource
from trpo.rollout.trajectory import Actor

COIN = Choice(2)


def batched(env: JaxEnv, state: batch.BatchState, action: Any) -> tuple[batch.BatchState, Any]:
    """One step of every environment, with new initial states wherever an episode ended."""
    actions = env.spec.with_options(rescale=True, flatten=False).action
    return jax.jit(lambda state, action: batch.step(env, actions, state, action, lambda done: batch.fresh(env, state)))(
        state, action
    )


# ---------------------------------------------------------------- gymnax: dynamics of Gymnasium's classic control


class Case(NamedTuple):
    fields: tuple[str, ...]
    """Of gymnax's state, in the order of Gymnasium's."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Where states are drawn: beyond the bounds at which episodes end."""
    action: Callable[[np.random.Generator], Any]
    rows: int = 150


CLASSIC = {
    "CartPole-v1": Case(
        ("x", "x_dot", "theta", "theta_dot"),
        (-2.5, -2, -0.25, -2),
        (2.5, 2, 0.25, 2),
        lambda random: int(random.integers(2)),
    ),
    "Pendulum-v1": Case(
        ("theta", "theta_dot"), (-9, -8), (9, 8), lambda random: random.uniform(-3, 3, 1).astype(np.float32)
    ),
    "MountainCar-v0": Case(
        ("position", "velocity"), (-1.2, -0.07), (0.6, 0.07), lambda random: int(random.integers(3))
    ),
}


@pytest.mark.rank_promotion
@pytest.mark.parametrize("name", CLASSIC)
def test_gymnax_steps_like_gymnasium(name: str) -> None:
    """The same state and action give the same successor, reward and termination, to float32 rounding."""
    pytest.importorskip("gymnax")
    case = CLASSIC[name]
    env, reference = as_jax_env(f"gymnax:{name}"), gym.make(name).unwrapped
    assert env is not None
    random = np.random.default_rng(0)
    states = random.uniform(case.low, case.high, (case.rows, len(case.low))).astype(np.float32)
    actions = [case.action(random) for _ in range(case.rows)]
    reference.reset(seed=0)
    rows = []
    for state, action in zip(states, actions, strict=True):
        reference.state = state.astype(np.float64)
        if name == "CartPole-v1":
            reference.steps_beyond_terminated = None
        observation, reward, terminated, _, _ = reference.step(action)
        rows.append((observation, reward, terminated))
    observations, rewards, terminations = (np.array(column) for column in zip(*rows, strict=True))

    template, _ = env.reset(jax.random.key(0))
    like = template.replace(**dict(zip(case.fields, states.T, strict=True)))
    inside = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (case.rows,)), like)
    key = jax.random.key(1)
    _, seen = jax.jit(jax.vmap(lambda s, a: env.step(s, a, key)))(inside, jnp.asarray(np.array(actions)))
    np.testing.assert_allclose(seen.observation, observations, rtol=2e-5, atol=2e-5)
    alive = np.ones(case.rows, bool)
    if name == "CartPole-v1":  # what it pays for going on from a state that had ended is nobody's concern
        alive = (np.abs(states[:, 0]) <= 2.4) & (np.abs(states[:, 2]) <= reference.theta_threshold_radians)
    np.testing.assert_allclose(seen.reward[alive], rewards[alive], rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(seen.terminated, terminations)
    assert not seen.truncated.any()
    if name != "Pendulum-v1":
        assert 0.05 < terminations[alive].mean() < 0.95


@pytest.mark.rank_promotion
def test_gymnax_environments_are_specified_as_gymnasium_s() -> None:
    """A policy for the one fits the other."""
    pytest.importorskip("gymnax")
    for name in (*CLASSIC, "Acrobot-v1", "MountainCarContinuous-v0"):
        ours, theirs = as_jax_env(f"gymnax:{name}"), trpo.make_envs(name, 1).spec
        assert ours is not None
        assert isinstance(theirs.observation, Box)
        assert ours.spec.observation == Box(theirs.observation.shape)  # bounds are not asked for
        action: Any = theirs.action
        ours = ours.spec.with_options(rescale=True, flatten=False)
        assert ours.action == dataclasses.replace(action, dtype=ours.action.dtype)


# ---------------------------------------------------------------- gymnax: the clock


@pytest.mark.rank_promotion
def test_gymnax_time_limit_is_truncation_and_final_observations_are_true_successors() -> None:
    """Five steps an episode; four carts: at the limit, fallen at the limit, fallen earlier, none of these."""
    gymnax = pytest.importorskip("gymnax")
    cartpole, params = gymnax.make("CartPole-v1")
    env = from_gymnax(cartpole, params.replace(max_steps_in_episode=5), "short")
    start = batch.start(env, jax.random.key(0), 4)
    fallen = 0.3  # radians; episodes end at 0.209
    state = start.env.replace(
        x=jnp.array([0.5, 0.6, 0.7, 0.8]),
        x_dot=jnp.array([1.0, 1.0, 1.0, -1.0]),
        theta=jnp.array([0.0, fallen, fallen, 0.0]),
        time=jnp.array([4, 4, 2, 2]),
    )
    after, seen = batched(env, dataclasses.replace(start, env=state), jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(seen.terminated, [False, True, True, False])
    np.testing.assert_array_equal(seen.truncated, [True, False, False, False])
    assert seen.valid.all()
    # x' = x + τ x_dot with τ = 0.02, whatever the force.
    np.testing.assert_allclose(seen.final_observation[:, 0], [0.52, 0.62, 0.72, 0.78], rtol=1e-6)
    assert (np.abs(seen.observation[:3]) <= 0.05).all()  # where episodes begin
    np.testing.assert_array_equal(seen.observation[3], seen.final_observation[3])
    np.testing.assert_array_equal(seen.observation, after.observation)
    np.testing.assert_array_equal(after.env.time, [0, 0, 0, 3])
    assert len(np.unique(np.asarray(seen.observation[:3, 0]))) == 3  # each begins anew on its own


class Timed(NamedTuple):
    x: Any
    time: Any


class Timeless(NamedTuple):
    x: Any


class Old:
    """The form before gymnax 1.0: ``done`` includes the limit and there is no ``is_truncated``. Absorbing: x ≥ 3."""

    def __init__(self, clock: bool):
        self.clock = clock

    def reset_env(self, key: Any, params: Any) -> tuple[Any, Any]:
        state = Timed(jnp.zeros(()), 0) if self.clock else Timeless(jnp.zeros(()))
        return {"x": state.x[None], "two": jnp.ones((1, 2))}, state

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        x = state.x + action
        done, after = x >= 3, Timeless(x)
        if self.clock:
            after = Timed(x, state.time + 1)
            done = done | (after.time >= params.max_steps_in_episode)
        return {"x": x[None], "two": jnp.ones((1, 2))}, after, x, done, {}

    def observation_space(self, params: Any) -> Any:
        return SimpleNamespace()

    def action_space(self, params: Any) -> Any:
        return type("Discrete", (), {"n": 2, "dtype": np.int32})()


def test_done_of_an_older_gymnax_environment_is_truncation_at_the_limit_alone() -> None:
    env = from_gymnax(Old(clock=True), SimpleNamespace(max_steps_in_episode=4), "old")
    assert env.spec.observation == Dict((("two", Box((1, 2))), ("x", Box((1,)))))
    assert Flattened(env).spec.observation == Box((3,))
    state = Timed(jnp.array([0.0, 2.0, 2.0, 0.0]), jnp.array([3, 3, 1, 1]))
    _, seen = jax.vmap(env.step)(state, jnp.ones(4, jnp.int32), jax.random.split(jax.random.key(0), 4))
    # The second is absorbed in the very last step, which ``done`` cannot tell: documented as truncation.
    np.testing.assert_array_equal(seen.truncated, [True, True, False, False])
    np.testing.assert_array_equal(seen.terminated, [False, False, True, False])
    np.testing.assert_array_equal(seen.observation["x"][:, 0], [1, 3, 3, 1])
    np.testing.assert_array_equal(seen.observation["two"], np.ones((4, 1, 2)))
    _, flat = jax.vmap(Flattened(env).step)(state, jnp.ones(4, jnp.int32), jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(flat.observation, [[1, 1, 1], [1, 1, 3], [1, 1, 3], [1, 1, 1]])


def test_an_older_gymnax_environment_without_a_clock_never_truncates() -> None:
    env = from_gymnax(Old(clock=False), SimpleNamespace(max_steps_in_episode=1), "old")
    _, seen = jax.vmap(env.step)(Timeless(jnp.array([0.0, 2.0])), jnp.ones(2, jnp.int32), jnp.zeros(2))
    np.testing.assert_array_equal(seen.terminated, [False, True])
    np.testing.assert_array_equal(seen.truncated, [False, False])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Seen:
    flag: Any
    count: Any


def test_gymnax_observations_keep_their_form_and_types() -> None:
    class Mixed(Old):
        def reset_env(self, key: Any, params: Any) -> tuple[Any, Any]:
            image, flag = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3), jnp.asarray([True, False])
            seen = {"z": [image, 0.5], "a": Timed(flag, 3), "m": Seen(flag[0], jnp.zeros(2, jnp.int16))}
            return seen, super().reset_env(key, params)[1]

    env = from_gymnax(Mixed(clock=False), None, "mixed")
    assert env.spec.observation == Dict(
        (
            ("a", Tuple((Bits((2,), "bool"), Box((), "int32")))),
            ("m", Tuple((Bits((), "bool"), Box((2,), "int16")))),
            ("z", Tuple((Box((2, 3), "uint8"), Box(())))),
        )
    )
    _, seen = env.reset(jax.random.key(0))
    assert env.spec.observation.fits(seen) == ()
    assert jax.tree.structure(seen) == jax.tree.structure(env.spec.observation.zeros())
    env.spec.observation.map(lambda leaf, x: np.testing.assert_equal(str(x.dtype), leaf.dtype), seen)
    _, flat = Flattened(env).reset(jax.random.key(0))
    np.testing.assert_array_equal(flat, [1, 0, 3, 1, 0, 0, *range(6), 0.5])


def test_gymnax_action_spaces() -> None:
    class WithSpace(Old):
        def __init__(self, space: Any):
            super().__init__(clock=False)
            self.space = space

        def action_space(self, params: Any) -> Any:
            return self.space

    box = type("Box", (), {"low": np.array([-1.0, -2.0]), "high": 3.0, "shape": (2,), "dtype": np.float32})()
    spec = from_gymnax(WithSpace(box), None, "box").spec.action
    assert spec == Box((2,), "float32", low=(-1.0, -2.0), high=3.0)
    with pytest.raises(
        UnsupportedSpaceError, match="of mine is not supported; supported are Box, Discrete, and Dict or Tuple"
    ):
        from_gymnax(WithSpace(object()), None, "mine")


# ---------------------------------------------------------------- brax


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class BraxState:
    """What brax's own state offers."""

    obs: Any
    reward: Any
    done: Any
    x: Any

    def replace(self, **changes: Any) -> BraxState:
        return dataclasses.replace(self, **changes)


class BraxLike:
    """x counts actions up from a random start in [0, 0.5); absorbing: x ≥ 3, and then ``done`` sticks."""

    action_size = 2

    def reset(self, rng: Any) -> BraxState:
        assert rng.shape == (2,)  # these environments were written for raw keys
        x = jax.random.uniform(rng, maxval=0.5)
        return BraxState(self._look(x), jnp.zeros(()), jnp.zeros(()), x)

    def step(self, state: BraxState, action: Any) -> BraxState:
        x = state.x + action[0]
        return BraxState(self._look(x), 10 * x, jnp.maximum(state.done, jnp.where(x >= 3, 1.0, 0.0)), x)

    def _look(self, x: Any) -> Any:
        return {"state": x[None], "privileged_state": jnp.full((7,), jnp.nan)}


def test_brax_time_limit_is_counted_here_and_is_truncation() -> None:
    env = from_brax(BraxLike(), "like", episode_length=4)
    assert env.spec == EnvSpec("like", Box((1,)), Box((2,), low=-1.0, high=1.0))
    state = batch.start(env, jax.random.key(0), 3)
    first = np.asarray(state.observation)[:, 0]
    # From x < 0.5: never there; there with the fourth and last step; there with the third.
    x0 = jnp.array([0.25, 0.25, 0.25])
    state = dataclasses.replace(state, env=state.env._replace(state=state.env.state.replace(x=x0)))
    force = np.array([[0.5, 9], [0.7, 9], [0.95, 9]], np.float32)
    log = []
    for _ in range(6):
        state, seen = batched(env, state, force)
        log.append(jax.device_get(seen))
    terminated, truncated = np.stack([s.terminated for s in log]), np.stack([s.truncated for s in log])
    np.testing.assert_array_equal(terminated[:4, 0], [False] * 4)
    np.testing.assert_array_equal(truncated[:4, 0], [False, False, False, True])
    np.testing.assert_array_equal(terminated[:4, 1], [False, False, False, True])
    np.testing.assert_array_equal(truncated[:4, 1], [False] * 4)
    np.testing.assert_array_equal(terminated[:4, 2], [False, False, True, False])
    assert not truncated[:4, 2].any()
    # The true successors, and rewards of the same step.
    np.testing.assert_allclose(log[3].final_observation[:2, 0], [2.25, 3.05], rtol=1e-6)
    np.testing.assert_allclose(log[3].reward[:2], [22.5, 30.5], rtol=1e-6)
    np.testing.assert_allclose(log[2].final_observation[2, 0], 3.1, rtol=1e-6)
    # New episodes begin where episodes begin, their clock and their `done` at zero.
    assert (log[3].observation[:2, 0] < 0.5).all()
    assert (log[3].observation[:2, 0] != first[:2]).all()
    np.testing.assert_array_equal(state.env.elapsed[:2], [2, 2])
    assert not terminated[4:, :2].any()


def test_brax_state_says_done_only_once() -> None:
    """Stepped on without a reset, an environment whose ``done`` sticks does not terminate again."""
    env = from_brax(BraxLike(), "like")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(state=state.state.replace(x=jnp.asarray(2.5)))
    state, seen = env.step(state, jnp.array([1.0, 0.0]), None)
    assert seen.terminated
    _, seen = env.step(state, jnp.array([-3.0, 0.0]), None)
    assert not seen.terminated


@pytest.mark.slow
@pytest.mark.rank_promotion
@pytest.mark.parametrize("name", ["brax:inverted_pendulum@generalized", "playground:CartpoleBalance"])
def test_real_environments_of_brax_form(name: str) -> None:
    """Stepped through the adapter and directly: the same numbers, and an end where the simulator says so."""
    pytest.importorskip("brax" if name.startswith("brax") else "mujoco_playground")
    env = as_jax_env(name)
    assert env is not None
    short = dataclasses.replace(env, episode_length=25)
    envs = trpo.make_envs(short, 2)
    seeds = [3, 4]
    seen = [envs.reset(seeds)]
    raw = [jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)) for seed in seeds]
    inner_reset, inner_step = jax.jit(env.env.reset), jax.jit(env.env.step)
    states = [inner_reset(key) for key in raw]
    flat = lambda state: np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.obs)])  # noqa: E731
    np.testing.assert_allclose(seen[0], [flat(s) for s in states], rtol=1e-4, atol=1e-5)
    random = np.random.default_rng(0)
    alive = np.ones(2, bool)
    for t in range(25):
        action = random.uniform(-1, 1, (2, env.spec.action.size)).astype(np.float32)
        after = envs.step(action)
        states = [inner_step(s, jnp.asarray(a)) for s, a in zip(states, action, strict=True)]
        for i in np.flatnonzero(alive):
            np.testing.assert_allclose(after.final_observation[i], flat(states[i]), rtol=2e-3, atol=2e-3)
            assert after.reward[i] == pytest.approx(float(states[i].reward), rel=1e-3, abs=1e-3)
            assert after.terminated[i] == bool(states[i].done)
            assert after.truncated[i] == (t == 24 and not after.terminated[i])
        alive &= ~(after.terminated | after.truncated)
    assert not alive.any()
    if after.truncated.any():  # the pendulum may have fallen before: then another episode is under way
        assert (after.observation[after.truncated] != after.final_observation[after.truncated]).any()


# ---------------------------------------------------------------- batches


class Places:
    """Starts at a random place of its own and ends after ``lives`` steps: (place, steps since)."""

    def __init__(self, cheap_reset: bool, lives: int = 2):
        self.spec, self.cheap_reset, self.lives = EnvSpec("places", Box((2,)), COIN), cheap_reset, lives

    def reset(self, key: Any) -> tuple[Any, Any]:
        place = jax.random.uniform(key)
        return (place, jnp.zeros((), jnp.int32)), jnp.stack([place, 0.0 * place])

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        place, time = state[0], state[1] + 1
        seen = jnp.stack([place, time.astype(float)])
        return (place, time), Step(seen, jax.random.uniform(key), jnp.asarray(False), time == self.lives)


class Telling(Places):
    """Tells something else than it must, in one field of a step, in its state or its first observation."""

    def __init__(self, field: str, what: Any):
        super().__init__(True)
        self.field, self.what = field, what

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, seen = super().reset(key)
        return state, self.what if self.field == "first" else seen

    def step(self, state: Any, action: Any, key: Any) -> Any:
        after, seen = super().step(state, action, key)
        if self.field == "state":
            return (after[0], self.what), seen
        if self.field == "step":
            return self.what
        return after, seen if self.field == "first" else seen._replace(**{self.field: self.what})


@pytest.mark.parametrize(
    ("one", "end"),
    [(2, True), (np.array([2.0]), np.array([True])), (jnp.full((1, 1), 2), jnp.ones(1)), (jnp.bfloat16(2), 1)],
)
def test_arrays_of_one_number_are_numbers(one: Any, end: Any) -> None:
    for field, what, found in (("reward", one, 2.0), ("terminated", end, True)):
        (trajectory,) = fragments(Telling(field, what), 3, 2, 1)
        got = getattr(trajectory, field)
        assert (got.shape, got.dtype) == ((2, 3), np.float32 if field == "reward" else bool)
        assert (got == found).all()


@pytest.mark.parametrize(
    ("field", "what", "words"),
    [
        ("reward", None, "reward is NoneType"),
        ("reward", "1", "reward is str"),
        ("reward", jnp.zeros(2), r"reward has shape \(2,\)"),
        ("reward", 1j, "reward is of type complex64"),
        ("reward", object(), "reward is object"),
        ("truncated", None, "truncated is NoneType"),
        ("truncated", jnp.zeros(2, bool), r"truncated has shape \(2,\)"),
        ("observation", jnp.zeros(3), r"observation has shape \(3,\), but its space has \(2,\)"),
        ("first", jnp.zeros((2, 1)), r"observation has shape \(2, 1\)"),
        ("first", {"a": 1}, "observation is dict"),
        ("state", 0.5, r"state\[1\] as int32\(\), and returned float32\(\)"),
        ("state", (1, 2), "state of another structure"),
        ("step", (0, 1, 2, 3), "must return a tuple"),
        ("step", None, "must return a tuple"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said_with_the_environment(field: str, what: Any, words: str) -> None:
    call = "reset" if field == "first" else "step"
    said = f"^environment places: {call} cannot be compiled: TypeError: .*{words}"
    envs = make_envs(Telling(field, what), 2)
    with pytest.raises(ValueError, match=said):
        envs.reset([0, 1]), envs.step(np.zeros(2, int))
    config = trpo.Config(steps=8, fragment=2, env=trpo.EnvConfig(count=2))
    with pytest.raises(ValueError, match=said):
        trpo.train(Telling(field, what), config=config, quiet=True)


@memoryless
def fair(params: Any, observation: Any) -> trpo.Categorical:
    return trpo.Categorical(params + jnp.zeros((*observation.shape[:-1], 2)))


def fragments(env: Any, count: int, length: int, number: int, key: int = 0) -> list[Any]:
    """Trajectories of a policy that tosses a coin."""
    source, actor = DeviceSource(env, env.spec), Actor(jnp.zeros(()), None, env.spec.observation)

    @jax.jit
    def fragment(rollout: Any, key: Any) -> Any:
        return source.collect(fair, actor, rollout, noise_of(fair, actor, count, (length,), key))[:2]

    rollout = jax.jit(lambda key: source.begin(key, count, ()))(jax.random.key(key))
    found = []
    for i in range(number):
        rollout, trajectory = fragment(rollout, jax.random.key(i))
        found.append(jax.device_get(trajectory))
    return found


@pytest.mark.parametrize("cheap", [True, False])
def test_where_resetting_is_dear_an_environment_has_one_initial_state_a_fragment(cheap: bool) -> None:
    """Three fragments of nine steps, episodes of two: an episode is under way at each break."""
    env = Places(cheap)
    begun: list[set[float]] = []
    for k, trajectory in enumerate(fragments(env, 4, 9, 3)):
        place, age = trajectory.observation[..., 0], trajectory.observation[..., 1]
        ended = trajectory.truncated
        np.testing.assert_array_equal(age[1:], np.where(ended[:-1], 0, 1))
        np.testing.assert_array_equal(trajectory.next_observation[..., 1], age + 1)  # the true successor
        np.testing.assert_array_equal(trajectory.next_observation[..., 0], place)
        assert ended.sum(0).min() >= 4
        for i in range(4):
            starts = place[1:, i][ended[:-1, i]]
            assert len(set(starts.tolist())) == (len(starts) if cheap else 1)
            begun.append({round(float(x), 6) for x in starts})
            if k == 0:
                assert float(place[0, i]) not in starts
    everything = [x for starts in begun for x in starts]
    assert len(set(everything)) == len(everything)  # no two environments or fragments share one


def test_randomness_depends_on_the_global_index_alone() -> None:
    """The first four of eight environments are those of a batch of four, bit for bit, through resets and steps."""
    few, many = (fragments(Places(True), count, 7, 2) for count in (4, 8))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a.observation, b.observation[:, :4])
        np.testing.assert_array_equal(a.reward, b.reward[:, :4])
    assert len(np.unique(np.concatenate([t.reward.ravel() for t in many]))) == 2 * 7 * 8  # all of them different
    other = fragments(Places(True), 4, 7, 1, key=1)
    assert not np.isin(other[0].reward, few[0].reward).any()


def test_an_environment_may_set_both_flags() -> None:
    class Both(Places):
        def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
            state, seen = super().step(state, action, key)
            return state, seen._replace(terminated=seen.truncated)

    (trajectory,) = fragments(Both(True), 3, 6, 1)
    assert trajectory.terminated.sum() == 9
    assert not trajectory.truncated.any()


@pytest.mark.parametrize("cheap", [True, False])
def test_stepped_from_the_host_it_is_a_host_environment(cheap: bool) -> None:
    envs = make_envs(Places(cheap, lives=3), 5)
    assert isinstance(envs, trpo.envs.HostEnv)
    first = envs.reset([7, 8, 9, 10, 11])
    np.testing.assert_array_equal(first, envs.reset([7, 8, 9, 10, 11]))
    np.testing.assert_array_equal(first[2:], envs.reset([9, 10, 11, 12, 13])[:3])
    envs.reset([7, 8, 9, 10, 11])
    for t in range(1, 7):
        after = envs.step(np.zeros(5, np.int32))
        assert all(isinstance(leaf, np.ndarray) for leaf in after if leaf is not None)
        ends = t % 3 == 0
        np.testing.assert_array_equal(after.truncated, [ends] * 5)
        np.testing.assert_array_equal(after.final_observation[:, 1], [(t - 1) % 3 + 1] * 5)
        np.testing.assert_array_equal(after.observation[:, 1], [t % 3] * 5)
        assert after.valid.all()
        assert not after.terminated.any()
    assert len(np.unique(np.r_[first[:, 0], after.observation[:, 0]])) == 10
    assert envs.snapshot() is None
    with pytest.raises(TypeError, match="no snapshots"):
        envs.restore(None)
    envs.close()


class Shown(Places):
    """The same, told in a dict: an image of bytes, the time as an integer and as a flag, and the place in a tuple."""

    def __init__(self, cheap_reset: bool, lives: int = 2):
        super().__init__(cheap_reset, lives)
        self.spec = EnvSpec(
            "shown",
            Dict(
                (
                    ("time", Box((), "int32")),
                    ("late", Bits((), "bool")),
                    ("image", Box((2, 3), "uint8", 0.0, 255.0)),
                    ("step", Choice(4)),
                    ("at", Tuple((Box((1,)), Box((2, 1))))),
                )
            ),
            COIN,
        )

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, seen = super().reset(key)
        return state, self._show(state, seen)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
        state, seen = super().step(state, action, key)
        return state, seen._replace(observation=self._show(state, seen.observation))

    def _show(self, state: Any, seen: Any) -> Any:
        time = state[1]
        return {
            "time": time,
            "late": time > 1,
            "image": jnp.full((2, 3), 40 * time, jnp.uint8),
            "step": time % 4,
            "at": (seen[:1], seen[:, None]),
        }


def test_observations_may_be_trees() -> None:
    """Types and forms are kept from the environment to the host; flattened, numbers stand in the space's order."""
    plain, shown = make_envs(Places(True, lives=3), 4), make_envs(Shown(True, lives=3), 4)
    flat = make_envs(Shown(True, lives=3), 4, flatten=True)
    seeds = [3, 1, 4, 15]
    seen = [envs.reset(seeds) for envs in (plain, shown, flat)]
    assert flat.spec.observation == Box((1 + 1 + 6 + 4 + 1 + 2,))
    for t in range(8):
        places, tree, rows = seen
        assert shown.spec.observation.fits(tree) == (4,)
        shown.spec.observation.map(lambda leaf, x: np.testing.assert_equal(str(x.dtype), leaf.dtype), tree)
        np.testing.assert_array_equal(tree["at"][1][..., 0], places)
        np.testing.assert_array_equal(tree["image"], np.full((4, 2, 3), 40 * (t % 3)))
        time = places[:, 1:]
        parts = [time, time > 1, np.repeat(40 * time, 6, 1), np.eye(4)[time[:, 0].astype(int)], places[:, :1], places]
        np.testing.assert_array_equal(rows, np.concatenate(parts, axis=1).astype(np.float32))
        assert rows.dtype == np.float32
        after = [envs.step(np.zeros(4, np.int32)) for envs in (plain, shown, flat)]
        np.testing.assert_array_equal(after[1].final_observation["at"][1][..., 0], after[0].final_observation)
        np.testing.assert_array_equal(after[1].final_observation["time"], [t % 3 + 1] * 4)
        np.testing.assert_array_equal(after[2].final_observation[:, -2:], after[0].final_observation)
        seen = [transition.observation for transition in after]


def test_a_jax_environment_needs_no_processes_and_at_least_one_copy() -> None:
    with pytest.raises(ValueError, match=r"env\.workers=2: environments in JAX need no processes; use 0"):
        make_envs("jax-probe:action", 4, workers=2)
    with pytest.raises(ValueError, match=r"env\.count=0: must be ≥ 1"):
        make_envs("jax-probe:action", 0)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("package", "name", "words"),
    [
        ("gymnax", "gymnax:CartPol-v1", ["'gymnax:CartPol-v1'", "nearest: gymnax:CartPole-v1"]),
        ("gymnax", "gymnax:qqqq", ["'gymnax:qqqq'", "gymnax.registered_envs"]),
        ("brax", "brax:antt", ["'brax:antt'", "nearest: brax:ant"]),
        ("brax", "brax:ant@sprin", ["'sprin'", "spring, generalized, positional, mjx"]),
        ("mujoco_playground", "playground:CartpoleBalanc", ["nearest: playground:CartpoleBalance"]),
        ("jax", "jax-probe:acton", ["'acton'", "nearest", "probe:action"]),
    ],
)
def test_an_unknown_name_gets_the_nearest(package: str, name: str, words: list[str]) -> None:
    pytest.importorskip(package)
    with pytest.raises(ValueError, match="unknown") as caught:
        as_jax_env(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "module"), [("gymnax", "gymnax"), ("brax", "brax"), ("playground", "mujoco_playground")]
)
def test_a_missing_package_gets_the_command_that_installs_it(
    kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError) as caught:
        as_jax_env(f"{kind}:NotMadeBefore-v0")
    message = str(caught.value)
    for word in (f"{kind}:NotMadeBefore-v0", module, f"pip install 'trpo[{kind}]'"):
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize("extra", ["gymnax", "brax", "playground"])
def test_the_extras_that_messages_name_exist(extra: str) -> None:
    """Otherwise ``pip install 'trpo[gymnax]'`` warns and installs nothing."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert any(extra in requirement for requirement in project["optional-dependencies"][extra])


MODULE = """
import jax
from trpo.envs.names import as_jax_env

def make_it():
    return as_jax_env("jax-probe:both")

def five():
    return 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "jaxenvs_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "jaxenvs_of_mine"


def test_an_environment_of_ones_own_by_name(module: str) -> None:
    assert as_jax_env(f"jax:{module}:make_it") == as_jax_env("jax-probe:both")
    spec = make_envs(f"jax:{module}:make_it", 3).spec
    assert spec.id == "jax-probe:both"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jax:{}", ["must be jax:MODULE:FUNCTION"]),
        ("jax::make_it", ["must be jax:MODULE:FUNCTION"]),
        ("jax:", ["must be jax:MODULE:FUNCTION"]),
        ("jax:no_such_module:make_it", ["cannot be imported", "no_such_module"]),
        ("jax:{}:mak_it", ["has no 'mak_it'", "nearest: make_it"]),
        ("jax:{}:qqqqqq", ["has no 'qqqqqq'", "nearest: none"]),
        ("jax:{}:five", ["returned int", "spec, cheap_reset, reset, step"]),
    ],
)
def test_mistakes_in_the_name_of_ones_own_environment(module: str, name: str, words: list[str]) -> None:
    with pytest.raises(UnknownEnvironmentError) as caught:
        as_jax_env(name.format(module))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("env", ["CartPole-v1", "probe:both", "envpool:Hopper-v4", Probe, lambda: None, Places, None])
def test_environments_of_the_host_are_not_taken_for_jax_s(env: Any) -> None:
    assert as_jax_env(env) is None


def test_an_object_is_itself() -> None:
    env = Places(True)
    assert as_jax_env(env) is env
    assert as_jax_env("jax-probe:both") is as_jax_env("jax-probe:both")  # so that what was compiled serves again


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("name", NAMES)
def test_jax_probes_do_what_the_host_s_do(name: str) -> None:
    env, host = as_jax_env(f"jax-probe:{name}"), Probe(name)
    assert env is not None
    theirs: Any = space_of(host.action_space, of_actions=True)
    assert env.spec.observation == space_of(host.observation_space)
    assert env.spec.action == dataclasses.replace(theirs, dtype=env.spec.action.dtype)  # type: ignore[attr-defined]
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    random = np.random.default_rng(0)
    over, ends = True, 0
    for t in range(25):
        if over:
            state, seen = reset(jax.random.key(t))
            host.reset(seed=t)
            host._state = float(seen[0])  # initial states are random: their distribution is tested below
        action: Any = random.normal(size=1).astype(np.float32) if name == "continuous" else int(random.integers(2))
        state, ours_now = step(state, jnp.asarray(action), jax.random.key(100 + t))
        observation, reward, terminated, truncated, _ = host.step(action)
        np.testing.assert_array_equal(ours_now.observation, observation)
        assert float(ours_now.reward) == pytest.approx(reward, rel=1e-6)
        assert (bool(ours_now.terminated), bool(ours_now.truncated)) == (terminated, truncated)
        over = terminated or truncated
        ends += over
    assert ends == {"delayed": 12, "endless": 25 // TIME_LIMIT, "memory": 25 // MEMORY_STEPS}.get(name, 25)


@pytest.mark.parametrize("name", NAMES)
def test_jax_probes_begin_where_the_host_s_do(name: str) -> None:
    env = as_jax_env(f"jax-probe:{name}")
    assert env is not None
    _, seen = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 400))
    host = Probe(name)
    begun = np.array([host.reset(seed=seed)[0] for seed in range(400)])
    np.testing.assert_array_equal(np.unique(seen), np.unique(begun))
    # Means of 400 coins each: a standard error of 0.05 each, 0.07 of the difference.
    assert abs(float(seen.mean()) - begun.mean()) < 4 * 0.07


def test_evaluation_of_a_probe_has_whole_episodes() -> None:
    agent = trpo.make_agent("jax-probe:endless", trpo.Config(policy=trpo.PolicyConfig(hidden=())))
    result = agent.evaluate(episodes=5)
    assert result.returns == (float(TIME_LIMIT),) * 5
    assert result.lengths == (TIME_LIMIT,) * 5


# ---------------------------------------------------------------- actions

INF = float("inf")


def actions_of(space: gym.Space, rescale: bool = False) -> Space:
    return EnvSpec("", Box((1,)), space_of(space, of_actions=True)).with_options(rescale, flatten=False).action


def box(low: Any, high: Any, dtype: Any) -> gym.Space:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


BOXES = {
    "bounded": box([-1.0, 0.0, -0.4], [1.0, 5.0, 0.4], np.float32),
    "half-bounded": box([-2.0, -INF, 1.0, -INF], [2.0, INF, INF, 3.0], np.float32),
    "matrix": box(np.full((2, 3), -1), np.full((2, 3), 4), np.float64),
    "scalar": spaces.Box(-1.0, 1.0, ()),
    "integers": box([0, 0, -5], [4, 200, 5], np.int32),
    "bytes": box([0, 0], [4, 255], np.uint8),
}


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_box_actions_are_converted_in_jax_as_in_numpy(name: str, rescale: bool, x64: None) -> None:
    """In double precision, where the two differ by the last bit at most: NaN, infinities and all."""
    space: Any = actions_of(BOXES[name], rescale)
    random = np.random.default_rng(0)
    action = random.normal(size=(60, space.size)) * 10 ** random.uniform(-2, 3, (60, 1))
    action[:6] = np.array([np.nan, INF, -INF, 0.0, -0.0, 1.0])[:, None]
    action[6, 0] = np.nan
    host = space.to_env(action)
    device = jax.jit(space.to_env)(jnp.asarray(action))
    assert device.dtype == host.dtype
    np.testing.assert_allclose(device, host, rtol=5e-16, atol=5e-16)
    np.testing.assert_array_equal(device[:3], host[:3])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ["bounded", "half-bounded", "scalar"])
def test_box_actions_of_single_precision(name: str, rescale: bool) -> None:
    """NumPy's bounds are double: the last bit of the product may differ, the bounds themselves may not."""
    space: Any = actions_of(BOXES[name], rescale)
    action = np.random.default_rng(0).normal(size=(60, space.size)).astype(np.float32) * 3
    action[:3] = np.array([np.nan, INF, -INF], np.float32)[:, None]
    host = space.to_env(action)
    device = jax.jit(space.to_env)(jnp.asarray(action))
    assert device.dtype == host.dtype == np.float32
    np.testing.assert_allclose(device, host, rtol=3e-7, atol=3e-7)
    np.testing.assert_array_equal(device[:3], host[:3])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(1),
        spaces.Discrete(4, start=-2),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [-3, 1]])),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 2)),
    ],
    ids=str,
)
def test_discrete_actions_are_converted_in_jax_as_in_numpy(space: gym.Space, x64: None) -> None:
    actions: Any = actions_of(space)
    random = np.random.default_rng(0)
    sizes = {Choice: lambda: actions.n, Choices: lambda: actions.sizes}.get(type(actions), lambda: 2)()
    rows = random.integers(sizes, size=(20, *([] if isinstance(actions, Choice) else [actions.size])), dtype=np.int32)
    host = actions.to_env(rows)
    device = jax.jit(actions.to_env)(jnp.asarray(rows))
    assert (device.dtype, device.shape) == (host.dtype, host.shape)
    np.testing.assert_array_equal(device, host)
    assert all(space.contains(np.asarray(a)) if a.ndim else space.contains(int(a)) for a in np.asarray(device))


def test_the_environment_is_given_the_converted_action() -> None:
    """Through the batch: [−1, 1] onto the bounds of a Box; a NaN becomes 0 and the reward stays a number."""

    class Told:
        spec = EnvSpec("told", Box((1,)), Box((1,), low=0.0, high=10.0))
        cheap_reset = True

        def reset(self, key: Any) -> tuple[Any, Any]:
            return jnp.zeros(()), jnp.zeros(1)

        def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Step]:
            return state, Step(jnp.zeros(1), action[0], jnp.asarray(False), jnp.asarray(False))

    env = Told()
    state = batch.start(env, jax.random.key(0), 4)
    given = jnp.array([[-1.0], [0.5], [7.0], [math.nan]])
    for rescale, expected in ((True, [0.0, 7.5, 10.0, 0.0]), (False, [0.0, 0.5, 7.0, 0.0])):
        actions = env.spec.with_options(rescale, flatten=False).action
        _, seen = batch.step(env, actions, state, given, lambda done: batch.fresh(env, state))
        np.testing.assert_array_equal(seen.reward, expected)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jax:.x:f", "cannot be imported"),
        ("jax:os:sep", "not a function"),
        ("jax-probe:acton", "nearest: jax-probe:action"),
    ],
)
def test_a_name_that_leads_nowhere_is_the_user_s_mistake_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=said) as caught:
        as_jax_env(name)
    assert "\n" not in str(caught.value)
