"""Spreading a run over devices, of one process or of several: the only file that names a mesh or a sharding.

The training function is written for whole batches. Here the *data* is placed: environments, and with them a batch, are
divided over the devices, and everything that is learned is on each of them. The compiler then turns every weighted sum
over a batch into a sum over devices, so that all of them take the same steps and the same branches.

With several processes (:mod:`trpo.training.hosts`), ``jax.devices()`` are those of all of them, in their order. Each
process has its own share of environments, hands in what they did, and takes out what concerns it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trpo.capacity import cores, machine_memory
from trpo.rollout import Trajectory
from trpo.training import hosts

AXIS = "data"
_CORES: list[int] = []
"""Not empty once :func:`use_cores` has made devices of a CPU's cores."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays go: on one device, or divided over several along environments or along the members of a sweep."""

    devices: int = 1
    mesh: Mesh | None = None
    """None: one device, nothing is placed."""
    by_member: bool = False
    """Divide the members, which have nothing to say to one another, instead of the environments."""
    strata: int = 1
    """Blocks of environments, one for each device: what is done for each of them alone moves no data."""
    processes: int = 1
    """Among which the devices are."""

    def share(self, count: int) -> slice:
        """Return which of ``count`` environments are this process's own."""
        each, i = count // self.processes, jax.process_index() if self.processes > 1 else 0
        return slice(i * each, (i + 1) * each)

    def hand_in(self, tree: Any, axis: int = 0) -> Any:
        """Return arrays of all environments, along ``axis``, of which each process gives those of its own."""
        if self.processes == 1:
            return tree
        place = NamedSharding(self._mesh, PartitionSpec(*[None] * axis, AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)), tree)

    def own(self, tree: Any) -> Any:
        """Return what of a tree is here: arrays that are everywhere whole, of others the share of this process."""
        return tree if self.processes == 1 else jax.tree.map(_local, tree)

    def whole(self, tree: Any) -> Any:
        """Return arrays that are divided over processes whole; all of them must ask for it."""
        if self.processes == 1:
            return tree
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)

    @property
    def _mesh(self) -> Mesh:
        assert self.mesh is not None
        return self.mesh

    def place_learned(self, tree: Any) -> Any:
        """Place what is learned, and anything else that has no environments, of one run or of stacked members."""
        return self._put(tree, PartitionSpec(AXIS) if self.by_member else PartitionSpec())

    def place_learner(self, learner: Any) -> Any:
        """Place what is learned; what of it is of environments, the value function's memory, is divided as they are."""
        learned = self.place_learned(dataclasses.replace(learner, value_carry=()))
        return dataclasses.replace(learned, value_carry=self.place_rollout(learner.value_carry, stacked=False))

    def place_rollout(self, tree: Any, stacked: bool) -> Any:
        """Place arrays whose first axis is environments, behind that of the members if they are ``stacked``."""
        if self.by_member:
            return self._put(tree, PartitionSpec(AXIS))
        return self._put(tree, PartitionSpec(None, AXIS) if stacked else PartitionSpec(AXIS))

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tree
        place = NamedSharding(self.mesh, spec)
        return jax.device_put(tree, place) if self.processes == 1 else jax.tree.map(partial(_everywhere, place), tree)

    def each_device(
        self, function: Callable[..., Any], in_members: tuple[bool, ...], out_members: tuple[int | None, ...]
    ) -> Callable[..., Any]:
        """Run ``function`` on every device's own members, if members are what is divided; else as it is.

        Args:
            function: of stacked members and other things.
            in_members: which arguments have a leading axis of members; the others go to every device.
            out_members: for each result the place of its axis of members, None if it is the same on all devices.
        """
        if self.mesh is None or not self.by_member:
            return function
        inside = tuple(PartitionSpec(AXIS) if yes else PartitionSpec() for yes in in_members)
        outside = tuple(PartitionSpec() if n is None else PartitionSpec(*[None] * n, AXIS) for n in out_members)
        return jax.shard_map(function, mesh=self.mesh, in_specs=inside, out_specs=outside, check_vma=False)

    def everywhere(self, condition: Any) -> Any:
        """Inside :meth:`each_device`: return whether ``condition`` holds on every device."""
        if self.mesh is None or not self.by_member:
            return condition
        return jax.lax.pmin(condition.astype(int), AXIS) > 0

    def constrain_batch(self, tree: Any, axis: int = 1) -> Any:
        """Inside a compiled function: keep arrays divided by environment, ``[time, env, …]`` if nothing is said."""
        return self._constrain(tree, PartitionSpec(*[None] * axis, AXIS))

    def constrain_learned(self, tree: Any) -> Any:
        """Inside a compiled function: keep what has no environments whole on each device."""
        return self._constrain(tree, PartitionSpec())

    def _constrain(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None or self.by_member:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)

    def constrain_trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Do the same for a trajectory; the memory and flags of its first step have no axis of time, and stay put."""
        return dataclasses.replace(trajectory, **self.constrain_batch(trajectory.steps()))


def _local(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    if x.is_fully_replicated:
        return x.addressable_data(0)
    axis = next(i for i, name in enumerate(x.sharding.spec) if name)  # type: ignore[attr-defined]
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis)


def _everywhere(place: NamedSharding, x: Any) -> jax.Array:
    """Put what every process has whole in its place, without asking whether they have the same."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_everywhere(place, jax.random.key_data(x)), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, place, lambda part: whole[part])


def layout_of_processes(count: int) -> Layout:
    """Return the layout of a run with ``count`` environments on hosts, divided over all processes' devices.

    Raises:
        ValueError: they do not divide the environments.
    """
    if (processes := hosts.count()) == 1:
        return Layout()
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    _require_divided(count, len(devices), processes)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Layout(len(devices), mesh, strata=len(devices), processes=processes)


def _require_divided(count: int, devices: int, processes: int) -> None:
    if count % devices == 0:
        return
    below, above = count // devices * devices, -(-count // devices) * devices
    near = " or ".join(str(n) for n in (below, above) if n)
    if processes > 1:
        of = "" if devices == processes else f" with {devices} devices"
        raise ValueError(f"env.count={count}: {processes} processes{of} do not divide it; use {near}")
    raise ValueError(
        f"env.count={count}: {devices} devices do not divide it; use {near}, or fewer devices (--env.devices 1)"
    )


def layout_for(requested: int, count: int, members: int) -> Layout:
    """Return the layout of ``members`` runs with ``count`` environments each over ``requested`` devices (0: all).

    Raises:
        ValueError: there are fewer devices, or they divide neither the environments nor the members.
    """
    available = jax.devices()
    if requested > len(available):
        raise ValueError(f"env.devices={requested}: there are {len(available)} ({available[0].platform})")
    # Cores that were made devices for the members of a sweep are for members alone, as many as they divide.
    divided = members > 1 and members % len(available) == 0
    devices = requested or (1 if _CORES and not divided else len(available))
    if devices == 1:
        return Layout()
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=available[:devices])
    if members > 1 and members % devices == 0:
        return Layout(devices, mesh, by_member=True)
    _require_divided(count, devices, 1)
    return Layout(devices, mesh, strata=devices)


def capacity() -> int | None:
    """Return the bytes of memory that one device has, None if it does not tell."""
    device = jax.devices()[0]
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except (RuntimeError, NotImplementedError):
        limit = None
    if limit:
        return int(limit)
    memory = machine_memory() if device.platform == "cpu" else None
    return None if memory is None else memory // jax.local_device_count()  # virtual CPU devices share it


def use_cores(members: int) -> None:
    """Make every core of a CPU a device, as far as they divide ``members``; without effect once JAX has computed.

    A core then trains runs of its own. One small network's operations are too small to share between cores.
    """
    devices = max(n for n in range(1, cores() + 1) if members % n == 0)
    if devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
            _CORES.append(devices)


def without_content(x: Any) -> Any:
    """Return an array's shape, type and place, hashable: what a program is compiled for."""
    kind, place = jax.typeof(x), getattr(x, "sharding", None)
    if not isinstance(place, NamedSharding):
        return kind
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=place, weak_type=kind.weak_type)
