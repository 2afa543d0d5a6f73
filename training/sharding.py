"""Meshes and shardings. Three axes, always present: `data` (replicas), `fsdp` (parameters and batch), `tensor`.

Parameters, moments, EMAs and buffers are sharded by shape: the largest dimension that `fsdp` divides, for leaves that are big
enough. Where tensor parallelism is wanted, a method adds strict rules ((regex, PartitionSpec), ...) over paths such as
'params/block_3/attn/q/kernel'. Axis types are spelled out (Auto): `jax.make_mesh` alone would give Explicit ones.
"""

import itertools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from training.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list | None = None) -> Mesh:
    """The mesh of a run: sizes of its axes, of which one may be -1, the rest of the devices.

    It may be smaller than the machine. Of several processes each then gives as many devices as the others.

    Args:
      devices: those to use, in the order of the mesh's places; default: all of all processes.

    Raises:
      UserError: the devices do not suffice, or do not divide.
    """
    devices = list(jax.devices()) if devices is None else devices
    sizes = [data, fsdp, tensor]
    if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"mesh sizes must be positive, with -1 (the rest) at most once; got {dict(zip(AXES, sizes, strict=True))}"
        )
    if -1 in sizes:
        known = -math.prod(sizes)
        if len(devices) % known:
            raise UserError(
                f"mesh {_show(sizes)} does not divide {len(devices)} devices; choose sizes whose product divides it"
            )
        sizes[sizes.index(-1)] = len(devices) // known
    need = math.prod(sizes)
    if need > len(devices):
        raise UserError(
            f"mesh {_show(sizes)} needs {need} devices, but this machine has {len(devices)}; set config.mesh smaller"
        )
    if need < len(devices):
        devices = _equal_share(devices, need)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _equal_share(devices: list, need: int) -> list:
    """`need` of the devices, the first ones of each process, as many of one as of another."""
    own = {p: [d for d in devices if d.process_index == p] for p in sorted({d.process_index for d in devices})}
    each = need // len(own)
    if need % len(own) or any(len(group) < each for group in own.values()):
        raise UserError(
            f"a mesh of {need} devices cannot take equally many of the {len(own)} processes; "
            "change config.mesh, or start another number of processes"
        )
    return [d for group in own.values() for d in group[:each]]


def _show(sizes: list[int]) -> str:
    return " x ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise UserError unless the rows split evenly over the mesh, and over the parts of an accumulated update."""
    if accumulate < 1 or batch % accumulate:
        raise UserError(f"batch of {batch} rows does not split into {accumulate} equal parts; change config.accumulate")
    if batch % batch_ways(mesh):
        raise UserError(
            f"batch of {batch} rows is not divisible by the mesh's data x fsdp = {batch_ways(mesh)}; "
            "change config.batch or config.mesh"
        )


def batch_spec(row: Any, batch: int, mesh: Mesh) -> Any:
    """The spec of a batch: `row` (a pytree of ShapeDtypeStruct of one example) with a leading axis over `data` and `fsdp`.

    Raises UserError as `check_batch` does.
    """
    check_batch(batch, mesh)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype, sharding=sharding), row)


def replicated_spec(tree: Any, mesh: Mesh) -> Any:
    """The shapes and types of `tree`, each array whole on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def path_name(path: tuple) -> str:
    """'params/encoder/kernel' for a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def state_shardings(shapes: Any, mesh: Mesh, rules: tuple = (), min_size: int = 2**16) -> Any:
    """A NamedSharding for every leaf of `shapes` (a pytree of ShapeDtypeStruct).

    The first matching rule wins. Strict: a rule that matches nothing, whose rank is too high or whose axes do not divide the
    shape raises UserError. Leaves without a rule: the largest dimension that `fsdp` divides if they have at least `min_size`
    elements, else replicated.
    """
    used = set()

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                used.add(pattern)
                _check_rule(pattern, spec, name, leaf.shape, mesh)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, fsdp_spec(leaf.shape, mesh.shape["fsdp"], min_size))

    shardings = jax.tree_util.tree_map_with_path(one, shapes)
    unused = [pattern for pattern, _ in rules if pattern not in used]
    if unused:
        raise UserError(f"sharding rules match no array: {unused}; rename them after the network or drop them")
    return shardings


def fsdp_spec(shape: tuple[int, ...], ways: int, min_size: int) -> P:
    """Shard the largest dimension divisible by `ways` (the first of equals); replicate small arrays."""
    if ways == 1 or math.prod(shape) < min_size:
        return P()
    dims = [d for d in range(len(shape)) if shape[d] % ways == 0]
    if not dims:
        return P()
    largest = max(dims, key=lambda d: (shape[d], -d))
    return P(*(None,) * largest, "fsdp")


def _check_rule(pattern: str, spec: P, name: str, shape: tuple[int, ...], mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise UserError(f"sharding rule {pattern!r} -> {spec} has more axes than {name} {shape}")
    for size, axes in zip(shape, spec, strict=False):
        ways = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
        if size % ways:
            raise UserError(f"sharding rule {pattern!r} -> {spec} does not divide {name} {shape} on mesh {dict(mesh.shape)}")


def my_rows(batch: int, mesh: Mesh) -> slice:
    """The rows of a global batch that this process provides: those on its own devices, which must be neighbours."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    if not indices:  # none of the mesh's devices is this process's
        return slice(0, 0)
    spans = sorted({(index[0].start or 0, batch if index[0].stop is None else index[0].stop) for index in indices})
    if any(left[1] != right[0] for left, right in itertools.pairwise(spans)):
        raise UserError(
            f"the rows of process {jax.process_index()} are not neighbours on mesh {dict(mesh.shape)}; reorder its axes"
        )
    return slice(spans[0][0], spans[-1][1])


def place_rows(local: Any, mesh: Mesh, batch: int) -> Any:
    """This process's rows (numpy, leading axis; see `my_rows`) -> a global batch, rows over `data` and `fsdp`."""

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch_sharding(mesh), x, (batch, *x.shape[1:]))

    return jax.tree.map(place, local)


def place_replicated(host: Any, mesh: Mesh) -> Any:
    """Host arrays that every process holds -> global arrays on every device."""

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

    return jax.tree.map(place, host)


def move(tree: Any, mesh: Mesh) -> Any:
    """Arrays on another mesh, each with the PartitionSpec that it has (whole, if none). Those there stay. Asynchronous."""

    def one(x: jax.Array) -> jax.Array:
        named = isinstance(x.sharding, NamedSharding)
        if named and x.sharding.mesh == mesh:
            return x
        return jax.device_put(x, NamedSharding(mesh, x.sharding.spec if named else P()))

    return jax.tree.map(one, tree)


def table(shapes: Any, shardings: Any) -> str:
    """What sits where: path, shape, spec, bytes a device; for the start-up log. Small arrays are summed up in one line."""
    lines, small = [], 0
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        bytes_ = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if bytes_ < 2**16:
            small += bytes_
            continue
        lines.append(f"  {path_name(path):60s} {leaf.shape!s:24s} {sharding.spec!s:40s} {bytes_ / 2**20:9.2f} MiB/device")
    return "\n".join([*lines, f"  {'(smaller arrays)':126s} {small / 2**20:9.2f} MiB/device"])
