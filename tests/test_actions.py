"""Actions of several parts, and actions that are not allowed: from the environment's door to checkpoints and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import trpo
from tests.helpers import assert_same_bits, untimed
from trpo.envs.host.gymnasium import space_of
from trpo.envs.masks import blocked, choices, flat_mask
from trpo.envs.meeting import require_same_spaces
from trpo.envs.names import make_envs
from trpo.envs.spaces import Bits, Box, Choice, Choices, Dict, Tuple, UnsupportedSpaceError
from trpo.policies.heads import make_head
from trpo.report.recording import record
from trpo.rollout import HostPolicy
from trpo.rollout.host import require_allowed

# ---------------------------------------------------------------- an environment whose actions have parts

PARTS = spaces.Dict(
    gear=spaces.Discrete(2, start=1),
    more=spaces.Tuple([spaces.Box(0, 10, (1,), np.float64), spaces.MultiDiscrete([2, 3])]),
)


def gained(xp: Any, x: Any, action: Any) -> Any:
    """The reward of :class:`Mixed`: at most 1, for the gear that x[0] asks for and the force that x[1] does."""
    force = action["more"][0][0] / 5 - 1  # back to the policy's own scale
    return xp.where(action["gear"] == 1 + (x[0] > 0), 1.0, 0.0) - (force - x[1]) ** 2


class Mixed(gym.Env):
    """One step for each episode; every action is looked at closely."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = PARTS
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def _begin(self) -> np.ndarray:
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._begin(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        assert action["more"][0].dtype == np.float64
        reward = float(gained(np, self.x, action))
        return self._begin(), reward, True, False, {}

    def render(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def snapshot(self) -> dict[str, Any]:
        return {"x": self.x, "random": self.np_random.bit_generator.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.x, self.np_random.bit_generator.state = snapshot["x"], snapshot["random"]


@dataclasses.dataclass(frozen=True)
class JaxMixed:
    """The same in JAX."""

    cheap_reset: bool = True

    @property
    def spec(self) -> trpo.EnvSpec:
        more = Tuple((Box((1,), low=0.0, high=10.0), Choices((2, 3), (0, 0), (2,))))
        return trpo.EnvSpec("jax-mixed", Box((2,)), Dict((("more", more), ("gear", Choice(2, 1)))))

    def reset(self, key: Any) -> tuple[Any, Any]:
        x = jax.random.uniform(key, (2,), minval=-1.0)
        return x, x

    def step(self, x: Any, action: Any, key: Any) -> tuple[Any, trpo.Step]:
        after = self.reset(key)[0]
        return after, trpo.Step(after, gained(jnp, x, action), jnp.asarray(True), jnp.asarray(False))


def config_of(**settings: Any) -> trpo.Config:
    env = trpo.EnvConfig(count=8, **settings.pop("env", {}))
    usual = {"steps": 6144, "fragment": 64, "env": env, "rule": trpo.RuleConfig(max_kl=0.05, cg_iterations=5)}
    small = {"policy": trpo.PolicyConfig(hidden=(16,)), "value": trpo.ValueConfig(hidden=(16,), epochs=2)}
    return trpo.Config(**{**usual, **small, **settings})


def trained(env: Any, config: trpo.Config) -> tuple[trpo.Agent, dict[str, Any]]:
    agent = trpo.make_agent(env, config)
    for state, metrics in trpo.iterations(env, agent, config):  # noqa: B007
        pass
    return agent.at(state), metrics


@pytest.mark.parametrize("env", [Mixed, JaxMixed()], ids=["host", "device"])
def test_actions_of_several_parts_are_learned(env: Any) -> None:
    """The optimum is 1; σ² of the force is all that sampling loses."""
    agent, metrics = trained(env, config_of())
    assert metrics["episode_return"] > 0.8
    assert min(agent.evaluate(episodes=50).returns) > 0.8
    assert 0 < metrics["mean_kl"] <= metrics["max_kl"]
    single = agent.act(np.array([0.5, -0.5], np.float32))
    assert np.shape(single["gear"]) == ()
    assert int(single["gear"]) == 2
    np.testing.assert_allclose(single["more"][0], [2.5], atol=1.0)
    if env is Mixed:
        assert PARTS.contains(single)
    many = agent.act(np.zeros((5, 2), np.float32), deterministic=False, seed=0)
    assert [x.shape for x in (many["gear"], *many["more"])] == [(5,), (5, 1), (5, 2)]


def test_log_probabilities_of_parts_are_added() -> None:
    """PITFALLS row 29, on the policy itself: each part's own share of the outputs, and the unclipped force."""
    agent = trpo.make_agent(Mixed, config_of())
    x = np.array([[0.3, -0.2], [0.9, 0.1]], np.float32)
    outputs = agent.module.trunk(x)
    distribution = agent.module((), (jnp.asarray(x), None))[0]
    action = distribution.sample(jax.random.key(0))
    force, pair = action["more"]
    std = jnp.full((2, 1), jnp.log(0.6))
    expected = (
        trpo.Categorical(outputs[:, :2]).log_prob(action["gear"])
        + trpo.DiagGaussian(outputs[:, 2:3], std).log_prob(force)
        + trpo.MultiCategorical(outputs[:, 3:8], (2, 3)).log_prob(pair)
    )
    np.testing.assert_allclose(distribution.log_prob(action), expected, rtol=1e-6)


def test_workers_step_with_parts_as_one_process_does() -> None:
    random = np.random.default_rng(0)
    alone, spread = make_envs(Mixed, 3), make_envs(Mixed, 3, workers=1)
    try:
        np.testing.assert_array_equal(spread.reset([1, 2, 3]), alone.reset([1, 2, 3]))
        for _ in range(4):
            force, pair = random.normal(size=(3, 1)).astype(np.float32), random.integers(0, 2, (3, 2))
            action = {"gear": random.integers(0, 2, 3), "more": (force, pair)}
            assert_same_bits(tuple(spread.step(action)), tuple(alone.step(action)))
    finally:
        alone.close(), spread.close()


def test_rescaling_reaches_every_box() -> None:
    for rescale, low in ((True, 0.0), (False, 1.0)):
        envs = make_envs(Mixed, 1, rescale_actions=rescale)
        assert envs.spec.action == trpo.EnvSpec.from_json(json.loads(json.dumps(envs.spec.to_json()))).action
        one, two = np.array([[-1.0]]), np.array([[0, 1]])
        sent = envs.spec.action.to_env({"gear": np.array([1]), "more": (one + (1 - rescale) * 2, two)})
        assert sent["more"][0].item() == low
        assert sent["gear"].item() == 2
        envs.close()
    with pytest.raises(ValueError, match=r"env.rescale_actions=True and False"):
        require_same_spaces(*(make_envs(Mixed, 1, rescale_actions=rescale).spec for rescale in (True, False)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_parts_is_resumed_bit_for_bit(tmp_path: Path, workers: int) -> None:
    config = config_of(fragment=16, steps=512, env={"workers": workers}, checkpoint_every=1)
    lines = []
    for name, steps in (("whole", (512,)), ("halves", (256, 512))):
        out = tmp_path / name
        trpo.train(Mixed, config=dataclasses.replace(config, steps=steps[0]), out=out, quiet=True)
        for more in steps[1:]:
            trpo.resume(out, env=Mixed, steps=more, quiet=True)
        lines.append([untimed(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert lines[0] == lines[1]


def test_an_agent_with_parts_is_drawn(tmp_path: Path) -> None:
    agent = trpo.make_agent(Mixed, config_of())
    assert record(agent, tmp_path / "a.gif", episodes=2).exists()


# ---------------------------------------------------------------- actions that are not allowed

ACTIONS = 6


class Telling(gym.Env):
    """Two of six actions are allowed; right is the first of them, or the last where the observation is positive.

    Any other than these two ends the run: an environment that trains has never been given one.
    """

    observation_space: gym.Space = spaces.Box(-1, 1, (1,), np.float32)
    action_space: gym.Space = spaces.Discrete(ACTIONS, start=1)
    forgets = 10**9
    """The step after which it tells nothing any more."""

    def _begin(self) -> None:
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        self.allowed = np.sort(self.np_random.choice(ACTIONS, 2, replace=False))

    def mask(self) -> np.ndarray:
        return np.isin(np.arange(ACTIONS), self.allowed).astype(np.int8)

    def told(self) -> tuple[Any, dict]:
        return self.x, {"action_mask": self.mask()} if self.time < self.forgets else {}

    def chosen(self, action: Any) -> Any:
        return action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._begin()
        self.time = 0
        return self.told()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        action = int(self.chosen(action)) - 1
        assert action in self.allowed
        reward = float(action == self.allowed[int(self.x[0] > 0)])
        self._begin()
        self.time += 1
        observation, info = self.told()
        return observation, reward, self.time == 3, False, info

    def snapshot(self) -> dict[str, Any]:
        return {**vars(self), "_np_random": None, "random": self.np_random.bit_generator.state}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.x, self.allowed, self.time = snapshot["x"], np.asarray(snapshot["allowed"]), int(snapshot["time"])
        self.np_random.bit_generator.state = snapshot["random"]


class ByMethod(gym.Wrapper):
    """The same by sb3-contrib's convention, behind a wrapper that knows nothing of it."""

    class Inner(Telling):
        def told(self) -> tuple[Any, dict]:
            return self.x, {}

        def action_masks(self) -> np.ndarray:
            return self.mask().astype(bool)

    def __init__(self) -> None:
        super().__init__(self.Inner())
        self.snapshot, self.restore = self.unwrapped.snapshot, self.unwrapped.restore


class InObservation(Telling):
    observation_space = spaces.Dict(x=Telling.observation_space, action_mask=spaces.Box(0, 1, (ACTIONS,), np.float32))

    def told(self) -> tuple[Any, dict]:
        return {"x": self.x, "action_mask": self.mask().astype(np.float32)}, {}


class WithForce(Telling):
    """A part of the action alone has a mask, told as Gymnasium's ``sample`` takes it."""

    action_space = spaces.Dict(z=spaces.Discrete(ACTIONS, start=1), force=spaces.Box(-1, 1, (1,)))

    def told(self) -> tuple[Any, dict]:
        return self.x, {"action_mask": {"z": self.mask(), "force": None}}

    def chosen(self, action: Any) -> Any:
        return action["z"]


TELLING = [Telling, ByMethod, InObservation, WithForce]


def masks_config(**settings: Any) -> trpo.Config:
    return config_of(**{"steps": 1024, "fragment": 32} | settings)


@pytest.mark.parametrize(("env", "workers"), [*((env, 0) for env in TELLING), (Telling, 1), (ByMethod, 1)])
def test_no_action_is_taken_that_is_not_allowed(env: Any, workers: int) -> None:
    """Training, evaluation with and without noise, and ``act``; the environment itself looks."""
    agent, metrics = trained(env, masks_config(env={"workers": workers}))
    assert metrics["result"] == "accepted"
    assert 0 < metrics["mean_kl"] <= metrics["max_kl"]
    assert metrics["entropy"] <= np.log(2) + (2.0 if env is WithForce else 1e-6)  # of the two that are allowed
    assert np.mean(agent.evaluate(episodes=20, deterministic=False).lengths) == 3
    x, mask = np.zeros(1, np.float32), np.eye(ACTIONS)
    if env is InObservation:
        many = agent.act({"x": np.zeros((ACTIONS, 1), np.float32), "action_mask": mask}, deterministic=False)
        assert agent.act({"x": x, "action_mask": mask[3]}) == 4
    else:
        many = agent.act(np.zeros((ACTIONS, 1), np.float32), action_mask=mask, deterministic=False)
        single = agent.act(x, action_mask={"z": mask[3].astype(bool)} if env is WithForce else tuple(mask[3]))
        assert (single["z"] if env is WithForce else single) == 4
    np.testing.assert_array_equal(many["z"] if env is WithForce else many, np.arange(ACTIONS) + 1)


@pytest.mark.usual_compiler
def test_where_a_mask_is_told_makes_no_difference() -> None:
    parameters = [trained(env, masks_config(steps=512))[0].learner.policy for env in (Telling, ByMethod, InObservation)]
    for other in parameters[1:]:
        assert_same_bits(parameters[0], other)


@pytest.mark.parametrize("flatten", [False, True])
def test_networks_are_not_shown_masks_unless_told(flatten: bool) -> None:
    env = {"flatten": flatten}
    agent = trpo.make_agent(Telling, masks_config(env=env))
    assert agent.spec.masked
    assert set(dict(agent.spec.observation.items)) == {"observation", "action_mask"}
    assert agent.module.encoder.size == 1
    all_seen = trpo.PolicyConfig(hidden=(8,), sees="observation action_mask")
    assert trpo.make_agent(Telling, masks_config(env=env, policy=all_seen)).module.encoder.size == 1 + ACTIONS
    assert agent.spec == trpo.EnvSpec.from_json(json.loads(json.dumps(agent.spec.to_json())))


@pytest.mark.parametrize("env", [Telling, ByMethod])
def test_a_run_with_masks_is_resumed_bit_for_bit(tmp_path: Path, env: Any) -> None:
    config = masks_config(fragment=8, steps=192, checkpoint_every=1)
    lines = []
    for name, steps in (("whole", (192,)), ("halves", (64, 192))):
        out = tmp_path / name
        trpo.train(env, config=dataclasses.replace(config, steps=steps[0]), out=out, quiet=True)
        for more in steps[1:]:
            trpo.resume(out, env=env, steps=more, quiet=True)
        lines.append([untimed(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()])
        assert trpo.load(out, env=env).evaluate(episodes=3).lengths == (3, 3, 3)
    assert lines[0] == lines[1]


@dataclasses.dataclass(frozen=True)
class JaxTelling:
    """:class:`Telling` in JAX; the reward says whether an action was allowed. Its final state allows none."""

    last: int = 3
    cheap_reset: bool = True

    @property
    def spec(self) -> trpo.EnvSpec:
        return trpo.EnvSpec(
            "telling", Dict((("x", Box((1,))), ("action_mask", Bits((ACTIONS,), "bool")))), Choice(ACTIONS)
        )

    def _begin(self, key: Any, time: Any) -> Any:
        x = jax.random.uniform(key, (1,), minval=-1.0)
        mask = jax.random.permutation(key, jnp.arange(ACTIONS) < 2)
        return {"x": x, "action_mask": mask & (time < 3)}

    def reset(self, key: Any) -> tuple[Any, Any]:
        seen = self._begin(key, 0)
        return (seen, jnp.zeros((), jnp.int32)), seen

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, trpo.Step]:
        (seen, time), after = state, self._begin(key, state[1] + 1)
        reward = jnp.where(seen["action_mask"][action], 1.0, -1000.0)
        return (after, time + 1), trpo.Step(after, reward, jnp.asarray(False), time + 1 >= self.last)


def test_masks_on_the_device() -> None:
    agent, metrics = trained(JaxTelling(), masks_config())
    assert metrics["result"] == "accepted"
    assert metrics["episode_return"] == 3.0
    assert agent.evaluate(episodes=20, deterministic=False).returns == (3.0,) * 20


def test_a_state_without_an_allowed_action_stops_a_run_on_the_device() -> None:
    agent = trpo.make_agent(JaxTelling(last=4), masks_config())
    with pytest.raises(trpo.NonFiniteBatchError, match="telling showed a state in which its action_mask allows no"):
        list(trpo.iterations(JaxTelling(last=4), agent, masks_config()))
    with pytest.raises(trpo.EnvironmentFailure, match="the action_mask of copy 0 allows no action"):
        agent.evaluate(episodes=2)


class Wrong(Telling):
    """What it tells after the first step is not a mask."""

    def __init__(self, answer: Any):
        self.answer = answer

    def told(self) -> tuple[Any, dict]:
        return (self.x, {"action_mask": self.answer}) if self.time else super().told()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros(ACTIONS), "the action_mask of copy [01] allows no action"),
        (np.ones(ACTIONS - 1), r"action_mask of shape \(5,\) .*: masks of Discrete\(6, start=1\) have shape \(6,\)"),
        (np.ones((1, ACTIONS)), r"observation\['action_mask'\] has shape \(1, 6\)"),
        (np.full(ACTIONS, 2), "must have zeros and ones alone"),
        (np.full(ACTIONS, np.nan), "must have zeros and ones alone"),
        ("all", "action_mask of shape .* masks of"),
        ({"a": np.ones(ACTIONS)}, "action_mask of shape .* masks of"),
        (None, "info has no 'action_mask', which it had at first"),
    ],
    ids=str,
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_mask_is_said_with_the_environment(answer: Any, words: str, workers: int) -> None:
    envs = make_envs(lambda: Wrong(answer), 2, workers)
    try:
        observation = envs.reset([0, 1])
        require_allowed(envs, observation)
        first = observation["action_mask"].argmax(-1)
        with pytest.raises(trpo.EnvironmentFailure, match=words) as caught:
            require_allowed(envs, envs.step(first).observation)
    finally:
        envs.close()
    assert "environment" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_copy_without_an_action_is_named_in_a_worker_too() -> None:
    class Stuck(Telling):
        def mask(self) -> np.ndarray:
            return super().mask() * (self.x[0] < 0.99)

        def _begin(self) -> None:
            super()._begin()
            self.x[:] = self.np_random.random() * 0 + 1 if getattr(self, "seed", 0) == 3 else 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            self.seed = seed
            return super().reset(seed=seed)

    agent = trpo.make_agent(Stuck, masks_config())
    envs = make_envs(Stuck, 4, 1)
    try:
        source = trpo.HostSource(envs, agent.policy.start)
        source.restart([0, 1, 2, 3])
        noise = np.zeros((4, 4, ACTIONS), np.float32)
        with pytest.raises(trpo.EnvironmentFailure, match="copy 3 allows no action"):
            source.collect(HostPolicy(agent.policy, agent.actor()), noise)
    finally:
        envs.close()


def test_masks_that_do_not_fit_their_actions_are_refused_where_they_are_declared() -> None:
    class Wide(InObservation):
        observation_space = spaces.Dict(x=spaces.Discrete(2), action_mask=spaces.MultiBinary(ACTIONS + 1))

    class Alone(InObservation):
        observation_space = spaces.Dict(action_mask=spaces.MultiBinary(ACTIONS))

    class Continuous(InObservation):
        action_space = spaces.Box(-1, 1, (2,))

    with pytest.raises(UnsupportedSpaceError, match=r"'action_mask' .* masks of its actions .* have shape \(6,\)"):
        trpo.make_agent(Wide)
    with pytest.raises(UnsupportedSpaceError, match="nothing but 'action_mask'"):
        trpo.make_agent(Alone)
    agent = trpo.make_agent(Continuous)  # a name like any other
    assert not agent.spec.masked
    assert agent.module.encoder.size == 1 + ACTIONS


def test_act_asks_for_what_it_needs() -> None:
    x, agent, plain = np.zeros(1, np.float32), trpo.make_agent(Telling), trpo.make_agent("probe:both")
    for mistake, words in (
        (lambda: agent.act(x), "environment 'Telling' tells which actions are allowed; give it"),
        (lambda: agent.act(x, action_mask=np.zeros(ACTIONS)), "action_mask allows no action"),
        (lambda: agent.act(x[None], action_mask=np.zeros((1, ACTIONS))), "allows no action in row 0"),
        (lambda: agent.act(x, action_mask=np.ones(2)), "masks of"),
        (lambda: plain.act(x, action_mask=np.ones(2)), "have no mask; leave it out"),
        (lambda: agent.act({"observation": x, "action_mask": np.ones(6)}, action_mask=np.ones(6)), "give it once"),
    ):
        with pytest.raises(ValueError, match=words):
            mistake()


@pytest.mark.parametrize(
    ("space", "mask", "flat"),
    [
        (spaces.Discrete(3), [1, 0, 1], [1, 0, 1]),
        (spaces.Discrete(3), np.array([True, False, False]), [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]),
        (spaces.MultiDiscrete([2, 3]), (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8)), [1, 0, 0, 1, 1]),
        (spaces.MultiDiscrete([[2], [3]]), ((np.array([1, 0]),), (np.array([0, 1, 1]),)), [1, 0, 0, 1, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1)]), (np.array([0, 1]), None), [0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(1)]), [0, 1, 1], [0, 1, 1]),
        (spaces.Dict(b=spaces.Discrete(2), a=spaces.MultiDiscrete([2, 1])), {"b": np.array([0, 1])}, [1, 1, 1, 0, 1]),
        (
            spaces.Dict(b=spaces.Discrete(2), a=spaces.Tuple([spaces.Box(0, 1), spaces.Discrete(2)])),
            {"a": (None, np.array([1, 0])), "b": np.array([0, 1])},
            [1, 0, 0, 1],
        ),
    ],
    ids=str,
)
def test_forms_of_masks(space: gym.Space, mask: Any, flat: list[int]) -> None:
    """As Gymnasium's own ``sample`` takes them; several at once have leading axes."""
    ours = space_of(space, of_actions=True)
    got = flat_mask(ours, mask)
    assert got.dtype == np.int8
    assert got.tolist() == flat
    several = jax.tree.map(lambda x: np.stack([x, x]), mask if not isinstance(mask, list) else np.array(mask))
    assert flat_mask(ours, several).tolist() == [flat, flat]
    assert blocked(choices(ours), np.array([flat, [0] * len(flat)], np.int8)).tolist() == [False, True]


def test_the_masks_of_parts_reach_their_heads_whatever_the_order() -> None:
    space = Dict((("z", Choices((2, 3), (0, 0), (2,))), ("m", Box((1,))), ("a", Choice(4))))
    head = make_head(space, initial_std=0.6, min_std=0.0, state_dependent_std=False, distribution="auto")
    mask = flat_mask(space, {"a": [0, 0, 1, 0], "z": (np.array([0, 1]), np.array([0, 0, 1]))})
    mode = head(jnp.zeros(head.size), mask).mode()
    assert mode["a"] == 2
    assert mode["z"].tolist() == [1, 2]
    assert head.mask_size == len(mask) == 9


@pytest.mark.parametrize("xp", [np, jnp], ids=["host", "device"])
def test_a_masked_action_is_never_sampled(xp: Any) -> None:
    """PITFALLS row 28: 10⁶ samples, with the likeliest actions forbidden and the least likely allowed."""
    head = trpo.MultiCategoricalHead((4, 3))
    mask = xp.asarray([0, 1, 1, 0, 1, 0, 0])
    distribution = head(xp.asarray([9.0, 0.0, -9.0, 9.0, -50.0, 0.0, 50.0], "float32"), mask)
    noise = jax.jit(lambda key: trpo.MultiCategorical(jnp.zeros(7), (4, 3)).noise(key, (10**6,)))(jax.random.key(0))
    drawn = distribution.transform(np.asarray(noise)) if xp is np else jax.jit(jax.vmap(distribution.transform))(noise)
    assert set(np.unique(drawn[:, 0])) == {1, 2}
    assert set(np.unique(drawn[:, 1])) == {0}
    assert distribution.mode().tolist() == [1, 0]


def test_masks_are_part_of_the_state_for_old_and_new_policies(x64: None) -> None:
    """Ratio 1 and KL 0 at θ_old; elsewhere KL, ratio and Fisher products are those of the allowed actions alone."""
    head, mask = trpo.CategoricalHead(5), jnp.asarray([1, 0, 1, 1, 0])
    old, new = jnp.array([0.3, 50.0, -1.0, 0.2, -jnp.inf]), jnp.array([0.1, -3.0, -0.5, 0.9, 2.0])
    keep = np.array([0, 2, 3])
    p, q = head(jnp.nan_to_num(old, neginf=0.0), mask), head(new, mask)
    a, b = trpo.Categorical(old[keep]), trpo.Categorical(new[keep])
    assert p.kl_to(p) == 0
    np.testing.assert_allclose(p.kl_to(q), a.kl_to(b), rtol=1e-12)
    np.testing.assert_allclose(p.entropy(), a.entropy(), rtol=1e-12)
    ratio = jnp.exp(q.log_prob(jnp.asarray(2)) - p.log_prob(jnp.asarray(2)))
    np.testing.assert_allclose(ratio, jnp.exp(b.log_prob(jnp.asarray(1)) - a.log_prob(jnp.asarray(1))), rtol=1e-12)
    tangent = p.fisher_product(trpo.Categorical(jnp.arange(5.0) ** 2))
    assert not tangent.logits[jnp.array([1, 4])].any()
    np.testing.assert_allclose(tangent.logits[keep], a.fisher_product(trpo.Categorical(jnp.array([0.0, 4, 9]))).logits)


@pytest.mark.parametrize("action", [0, 1])
def test_masks_give_finite_gradients(action: int) -> None:
    """Of an action that is not allowed (1) log π is −inf, and its gradient still no NaN."""
    head, mask = trpo.CategoricalHead(4), jnp.asarray([1, 0, 1, 1])
    logits, old = jnp.array([0.5, 80.0, -90.0, 0.2]), trpo.Categorical(jnp.zeros(4))

    def all_of_it(x: jax.Array) -> jax.Array:
        p = head(x, mask)
        ratio = jnp.exp(p.log_prob(jnp.asarray(action)) - old.log_prob(jnp.asarray(action)))
        return jnp.stack([ratio, p.entropy(), head(jnp.zeros(4), mask).kl_to(p)])

    assert head(logits, mask).log_prob(jnp.asarray(1)) == -jnp.inf
    forward, backward = jax.jacfwd(all_of_it)(logits), jax.jacrev(all_of_it)(logits)
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(forward, backward, rtol=1e-6)
    assert not forward[:, 1].any()
