"""Checkpoints: what is written is read back, damage is found and named, nothing is executed."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import same_bits, untimed

import trpo
from trpo.envs import Box, Choice, Dict, EnvSpec
from trpo.envs.device import Step
from trpo.runs import checkpoint
from trpo.runs.checkpoint import CheckpointError
from trpo.runs.sinks import read_metrics
from trpo.trees import namespace


@pytest.fixture(scope="module")
def trained():
    config = trpo.Config(steps=64, fragment=8, env=trpo.EnvConfig("probe:both", count=4))
    agent = trpo.make_agent("probe:both", config)
    for state, _ in trpo.iterations("probe:both", agent, config):  # noqa: B007
        pass
    return agent, state


def test_round_trip_is_bit_exact(trained, tmp_path):
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path, state)
    read = checkpoint.read_checkpoint(path, agent.learner)
    assert same_bits(read.learner, state.learner)
    assert (read.iteration, read.steps) == (state.iteration, state.steps)
    assert read.episodes == state.episodes
    assert read.source.environments == state.source.environments
    assert same_bits(checkpoint.named_arrays(state.source.seat), read.source.seat)


def test_everything_that_changes_in_training_is_in_it(tmp_path):
    """Of a rule with a state, of an optimiser, of statistics: each leaf, with a value that it never begins with."""
    config = trpo.Config(env=trpo.EnvConfig("probe:both", count=4), rule=trpo.RuleConfig(name="penalty"))
    agent = trpo.make_agent("probe:both", config)
    leaves, structure = jax.tree.flatten(agent.learner)
    changed = [leaf + jnp.asarray(3 + i, leaf.dtype) for i, leaf in enumerate(leaves)]
    state = trpo.TrainingState(
        jax.tree.unflatten(structure, changed), iteration=7, steps=11, seconds=2.5, episodes={"episodes": 13}
    )
    assert state.learner.rule.coefficient != agent.learner.rule.coefficient
    read = checkpoint.read_checkpoint(checkpoint.write_checkpoint(tmp_path, state), agent.learner)
    assert jax.tree.structure(read.learner) == structure
    assert same_bits(read.learner, state.learner)
    assert (read.iteration, read.steps, read.seconds, read.episodes) == (7, 11, 2.5, {"episodes": 13})
    assert read.source is None


@pytest.mark.parametrize("averaged", [True, False])
def test_the_average_of_policies_may_be_begun_or_dropped(trained, tmp_path, averaged):
    """A checkpoint without one (older, or ``policy.averaging=0``) begins with its policy."""
    agent, state = trained
    without = dataclasses.replace(state.learner, average=None)
    saved, like = (without, agent.learner) if averaged else (state.learner, without)
    path = checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, learner=saved))
    read = checkpoint.read_checkpoint(path, like).learner
    assert same_bits(read, dataclasses.replace(state.learner, average=state.learner.policy if averaged else None))


def test_statistics_are_inside(trained, tmp_path):  # PITFALLS row 23
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path, state)
    names = set(checkpoint.named_arrays(checkpoint.read_checkpoint(path, agent.learner).learner))
    assert {"observations.mean", "observations.count", "value.returns.mean", "policy.trunk.weights[0]"} <= names
    assert any("value.optimiser" in name for name in names)


def test_checksums_are_those_of_sha256sum(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--quiet", "-c", checkpoint.SUMS], cwd=path, check=True)


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.DATA, checkpoint.SUMS])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_is_named_and_the_previous_one_used(trained, tmp_path, file, damage):
    agent, state = trained
    checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=1))
    newest = checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=2)) / file
    content = newest.read_bytes()
    match damage:
        case "flip":
            middle = len(content) // 2
            newest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "truncate":
            newest.write_bytes(content[: len(content) // 2])
        case "empty":
            newest.write_bytes(b"")
        case "delete":
            newest.unlink()
    read, problems = checkpoint.newest_checkpoint(tmp_path, agent.learner)
    assert read.iteration == 1
    assert len(problems) == 1
    assert "00000002" in problems[0]
    assert "\n" not in problems[0]


def test_all_damaged(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    (path / checkpoint.TENSORS).write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.newest_checkpoint(tmp_path, trained[0].learner)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.newest_checkpoint(tmp_path / "empty", trained[0].learner)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_loading_executes_no_code(trained, tmp_path, monkeypatch):  # PITFALLS row 24
    monkeypatch.chdir(tmp_path)
    agent, state = trained
    path = checkpoint.write_checkpoint(tmp_path / "c", state)
    pickled = pickle.dumps(Bomb())
    with pytest.raises(CheckpointError):
        checkpoint.read_checkpoint(_forge(path, checkpoint.TENSORS, pickled), agent.learner)
    path = checkpoint.write_checkpoint(tmp_path / "c", state)
    with pytest.raises(CheckpointError):
        checkpoint.read_checkpoint(_forge(path, checkpoint.DATA, pickled), agent.learner)
    assert not (tmp_path / "bomb-went-off").exists()
    pickle.loads(pickled)  # the bomb does work
    assert (tmp_path / "bomb-went-off").exists()


def _forge(path, file, content):
    """Put ``content`` in place of a file, with a checksum to match."""
    import hashlib

    (path / file).write_bytes(content)
    sums = [
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (checkpoint.TENSORS, checkpoint.DATA)
    ]
    (path / checkpoint.SUMS).write_text("".join(sums))
    return path


def test_another_format_version_is_refused(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    data = json.loads((path / checkpoint.DATA).read_text())
    data["format"] = 99
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.read_checkpoint(_forge(path, checkpoint.DATA, json.dumps(data).encode()), trained[0].learner)


def test_another_agent_is_refused(trained, tmp_path):
    path = checkpoint.write_checkpoint(tmp_path, trained[1])
    config = trpo.Config(policy=trpo.PolicyConfig(hidden=(32,)), env=trpo.EnvConfig("probe:both"))
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.read_checkpoint(path, trpo.make_agent("probe:both", config).learner)


def test_only_the_last_k_are_kept_and_leftovers_are_ignored(trained, tmp_path):
    (tmp_path / ".tmp-00000009").mkdir(parents=True)  # what a crash while writing leaves behind
    for i in range(1, 6):
        checkpoint.write_checkpoint(tmp_path, dataclasses.replace(trained[1], iteration=i))
        checkpoint.prune(tmp_path, i, keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["00000005", "00000004"]


def test_a_crash_at_any_write_leaves_the_previous_checkpoint(trained, tmp_path, monkeypatch):
    agent, state = trained
    checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=1))
    real = Path.write_bytes
    for crash_at in range(3):
        calls = iter(range(10))

        def write(path, data, calls=calls, crash_at=crash_at):
            if next(calls) == crash_at:
                real(path, data[: len(data) // 2])
                raise OSError("power cut")
            return real(path, data)

        monkeypatch.setattr(Path, "write_bytes", write)
        with pytest.raises(OSError, match="power cut"):
            checkpoint.write_checkpoint(tmp_path, dataclasses.replace(state, iteration=2))
        read, problems = checkpoint.newest_checkpoint(tmp_path, agent.learner)
        assert read.iteration == 1
        assert problems == []


# ---------------------------------------------------------------- going on exactly


class Leaky(eqx.Module):
    """A trunk with memory, h ← tanh(x W + 0.9 h) V, which is cleared where an episode begins."""

    inside: jax.Array
    outside: jax.Array

    def start(self, count: int) -> np.ndarray:
        return np.zeros((count, self.inside.shape[1] if self.inside is not None else 3), np.float32)

    def __call__(self, carry, x, reset):
        xp = namespace(x)
        carry = xp.tanh(x @ self.inside + 0.9 * xp.where(reset[..., None], 0.0, carry))
        return carry @ self.outside, carry


class Turning:
    """A JaxEnv that shows a dict; the reward says whether the action is the goal. Episodes of up to seven steps."""

    cheap_reset = True
    spec = EnvSpec("turning", Dict((("goal", Choice(3)), ("at", Box((2,))))), Choice(3))

    def show(self, goal, x):
        return {"goal": goal, "at": jnp.stack([x, -x])}

    def reset(self, key):
        goal, x = jax.random.randint(key, (), 0, 3), jax.random.normal(key)
        return (goal, jnp.zeros((), jnp.int32)), self.show(goal, x)

    def step(self, state, action, key):
        goal, time = (state[0] + action) % 3, state[1] + 1
        seen = self.show(goal, jax.random.normal(key))
        return (goal, time), Step(seen, jnp.where(action == state[0], 1.0, 0.0), seen["at"][0] > 1.5, time == 7)


TURNING = Turning()


def matching():
    """One that steps on the host, shows a dict, and offers snapshots."""
    return gym.make("tests.golden.environments:Mixed-v0").unwrapped  # a wrapper would hide them


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    """Nothing is written to the compilation cache: late in a session, serialising these programs crashes jaxlib."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("remembers", [False, True], ids=["memoryless", "memory"])
@pytest.mark.parametrize("env", [matching, TURNING], ids=["host", "device"])
def test_a_run_that_is_resumed_at_half_is_the_run_without_a_break(env, remembers, tmp_path):
    """Dict observations, simulators with snapshots or in JAX; episodes and a policy's memory go on where they were."""
    small = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,), minibatch=8, epochs=1)}
    config = trpo.Config(steps=6 * 40, fragment=10, env=trpo.EnvConfig(count=4), checkpoint_every=100, **small)
    policy = None
    if remembers:
        encoder, random = trpo.make_encoder(trpo.make_agent(env, config).spec.observation), np.random.default_rng(0)
        inside, outside = (random.normal(size=n).astype(np.float32) for n in ((encoder.size, 3), (3, 3)))
        trunk = Leaky(jnp.asarray(inside), jnp.asarray(outside))
        policy = trpo.Policy(encoder, trunk, trpo.CategoricalHead(3))
    places = tmp_path / "whole", tmp_path / "half"
    trpo.train(env, config=config, policy=policy, out=places[0], quiet=True)
    trpo.train(env, config=dataclasses.replace(config, steps=120), policy=policy, out=places[1], quiet=True)
    trpo.resume(places[1], steps=config.steps, policy=policy, env=env, quiet=True)
    names = [checkpoint.checkpoints(place / "checkpoints")[0] for place in places]
    assert [name.name for name in names] == ["00000006"] * 2
    a, b = ((name / checkpoint.TENSORS).read_bytes() for name in names)
    assert a == b
    a, b = (json.loads((name / checkpoint.DATA).read_text()) | {"seconds": None} for name in names)
    assert a == b
    whole, half = ([untimed(row) for row in read_metrics(place)] for place in places)
    assert [row["value_loss"] is None for row in whole] == [True] + [False] * 5  # of the fit before
    assert whole == half
    arrays = safetensors.numpy.load_file(places[1] / "checkpoints" / "00000003" / checkpoint.TENSORS)
    memory, begins = ([x for name, x in arrays.items() if name.endswith(part)] for part in (".carry", ".reset"))
    assert [x.shape for x in memory] == ([(4, 3)] if remembers else [])
    assert [x.all() for x in begins] == [False]  # episodes were under way


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("memory", ["carry", "reset"])
def test_memory_and_where_episodes_begin_are_what_is_gone_on_with(memory, tmp_path):
    """Another carry, or another flag, in the state gives another batch."""
    config = trpo.Config(steps=80, fragment=10, env=trpo.EnvConfig(count=4), value=trpo.ValueConfig(hidden=(4,)))
    encoder = trpo.make_encoder(TURNING.spec.observation)
    trunk = Leaky(jnp.ones((encoder.size, 3)), jnp.eye(3))
    agent = trpo.make_agent(TURNING, config, policy=trpo.Policy(encoder, trunk, trpo.CategoricalHead(3)))
    (first, _), (_, expected) = list(trpo.iterations(TURNING, agent))
    kept = getattr(first.source, memory)
    other = dataclasses.replace(first.source, **{memory: ~kept if memory == "reset" else kept + 5})
    for source, same in ((first.source, True), (other, False)):
        ((_, found),) = list(trpo.iterations(TURNING, agent, state=dataclasses.replace(first, source=source)))
        assert (found["entropy"] == expected["entropy"]) is same
