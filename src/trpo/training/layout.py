"""Spreading a run over devices: the only file that names a mesh or a sharding.

The training function is written for whole batches. Here the *data* is placed: environments, and with them a batch, are
divided over the devices, and everything that is learned is on each of them. The compiler then turns every weighted sum
over a batch into a sum over devices, so that all of them take the same steps and the same branches.

With several processes, ``jax.distributed.initialize`` beforehand makes ``jax.devices()`` those of all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trpo.capacity import cores, machine_memory
from trpo.rollout import Trajectory

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
    """Blocks of environments of which every minibatch of a value fit takes equal shares: one for each device."""

    def place_learned(self, tree: Any) -> Any:
        """Place what is learned, and anything else that has no environments, of one run or of stacked members."""
        return self._put(tree, PartitionSpec(AXIS) if self.by_member else PartitionSpec())

    def place_rollout(self, tree: Any, stacked: bool) -> Any:
        """Place arrays whose first axis is environments, behind that of the members if they are ``stacked``."""
        if self.by_member:
            return self._put(tree, PartitionSpec(AXIS))
        return self._put(tree, PartitionSpec(None, AXIS) if stacked else PartitionSpec(AXIS))

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, spec))

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

    def constrain_batch(self, tree: Any) -> Any:
        """Inside the compiled iteration: keep ``[time, env, …]`` arrays divided by environment."""
        if self.mesh is None or self.by_member:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)

    def constrain_trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Do the same for a trajectory; the memory and flags of its first step have no axis of time, and stay put."""
        return dataclasses.replace(trajectory, **self.constrain_batch(trajectory.steps()))


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
    if count % devices:
        below, above = count // devices * devices, -(-count // devices) * devices
        near = " or ".join(str(n) for n in (below, above) if n)
        raise ValueError(
            f"env.count={count}: {devices} devices do not divide it; use {near}, or fewer devices (--env.devices 1)"
        )
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
