"""What cannot fit into memory is refused with numbers, on every path, before anything of it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo
from trpo import capacity
from trpo.cli.main import main
from trpo.envs.spec import Bits, Box, Choice, Choices, Dict, EnvSpec, Tuple
from trpo.policies import trunks
from trpo.policies.make import make_policy, make_value
from trpo.rollout import HostSource
from trpo.training import host, layout, sizes
from trpo.training.learner import Hyper
from trpo.training.sizes import check_training, count_parameters, size_of

MEMORY = 8 * 2**30
SMALL = {"policy": trpo.PolicyConfig(hidden=(8,)), "value": trpo.ValueConfig(hidden=(8,))}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one with 8 GiB."""
    for module in (capacity, layout, sizes):
        monkeypatch.setattr(module, "machine_memory", lambda: MEMORY)


def config(env: str = "probe:action", **changes: Any) -> trpo.Config:
    usual: dict[str, Any] = {"steps": 64, "fragment": 8, "env": trpo.EnvConfig(env, count=4)}
    return trpo.Config(**(usual | SMALL | changes))


@pytest.mark.parametrize("env", ["CartPole-v1", "jax-probe:action"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--env.count 100000000 --steps 10000000000", "env.count=100000000"),
        ("--fragment 1000000000 --steps 100000000000", "fragment=1000000000"),
        ("--policy.hidden 100000 100000", "policy.hidden=(100000, 100000)"),
        ("--value.hidden 1000000000000", "value.hidden=(1000000000000,)"),
        ("--policy.trunk gru --policy.memory 100000", "policy.hidden=(64, 64), policy.memory=100000"),
        ("--seeds 100000000", "seeds: 100,000,000 runs"),
        ("--seeds 1000000 --vary discount=0.1,0.2,0.3 gae_lambda=0.1,0.2,0.3", "seeds: 9,000,000 runs"),
        ("--value.epochs 1000000000", "value.epochs=1000000000"),
        ("--updates-per-batch 1000000000", "updates_per_batch=1000000000"),
    ],
)
def test_sizes_are_refused_on_the_command_line(
    env: str, flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", env, *flags.split(), "--quiet", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert said.rstrip().partition("at least")[2].count("iB") == 2
    assert not (tmp_path / "run").exists()


def test_processes_are_counted_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["train", "CartPole-v1", "--fragment", "1", "--quiet", "--env.count", "1000000", "--env.workers"]
    assert main([*train, "1000000"]) == 2
    assert "env.workers=1000000: so many processes take at least 15625.00 GiB" in capsys.readouterr().err
    monkeypatch.setattr("trpo.envs.names.file_limit", lambda: 256)
    assert main([*train, "200"]) == 2
    assert "need 400 open files, and this one may have 256" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"env\.count=100000000: so many environments take"):
        trpo.make_envs("CartPole-v1", 10**8)


def test_sizes_are_refused_in_python() -> None:
    for env in ("probe:action", "jax-probe:action"):
        huge = config(env, policy=trpo.PolicyConfig(hidden=(10**5, 10**5)))
        for use in (trpo.train, trpo.sweep):
            with pytest.raises(ValueError, match=r"policy\.hidden=\(100000, 100000\), with 1 inputs"):
                use(env, config=huge, quiet=True)
        with pytest.raises(ValueError, match="seeds: 100,000,000 runs take"):
            trpo.sweep(env, seeds=range(10**8), config=config(env), quiet=True)
        agent = trpo.make_agent(env, config(env))
        with pytest.raises(ValueError, match=r"fragment=1000000000: (a|the) batch "):
            next(trpo.iterations(env, agent, config(env, steps=10**12, fragment=10**9)))
        with pytest.raises(ValueError, match="episodes=1000000000000: their returns alone"):
            agent.evaluate(10**12)


def test_sizes_are_refused_before_environments_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_yet(*_: Any) -> None:
        raise AssertionError("opened")

    agent = trpo.make_agent("probe:action", config())
    monkeypatch.setattr("trpo.envs.names.Origin.open", not_yet)
    with pytest.raises(ValueError, match="fragment=1000000000: a batch "):
        next(trpo.iterations("probe:action", agent, config(steps=10**12, fragment=10**9)))


def test_a_source_of_ones_own_is_no_way_around() -> None:
    envs = trpo.make_envs("probe:action", 4)
    agent = trpo.make_agent(envs, config())
    for source in (envs, HostSource(envs)):
        with pytest.raises(ValueError, match="fragment=1000000000: a batch of 4,000,000,000 steps"):
            next(trpo.iterations(source, agent, config(fragment=10**9)))


@pytest.mark.parametrize(
    ("observation", "action", "words"),
    [
        (Box((10**6, 10**6)), Choice(2), "with 1,000,000,000,000 inputs"),
        (Choice(10**9), Choice(2), "with 1,000,000,000 inputs"),
        (Tuple((Choices((10**9, 10**9), (0, 0), (2,)), Bits((3,)))), Choice(2), "with 2,000,000,003 inputs"),
        (Box((3,)), Choices((10**9, 10**9), (0, 0), (2,)), "2,000,000,000 outputs"),
        (Box((3,)), Box((10**9,)), "1,000,000,000 outputs"),
    ],
)
def test_spaces_of_absurd_size_are_refused(observation: Any, action: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trpo.Agent.create(EnvSpec("huge", observation, action), config())
    with pytest.raises(ValueError, match="inputs"):
        trpo.Agent.create(EnvSpec("huge", Dict((("x", observation),)), action).flattened(), config())


@pytest.mark.parametrize("hidden", [[100_000, 100_000], [3000, 3000]])
def test_a_small_directory_makes_nothing_large(
    hidden: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    trpo.train("probe:action", config=config(), out=run, quiet=True)
    said = json.loads((run / "config.json").read_text())
    said["config"]["policy"]["hidden"] = hidden
    (run / "config.json").write_text(json.dumps(said))

    def drawn(*_: Any) -> None:
        raise AssertionError("parameters are made")

    monkeypatch.setattr(trunks, "orthogonal", drawn)
    for use in (trpo.load, trpo.resume):
        with pytest.raises(ValueError, match=r"config\.json: its networks have at least .* which do not fit"):
            use(run)
    assert main(["evaluate", str(run)]) == 2
    for file in run.glob("checkpoints/*/state.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"state\.safetensors is missing"):
        trpo.load(run)


def test_large_numbers_that_take_nothing_are_taken() -> None:
    most = 2**62
    found = trpo.train(
        "probe:action",
        config=config(keep_checkpoints=most, checkpoint_every=most, discount_steps=most, fisher_subsample=most),
        quiet=True,
    )
    assert found.evaluate(2).lengths == (1, 1)


SPACES = [
    (Box((3, 2)), Box((2,)), {}),
    (Choice(5), Choice(3), {}),
    (Dict((("a", Box((4,), "uint8")), ("b", Choices((2, 3), (0, 0), (2,))))), Choices((2, 4), (0, 0), (2,)), {}),
    (Tuple((Bits((3,)), Choice(4))), Bits((3,)), {"sees": "0[:2]"}),
    (Box((3,)), Box((2,)), {"state_dependent_std": True}),
    (Box((3,)), Box((2,)), {"trunk": "gru", "memory": 3}),
    (Choice(5), Choice(3), {"trunk": "lstm", "memory": 4}),
]


@pytest.mark.parametrize(("observation", "action", "changes"), SPACES)
def test_parameters_are_counted_as_they_are_made(observation: Any, action: Any, changes: dict[str, Any]) -> None:
    spec = EnvSpec("e", observation, action)
    settings = config(policy=trpo.PolicyConfig(hidden=(5, 7), **changes))
    trunk = [make_policy(spec, settings.policy, jax.random.key(0)).trunk]
    trunk += [make_value(spec, settings.value, jax.random.key(0)).trunk]
    assert count_parameters(spec, settings) == sum(leaf.size for leaf in jax.tree.leaves(trunk))
    assert spec.observation.number_count == sum(
        x.size for x in jax.tree.leaves(observation.numbers(observation.zeros()))
    )


@pytest.mark.parametrize("hidden", [(8,), (200, 100)])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_estimate_is_less_than_what_the_compiler_says(
    env: str, hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates = []
    monkeypatch.setattr(sizes, "require_room", lambda what, size, *_: estimates.append((what, size)))
    settings = config(env, fragment=256, policy=trpo.PolicyConfig(hidden=hidden))
    agent = trpo.make_agent(env, settings)
    check_training(agent, on_host=True)
    estimate = next(size for what, size in estimates if "an update of" in what)
    source = trpo.rollout.HostSource(trpo.make_envs(env, 4), agent.policy.start)
    source.restart([0, 1, 2, 3])
    program = agent.program()
    actor, noise, _ = host.prepare(program, agent.learner.policy, agent.learner.observations, jax.random.key(0), 0)
    policy = trpo.rollout.HostPolicy(agent.policy, actor)
    trajectory = source.collect(policy, jax.tree.map(np.asarray, noise))
    improve = jax.jit(lambda *x: host.improve(program, Hyper.of(settings), *x))
    usage = improve.lower(agent.learner, trajectory, 0).compile().memory_analysis()
    truth = usage.argument_size_in_bytes + usage.temp_size_in_bytes + usage.output_size_in_bytes
    assert truth / 4 < estimate < truth
    assert size_of(trajectory) * 0.7 < estimate


@pytest.mark.parametrize(
    ("membership", "file", "limit"),
    [
        ("0::/a/b\n", "a/memory.max", "123"),
        ("0::/\n", "memory.max", "123"),
        ("3:cpu:/\n4:memory:/a\n0::/\n", "memory/a/memory.limit_in_bytes", "123"),
        ("0::/a\n", "a/memory.max", "max"),
        ("0::/a\n", "a/memory.max", "9223372036854771712"),
        ("4:cpu,memory:/not/visible\n", "memory/memory.limit_in_bytes", "123"),
    ],
)
def test_a_containers_limit_counts(
    membership: str, file: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    whole = capacity.machine_memory()
    groups = tmp_path / "groups"
    (groups / file).parent.mkdir(parents=True)
    (groups / file).write_text(f"{limit}\n")
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(capacity, "GROUPS", groups)
    monkeypatch.setattr(capacity, "MEMBERSHIP", tmp_path / "membership")
    found = capacity.machine_memory()
    assert found is not None
    if limit == "123":
        assert found == 123
    else:
        assert whole is not None
        assert found >= whole


def test_what_fits_is_not_refused() -> None:
    capacity.require_room("x takes", MEMORY, "cure")
    with pytest.raises(
        ValueError, match=r"^x takes at least 8\.00 GiB of memory, and this machine has 8\.00 GiB: cure$"
    ):
        capacity.require_room("x takes", MEMORY + 1, "cure")
    for size, text in (
        (2**20, "1.0 MiB"),
        (2**30, "1.00 GiB"),
        (3 * 2**50, "3,072 TiB"),
        (10**30, "909,494,701,772,928,237 TiB"),
    ):
        assert capacity.gigabytes(size) == text
