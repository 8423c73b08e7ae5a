"""Actions of several parts, and actions that are not allowed: from the environment's door to checkpoints and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import trpo
from tests.helpers import assert_same_bits, untimed
from trpo.envs.meeting import require_same_spaces
from trpo.envs.names import make_envs
from trpo.envs.spaces import Box, Choice, Choices, Dict, Tuple
from trpo.report.recording import record

# ---------------------------------------------------------------- an environment whose actions have parts

PARTS = spaces.Dict(
    gear=spaces.Discrete(2, start=1),
    more=spaces.Tuple([spaces.Box(0, 10, (1,), np.float64), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]),
)


def gained(xp: Any, x: Any, action: Any) -> Any:
    """The reward of :class:`Mixed`: at most 1, for the gear that x[0] asks for and the force that x[1] does."""
    force = action["more"][0][0] / 5 - 1  # back to the policy's own scale
    return xp.where(action["gear"] == 1 + (x[0] > 0), 1.0, 0.0) - (force - x[1]) ** 2


class Mixed(gym.Env):
    """One step for each episode; every action is looked at closely."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = PARTS
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
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
        more = Tuple((Box((1,), low=0.0, high=10.0), Choices((2, 3), (0, 0), (2,)), trpo.envs.Bits((2,))))
        return trpo.EnvSpec("jax-mixed", Box((2,)), Dict((("more", more), ("gear", Choice(2, 1)))))

    def reset(self, key: Any) -> tuple[Any, Any]:
        x = jax.random.uniform(key, (2,), minval=-1.0)
        return x, x

    def step(self, x: Any, action: Any, key: Any) -> tuple[Any, trpo.Step]:
        after = self.reset(key)[0]
        return after, trpo.Step(after, gained(jnp, x, action), jnp.asarray(True), jnp.asarray(False))


def config_of(**settings: Any) -> trpo.Config:
    env = trpo.EnvConfig(count=8, **settings.pop("env", {}))
    return trpo.Config(**{"steps": 8192, "fragment": 64, "env": env, "rule": trpo.RuleConfig(max_kl=0.03)} | settings)


def trained(env: Any, config: trpo.Config) -> tuple[trpo.Agent, dict[str, Any]]:
    agent = trpo.make_agent(env, config)
    for state, metrics in trpo.iterations(env, agent, config):  # noqa: B007
        pass
    return agent.at(state), metrics


@pytest.mark.parametrize("env", [Mixed, JaxMixed()], ids=["host", "device"])
def test_actions_of_several_parts_are_learned(env: Any) -> None:
    """The optimum is 1; σ² of the force is all that sampling loses."""
    agent, metrics = trained(env, config_of())
    assert metrics["episode_return"] > 0.9
    assert min(agent.evaluate(episodes=50).returns) > 0.9
    assert 0 < metrics["mean_kl"] <= metrics["max_kl"]
    single = agent.act(np.array([0.5, -0.5], np.float32))
    assert np.shape(single["gear"]) == ()
    assert int(single["gear"]) == 2
    np.testing.assert_allclose(single["more"][0], [2.5], atol=1.0)
    if env is Mixed:
        assert PARTS.contains(single)
    many = agent.act(np.zeros((5, 2), np.float32), deterministic=False, seed=0)
    assert [x.shape for x in (many["gear"], *many["more"])] == [(5,), (5, 1), (5, 2), (5, 2)]


def test_log_probabilities_of_parts_are_added() -> None:
    """PITFALLS row 29, on the policy itself: each part's own share of the outputs, and the unclipped force."""
    agent = trpo.make_agent(Mixed, config_of())
    x = np.array([[0.3, -0.2], [0.9, 0.1]], np.float32)
    outputs = agent.module.trunk(x)
    distribution = agent.module((), (jnp.asarray(x), None))[0]
    action = distribution.sample(jax.random.key(0))
    force, pair, bits = action["more"]
    std = jnp.full((2, 1), jnp.log(0.6))
    expected = (
        trpo.Categorical(outputs[:, :2]).log_prob(action["gear"])
        + trpo.DiagGaussian(outputs[:, 2:3], std).log_prob(force)
        + trpo.MultiCategorical(outputs[:, 3:8], (2, 3)).log_prob(pair)
        + trpo.Bernoulli(outputs[:, 8:]).log_prob(bits)
    )
    np.testing.assert_allclose(distribution.log_prob(action), expected, rtol=1e-6)


def test_workers_step_with_parts_as_one_process_does() -> None:
    random = np.random.default_rng(0)
    alone, spread = make_envs(Mixed, 3), make_envs(Mixed, 3, workers=1)
    try:
        np.testing.assert_array_equal(spread.reset([1, 2, 3]), alone.reset([1, 2, 3]))
        for _ in range(4):
            force, pair = random.normal(size=(3, 1)).astype(np.float32), random.integers(0, 2, (3, 2))
            action = {"gear": random.integers(0, 2, 3), "more": (force, pair, pair)}
            assert_same_bits(tuple(spread.step(action)), tuple(alone.step(action)))
    finally:
        alone.close(), spread.close()


def test_rescaling_reaches_every_box() -> None:
    for rescale, low in ((True, 0.0), (False, 1.0)):
        envs = make_envs(Mixed, 1, rescale_actions=rescale)
        assert envs.spec.action == trpo.EnvSpec.from_json(json.loads(json.dumps(envs.spec.to_json()))).action
        one, two = np.array([[-1.0]]), np.array([[0, 1]])
        sent = envs.spec.action.to_env({"gear": np.array([1]), "more": (one + (1 - rescale) * 2, two, two)})
        assert sent["more"][0].item() == low
        assert sent["gear"].item() == 2
        envs.close()
    with pytest.raises(ValueError, match="env.rescale_actions=True and False"):
        require_same_spaces(*(make_envs(Mixed, 1, rescale_actions=rescale).spec for rescale in (True, False)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_parts_is_resumed_bit_for_bit(tmp_path: Path, workers: int) -> None:
    config = config_of(steps=2048, env={"workers": workers}, checkpoint_every=1)
    lines = []
    for name, steps in (("whole", (2048,)), ("halves", (1024, 2048))):
        out = tmp_path / name
        trpo.train(Mixed, config=dataclasses.replace(config, steps=steps[0]), out=out, quiet=True)
        for more in steps[1:]:
            trpo.resume(out, env=Mixed, steps=more, quiet=True)
        lines.append([untimed(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert lines[0] == lines[1]


def test_an_agent_with_parts_is_drawn(tmp_path: Path) -> None:
    agent = trpo.make_agent(Mixed, config_of())
    assert record(agent, tmp_path / "a.gif", episodes=2).exists()
