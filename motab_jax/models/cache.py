"""The key-value cache: a plain pytree whose columns are the tape's columns.

Every row writes the same column, so a write is one dynamic_update_slice and a rewind moves nothing: which columns
count is said by the tape's positions alone (docs/decisions.md). Scanned layers share one array, unrolled layers (a
CPU's form) have one each, with the keys' columns last: there a query's product with them needs no transposed copy.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from motab_jax.models.architecture import ModelConfig
from motab_jax.runtime.mesh import shard_over_tensor, tensor_axis_divides

Store = jax.Array | tuple[jax.Array, ...]


@flax.struct.dataclass
class KVCache:
    """Keys (rotated) and values of every column; L layers, B rows, K kv heads, S columns, H head dim."""

    k: Store  # [L,B,K,S,H], or L times [B,K,H,S]
    v: Store  # [L,B,K,S,H], or L times [B,K,S,H]

    @property
    def stacked(self) -> bool:
        """Whether all layers share one array."""
        return not isinstance(self.k, tuple)

    def write(self, k: jax.Array, v: jax.Array, layer: jax.Array | int, cursor: jax.Array | int) -> "KVCache":
        """The cache with new keys and values [B,T,K,H] in the layer's columns cursor..cursor+T-1."""
        if self.stacked:
            k, v = (jnp.swapaxes(x, 1, 2)[None] for x in (k, v))
            at = (layer, 0, 0, cursor, 0)
            return KVCache(_put(self.k, k, at), _put(self.v, v, at))
        keys = _put(self.k[layer], jnp.transpose(k, (0, 2, 3, 1)), (0, 0, 0, cursor))
        values = _put(self.v[layer], jnp.swapaxes(v, 1, 2), (0, 0, cursor, 0))
        return KVCache(
            (*self.k[:layer], keys, *self.k[layer + 1 :]),
            (*self.v[:layer], values, *self.v[layer + 1 :]),
        )

    def read(self, layer: jax.Array | int, start: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
        """The layer's columns start..start+size-1: keys [B,K,size,H] ([B,K,H,size] of unrolled layers), values."""
        if not self.stacked:
            keys = jax.lax.dynamic_slice_in_dim(self.k[layer], start, size, axis=3)
            return keys, jax.lax.dynamic_slice_in_dim(self.v[layer], start, size, axis=2)
        _, rows, heads, _, width = self.k.shape
        at, shape = (layer, 0, 0, start, 0), (1, rows, heads, size, width)
        return jax.lax.dynamic_slice(self.k, at, shape)[0], jax.lax.dynamic_slice(self.v, at, shape)[0]

    def take_rows(self, index: jax.Array) -> "KVCache":
        """The rows index i32[R] of the cache."""
        return jax.tree.map(lambda x: jnp.take(x, index, axis=1 if self.stacked else 0), self)

    def put_columns(self, other: "KVCache", row: jax.Array, start: jax.Array | int, size: int) -> "KVCache":
        """The cache with columns start..start+size-1 of another, whose row row[b] (i32[B]) goes to row b."""

        def put(axis: int):
            def one(store: jax.Array, given: jax.Array) -> jax.Array:
                columns = jax.lax.dynamic_slice_in_dim(given, start, size, axis=axis)
                spread = jnp.take(columns, row, axis=1 if self.stacked else 0)
                return jax.lax.dynamic_update_slice_in_dim(store, spread, start, axis=axis)

            return one

        keys, values = (3, 3) if self.stacked else (3, 2)
        return KVCache(
            jax.tree.map(put(keys), self.k, other.k),
            jax.tree.map(put(values), self.v, other.v),
        )


def _put(store: jax.Array, new: jax.Array, at: tuple) -> jax.Array:
    return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), at)


def pinned(x: jax.Array, cut: int | None = None) -> jax.Array:
    """The array, on a TPU laid out in the order of its dimensions. cut: that which lies over `tensor`, if any."""
    return jax.lax.platform_dependent(x, tpu=lambda x: _in_order(x, cut), default=lambda x: x)


def _in_order(x: jax.Array, cut: int | None) -> jax.Array:
    """The array in the layout of its dimensions' order; of an array that is cut each device pins its own part, or the
    compiler would gather it."""

    def pin(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    if cut is None or not tensor_axis_divides(x.shape[cut]):
        return pin(x)
    place = PartitionSpec(*(None,) * cut, "tensor")
    return jax.shard_map(pin, in_specs=place, out_specs=place, axis_names={"tensor"}, check_vma=False)(x)


def init_cache(config: ModelConfig, rows: int, columns: int, dtype=jnp.float32, *, stacked: bool = True) -> KVCache:
    """A cache of zeros; no column counts until the tape gives it a position. Its heads lie over `tensor`."""
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    if stacked:
        shape = (config.num_layers, *shape)
        return KVCache(*(shard_over_tensor(jnp.zeros(shape, dtype), 2) for _ in "kv"))
    turned = (*shape[:2], config.head_dim, columns)

    def layers(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
        return tuple(shard_over_tensor(jnp.zeros(shape, dtype), 1) for _ in range(config.num_layers))

    return KVCache(layers(turned), layers(shape))


def gather_columns(cache: KVCache, source: jax.Array) -> KVCache:
    """New column s of row b is old column source[b,s]; source i32[B,S]. One layer's keys are moved at a time.

    The layout that a gather likes best would spread to the whole cache, and every turn would copy it to and fro.
    """

    def move(x: jax.Array, axis: int) -> jax.Array:
        return jax.vmap(lambda row, columns: jnp.take(row, columns, axis=axis))(x, source)

    def layer(number, store):
        one = pinned(move(jax.lax.dynamic_index_in_dim(store, number, keepdims=False), 1))
        return pinned(jax.lax.dynamic_update_index_in_dim(store, one, number, 0))

    if cache.stacked:
        return KVCache(*(jax.lax.fori_loop(0, store.shape[0], layer, store) for store in (cache.k, cache.v)))
    return KVCache(
        tuple(_in_order(move(_in_order(x, 1), 2), 1) for x in cache.k),
        tuple(_in_order(move(_in_order(x, 1), 1), 1) for x in cache.v),
    )
