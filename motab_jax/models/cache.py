"""The key-value cache: a plain pytree whose columns are the tape's columns.

Every row writes the same column, so a write is one dynamic_update_slice and a rewind moves nothing: which columns
count is said by the tape's positions alone (docs/decisions.md). Scanned layers share one array, unrolled layers have
one each.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from motab_jax.models.architecture import ModelConfig

Store = jax.Array | tuple[jax.Array, ...]


@flax.struct.dataclass
class KVCache:
    """Keys (rotated) and values of every column; L layers, B rows, K kv heads, S columns, H head dim."""

    k: Store  # [L,B,K,S,H], or L times [B,K,S,H]
    v: Store


def init_cache(config: ModelConfig, rows: int, columns: int, dtype=jnp.float32, *, stacked: bool = True) -> KVCache:
    """A cache of zeros; no column counts until the tape gives it a position."""
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    if stacked:
        shape = (config.num_layers, *shape)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return KVCache(*(tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in "kv"))


def write(store: Store, new: jax.Array, layer: jax.Array | int, cursor: jax.Array | int) -> Store:
    """The store with new [B,T,K,H] in the layer's columns cursor..cursor+T-1."""
    new = jnp.swapaxes(new, 1, 2)
    if isinstance(store, tuple):
        one = jax.lax.dynamic_update_slice(store[layer], new.astype(store[layer].dtype), (0, 0, cursor, 0))
        return (*store[:layer], one, *store[layer + 1 :])
    return jax.lax.dynamic_update_slice(store, new[None].astype(store.dtype), (layer, 0, 0, cursor, 0))


def read(store: Store, layer: jax.Array | int, start: jax.Array | int, size: int) -> jax.Array:
    """The layer's columns start..start+size-1, [B,K,size,H]."""
    if isinstance(store, tuple):
        return jax.lax.dynamic_slice_in_dim(store[layer], start, size, axis=2)
    _, rows, heads, _, width = store.shape
    return jax.lax.dynamic_slice(store, (layer, 0, 0, start, 0), (1, rows, heads, size, width))[0]


def gather_columns(cache: KVCache, source: jax.Array) -> KVCache:
    """New column s of row b is old column source[b,s]; source i32[B,S]. One layer's keys are moved at a time."""

    def move(x: jax.Array) -> jax.Array:
        moved = jax.vmap(lambda row, columns: jnp.take(row, columns, axis=1))(x, source)
        # The layout that a gather likes best would spread to the whole cache, and every turn would copy it to and fro.
        return with_layout_constraint(moved, Layout(tuple(range(moved.ndim))))

    def layer(number, store):
        one = move(jax.lax.dynamic_index_in_dim(store, number, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(store, one, number, 0)

    def each(store: Store) -> Store:
        if isinstance(store, tuple):
            return tuple(move(x) for x in store)
        return jax.lax.fori_loop(0, store.shape[0], layer, store)

    return KVCache(each(cache.k), each(cache.v))
