"""A batch that is sharded over devices gives the update of one device (PITFALLS row 9)."""

import sys

import pytest

from tests.helpers import flags_for_devices, run_process

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import trpo
from trpo.envs import Box

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
network = trpo.mlp(jax.random.key(0), (5, 16, 3), last_scale=1.0, dtype=jnp.float64)
gaussian = trpo.Policy(trpo.make_encoder(Box((5,))), network, trpo.GaussianHead(jnp.zeros(3)))
policy, params = trpo.as_policy(gaussian)
key = jax.random.key(1)
observation = jax.random.normal(key, (64, 8, 5))
action = policy(params, (), (observation, None))[0].sample(key)
advantage = jax.random.normal(jax.random.key(2), (64, 8))
weight = jnp.where(jnp.arange(8) == 3, 0.0, jnp.ones((64, 8)))
batch = trpo.Batch(observation, action, advantage, weight / weight.sum())
rule = trpo.TRPO(damping=1e-3)

@jax.jit
def update(params, batch):
    new, _, info = rule.update(trpo.sampled_problem(policy, params, batch), params, ())
    return new, info

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
over_envs = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, "data")))
one, info_one = update(params, batch)
sharded = jax.tree.map(over_envs, batch)
assert len(sharded.weight.addressable_shards) == 8
many, info_many = update(params, sharded)
assert "all-reduce" in update.lower(params, sharded).compile().as_text()
moved = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(params)))
apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max())
            for a, b in zip(jax.tree.leaves((one, info_one)), jax.tree.leaves((many, info_many))))
print(moved, apart)
assert int(info_one.result) == 0 and moved > 1e-3 and apart < 1e-10
"""


def test_a_sharded_batch_gives_the_update_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags_for_devices(8))
    result = run_process([sys.executable, "-c", SCRIPT])
    assert result.returncode == 0, result.stderr
