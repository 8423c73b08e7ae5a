"""A run that is divided over devices is the run of one device, and only sums of parameters' size travel.

Devices are made of one CPU, so each part is a process of its own; they run side by side.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from typing import Any

import pytest

from tests.helpers import flags_for_devices, run_process, start_process

COMMON = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
import trpo
from trpo.training import device as device_training
from trpo.training.device import DeviceLoop
from trpo.envs import Box, EnvSpec
from trpo.envs.names import resolve
from trpo.training.loop import device_source
from trpo.training.state import TrainingState
from trpo.envs.device import Step
from trpo.training.layout import Layout, layout_for

jax.config.update("jax_enable_x64", True)


class Walk:
    "x ← 0.9 x + 0.5 a + noise; episodes of random length; the state keeps a random key."

    def __init__(self, cheap_reset):
        self.spec, self.cheap_reset = EnvSpec("walk", Box((2,)), Box((1,), low=-1.0, high=1.0)), cheap_reset

    def reset(self, key):
        x = jax.random.uniform(key, minval=-1.0, maxval=1.0)
        return (x, jnp.zeros((), jnp.int32), key), jnp.stack([x, 0.0 * x])

    def step(self, state, action, key):
        x, time, own = state
        x = 0.9 * x + 0.5 * action[0] + 0.3 * jax.random.uniform(key, minval=-1.0) + 0.1 * jax.random.uniform(own)
        return (x, time + 1, own), Step(jnp.stack([x, 0.1 * time]), -(x**2), jnp.abs(x) > 1.2, time == 5)


def finish(loop):
    rows, states = [[] for _ in loop.configs], None
    for metrics, gather in loop.run():
        for mine, new in zip(rows, metrics):
            mine.extend(new)
        states = gather()
    return states, rows


def start(env, configs, layout=None):
    agents = [trpo.make_agent(env, config) for config in configs]
    device_training.layout_for = layout_for if layout is None else lambda *_: layout
    source = device_source(resolve(env, configs[0].env))
    return DeviceLoop(source, agents, [TrainingState(agent.learner) for agent in agents])


def largest_difference(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in pairs)


SMALL = dict(policy=trpo.PolicyConfig(hidden=(8,)), fragment=32, env=trpo.EnvConfig(count=32), seed=1)
"""
DIVIDED = (
    COMMON
    + """
adam = trpo.ValueConfig(hidden=(8,), minibatch=64, epochs=2)
gauss_newton = trpo.ValueConfig(hidden=(8,), method="gauss-newton", steps=2)
env, config, iterations = {
    "adam": (Walk(True), trpo.Config(**SMALL, value=adam, fisher_subsample=4), 3),
    "gauss-newton": (Walk(False), trpo.Config(**SMALL, value=gauss_newton, updates_per_batch=2), 1),
}[sys.argv[1]]
config = dataclasses.replace(config, steps=iterations * config.batch)
loop = start(env, [config])
assert loop.layout.devices == loop.layout.strata == 8 and not loop.layout.by_member
(divided,), (rows,) = finish(loop)
(one,), (same,) = finish(start(env, [config], Layout(strata=8)))
begun = trpo.make_agent(env, config).learner
sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
print(json.dumps({
    "apart": largest_difference(divided.learner.policy, one.learner.policy),
    "value_apart": largest_difference(divided.learner.value.params, one.learner.value.params),
    "rollout_apart": largest_difference(divided.source.envs.observation, one.source.envs.observation),
    "moved": largest_difference(divided.learner.policy, begun.policy),
    "results": [row["result"] for row in rows],
    "kl": [[row["mean_kl"], row["max_kl"]] for row in rows],
    "metrics": largest_difference([row["episode_return"] for row in rows], [row["episode_return"] for row in same]),
    "environments": len(divided.source.envs.observation.addressable_shards),
    "environments_shard": list(divided.source.envs.observation.addressable_shards[0].data.shape),
    "learner_replicated": all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(divided.learner)),
    "policy": sizes(begun.policy), "value": sizes(begun.value.params),
    "says": loop.describe(),
    "hlo": loop.program.as_text(),
}))
"""
)
MEMBERS = (
    COMMON
    + """
def refusal(**changes):
    config = trpo.Config(steps=10**6, **{**SMALL, **changes})
    try:
        layout_for(config.env.devices, config.env.count, 1)
    except ValueError as error:
        return str(error)


small = trpo.Config(
    steps=60, fragment=5, env=trpo.EnvConfig(count=4), policy=SMALL["policy"],
    value=trpo.ValueConfig(hidden=(8,), minibatch=8, epochs=2),
)
env = Walk(True)
configs = [dataclasses.replace(small, seed=seed, rule=trpo.RuleConfig(max_kl=0.01 + seed / 100)) for seed in range(8)]
loop = start(env, configs)
assert loop.layout.devices == 8 and loop.layout.by_member
states, rows = finish(loop)
apart = []
for i in (0, 3, 7):
    (alone,), (same,) = finish(start(env, [configs[i]], Layout()))
    apart.append(largest_difference(alone.learner, states[i].learner))
    assert [row["result"] for row in same] == [row["result"] for row in rows[i]]
print(json.dumps({
    "apart": apart,
    "between": largest_difference(states[0].learner, states[7].learner),
    "hlo": loop.program.as_text(),
    "refused": {
        "too many": refusal(env=trpo.EnvConfig(count=32, devices=9)),
        "uneven": refusal(env=trpo.EnvConfig(count=20)),
        "few": refusal(env=trpo.EnvConfig(count=5, devices=7)),
    },
    "even": refusal(env=trpo.EnvConfig(count=20, devices=4)),
    "uneven members": [dataclasses.asdict(dataclasses.replace(layout_for(0, 8, 6), mesh=None))],
    "capacity": device_training.capacity(),
}))
"""
)
FRESH = """
import dataclasses, json
import jax
from trpo.training.layout import layout_for, use_cores

use_cores(6)
plain = lambda *request: dataclasses.asdict(dataclasses.replace(layout_for(*request), mesh=None))
print(json.dumps({"devices": jax.device_count(), "sweep": plain(0, 5, 6), "run": plain(0, 8, 1)}))
"""
PARTS = {"adam": DIVIDED, "gauss-newton": DIVIDED, "members": MEMBERS, "fresh": FRESH}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Run all parts at the same time; what they print is JSON."""
    processes = {}
    for name, script in PARTS.items():
        changes = {} if name == "fresh" else {"XLA_FLAGS": flags_for_devices(8)}
        processes[name] = start_process([sys.executable, "-c", script, name], env={**os.environ, **changes})
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found[name] = json.loads(out)
    return found


COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast|reduce-scatter|send|recv)(?:-start)?\("
)
ARRAY = re.compile(r"\b(?:pred|[suf]\d+|bf16|c\d+)\[([\d,]*)\]")


def collectives(hlo: str) -> list[tuple[str, int, str]]:
    """Kind, number of elements (of all arrays together) and text of every operation between devices."""
    found = []
    for line in hlo.splitlines():
        if match := COLLECTIVE.search(line):
            shapes = ARRAY.findall(match["type"])
            assert shapes, line
            elements = sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
            found.append((match["kind"], elements, line.strip()))
    return found


def test_the_search_for_collectives_finds_them() -> None:
    text = """
      %a = f64[] all-reduce(%x), channel_id=1
      %b = (f64[2,8]{1,0}, /*index=1*/s32[3]{0}) all-reduce-start(%x, %y), channel_id=2
      %c = f32[4]{0} all-gather(%x), dimensions={0}
      %d = f32[4]{0} fusion(%all-gather.1), calls=%all-reduce.7
    """
    assert [(kind, size) for kind, size, _ in collectives(text)] == [
        ("all-reduce", 1),
        ("all-reduce", 19),
        ("all-gather", 4),
    ]


@pytest.mark.parametrize("part", ["adam", "gauss-newton"])
def test_eight_devices_give_the_parameters_of_one(part: str, outcomes: dict[str, dict[str, Any]]) -> None:
    """In double precision, with the same strata.

    Three iterations; one, where Gauss-Newton's few steps of conjugate gradient make 1e-7 of a rounding of 1e-15.
    """
    found = outcomes[part]
    assert found["results"] == ["accepted"] * (3 if part == "adam" else 1)
    assert found["moved"] > 0.01
    assert found["apart"] < 1e-9
    assert found["value_apart"] < (1e-9 if part == "adam" else 1e-5)
    assert found["rollout_apart"] < 1e-9
    assert found["metrics"] < 1e-9
    assert len(found["kl"]) == len(found["results"])
    assert all(kl <= bound for kl, bound in found["kl"])


@pytest.mark.parametrize("part", ["adam", "gauss-newton"])
def test_environments_are_divided_and_what_is_learned_is_everywhere(
    part: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    found = outcomes[part]
    assert (found["environments"], found["environments_shard"]) == (8, [4, 2])
    assert found["learner_replicated"]
    assert found["says"].startswith("on 8 devices (cpu): batch of 32 environments × 32 steps")


@pytest.mark.parametrize("part", ["adam", "gauss-newton"])
def test_only_sums_of_the_parameters_size_travel_between_devices(
    part: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    """With a subsample for Fisher products and minibatches, and with the other fit and two updates a batch.

    A sum may carry a gradient of each network and a few scalars along. A device's part of any batch, 32 steps of four
    environments, has more elements than that: no batch travels.
    """
    found = outcomes[part]
    operations = collectives(found["hlo"])
    assert {kind for kind, _, _ in operations} == {"all-reduce"}, [
        line for kind, _, line in operations if kind != "all-reduce"
    ]
    limit = found["policy"] + found["value"] + 16
    assert limit < 32 * 4
    for _, elements, line in operations:
        assert elements <= limit, line
    assert any(elements >= found["policy"] for _, elements, _ in operations)
    assert 10 <= len(operations) <= 40


def test_members_on_devices_of_their_own_equal_single_runs(outcomes: dict[str, dict[str, Any]]) -> None:
    """Eight runs on eight devices; all that they say to one another is whether to go on."""
    found = outcomes["members"]
    assert max(found["apart"]) < 1e-8
    assert found["between"] > 0.01
    operations = collectives(found["hlo"])
    assert {(kind, elements) for kind, elements, _ in operations} == {("all-reduce", 1)}
    assert len(operations) == 1


def test_devices_that_do_not_fit_are_refused(outcomes: dict[str, dict[str, Any]]) -> None:
    refused = outcomes["members"]["refused"]
    for name, words in {
        "too many": ["env.devices=9", "there are 8 (cpu)"],
        "uneven": ["env.count=20", "8 devices do not divide it", "use 16 or 24", "--env.devices 1"],
        "few": ["env.count=5", "7 devices", "use 7, or fewer"],
    }.items():
        assert "\n" not in refused[name]
        for word in words:
            assert word in refused[name]
    assert outcomes["members"]["even"] is None
    # Six members cannot be divided over eight devices; their environments can.
    assert outcomes["members"]["uneven members"] == [
        {"devices": 8, "mesh": None, "by_member": False, "strata": 8, "processes": 1}
    ]


def test_virtual_devices_share_the_machine_s_memory(outcomes: dict[str, dict[str, Any]]) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert outcomes["members"]["capacity"] == pytest.approx(whole / 8, abs=1)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.skipif(CORES < 2, reason="one core is one device")
def test_runs_of_a_sweep_get_cores_of_their_own(outcomes: dict[str, dict[str, Any]]) -> None:
    """As many as divide six runs, in a process in which JAX has not begun; whatever the number of environments."""
    found = outcomes["fresh"]
    assert found["devices"] == max(n for n in range(1, CORES + 1) if 6 % n == 0)
    assert found["sweep"] == {"devices": found["devices"], "mesh": None, "by_member": True, "strata": 1, "processes": 1}


@pytest.mark.skipif(CORES < 2, reason="one core is one device, whatever was run before")
def test_a_run_after_a_sweep_is_the_run_without_it(outcomes: dict[str, dict[str, Any]]) -> None:
    """With as many strata, or its minibatches would be others."""
    assert outcomes["fresh"]["run"] == {"devices": 1, "mesh": None, "by_member": False, "strata": 1, "processes": 1}


SWEEP_AFTER_SWEEP = """
import jax, trpo
small = {"policy": trpo.PolicyConfig(hidden=(4,)), "value": trpo.ValueConfig(hidden=(4,))}
config = trpo.Config(steps=24, fragment=8, env=trpo.EnvConfig(count=3), **small)
jax.config.update("jax_num_cpu_devices", 2)
from trpo.training import layout as parallel
parallel._CORES.append(2)  # as a sweep of two leaves it on a machine of two cores
assert parallel.layout_for(0, 3, 2).by_member
assert parallel.layout_for(0, 3, 3) == parallel.Layout() == parallel.layout_for(0, 4, 3)
assert len(trpo.sweep("jax-probe:action", seeds=3, config=config, quiet=True)) == 3
assert len(trpo.sweep("jax-probe:action", seeds=2, config=config, quiet=True)) == 2  # divided over both
"""


@pytest.mark.slow
def test_a_sweep_that_the_cores_do_not_divide_runs_as_in_a_process_of_its_own() -> None:
    result = run_process([sys.executable, "-c", SWEEP_AFTER_SWEEP])
    assert result.returncode == 0, result.stderr
