"""The device mesh, and the one table from logical axes to mesh axes.

Weights and activations name their axes (`embed`, `heads`, ...); a layout says which mesh axis each name is cut over.
The student has two layouts: `update` (cut over fsdp and tensor) and `serve` (cut over tensor, replicated elsewhere);
the teacher is always in `serve`. Files are read in a layout of their own (models/families.py). Left out: sharding
constraints inside programs, which their authors place.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from motab_jax.config import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

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
    """A mesh (data, fsdp, tensor) over all devices, or over `devices`; one size may be -1: the rest.

    dcn_data: islands of devices with links of their own (slices of TPUs; elsewhere processes), between which only the
    axis data reaches. Raises UserError, with the sizes that would do, unless they multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    if dcn_data == 1:
        # jax.make_mesh refuses sizes that split an axis of the torus, such as 8 on 4x4x4.
        torus = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(torus, AXES, axis_types=kinds)
    kind = "slice_index" if devices[0].platform == "tpu" else "process_index"
    _check_islands([getattr(device, kind) for device in devices], dcn_data, sizes["data"])
    near = (sizes["data"] // dcn_data, sizes["fsdp"], sizes["tensor"])
    islands = mesh_utils.create_hybrid_device_mesh(
        near, (dcn_data, 1, 1), devices, process_is_granule=kind == "process_index", allow_split_physical_axes=True
    )  # fmt: skip
    return Mesh(islands, AXES, axis_types=kinds)


def _check_islands(islands: Sequence[int], wanted: int, data: int) -> None:
    """UserError unless there are so many islands (each device's is given) and they divide `data`."""
    count = len(set(islands))
    if wanted != count:
        raise UserError(f"mesh.dcn_data={wanted}: the devices are on {count} island(s); set it to {count}")
    if data % wanted:
        raise UserError(f"mesh.data={data} is not a multiple of mesh.dcn_data={wanted}")


def mesh_sizes(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Sizes with -1 filled in; their product is `count`. UserError as of `make_mesh`."""
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
    """A tree of NamedSharding like `axes_tree`, whose leaves are tuples of logical names, one a dimension.

    `layout` is a key of LAYOUTS. `shapes`, if given, has arrays, ShapeDtypeStructs or shape tuples at the same places;
    a dimension that its mesh axis does not divide is then replicated. Raises KeyError for an unknown name or layout.
    """
    table = LAYOUTS[layout]

    def place(axes: tuple, shape: Any = None) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, table, axes, shape))

    trees = (axes_tree,) if shapes is None else (axes_tree, shapes)
    return jax.tree.map(place, *trees, is_leaf=_is_axes)


def _spec(mesh: Mesh, table: Mapping, axes: tuple, shape: Any) -> PartitionSpec:
    parts = [table[name] for name in axes]
    if shape is None:
        return PartitionSpec(*parts)
    dims = tuple(getattr(shape, "shape", shape))
    if len(dims) != len(axes):
        raise ValueError(f"axes {axes} name {len(axes)} dimensions, the shape {dims} has {len(dims)}")
    return PartitionSpec(
        *(part if dim % _shard_count(mesh, part) == 0 else None for dim, part in zip(dims, parts, strict=True))
    )


def _shard_count(mesh: Mesh, part: str | tuple[str, ...] | None) -> int:
    """Into how many pieces a dimension on this mesh axis (or axes) is cut."""
    names = () if part is None else (part,) if isinstance(part, str) else part
    return math.prod(mesh.shape[name] for name in names)


def _is_axes(node: Any) -> bool:
    # `type(...) is`: optax states are named tuples, which are nodes of the tree and never axes.
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def batch_shard_count(mesh: Mesh) -> int:
    """Into how many groups of devices the rows of a batch are cut: data * fsdp."""
    return _shard_count(mesh, BATCH_AXES)


def platform_of(mesh: Mesh) -> str:
    """The platform of its devices, such as cpu or tpu: what programs over it are compiled for, wherever that is."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first dimension) over data and fsdp; the other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_row_indices(mesh: Mesh, rows: int) -> np.ndarray:
    """Numbers i64[r] of the rows, of so many over the mesh, that lie on this process's devices; ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    spans = {index[0].indices(rows)[:2] for index in places}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def make_global_batch(mesh: Mesh, rows: int, part: Any) -> Any:
    """A global batch of `rows` rows over the mesh; `part` is a tree of this process's own, those of
    `local_row_indices`."""
    places = batch_sharding(mesh)

    def place(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(places, values, (rows, *values.shape[1:]))

    return jax.tree.map(place, part)


def tensor_axis_divides(size: int) -> bool:
    """Whether, in a program of one group of devices, so many entries lie over `tensor` evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return "tensor" in mesh.axis_names and size % mesh.shape["tensor"] == 0


def shard_over_tensor(x: jax.Array, dimension: int) -> jax.Array:
    """In a program of one group of devices, x with this dimension cut over `tensor`, if that divides it; else x."""
    if not tensor_axis_divides(x.shape[dimension]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * dimension, "tensor"))


def replicate_in_group(x: jax.Array) -> jax.Array:
    """In a program of one group of devices, x whole on each of them, and what it is made of not cut for its sake."""
    if "tensor" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def check_batch(mesh: Mesh, rows: int, key: str) -> None:
    """Raise UserError naming the configuration key unless data * fsdp divides `rows`."""
    ways = batch_shard_count(mesh)
    if rows % ways:
        below = rows - rows % ways
        nearest = f"{below} or {below + ways}" if below else str(ways)
        raise UserError(
            f"{key}: {rows} rows do not divide over mesh.data * mesh.fsdp = "
            f"{mesh.shape['data']} * {mesh.shape['fsdp']} = {ways}; use a multiple of {ways}, such as {nearest}"
        )


def valid_tensor_sizes(heads: int, kv_heads: int) -> list[int]:
    """The sizes of mesh.tensor that cut a model's attention heads evenly.

    A device has some key-value heads to itself, or one that several devices have a copy of.
    """
    return [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]


def check_heads(tensor: int, heads: int, kv_heads: int, whose: str) -> None:
    """Raise UserError, with the sizes that would do, unless `tensor` is one of `valid_tensor_sizes`."""
    fits = valid_tensor_sizes(heads, kv_heads)
    if tensor not in fits:
        raise UserError(
            f"mesh.tensor={tensor} does not cut {whose} {heads} attention heads and {kv_heads} key-value heads evenly; "
            f"use one of {', '.join(map(str, fits))}"
        )
