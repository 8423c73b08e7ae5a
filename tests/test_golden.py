"""Runs stored by an earlier version: they load, evaluate and resume as they did then.

To the last bit on the machine that wrote them (``python -m tests.golden old``); elsewhere to rounding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import assert_same_bits

import trpo
from tests.golden.__main__ import HERE, differences, summary
from trpo.envs import Bits, Box, Choice, Choices, EnvSpec, Space
from trpo.runs.checkpoint import DATA, SUMS, TENSORS, checkpoints
from trpo.runs.files import read_config
from trpo.runs.first_format import arrays_today, config_today
from trpo.runs.sinks import read_metrics
from trpo.training.agent import Agent
from trpo.trees import from_named_arrays, named_arrays

RUNS = sorted(path for path in (HERE / "runs").iterdir() if path.is_dir())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_of_the_first_format_evaluates_and_resumes(run: Path, tmp_path: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    assert json.loads((run / "config.json").read_text())["format"] == 1
    found = trpo.load(run, trust=True).evaluate(episodes=3)
    np.testing.assert_allclose(found.returns, expected["evaluated"]["returns"], rtol=1e-2)
    assert list(found.lengths) == expected["evaluated"]["lengths"]
    copy = shutil.copytree(run, tmp_path / "run")
    trpo.resume(copy, steps=1024, quiet=True, trust=True)
    resumed = summary(copy)
    assert [m["steps"] for m in resumed["metrics"]] == [m["steps"] for m in expected["resumed"]["metrics"]]
    # The first iteration after the checkpoint: the same batch, so the same step.
    first = len(resumed["metrics"]) // 2
    for name in ("mean_kl", "surrogate_gain", "explained_variance", "entropy", "episode_return"):
        here, there = (m[first][name] for m in (resumed["metrics"], expected["resumed"]["metrics"]))
        assert here == (there if there is None else pytest.approx(there, rel=1e-2, abs=1e-4)), name
    assert read_config(copy)["format"] == 2
    assert trpo.load(copy).learner.value.params.trunk.weights[0].shape[1] == 8


def test_differences_are_found() -> None:
    old = {"a": [1.0, None], "b": {"c": 2}}
    assert differences(old, {"a": [1.0, None], "b": {"c": 2}}) == []
    assert differences(old, {"a": [1.1, None], "b": {"c": 2}}) == [("/a[0]", pytest.approx(0.1 / 1.1))]
    assert differences(old, {"a": [1.0, 3], "b": {}}) == [("/a[1]", np.inf), ("/b/c", np.inf)]


SPACES: dict[str, tuple[dict[str, Any], Space]] = {
    "box": (
        {"shape": [2, 1], "dtype": "float64", "sizes": [], "start": [], "low": [-1.0, None], "high": [2.0, None]},
        Box((2, 1), "float64", (-1.0, -np.inf), (2.0, np.inf), rescale=True),
    ),
    "discrete": (
        {"shape": [], "dtype": "int64", "sizes": [4], "start": [-1], "low": [], "high": []},
        Choice(4, -1, "int64"),
    ),
    "multi_discrete": (
        {"shape": [2], "dtype": "int64", "sizes": [3, 2], "start": [0, 5], "low": [], "high": []},
        Choices((3, 2), (0, 5), (2,), "int64"),
    ),
    "multi_binary": (
        {"shape": [3], "dtype": "int8", "sizes": [2, 2, 2], "start": [], "low": [], "high": []},
        Bits((3,), "int8"),
    ),
}
"""Actions as the first format had them, and as they are now."""


def first_config(kind: str, **settings: Any) -> dict[str, Any]:
    """The content of a ``config.json`` of the first format."""
    data = json.loads((HERE / "runs" / "box" / "config.json").read_text())
    spec = {
        "id": "Own-v0",
        "observation_size": 6,
        "action": {"kind": kind, **SPACES[kind][0]},
        "observation_shape": [6],
    }
    return {**data, "spec": spec, "config": {**data["config"], **settings}, "custom_rule": True}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("own_std", [False, True])
def test_any_agent_of_the_first_format_is_an_agent_today(kind: str, own_std: bool) -> None:
    """Its spec and settings are understood, and its arrays are found by their names of then."""
    policy = {"hidden": [4], "state_dependent_std": own_std, "averaging": 0.1}
    data = config_today(first_config(kind, observed_elements=5, policy=policy))
    spec, config = EnvSpec.from_json(data["spec"]), trpo.Config.from_json(data["config"])
    assert spec == EnvSpec("Own-v0", Box((6,)), SPACES[kind][1])
    assert (config.policy.sees, config.value.sees, config.env.flatten) == (":5", ":5", True)
    assert data["custom"] == {"policy": False, "value": False, "rule": True, "env": False}
    learner = Agent.create(spec, config).learner
    assert learner.policy.trunk.weights[0].shape == (5, 4)
    arrays = named_arrays(learner)
    then = {
        name.replace(".trunk.", ".network.").replace(".head.log_std", ".log_std"): leaf for name, leaf in arrays.items()
    }
    assert {"policy.network.weights[0]", "average.network.biases[1]", "value.params.network.weights[1]"} <= then.keys()
    assert ("policy.log_std" in then) == (kind == "box")
    assert_same_bits(from_named_arrays(learner, arrays_today(then, learner)), learner)


class Own(eqx.Module):
    """A policy whose arrays have the names that the library's had."""

    network: trpo.MLP
    log_std: jax.Array

    def __call__(self, observation: Any) -> trpo.DiagGaussian:
        mean = self.network(observation)
        return trpo.DiagGaussian(mean, jnp.broadcast_to(self.log_std, mean.shape))


def test_a_policy_of_one_s_own_keeps_its_names() -> None:
    own = Own(trpo.mlp(jax.random.key(0), (3, 4, 1)), jnp.zeros(1))
    learner = trpo.make_agent("Pendulum-v1", policy=own).learner
    arrays = named_arrays(learner)
    then = {
        name.replace(".trunk.", ".network.") if name.startswith("value") else name: leaf
        for name, leaf in arrays.items()
    }
    assert {"policy.network.weights[0]", "policy.log_std", "average.log_std"} <= then.keys()
    assert arrays_today(then, learner).keys() == arrays.keys()


def test_where_nothing_was_hidden_everything_is_seen() -> None:
    config = config_today(first_config("box", observed_elements=0))["config"]
    assert not {"observed_elements", "sees"} & {*config, *config["policy"], *config["value"]}


def rewrite_in_first_format(run: Path) -> None:
    """Rewrite the settings and the newest checkpoint of a run of a probe."""
    settings = json.loads((run / "config.json").read_text())["config"]
    for group, name in (("policy", "sees"), ("value", "sees"), ("env", "flatten")):
        del settings[group][name]
    data = first_config("discrete", **settings, observed_elements=0) | {"custom_rule": False}
    action = data["spec"]["action"] | {"sizes": [2], "start": [0]}
    data["spec"] = {"id": settings["env"]["id"], "observation_size": 1, "action": action, "observation_shape": [1]}
    (run / "config.json").write_text(json.dumps(data))
    place = checkpoints(run / "checkpoints")[0]
    arrays = safetensors.numpy.load_file(place / TENSORS)
    del arrays["rollout.reset"]
    safetensors.numpy.save_file({k.replace(".trunk.", ".network."): x for k, x in arrays.items()}, place / TENSORS)
    state = json.loads((place / DATA).read_text()) | {"format": 1}
    _, returns, lengths = zip(*state["episodes"].pop("recent"), strict=True)
    state["episodes"] |= {"returns": returns, "lengths": lengths}
    (place / DATA).write_text(json.dumps(state))
    sums = [f"{hashlib.sha256((place / file).read_bytes()).hexdigest()}  {file}\n" for file in (TENSORS, DATA)]
    (place / SUMS).write_text("".join(sums))


def test_a_run_of_the_first_format_with_snapshots_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Simulators, what was seen last, episodes under way and recent ones."""
    small = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,), epochs=1)}
    config = trpo.Config(steps=4 * 36, fragment=9, env=trpo.EnvConfig(count=4), **small)
    whole, half = tmp_path / "whole", tmp_path / "half"
    trpo.train("probe:delayed", config=config, out=whole, quiet=True)
    trpo.train("probe:delayed", config=config, steps=72, out=half, quiet=True)
    rewrite_in_first_format(half)
    trpo.resume(half, steps=config.steps, quiet=True)
    a, b = (checkpoints(run / "checkpoints")[0] for run in (whole, half))
    assert a.name == b.name == "00000004"
    assert (a / TENSORS).read_bytes() == (b / TENSORS).read_bytes()
    assert len({json.dumps(json.loads((x / DATA).read_text()) | {"seconds": 0}) for x in (a, b)}) == 1
    assert len({json.dumps([row["episode_return"] for row in read_metrics(run)]) for run in (whole, half)}) == 1
