"""The key-value cache: a pytree whose columns are the tape's columns.

A prefill writes the keys and values of T known tokens, a decode step those of one. All rows write the same columns, so
a write is one dynamic_update_slice and a rewind moves nothing: the tape's positions alone say which columns are live
(docs/decisions.md). Scanned layers share one array. Unrolled layers, as on CPUs, have an array each, in which the
keys' columns come last: a query's product with them then needs no transposed copy.
Left out: which column holds which token (rollout/tape.py), and pages.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from motab_jax.models.architecture import ModelConfig
from motab_jax.runtime.mesh import shard_over_tensor, tensor_axis_divides

Index = Int[Array, ""] | int


class KVCache(flax.struct.PyTreeNode):
    """Keys (rotated) and values of every column; L layers, B rows, K kv heads, S columns, H head dim."""

    k: Float[Array, "L B K S H"] | tuple[Float[Array, "B K H S"], ...]  # one array, or one a layer
    v: Float[Array, "L B K S H"] | tuple[Float[Array, "B K S H"], ...]

    @property
    def stacked(self) -> bool:
        """Whether all layers share one array."""
        return not isinstance(self.k, tuple)

    def write(
        self,
        k: Float[Array | np.ndarray, "B T K H"],
        v: Float[Array | np.ndarray, "B T K H"],
        layer: Index,
        cursor: Index,
    ) -> "KVCache":
        """The cache with new keys and values in the layer's columns cursor..cursor+T-1.

        Args:
          k: keys, rotated; cast to the cache's dtype.
          v: values, likewise.
          layer: the layer's number; a Python int where each layer has an array of its own.
          cursor: the first column to write.
        """
        if isinstance(self.k, tuple) or isinstance(self.v, tuple):
            assert isinstance(layer, int) and isinstance(self.k, tuple) and isinstance(self.v, tuple)
            keys = _put(self.k[layer], jnp.transpose(k, (0, 2, 3, 1)), (0, 0, 0, cursor))
            values = _put(self.v[layer], jnp.swapaxes(v, 1, 2), (0, 0, cursor, 0))
            return KVCache(
                (*self.k[:layer], keys, *self.k[layer + 1 :]),
                (*self.v[:layer], values, *self.v[layer + 1 :]),
            )
        k, v = (jnp.swapaxes(x, 1, 2)[None] for x in (k, v))
        at = (layer, 0, 0, cursor, 0)
        return KVCache(_put(self.k, k, at), _put(self.v, v, at))

    def read(
        self, layer: Index, start: Index, size: int
    ) -> tuple[Float[Array, "B K _ _"], Float[Array, "B K {size} H"]]:
        """Keys and values of the layer's columns start..start+size-1.

        Keys are [B,K,size,H], those of unrolled layers [B,K,H,size].
        """
        if isinstance(self.k, tuple) or isinstance(self.v, tuple):
            keys = jax.lax.dynamic_slice_in_dim(self.k[layer], start, size, axis=3)
            return keys, jax.lax.dynamic_slice_in_dim(self.v[layer], start, size, axis=2)
        _, rows, heads, _, width = self.k.shape
        at, shape = (layer, 0, 0, start, 0), (1, rows, heads, size, width)
        return jax.lax.dynamic_slice(self.k, at, shape)[0], jax.lax.dynamic_slice(self.v, at, shape)[0]

    def take_rows(self, index: Int[Array | np.ndarray, "R"]) -> "KVCache":
        """A cache of these rows."""
        return jax.tree.map(lambda x: jnp.take(x, index, axis=1 if self.stacked else 0), self)

    def put_columns(self, other: "KVCache", row: Int[Array | np.ndarray, "B"], start: Index, size: int) -> "KVCache":
        """The cache with columns start..start+size-1 of another one.

        Args:
          other: a cache of the same columns, of any number of rows.
          row: the row of `other` that each row takes the columns from.
          start: the first column.
          size: how many columns.
        """

        def put(axis: int):
            def put_leaf(store: jax.Array, other_store: jax.Array) -> jax.Array:
                columns = jax.lax.dynamic_slice_in_dim(other_store, start, size, axis=axis)
                columns = jnp.take(columns, row, axis=1 if self.stacked else 0)
                return jax.lax.dynamic_update_slice_in_dim(store, columns, start, axis=axis)

            return put_leaf

        keys, values = (3, 3) if self.stacked else (3, 2)
        return KVCache(
            jax.tree.map(put(keys), self.k, other.k),
            jax.tree.map(put(values), self.v, other.v),
        )


def _put(store: jax.Array, new: jax.Array, at: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), at)


def row_major(x: jax.Array, sharded: int | None = None) -> jax.Array:
    """The array, on a TPU laid out in memory in the order of its dimensions.

    Args:
      x: the array.
      sharded: the dimension that is sharded over `tensor`, if any.
    """
    return jax.lax.platform_dependent(x, tpu=lambda x: _row_major(x, sharded), default=lambda x: x)


def _row_major(x: jax.Array, sharded: int | None) -> jax.Array:
    """The layout constraint; of a sharded array each device constrains its own part, or XLA would gather the array."""

    def constrain(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    if sharded is None or not tensor_axis_divides(x.shape[sharded]):
        return constrain(x)
    spec = PartitionSpec(*(None,) * sharded, "tensor")
    return jax.shard_map(constrain, in_specs=spec, out_specs=spec, axis_names={"tensor"}, check_vma=False)(x)


def init_cache(
    config: ModelConfig, rows: int, columns: int, dtype: DTypeLike = jnp.float32, *, stacked: bool = True
) -> KVCache:
    """A cache of zeros, its heads sharded over `tensor`; no column is live until the tape gives it a position.

    Args:
      config: the model's architecture.
      rows: B.
      columns: S.
      dtype: of keys and values.
      stacked: one array for all layers; else one for each, keys with their columns last.
    """
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    if stacked:
        shape = (config.num_layers, *shape)
        return KVCache(*(shard_over_tensor(jnp.zeros(shape, dtype), 2) for _ in "kv"))
    keys_last = (*shape[:2], config.head_dim, columns)

    def layers(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
        return tuple(shard_over_tensor(jnp.zeros(shape, dtype), 1) for _ in range(config.num_layers))

    return KVCache(layers(keys_last), layers(shape))


def gather_columns(cache: KVCache, source: Int[Array | np.ndarray, "B S"]) -> KVCache:
    """The cache in which column s of row b is the old column source[b,s]; one layer is moved at a time.

    The memory layout that suits a gather would otherwise spread to the whole cache, which every iteration would then
    copy into that layout and back.
    """

    def move(x: jax.Array, axis: int) -> jax.Array:
        return jax.vmap(lambda row, columns: jnp.take(row, columns, axis=axis))(x, source)

    def layer(index, store):
        moved = row_major(move(jax.lax.dynamic_index_in_dim(store, index, keepdims=False), 1))
        return row_major(jax.lax.dynamic_update_index_in_dim(store, moved, index, 0))

    if isinstance(cache.k, tuple) or isinstance(cache.v, tuple):
        return KVCache(
            tuple(_row_major(move(_row_major(x, 1), 2), 1) for x in cache.k),
            tuple(_row_major(move(_row_major(x, 1), 1), 1) for x in cache.v),
        )
    return KVCache(*(jax.lax.fori_loop(0, store.shape[0], layer, store) for store in (cache.k, cache.v)))
