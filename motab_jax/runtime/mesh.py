"""The device mesh, and the one table from logical axes to mesh axes.

Weights and activations name their dimensions (`embed`, `heads`, ...); a layout says over which mesh axis each name is
sharded. The student has two layouts: `update` (sharded over fsdp and tensor) and `serve` (sharded over tensor,
replicated over fsdp); the teacher is always in `serve`. Weights are loaded in shardings of their own
(models/hf/weight_names.py). A group is the devices of one index of data and fsdp: it has rows of its own.
Left out: sharding constraints, which are in the programs that need them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from motab_jax.config import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # that the rows of a batch are sharded over

Table = dict[str | None, str | tuple[str, ...] | None]
_ALWAYS: Table = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "layer": None,
    "batch": BATCH_AXES,
    None: None,
}
LAYOUTS: dict[str, Table] = {
    "update": {**_ALWAYS, "embed": "fsdp"},
    "serve": {**_ALWAYS, "embed": None},
}


def make_mesh(data: int, fsdp: int, tensor: int, *, dcn_data: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor.

    Args:
      data: size of the axis; one of the three may be -1, which stands for the rest of the devices.
      fsdp: likewise.
      tensor: likewise.
      dcn_data: the number of slices of TPUs, or elsewhere of processes, that have links of their own; only the axis
          data spans several of them.
      devices: the devices of the mesh; None: all.

    Raises:
      UserError: the sizes do not multiply to the number of devices (it lists those that do), or dcn_data is not the
          number of slices or does not divide data.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if dcn_data == 1:
        # jax.make_mesh refuses sizes that split an axis of the torus, such as 8 on 4x4x4.
        array = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(array, AXES, axis_types=axis_types)
    attribute = "slice_index" if devices[0].platform == "tpu" else "process_index"
    _check_slices([getattr(device, attribute) for device in devices], dcn_data, sizes["data"])
    array = mesh_utils.create_hybrid_device_mesh(
        (sizes["data"] // dcn_data, sizes["fsdp"], sizes["tensor"]), (dcn_data, 1, 1), devices,
        process_is_granule=attribute == "process_index", allow_split_physical_axes=True,
    )  # fmt: skip
    return Mesh(array, AXES, axis_types=axis_types)


def _check_slices(slices: Sequence[int], dcn_data: int, data: int) -> None:
    """UserError unless `dcn_data` is the number of slices (given for each device) and divides `data`."""
    count = len(set(slices))
    if dcn_data != count:
        raise UserError(f"mesh.dcn_data={dcn_data}: the devices are on {count} slice(s); set it to {count}")
    if data % dcn_data:
        raise UserError(f"mesh.data={data} is not a multiple of mesh.dcn_data={dcn_data}")


def mesh_sizes(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The sizes of mesh axes with -1 filled in, so that their product is `count`.

    Raises:
      UserError: no size fits; it lists the valid ones.

    >>> mesh_sizes({"data": -1, "fsdp": 2, "tensor": 2}, 8)
    {'data': 2, 'fsdp': 2, 'tensor': 2}
    >>> mesh_sizes({"data": 3, "fsdp": 1, "tensor": 1}, 8)
    Traceback (most recent call last):
    motab_jax.config.errors.UserError: mesh.data=3, mesh.fsdp=1, mesh.tensor=1 does not fit 8 device(s): \
mesh.data * mesh.fsdp * mesh.tensor is 3 and must be one of 8
    """
    text = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"{text}: only one mesh axis may be -1 (the rest of the devices)")
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh.{name}={size}: the size of a mesh axis is at least 1, or -1 for the rest")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and count % fixed == 0:
        return {name: count // fixed if size == -1 else size for name, size in sizes.items()}
    if not free and fixed == count:
        return dict(sizes)
    names = " * ".join(f"mesh.{name}" for name in sizes if name not in free)
    valid = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0) if free else str(count)
    raise UserError(f"{text} does not fit {count} device(s): {names} is {fixed} and must be one of {valid}")


def layout_shardings(mesh: Mesh, axes_tree: Any, layout: str, shapes: Any = None) -> Any:
    """The shardings of arrays whose dimensions have logical names.

    Args:
      mesh: the devices.
      axes_tree: a tree whose leaves are tuples of logical names, one a dimension.
      layout: `update` or `serve`.
      shapes: the same tree of arrays, ShapeDtypeStructs or shape tuples; a dimension that its mesh axis does not
          divide is then replicated. None: all of them divide.

    Returns:
      The same tree of NamedShardings.

    Raises:
      KeyError: an unknown logical name or layout.
    """
    table = LAYOUTS[layout]

    def sharding(axes: tuple, shape: Any = None) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, table, axes, shape))

    trees = (axes_tree,) if shapes is None else (axes_tree, shapes)
    return jax.tree.map(sharding, *trees, is_leaf=_is_axes)


def _spec(mesh: Mesh, table: Mapping, axes: tuple, shape: Any) -> PartitionSpec:
    mesh_axes = [table[name] for name in axes]
    if shape is None:
        return PartitionSpec(*mesh_axes)
    dims = tuple(getattr(shape, "shape", shape))
    if len(dims) != len(axes):
        raise ValueError(f"axes {axes} name {len(axes)} dimensions, the shape {dims} has {len(dims)}")
    pairs = zip(dims, mesh_axes, strict=True)
    return PartitionSpec(*(axis if dim % _shard_count(mesh, axis) == 0 else None for dim, axis in pairs))


def _shard_count(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
    """The number of shards of a dimension that is sharded over this mesh axis (or axes)."""
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return math.prod(mesh.shape[name] for name in names)


def _is_axes(node: Any) -> bool:
    # `type(...) is`: optax states are named tuples, which are nodes of the tree and never axes.
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def batch_shard_count(mesh: Mesh) -> int:
    """The number of groups of devices, each with rows of its own: data * fsdp."""
    return _shard_count(mesh, BATCH_AXES)


def platform_of(mesh: Mesh) -> str:
    """The platform that programs over this mesh are compiled for, such as cpu or tpu."""
    return mesh.devices.flat[0].platform


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays, or of their shapes with shardings, takes on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_memory(mesh: Mesh) -> float | None:
    """Bytes of memory that one of this process's devices gives to arrays; None on CPUs, or where it doesn't say."""
    stats = None if platform_of(mesh) == "cpu" else mesh.local_devices[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array over rows: the first dimension over data and fsdp, the others replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_row_indices(mesh: Mesh, rows: int) -> Int[np.ndarray, " local"]:
    """Indices of the local rows, ascending: of `rows` rows over the mesh, those on this process's devices."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    spans = {index[0].indices(rows)[:2] for index in indices if index is not None}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def make_global_batch(mesh: Mesh, rows: int, local_rows: Any) -> Any:
    """A batch over the mesh, made of the local rows of each process.

    Args:
      mesh: the devices of all processes.
      rows: the number of rows over all of them.
      local_rows: a tree of NumPy arrays whose first dimension is the local rows, in `local_row_indices`' order.

    Returns:
      The same tree of global arrays with `rows` rows, in `batch_sharding`.
    """
    sharding = batch_sharding(mesh)

    def make_global(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, values, (rows, *values.shape[1:]))

    return jax.tree.map(make_global, local_rows)


def tensor_axis_divides(size: int) -> bool:
    """Whether, in a program of one group of devices, a dimension of this size can be sharded over `tensor`."""
    mesh = jax.sharding.get_abstract_mesh()
    return "tensor" in mesh.axis_names and size % mesh.shape["tensor"] == 0


def tensor_shards(size: int) -> int:
    """In a program of one group of devices, the shards that a dimension of this size has over `tensor`; elsewhere 1."""
    return jax.sharding.get_abstract_mesh().shape["tensor"] if tensor_axis_divides(size) else 1


def shard_over_tensor(x: Shaped[Array, "..."], dimension: int) -> Shaped[Array, "..."]:
    """In a program of one group of devices, x with this dimension sharded over `tensor`, if that divides it; else x."""
    if not tensor_axis_divides(x.shape[dimension]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * dimension, "tensor"))


def replicate_in_group(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """In a program of one group of devices, x replicated: the compiler then shards nothing that x is computed from."""
    if "tensor" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def padded_rows(mesh: Mesh, rows: int) -> int:
    """The rows of a batch over the mesh: `rows`, and as many more as make them divide over data * fsdp."""
    return rows + -rows % batch_shard_count(mesh)


def valid_tensor_sizes(heads: int, kv_heads: int) -> list[int]:
    """The sizes of mesh.tensor that divide a model's attention heads.

    A device has several key-value heads, or one that several devices have a copy of.

    >>> valid_tensor_sizes(12, 3)
    [1, 3, 6, 12]
    """
    return [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]


def check_heads(tensor: int, heads: int, kv_heads: int, whose: str) -> None:
    """Raise UserError, with the sizes that fit, unless mesh.tensor is one of `valid_tensor_sizes`.

    Args:
      tensor: the size of mesh.tensor.
      heads: query heads.
      kv_heads: key-value heads.
      whose: the model in the message, such as "the student's".
    """
    valid = valid_tensor_sizes(heads, kv_heads)
    if tensor not in valid:
        raise UserError(
            f"mesh.tensor={tensor} does not divide {whose} {heads} attention heads and {kv_heads} key-value heads "
            f"evenly; use one of {', '.join(map(str, valid))}"
        )
