"""What ENV is: decided once, by its name or its type; and what is nothing that environments can be made from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest

import trpo
from tests.helpers import run_process
from trpo.envs import Box, Choice, Dict, EnvSpec
from trpo.envs.device import JaxEnv
from trpo.envs.device.probes import make_probe
from trpo.envs.host.probes import Probe
from trpo.envs.names import as_jax_env, make_envs, resolve
from trpo.envs.packages import PACKAGES, gymnasium_id, package_of
from trpo.envs.protocol import UnknownEnvironmentError
from trpo.report.recording import record

MIXED = "tests.golden.environments:Mixed-v0"


def both() -> Probe:
    return Probe("both")


@pytest.mark.parametrize(
    ("env", "in_jax", "shape", "action"),
    [
        ("CartPole-v1", False, (4,), Choice(2, dtype="int64")),
        ("envpool:CartPole-v1", False, (4,), Choice(2, dtype="int64")),
        ("probe:continuous", False, (1,), Box((1,), rescale=True)),
        (both, False, (1,), Choice(2, dtype="int64")),
        ("gymnax:CartPole-v1", True, (4,), Choice(2)),
        ("jax-probe:both", True, (1,), Choice(2)),
        ("jax:envs_of_mine:make_it", True, (1,), Box((1,), rescale=True)),
        (make_probe("both"), True, (1,), Choice(2)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__ if isinstance(value, JaxEnv) else "",
)
def test_what_env_is_is_decided_once(
    env: Any, in_jax: bool, shape: tuple[int, ...], action: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name by its prefix, a function, an environment in JAX: where it is stepped, and its spaces."""
    text = "from trpo.envs.device.probes import make_probe\nmake_it = lambda: make_probe('continuous')\n"
    (tmp_path / "envs_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    kind = env.partition(":")[0] if isinstance(env, str) else ""
    if kind in ("envpool", "gymnax"):
        pytest.importorskip(kind)
    origin = resolve(env, trpo.EnvConfig())
    assert (origin.ours, origin.device is not None) == (True, in_jax)
    assert origin.spec.observation.shape == shape  # type: ignore[attr-defined]
    assert origin.spec.action == action
    envs = origin.open(3)
    assert (envs.count, envs.spec) == (3, origin.spec)
    envs.close()


def test_environments_that_are_handed_in_are_the_caller_s() -> None:
    envs = make_envs("probe:both", 2)
    origin = resolve(envs, trpo.EnvConfig())
    assert not origin.ours
    assert origin.device is None
    assert origin.open(5) is envs
    assert origin.spec is envs.spec
    envs.close()


class NotMade:
    """An environment in JAX, as a class."""

    spec = EnvSpec("not made", Box((1,)), Choice(2))
    cheap_reset = True

    def reset(self, key: Any) -> Any: ...
    def step(self, state: Any, action: Any, key: Any) -> Any: ...


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (None, ["env=None", "such as 'CartPole-v1'"]),
        (5, ["env=5"]),
        (["CartPole-v1"], ["env=['CartPole-v1']", "one kind of environment", "env.count"]),
        (("CartPole-v1", "Pendulum-v1"), ["one kind of environment"]),
        ({"id": "CartPole-v1"}, ["env={'id': 'CartPole-v1'}"]),
        (Path("CartPole-v1"), ["env=PosixPath"]),
        (gym.make("CartPole-v1"), ["made already", "pass 'CartPole-v1', or lambda: …"]),
        (Probe("both"), ["made already", "pass lambda: … that makes a new one"]),
        (gym.make_vec("CartPole-v1", 2), ["made already", "'CartPole-v1'"]),
        (gym.spec("CartPole-v1"), ["a description is none", "pass its id, 'CartPole-v1'"]),
        (EnvSpec("CartPole-v1", Box((4,)), Choice(2)), ["a description is none", "'CartPole-v1'"]),
        (NotMade, ["env=<class NotMade>", "pass an instance"]),
        (int, ["env=<class int>"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nothing_can_be_made_from_is_refused_with_what_to_pass(env: Any, words: list[str]) -> None:
    """At every door; in tests, annotations would refuse it first."""
    unchecked: list[Any] = [inspect.unwrap(resolve), inspect.unwrap(make_envs)]
    doors: list[Any] = [lambda: unchecked[0](env, trpo.EnvConfig()), lambda: unchecked[1](env, 2)]
    for door in doors:
        with pytest.raises(ValueError, match="must be an environment id or a function without arguments") as caught:
            door()
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 350


def test_environments_in_a_file_of_mistakes_are_refused_by_train_itself(tmp_path: Path) -> None:
    """As a user meets it: without annotations that are enforced, and nothing is left behind."""
    program = """
        import gymnasium, trpo
        config = trpo.Config(steps=8)
        for env in (gymnasium.make("CartPole-v1"), [gymnasium.make("CartPole-v1")], None):
            for train in (trpo.train, trpo.sweep):
                try:
                    train(env, config=config, out="run", quiet=True)
                except ValueError as error:
                    print(error)
        agent = trpo.make_agent("probe:both", config)
        for env in (gymnasium.make("CartPole-v1"), 5):
            try:
                trpo.evaluate(agent, env)
            except ValueError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = run_process(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert all("must be an environment id or a function" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["probe:continuous", "jax-probe:continuous", MIXED])
def test_the_options_of_a_run_are_in_its_spaces(env: str) -> None:
    plain, changed = (resolve(env, trpo.EnvConfig(rescale_actions=x, flatten=not x)).spec for x in (True, False))
    if env != MIXED:
        assert plain.action.rescale  # type: ignore[attr-defined]
        assert changed.action == dataclasses.replace(plain.action, rescale=False)
    assert changed.observation == plain.flattened().observation == Box((9 if env == MIXED else 1,))
    assert (plain.observation == changed.observation) == (env != MIXED)


# ---------------------------------------------------------------- arguments of environments, and whose they are


@pytest.mark.parametrize("env", ["CartPole-v1", "envpool:CartPole-v1"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_named_is_made_with_the_run_s_arguments(env: str, workers: int) -> None:
    if env.startswith("envpool:"):
        pytest.importorskip("envpool")
        workers = 0
    origin = resolve(env, trpo.EnvConfig(kwargs={"max_episode_steps": 3}))
    envs = origin.open(2, workers)
    assert envs.time_limit == 3  # type: ignore[attr-defined]
    envs.close()


def test_gymnax_s_parameters_are_arguments_too() -> None:
    pytest.importorskip("gymnax")
    name, kwargs = "gymnax:CartPole-v1", {"gravity": 3.0, "max_steps_in_episode": 9}
    env: Any = as_jax_env(name, kwargs)
    assert (env.params.gravity, env.params.max_steps_in_episode) == (3.0, 9)
    assert as_jax_env(name, dict(reversed(kwargs.items()))) is env  # compiled once
    assert as_jax_env(name) is not env


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "envpool:CartPole-v1", "gymnax:CartPole-v1", "probe:both", "jax-probe:both", both]
)
def test_arguments_that_an_environment_does_not_take_are_named(env: Any) -> None:
    if isinstance(env, str) and (kind := env.partition(":")[0]) in ("envpool", "gymnax"):
        pytest.importorskip(kind)
    with pytest.raises(ValueError, match=r"env\.kwargs no_such='x'") as caught:
        trpo.make_agent(env, trpo.Config(env=trpo.EnvConfig(kwargs={"no_such": "x"})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("ALE/Pong-v5", ["pip install 'trpo[atari]'"]),
        ("PongNoFrameskip-v4", ["pip install 'trpo[atari]'"]),
        ("MiniGrid-Empty-5x5-v0", ["pip install 'trpo[minigrid]'"]),
        ("popgym-RepeatPreviousEasy-v0", ["pip install popgym"]),
        ("dm_control/cartpole-balance-v0", ["pip install 'shimmy[dm-control]'"]),
        ("Metaworld/MT1", ["pip install metaworld"]),
        ("Meta-World/MT1", ["pip install metaworld"]),
        ("highway-fast-v0", ["pip install highway-env"]),
        ("FetchReach-v4", ["pip install gymnasium-robotics"]),
        ("gymanx:CartPole-v1", ["gymanx", "nearest: gymnax"]),
        ("halfcheetah", ["nearest: HalfCheetah-v5"]),
    ],
)
def test_whose_an_unknown_environment_is(env_id: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)  # whatever is installed here
    for known in [k for k, spec in gym.registry.items() if not str(spec.entry_point).startswith("gymnasium.envs")]:
        monkeypatch.delitem(gym.registry, known)
    with pytest.raises(UnknownEnvironmentError) as caught:
        make_envs(env_id, 1)
    for word in words:
        assert word in str(caught.value)


def test_a_known_package_is_imported_by_an_id_of_it_if_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of its name that merely lies about is not: nobody has named it."""
    monkeypatch.setitem(PACKAGES, ("zoo", "zoo_of_a_test"), ["zoo-*"])
    monkeypatch.syspath_prepend(tmp_path)
    registers = (
        "import gymnasium\ngymnasium.register('Zoo-Ape-v0', 'trpo.envs.host.probes:Probe', kwargs={'name': 'both'})"
    )
    (tmp_path / "zoo_of_a_test.py").write_text(registers)
    with pytest.raises(UnknownEnvironmentError, match="pip install zoo"):
        make_envs("Zoo-Ape-v0", 1)
    assert "zoo_of_a_test" not in sys.modules
    (tmp_path / "zoo_of_a_test-1.dist-info").mkdir()
    (tmp_path / "zoo_of_a_test-1.dist-info" / "METADATA").write_text("Name: zoo-of-a-test\nVersion: 1\n")
    make_envs("Zoo-Ape-v0", 1).close()
    gym.registry.pop("Zoo-Ape-v0")
    del sys.modules["zoo_of_a_test"]


def test_what_envpool_simulates_has_a_name_in_gymnasium() -> None:
    assert [gymnasium_id(f"{of}Hopper-v5") for of in ("", "envpool:")] == ["Hopper-v5"] * 2
    pytest.importorskip("ale_py", reason="needs trpo[atari]")
    assert gymnasium_id("envpool:Pong-v5") == gymnasium_id("ALE/Pong-v5") == "ALE/Pong-v5"


def test_packages_of_environments() -> None:
    assert package_of("minigrid:MiniGrid-Emty-v0", []) == "pip install 'trpo[minigrid]'"
    assert package_of("MiniGrid-Emty-v0", ["MiniGrid-Empty-5x5-v0"]) == ""  # it is imported: the nearest name helps
    assert package_of("Hoper-v5", []) == ""


class Parts(gym.Env):
    """A Dict with a text and a Dict inside."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, size: int = 2):
        inner = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (size,)), "word": gym.spaces.Text(3)})
        self.observation_space = gym.spaces.Dict(
            {"arm": inner, "mission": gym.spaces.Text(9), "n": gym.spaces.Discrete(3)}
        )
        self._seen = {"arm": {"a": np.zeros(size, np.float32), "word": "x"}, "mission": "go", "n": 1}

    def reset(self, **kwargs: Any) -> tuple[dict, dict]:
        super().reset(**kwargs)
        return self._seen, {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        return self._seen, 1.0, True, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


DROPPED = ("mission", "arm/word")


@pytest.mark.parametrize("workers", [0, 1])
def test_parts_of_observations_are_left_out_at_the_door(workers: int) -> None:
    envs = make_envs(Parts, 2, workers, drop=DROPPED)
    try:
        assert str(envs.spec.observation) == "Dict(arm: Dict(a: Box(-1, 1, (2,), float32)), n: Discrete(3))"
        seen = envs.reset([0, 1])
        assert set(seen) == {"arm", "n"}
        assert set(envs.step(np.zeros(2, np.int32)).final_observation["arm"]) == {"a"}
    finally:
        envs.close()
    flat = make_envs(Parts, 1, drop=DROPPED, flatten=True)
    assert flat.spec.observation.shape == (5,)


def test_what_is_left_out_stays_out_when_a_run_is_evaluated_recorded_and_resumed(tmp_path: Path) -> None:
    def made() -> Parts:
        env = Parts()
        env.render_mode = "rgb_array"
        return env

    config = trpo.Config(steps=8, fragment=4, env=trpo.EnvConfig(count=2, drop=DROPPED))
    with pytest.raises(ValueError, match=r"at \['arm'\]\['word'\]: Text.* leave it out \(--env.drop arm/word\)"):
        trpo.train(made, config=dataclasses.replace(config, env=trpo.EnvConfig(count=2)), quiet=True)
    trpo.train(made, config=config, out=tmp_path / "run", quiet=True)
    agent = trpo.load(tmp_path / "run", env=made)
    assert agent.config.env.drop == DROPPED
    assert agent.evaluate(episodes=2).mean_return == 1.0
    whole = made().reset(seed=0)[0]
    less = {"n": whole["n"], "arm": {"a": whole["arm"]["a"]}}
    assert agent.act(whole) == agent.act(less)
    with pytest.raises(ValueError, match=r"observation has parts n, arm, more: must have arm, n"):
        agent.act({**less, "mission": whole["mission"], "more": 0})
    record(agent, tmp_path / "a.gif", episodes=1)
    trpo.resume(tmp_path / "run", steps=16, env=made, quiet=True)


@pytest.mark.parametrize(
    ("env", "has"), [(Parts, "arm, mission, n, arm/a, arm/word"), ("probe:both", "none: it is no")]
)
def test_a_part_that_is_not_there_cannot_be_left_out(env: Any, has: str) -> None:
    with pytest.raises(ValueError, match=rf"env\.drop=goal: an observation has no such part; .*: {has}"):
        make_envs(env, 1, drop=["goal"])


def test_parts_of_environments_in_jax_are_left_out_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Two:
        spec: EnvSpec
        cheap_reset: bool = True

        def reset(self, key: Any) -> Any:
            return jnp.zeros(()), {"a": jnp.zeros(1), "b": jnp.zeros(2)}

        def step(self, state: Any, action: Any, key: Any) -> Any:
            one = jnp.ones(())
            return state, trpo.Step({"a": jnp.zeros(1), "b": jnp.zeros(2)}, one, one > 0, one < 0)

    env = Two(EnvSpec("two", Dict((("a", Box((1,))), ("b", Box((2,))))), Choice(2)))
    config = trpo.Config(steps=8, fragment=4, env=trpo.EnvConfig(count=2, drop=("b",)))
    agent = trpo.train(env, config=config, quiet=True)
    assert agent.spec.observation == Dict((("a", Box((1,))),))
    assert agent.evaluate(episodes=1).mean_return == 1.0
    with pytest.raises(ValueError, match=r"env\.drop=c: an observation has no such part; .*: a, b"):
        trpo.make_agent(env, dataclasses.replace(config, env=trpo.EnvConfig(drop=("c",))))


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_with_other_spaces_are_named(workers: int, tmp_path: Path) -> None:
    def made() -> Parts:
        once = tmp_path / "made"
        size = 3 if once.exists() else 2
        once.touch()
        return Parts(size)

    said = r"its observation space is .*\([23],\).* in one copy and .*\([23],\).* in another; all must have the same"
    with pytest.raises(ValueError, match=said):
        make_envs(made, 2, workers, drop=DROPPED)
