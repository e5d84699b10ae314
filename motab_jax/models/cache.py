"""The key-value cache: a plain pytree whose columns are the tape's columns.

Every row writes the same column, so a write is one dynamic_update_slice and a rewind moves nothing: which columns
count is said by the tape's positions alone (docs/decisions.md).
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.architecture import ModelConfig


@flax.struct.dataclass
class KVCache:
    """Keys (rotated) and values of every column; L layers, B rows, S columns, K kv heads, H head dim."""

    k: jax.Array  # [L,B,S,K,H]
    v: jax.Array  # [L,B,S,K,H]


def init_cache(config: ModelConfig, rows: int, columns: int, dtype=jnp.float32) -> KVCache:
    """A cache of zeros; no column counts until the tape gives it a position."""
    shape = (config.num_layers, rows, columns, config.num_kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def gather_columns(cache: KVCache, source: jax.Array) -> KVCache:
    """Move columns: new column s of row b is old column source[b,s]; source i32[B,S]. One copy for all layers."""

    def move(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, source[None, :, :, None, None], axis=2)

    return KVCache(move(cache.k), move(cache.v))


def model_cache(model, rows: int, columns: int) -> KVCache:
    """A cache for a `Model`."""
    return init_cache(model.config, rows, columns, model.dtype)
