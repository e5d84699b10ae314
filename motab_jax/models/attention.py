"""Attention: over a sequence, over the live part of a cache, and by blocks of queries where a sequence is long.

The mask comes from positions alone: a query at position p attends to the columns whose position is in 0..p, so causal
masking, left padding and columns that a rewind discarded are one rule. Grouped queries: G queries share one kv head.
Shape letters: B rows, T query columns, S key columns, K kv heads, G queries a kv head, H head dim.
Left out: fused kernels (flash, splash, paged attention); all of this is jax.numpy, and XLA compiles it everywhere.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

MASKED = -1e30  # the score of a column that a query does not attend to
BLOCK = 512  # columns of a cache that are attended to at a time
SMALL_BLOCK = 256  # where layers are unrolled: a CPU copies each block, which must stay in its own caches
QUERY_BLOCK = 512  # queries at a time in a long sequence without a cache
BLOCKS_PER_SEQUENCE = 4  # of queries, where each row holds sequences in order

Index = Int[Array, ""] | int
Keys = Float[Array, "B K S H"] | Float[Array, "B K H S"]
Values = Float[Array, "B K S H"]


def causal_mask(
    query_positions: Int[Array | np.ndarray, "B T"], key_positions: Int[Array | np.ndarray, "B S"]
) -> Bool[Array | np.ndarray, "B T S"]:
    """Whether each query attends to each column: the column's position is at most the query's, and not -1.

    >>> causal_mask(jnp.array([[0, 1]]), jnp.array([[0, 1, -1]])).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 0]]]
    """
    return (key_positions[:, None, :] >= 0) & (key_positions[:, None, :] <= query_positions[:, :, None])


class MaskSpec(flax.struct.PyTreeNode):
    """The inputs of a mask: the columns' positions and, in packed rows, the sequence of each column."""

    positions: Int[Array | np.ndarray, "*N T"]  # -1: padding, which no query attends to
    segments: Int[Array | np.ndarray, "*N T"] | None = None  # None: one sequence a row

    def mask(self, keys: "MaskSpec") -> Bool[Array | np.ndarray, "B T S"]:
        """Whether these columns, as queries, attend to those of `keys`: never to those of another sequence."""
        mask = causal_mask(self.positions, keys.positions)
        if self.segments is None or keys.segments is None:
            return mask
        return mask & (self.segments[:, :, None] == keys.segments[:, None, :])


def attend(
    q: Float[Array, "B T K G H"],
    k: Keys,
    v: Values,
    mask: Bool[Array | np.ndarray, "B T S"],
    *,
    keys_last: bool = False,
) -> Float[Array, "B T K G H"]:
    """Softmax attention of all queries to all columns under a mask.

    Args:
      q: queries, rotated.
      k: keys, rotated; [B,K,H,S] if `keys_last`.
      v: values.
      mask: whether a query attends to a column.
      keys_last: whether the columns are the last dimension of the keys.

    Returns:
      The values' weighted means, accumulated in float32.
    """
    weights = jax.nn.softmax(_scores(_flatten_queries(q), k, mask, keys_last), axis=-1).astype(v.dtype)
    return _unflatten_queries(_weighted_sum(weights, v), q.shape)


def sequence_mask(spec: MaskSpec, query_block: int = QUERY_BLOCK) -> Bool[Array | np.ndarray, "B T T"] | None:
    """The mask between a sequence's columns; None for a sequence so long that each block of queries makes its own."""
    return None if spec.positions.shape[1] > 2 * query_block else spec.mask(spec)


def attend_sequence(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    spec: MaskSpec,
    mask: Bool[Array | np.ndarray, "B T T"] | None,
    *,
    max_sequence_columns: int | None = None,
    query_block: int = QUERY_BLOCK,
) -> Float[Array, "B T K G H"]:
    """`attend` of a sequence's columns to themselves, without a cache.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      spec: positions and segments, for the mask.
      mask: from `sequence_mask`, once for all layers.
      max_sequence_columns: set where the columns of each sequence are in order and no sequence has more: a query then
          attends no farther back, and blocks of queries leave out most of the columns that are masked for them. None:
          unknown.
      query_block: queries at a time where `mask` is None.

    Returns:
      As `attend`.
    """
    if mask is None:
        return _attend_in_query_blocks(q, k, v, spec, query_block)
    return (
        attend(q, k, v, mask) if max_sequence_columns is None else _attend_nearby(q, k, v, mask, max_sequence_columns)
    )


def _attend_in_query_blocks(q, k, v, spec: MaskSpec, size: int) -> Float[Array, "B T K G H"]:
    """`attend` by blocks of queries, recomputed in the backward pass: the full mask and scores never exist at once."""
    batch, time = q.shape[:2]

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -time % size)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    block = jax.checkpoint(lambda queries: attend(queries[0], k, v, queries[1].mask(spec)))
    out = jnp.moveaxis(jax.lax.map(block, (split(q), jax.tree.map(split, spec))), 0, 1)
    return out.reshape(batch, -1, *q.shape[2:])[:, :time]


def _attend_nearby(q, k, v, mask, max_sequence_columns: int) -> Float[Array, "B T K G H"]:
    """`attend` where a query attends to at most `max_sequence_columns` columns, its own the last of them."""

    def block(start: int, end: int) -> jax.Array:
        first = max(0, start - max_sequence_columns + 1)
        return attend(q[:, start:end], k[:, :, first:end], v[:, :, first:end], mask[:, start:end, first:end])

    size, time = -(-max_sequence_columns // BLOCKS_PER_SEQUENCE), q.shape[1]
    return jnp.concatenate([block(start, min(start + size, time)) for start in range(0, time, size)], axis=1)


def attend_cache(
    q: Float[Array, "B T K G H"],
    read: Callable[[Index, int], tuple[Keys, Values]],
    query_positions: Int[Array | np.ndarray, "B T"],
    key_positions: Int[Array | np.ndarray, "B S"],
    live: Index,
    *,
    size: int = BLOCK,
    keys_last: bool = False,
) -> Float[Array, "B T K G H"]:
    """`attend` to the first `live` columns of a cache, block by block; columns behind them cost nothing.

    The softmax is accumulated over blocks as in arXiv 2205.14135, section 3.1. T = 1 is decoding, T > 1 a prefill.

    Args:
      q: queries, rotated.
      read: `read(start, size)` gives the keys and values of that many columns from `start` on.
      query_positions: the queries' positions.
      key_positions: the positions of all S columns of the cache; -1: dead or empty.
      live: columns in use, from the first on.
      size: columns of a block.
      keys_last: as in `attend`.

    Returns:
      The values' weighted means, in the queries' dtype where there is more than one block.
    """
    columns = key_positions.shape[1]
    if columns <= size:
        return attend(q, *read(0, columns), causal_mask(query_positions, key_positions), keys_last=keys_last)
    queries = _flatten_queries(q)

    def block(number, carry):
        top, total, weighted = carry
        # The last block begins early enough to be a full one; the columns that it repeats are masked.
        start = jnp.minimum(number * size, columns - size)
        k, v = read(start, size)
        mask = causal_mask(query_positions, jax.lax.dynamic_slice_in_dim(key_positions, start, size, axis=1))
        fresh = start + jnp.arange(size)[None, None] >= number * size
        scores = _scores(queries, k, mask & fresh, keys_last)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights, shrink = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        new = _weighted_sum(weights.astype(v.dtype), v)
        return new_top, total * shrink + jnp.sum(weights, axis=-1), weighted * shrink[..., None] + new

    shape = queries.shape[:3]
    zero = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros(queries.shape))
    _, total, weighted = jax.lax.fori_loop(0, (live + size - 1) // size, block, zero)
    return _unflatten_queries(weighted / total[..., None], q.shape).astype(q.dtype)


def _flatten_queries(q: Float[Array, "B T K G H"]) -> Float[Array, "B K T*G H"]:
    """The queries as the rows of one matrix for each kv head."""
    batch, time, heads, group, size = q.shape
    return jnp.moveaxis(q, 2, 1).reshape(batch, heads, time * group, size)


def _unflatten_queries(attended: Float[Array, "B K _ H"], shape: tuple[int, ...]) -> Float[Array, "B T K G H"]:
    """The inverse of `_flatten_queries`; `shape` is that of the queries."""
    batch, time, heads, group, size = shape
    return jnp.moveaxis(attended.reshape(batch, heads, time, group, size), 1, 2)


def _scores(queries, k, mask, keys_last: bool) -> Float32[Array, "B K _ S"]:
    """Queries [B,K,T*G,H] times keys, scaled and masked."""
    dimensions = (((3,), (2 if keys_last else 3,)), ((0, 1), (0, 1)))
    scores = jax.lax.dot_general(queries, k, dimensions, preferred_element_type=jnp.float32)
    group = queries.shape[2] // mask.shape[1]
    allowed = jnp.repeat(mask, group, axis=1)[:, None]
    return jnp.where(allowed, scores / math.sqrt(queries.shape[-1]), MASKED)


def _weighted_sum(weights: Float[Array, "B K _ S"], v: Values) -> Float32[Array, "B K _ H"]:
    """Weights times values, summed over the columns."""
    dimensions = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(weights, v, dimensions, preferred_element_type=jnp.float32)
