"""Policies that are taken away act as the agent does, in a process that cannot import JAX."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces

import trpo
from tests.helpers import run_process
from trpo.cli.main import main
from trpo.deploy import policy as deployed
from trpo.envs.masks import MASK
from trpo.envs.meeting import observed
from trpo.envs.spaces import Box

HAS_ONNX = importlib.util.find_spec("onnx") is not None
COUNT, SINGLE = 1000, 40
TOLERANCE = 1e-6
"""Of actions, relative to the largest number that their space allows, or 1: single precision has seven digits."""


class Wandering(gym.Env):
    """What is observed wanders; every action is looked at closely."""

    def __init__(self, observation: gym.Space, action: gym.Space, told: bool = False):
        self.observation_space, self.action_space, self.told = observation, action, told

    def _answer(self) -> tuple[Any, dict[str, Any]]:
        info = {}
        if self.told:  # of each choice the first is allowed, so that none is left without
            mask = self.np_random.integers(0, 2, 5, np.int8)
            mask[[0, 2]] = 1
            info[MASK] = {"kind": (mask[:2], mask[2:]), "gear": None}
        return self.observation_space.sample(), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self._answer()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        observation, info = self._answer()
        return observation, 0.0, bool(self.np_random.random() < 0.02), False, info


def everything() -> gym.Env:
    arm = {"joints": spaces.Box(-9, 9, (2, 2)), "goal": spaces.Discrete(3, start=2), "mission": spaces.Text(5)}
    observation = spaces.Dict(
        arm=spaces.Dict(arm),
        camera=spaces.Box(0, 255, (6, 7, 3), np.uint8),
        count=spaces.Box(-5, 5, (2,), np.int16),
        doors=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3], start=[1, 0])]),
        mission=spaces.Text(5),
    )
    action = spaces.Dict(
        gear=spaces.Discrete(3, start=1),
        kind=spaces.MultiDiscrete([2, 3], start=[0, 4]),
        level=spaces.Box(0, 7, (2,), np.int32),
        more=spaces.Tuple([spaces.MultiBinary((2, 2)), spaces.Box(-2, np.array([5, np.inf], np.float32), (2,))]),
        wide=spaces.Box(-(2**62), 2**62, (1,), np.int64),
    )
    return Wandering(observation, action, told=True)


def camera() -> gym.Env:
    """Four grey frames, as large as the larger network's kernels need."""
    return Wandering(spaces.Box(0, 255, (4, 44, 52), np.uint8), spaces.Box(-1, 1, (2,), np.float64))


def picture() -> gym.Env:
    return Wandering(spaces.Box(0, 255, (5, 6, 3), np.uint8), spaces.Discrete(4, start=-1))


MAKERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "flat": ("Hopper-v5", {}, {}),
    "squashed": ("Pendulum-v1", {"distribution": "squashed", "state_dependent_std": True, "activation": "relu"}, {}),
    "beta": ("Pendulum-v1", {"distribution": "beta"}, {}),
    "masked": ("Taxi-v4", {}, {}),
    "gru": ("CartPole-v1", {"trunk": "gru", "memory": 16, "sees": ":1 2:3"}, {}),
    "lstm": ("Pendulum-v1", {"trunk": "lstm", "memory": 16, "sees": ":2", "hidden": ()}, {}),
    "cnn": (camera, {"last_layer_scale": 0.2}, {}),
    "pixels": (picture, {"encoder": "flat", "sees": "5:60 70:"}, {}),
    "mixed": (
        everything,
        {"trunk": "gru", "memory": 8, "last_layer_scale": 0.3},
        {"drop": ("mission", "arm/mission"), "rescale_actions": True},
    ),
    "clipped": ("Pendulum-v1", {}, {"rescale_actions": False}),
}
"""Environment, settings of the policy, settings of the environment."""


def agent_of(name: str) -> trpo.Agent:
    """An agent that has not learned, but acts: with statistics, and with a last layer that says something."""
    env, policy, options = MAKERS[name]
    config = trpo.Config(
        policy=trpo.PolicyConfig(**{"hidden": (24, 16), "last_layer_scale": 1.0, "averaging": 0.0, **policy}),
        value=trpo.ValueConfig(hidden=(4,), encoder="flat"),
        env=trpo.EnvConfig(count=1, **options),
        observation_clip=math.inf if name == "gru" else 2.0,
    )
    return trpo.make_agent(env, config)


@functools.cache
def walked(env: Any) -> tuple[list[Any], list[Any]]:
    """Observations of an environment as it gives them, and what it tells of actions that are allowed."""
    env = gym.make(env) if isinstance(env, str) else env()
    env.action_space.seed(0)
    answers = [env.reset(seed=0)]
    while len(answers) < COUNT:
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        answers.append(env.reset() if terminated or truncated else (observation, info))
    return [answer[0] for answer in answers], [answer[1].get(MASK) for answer in answers]


def without(observation: Any, dropped: tuple[str, ...], path: str = "") -> Any:
    """An observation as it is behind the environment's door."""
    if not isinstance(observation, dict):
        return observation
    kept = {name: part for name, part in observation.items() if f"{path}{name}" not in dropped}
    return {name: without(part, dropped, f"{path}{name}/") for name, part in kept.items()}


def together(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def largest(leaf: Any) -> float:
    """The largest number that a leaf of actions has; 1 where there is no end, and for choices."""
    ends = np.abs(np.hstack([leaf.low, leaf.high]).astype(float)) if isinstance(leaf, Box) else np.ones(1)
    return float(max(ends[np.isfinite(ends)], default=1.0))


def case_of(agent: trpo.Agent) -> tuple[trpo.Agent, dict[str, Any]]:
    """Give an agent statistics; return it with what a process without JAX is given of it, and what it must find."""
    raw, masks = walked(agent.env)
    seen = [without(x, agent.config.env.drop) for x in raw]
    batch, batch_mask = together(seen), together(masks)

    def statistics_of(leaf: Any, statistics: Any, x: Any) -> Any:
        numbers = statistics and np.float32(leaf.to_numbers(x))
        return statistics and trpo.RunningStatistics(
            count=np.float32(COUNT),
            mean=numbers.mean(axis=0),
            deviations=COUNT * numbers.var(axis=0),
            unit=np.ones(numbers.shape[1:], np.float32),
        )

    taken = observed(agent.spec, batch, batch_mask)[0]
    statistics = agent.spec.observation.map(statistics_of, agent.learner.observations, taken)
    statistics = jax.tree.map(jnp.asarray, statistics)
    agent = dataclasses.replace(agent, learner=dataclasses.replace(agent.learner, observations=statistics))
    actions, carry = [], agent.start()
    for x, mask in zip(raw[:SINGLE], masks, strict=False):  # one after the other, as one acts
        action, carry = agent.act(x, carry, action_mask=mask)
        actions.append(action)
    batches, carry = [], agent.start(COUNT)
    for _ in range(2):  # all together; the second time with a memory of the first
        action, carry = agent.act(batch, carry, action_mask=batch_mask)
        batches.append(action)
    single = {"observations": raw[:SINGLE], "masks": masks[:SINGLE], "actions": actions}
    scale = agent.spec.action.map(largest)
    return agent, {**single, "scale": scale, "batch": batch, "batch_mask": batch_mask, "batches": batches}


APART = '''
import importlib, json, pickle, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "equinox", "trpo", "gymnasium", "scipy", "safetensors"}:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Refuse())
import numpy as np
sys.path.insert(0, sys.argv[1])
COUNT = int(sys.argv.pop(2))
from policy import Policy, flat_mask
try:
    import onnxruntime
except ImportError:
    onnxruntime = None
else:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1

def error(found, right, scale):
    """The largest difference, relative to the largest number that the space allows."""
    if isinstance(right, dict):
        assert found.keys() == right.keys()
        return max(error(found[name], right[name], scale[name]) for name in right)
    if isinstance(right, tuple):
        assert type(found) is tuple
        return max(map(error, found, right, scale))
    assert (type(found), found.shape, found.dtype) == (type(right), right.shape, right.dtype), (found, right)
    return float(np.max(np.abs(found.astype(float) - right)) / scale)

def named(name, x):
    """Parts of a tree by the names that a graph calls them by."""
    if isinstance(x, (dict, tuple)):
        parts = x.items() if isinstance(x, dict) else enumerate(x)
        return {n: part for key, value in parts for n, part in named(f"{name}/{key}" if name else key, value).items()}
    return {name: x}

def run(session, types, observation, mask, carry):
    """Act by a graph as a user of onnxruntime does."""
    flat = {} if mask is None else {"action_mask": flat_mask(policy.description["action"], mask)}
    flat |= named("", observation) if isinstance(observation, dict) else {"observation": observation}
    flat |= named("carry", carry or {})
    names = [value.name for value in session.get_outputs()]
    fed = {name: np.asarray(flat[name]).astype(types[name], copy=False) for name in types}
    return dict(zip(names, session.run(None, fed)))

NUMBERS = {"tensor(float)": "float32", "tensor(double)": "float64"}
found = {}
for name in sys.argv[2:]:
    with open(f"{sys.argv[1]}/{name}.pickle", "rb") as file:
        case = pickle.load(file)
    policy = Policy(f"{sys.argv[1]}/{name}.npz")
    errors, carry = [], policy.start()
    for x, mask, right in zip(case["observations"], case["masks"], case["actions"]):
        action, carry = policy(x, carry, action_mask=mask)
        errors.append(error(action, right, case["scale"]))
    carry = policy.start(COUNT)
    for right in case["batches"]:
        action, carry = policy(case["batch"], carry, action_mask=case["batch_mask"])
        errors.append(error(action, right, case["scale"]))
    found[name] = {"npz": max(errors)}
    if onnxruntime is None:
        continue
    session = onnxruntime.InferenceSession(f"{sys.argv[1]}/{name}.onnx", options, providers=["CPUExecutionProvider"])
    types = {x.name: NUMBERS.get(x.type, x.type[7:-1]) for x in session.get_inputs()}
    errors, carry = [], policy.start(1)
    scale = named("action", case["scale"])
    def single(x):
        return {key: single(part) for key, part in x.items()} if isinstance(x, dict) else (
            tuple(map(single, x)) if isinstance(x, tuple) else None if x is None else np.asarray(x)[None])
    for x, mask, right in zip(case["observations"], case["masks"], case["actions"]):
        answer = run(session, types, single(x), single(mask), carry)
        carry = {n: answer.pop(f"next_carry/{n}") for n in carry or {}}
        errors.append(error(answer, named("action", single(right)), scale))
    carry = policy.start(COUNT)
    for right in case["batches"]:
        answer = run(session, types, case["batch"], case["batch_mask"], carry)
        carry = {n: answer.pop(f"next_carry/{n}") for n in carry or {}}
        errors.append(error(answer, named("action", right), scale))
    found[name]["onnx"] = max(errors)
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")


@pytest.fixture(scope="module")
def agents(place: Path) -> dict[str, trpo.Agent]:
    """Agents, exported to one place."""
    agents = {}
    with jax.numpy_rank_promotion("raise"):
        for name in MAKERS:
            agents[name], case = case_of(agent_of(name))
            (place / f"{name}.pickle").write_bytes(pickle.dumps(case))
            trpo.export(agents[name], place / f"{name}.npz")
            if HAS_ONNX:
                trpo.export(agents[name], place / f"{name}.onnx")
    return agents


@pytest.fixture(scope="module")
def found(agents: dict[str, trpo.Agent], place: Path) -> dict[str, Any]:
    """The largest error of each agent's files, found in one process without JAX."""
    ended = run_process([sys.executable, "-c", APART, str(place), str(COUNT), *agents])
    assert not ended.returncode, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", MAKERS)
def test_the_file_for_numpy_acts_as_the_agent_does(found: dict[str, Any], name: str) -> None:
    assert found[name]["npz"] <= TOLERANCE


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")
@pytest.mark.parametrize("name", MAKERS)
def test_the_onnx_graph_acts_as_the_agent_does(found: dict[str, Any], name: str) -> None:
    assert found[name]["onnx"] <= TOLERANCE


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("name", ["squashed", "beta", "mixed"])
def test_samples_are_those_of_the_agents_distribution(agents: dict[str, trpo.Agent], place: Path, name: str) -> None:
    """Of one observation, by Kolmogorov and Smirnov's test of two samples, each element of an action by itself."""
    agent, policy = agents[name], deployed.Policy(place / f"{name}.npz")
    raw, masks = walked(agent.env)
    x = together([without(raw[0], agent.config.env.drop)] * COUNT)
    mask = together(masks[:1] * COUNT)
    samples = (
        agent.act(x, deterministic=False, seed=0, action_mask=mask),
        policy(x, action_mask=mask, rng=np.random.default_rng(0)),
    )
    for ours, theirs in zip(*(jax.tree.leaves(sample) for sample in samples), strict=True):
        assert ours.dtype == theirs.dtype
        for i in range(ours[0].size):
            columns = (part.reshape(COUNT, -1)[:, i] for part in (ours, theirs))
            assert scipy.stats.ks_2samp(*columns, method="asymp").pvalue > 1e-3


def test_what_is_not_allowed_is_never_sampled(agents: dict[str, trpo.Agent], place: Path) -> None:
    observations, masks = walked(agents["masked"].env)
    rows = np.arange(COUNT)
    actions = deployed.Policy(place / "masked.npz")(
        np.array(observations), action_mask=np.stack(masks), rng=np.random.default_rng(0)
    )
    assert np.stack(masks)[rows, actions].all()
    assert len(set(actions)) > 3


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "observation", "how", "words"),
    [
        ("flat", np.zeros(7), {}, ["observation (7,)", "observation (11,)", "batch"]),
        ("flat", np.full(11, np.nan), {}, ["observation must be finite", "nan"]),
        ("flat", "abc", {}, ["observation must be numbers"]),
        ("flat", {"x": np.zeros(11)}, {}, ["observation must be numbers"]),
        ("flat", np.zeros(11), {"action_mask": np.ones(3)}, [MASK, "no mask"]),
        ("gru", np.zeros(4), {"carry": np.zeros(3)}, ["carry", "(16,)", "start"]),
        ("masked", 3, {}, [MASK, "give what it tells"]),
        ("masked", 3, {"action_mask": np.zeros(6)}, [MASK, "allows no action"]),
        ("masked", 3, {"action_mask": np.ones(4)}, [MASK, "(4,)", "(6,)"]),
        ("masked", 500, {"action_mask": np.ones(6)}, ["observation", "500"]),
        ("masked", np.eye(500)[3], {"action_mask": np.ones(6)}, ["observation", "one-hot"]),
        ("mixed", {"arm": {}}, {"action_mask": np.ones(8)}, ["observation", "camera", "count", "found arm"]),
        ("mixed", 0, {"action_mask": np.ones(8)}, ["observation", "dict", "found"]),
    ],
)
def test_observations_of_another_form_are_refused(
    agents: dict[str, trpo.Agent], place: Path, name: str, observation: Any, how: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"must|allow|no mask") as raised:
        deployed.Policy(place / f"{name}.npz")(observation, **how)
    assert all(word in str(raised.value) for word in words), raised.value


def test_files_that_are_no_policies_are_refused(agents: dict[str, trpo.Agent], place: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    with pytest.raises(FileNotFoundError):
        deployed.Policy(file)
    file.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"other\.npz is no policy"):
        deployed.Policy(file)
    np.savez(file, weights=np.zeros(3))
    with pytest.raises(ValueError, match="is no policy"):
        deployed.Policy(file)
    arrays = dict(np.load(place / "flat.npz"))
    about = json.loads(str(arrays["description"]))
    np.savez(file, **{**arrays, "description": np.array(json.dumps({**about, "format": 2}))})
    with pytest.raises(ValueError, match=r"format 2, and policy\.py reads 1"):
        deployed.Policy(file)
    np.savez(file, **{name: array for name, array in arrays.items() if name != "layer.1.weight"})
    with pytest.raises(ValueError, match=r"no array 'layer\.1\.weight'"):
        deployed.Policy(file)
    whole = (place / "flat.npz").read_bytes()
    for damaged in (whole[:-100], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no policy"):
            deployed.Policy(file)


def test_nothing_is_replaced_unasked(agents: dict[str, trpo.Agent], tmp_path: Path) -> None:
    file, agent = tmp_path / "a.npz", agents["flat"]
    assert trpo.export(agent, file) == file
    assert trpo.export(agent, tmp_path / "b.npz").is_file()  # policy.py is the same
    with pytest.raises(ValueError, match=r"a\.npz is there already.*--overwrite"):
        trpo.export(agent, file)
    (tmp_path / "policy.py").write_text("mine")
    with pytest.raises(ValueError, match=r"policy\.py is there already"):
        trpo.export(agent, tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()
    assert (tmp_path / "policy.py").read_text() == "mine"
    trpo.export(agent, file, overwrite=True)
    assert (tmp_path / "policy.py").read_bytes() == Path(deployed.__file__).read_bytes()


def test_a_package_that_is_missing_is_named_before_anything_is_read(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'trpo\[onnx\]'; \.npz needs nothing"):
        trpo.export("nowhere", "policy.onnx")


class Own(eqx.Module):
    """x ↦ x W: a network of one's own."""

    weight: jax.Array
    size: int = 2

    def __call__(self, x: Any) -> Any:
        return x @ self.weight


@pytest.mark.parametrize("part", ["policy", "encoder", "trunk", "head"])
def test_parts_of_ones_own_are_named(part: str) -> None:
    usual = trpo.make_agent("probe:both").module

    class OwnHead(eqx.Module):
        size: int = 2

        def __call__(self, outputs: Any) -> Any:
            return trpo.Categorical(outputs)

    class OwnPolicy(eqx.Module):
        trunk: Any

        def __call__(self, x: Any) -> Any:
            return trpo.Categorical(self.trunk(x))

    own = {
        "policy": OwnPolicy(usual.trunk),
        "head": OwnHead(),
        "encoder": Own(jnp.ones((1, 1)), 1),
        "trunk": Own(jnp.ones((1, 2))),
    }
    parts = {name: own[name] if name == part else getattr(usual, name) for name in ("encoder", "trunk", "head")}
    policy = own["policy"] if part == "policy" else trpo.Policy(**parts)
    with pytest.raises(ValueError, match=rf"the {part} of this policy is a .*Own\w*.*exported are"):
        trpo.export(trpo.make_agent("probe:both", policy=policy), "never.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--to", "x.npz"], ["nowhere"]),
        (["RUN", "--to", "x.zip"], ["x.zip", "must end in .npz or .onnx"]),
        (["RUN", "--to", "x.npz", "--checkpoint", "best"], ["no best checkpoint"]),
        (["RUN", "--to", "there/x.npz"], ["there", "no directory"]),
        (["RUN", "--to", "there.npz"], ["there.npz is there already"]),
        (["RUN", "--format", "npz"], ["unknown flag --format"]),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(
    agents: dict[str, trpo.Agent], arguments: list[str], words: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    agents["flat"].save("run")
    for name in ("there", "there.npz"):
        Path(name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", *("run" if a == "RUN" else a for a in arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert not said.out
    assert all(word in said.err for word in words), said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_export_of_a_run(agents: dict[str, trpo.Agent], tmp_path: Path, capsys: Any) -> None:
    agents["lstm"].save(tmp_path / "run")
    assert main(["export", str(tmp_path / "run")]) == 0
    file = tmp_path / "run" / "policy.npz"
    assert capsys.readouterr().out.strip() == str(file)
    policy, agent = deployed.Policy(file), agents["lstm"]
    x = walked(agent.env)[0][0]
    ours, theirs = policy(x, policy.start()), agent.act(x, agent.start())
    assert ours[0] == theirs[0]
    assert all(np.array_equal(ours[1][name], theirs[1][name]) for name in ("h", "c"))
    assert policy(x) == agent.act(x)


# ---------------------------------------------------------------- an example


def test_a_day_with_a_robot_of_ones_own(tmp_path: Path, capfd: Any) -> None:
    """From the check of an environment to a loop without JAX; and the arm's energy is lost to friction alone."""
    spec = importlib.util.spec_from_file_location("own_robot", Path(__file__).parents[1] / "examples" / "own_robot.py")
    own_robot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_robot)
    own_robot.main(["--steps", "1", "--episodes", "1", "--out", str(tmp_path / "arm")])
    said = capfd.readouterr().out
    assert "1 episodes with neither JAX nor trpo loaded" in said
    assert (tmp_path / "arm" / "policy.npz").is_file()
    arm = own_robot.Arm()
    arm.reset(seed=0)
    arm.velocity = np.array([1.0, -2.0])
    own_robot.FRICTION, own_robot.PERIOD = np.zeros(2), 1e-3
    before = energy(arm, own_robot)
    for _ in range(200):
        arm.step(np.zeros(2))
    assert energy(arm, own_robot) == pytest.approx(before, rel=1e-3)


def energy(arm: Any, of: Any) -> float:
    """Half of m v² over many points of each rod, and the load's."""

    def speeds(angle: np.ndarray, velocity: np.ndarray, link: int, share: float) -> np.ndarray:
        turned, rate = np.cumsum(angle), np.cumsum(velocity)
        lengths = np.where(np.arange(2) < link, of.LENGTHS, np.where(np.arange(2) == link, share * of.LENGTHS, 0))
        return np.array([-(lengths * np.sin(turned)) @ rate, (lengths * np.cos(turned)) @ rate])

    points = [(link, share, of.MASSES[link] / 200) for link in (0, 1) for share in (np.arange(200) + 0.5) / 200]
    points.append((1, 1.0, of.LOAD * arm.loaded))
    return sum(0.5 * mass * np.sum(speeds(arm.angle, arm.velocity, link, share) ** 2) for link, share, mass in points)
