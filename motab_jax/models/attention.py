"""Attention: plain, over the live part of a cache, and over blocks of queries where a text is long.

Masked by positions: a query at position p sees the columns whose position is in 0..p. Grouped queries: G queries share
a kv head. Letters: b batch, t query time, s key time, k kv heads, g queries a kv head, h head dim.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30
BLOCK = 512  # columns of a cache that are attended to at a time
SMALL_BLOCK = 256  # where layers are unrolled: a CPU copies each block, which must stay in its own caches
QUERIES = 512  # queries at a time in a long text without a cache
PARTS = 4  # blocks of queries in a text whose columns are in order


def sees(positions: jax.Array, seen: jax.Array) -> jax.Array:
    """bool[B,T,S]: whether the query at positions i32[B,T] sees the column at seen i32[B,S]; -1: nobody does."""
    return (seen[:, None, :] >= 0) & (seen[:, None, :] <= positions[:, :, None])


class Sight(NamedTuple):
    """Columns i32[B,T] of texts: their positions and, where a row holds several texts, which of them each is of."""

    positions: jax.Array
    segments: jax.Array | None

    def of(self, columns: "Sight") -> jax.Array:
        """bool[B,T,S]: whether each of these sees each of those columns."""
        mask = sees(self.positions, columns.positions)
        if self.segments is None or columns.segments is None:
            return mask
        return mask & (self.segments[:, :, None] == columns.segments[:, None, :])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, columns_last: bool = False) -> jax.Array:
    """[B,T,K,G,H] of queries [B,T,K,G,H] to keys and values [B,K,S,H] under mask bool[B,T,S].

    columns_last: the keys are [B,K,H,S].
    """
    weights = jax.nn.softmax(_scores(_rows(q), k, mask, columns_last), axis=-1).astype(v.dtype)
    return _back(_mix(weights, v), q.shape)


def mask_of(sight: Sight) -> jax.Array | None:
    """bool[B,T,T]: who sees whom; None for texts too long for one mask and all scores at once."""
    return None if sight.positions.shape[1] > 2 * QUERIES else sight.of(sight)


def attend_text(
    q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, mask: jax.Array | None, max_text_columns: int | None = None
) -> jax.Array:
    """`attend` of columns to themselves, without a cache; mask is what `mask_of` gives, once for all layers.

    max_text_columns: the columns' texts are in order and none has more columns, so no query attends farther back, or
    ahead; a short text is then also computed in blocks, without most of the columns that its queries are masked from.
    """
    if mask is None:
        return _attend_long(q, k, v, sight)
    return attend(q, k, v, mask) if max_text_columns is None else _attend_near(q, k, v, mask, max_text_columns)


def _attend_long(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight) -> jax.Array:
    """`attend`, a block of queries at a time, computed anew for its gradient: never the whole mask, or all scores."""
    batch, time = q.shape[:2]

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -time % QUERIES)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, QUERIES, *x.shape[2:]), 1, 0)

    block = jax.checkpoint(lambda part: attend(part[0], k, v, part[1].of(sight)))
    out = jnp.moveaxis(jax.lax.map(block, (cut(q), jax.tree.map(cut, sight))), 0, 1)
    return out.reshape(batch, -1, *q.shape[2:])[:, :time]


def _attend_near(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, max_text_columns: int) -> jax.Array:
    """`attend` where a query sees at most `max_text_columns` columns, its own the last of them."""

    def block(start: int, end: int) -> jax.Array:
        first = max(0, start - max_text_columns + 1)
        return attend(q[:, start:end], k[:, :, first:end], v[:, :, first:end], mask[:, start:end, first:end])

    size, time = -(-max_text_columns // PARTS), q.shape[1]
    return jnp.concatenate([block(start, min(start + size, time)) for start in range(0, time, size)], axis=1)


def attend_live(
    q: jax.Array, read, positions: jax.Array, seen: jax.Array, live, size: int = BLOCK, *, columns_last: bool = False
) -> jax.Array:
    """[B,T,K,G,H] of queries to the first `live` i32[] of S cached columns: blocks behind them cost nothing.

    read(start, size) gives keys and values [B,K,size,H]; positions i32[B,T] are the queries', seen i32[B,S] the
    columns'; size: columns of a block; columns_last: see `attend`. Softmax over blocks as in arXiv 2205.14135 (3.1).
    """
    columns = seen.shape[1]
    if columns <= size:
        return attend(q, *read(0, columns), sees(positions, seen), columns_last=columns_last)
    queries = _rows(q)

    def block(number, carry):
        top, total, mixed = carry
        # The last block begins early enough to be whole; what it repeats is masked.
        start = jnp.minimum(number * size, columns - size)
        k, v = read(start, size)
        mask = sees(positions, jax.lax.dynamic_slice_in_dim(seen, start, size, axis=1))
        fresh = start + jnp.arange(size)[None, None] >= number * size
        scores = _scores(queries, k, mask & fresh, columns_last)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
        new = _mix(weights.astype(v.dtype), v)
        return higher, total * shrink + jnp.sum(weights, axis=-1), mixed * shrink[..., None] + new

    shape = queries.shape[:3]
    zero = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros(queries.shape))
    _, total, mixed = jax.lax.fori_loop(0, (live + size - 1) // size, block, zero)
    return _back(mixed / total[..., None], q.shape).astype(q.dtype)


def _rows(q: jax.Array) -> jax.Array:
    """Queries as the rows of one matrix for each kv head, [B,K,T*G,H]."""
    batch, time, heads, group, size = q.shape
    return jnp.moveaxis(q, 2, 1).reshape(batch, heads, time * group, size)


def _back(mixed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B,K,T*G,H] as [B,T,K,G,H] again."""
    batch, time, heads, group, size = shape
    return jnp.moveaxis(mixed.reshape(batch, heads, time, group, size), 1, 2)


def _scores(queries: jax.Array, k: jax.Array, mask: jax.Array, columns_last: bool) -> jax.Array:
    """Masked scores f32[B,K,T*G,S]."""
    both = (((3,), (2 if columns_last else 3,)), ((0, 1), (0, 1)))
    scores = jax.lax.dot_general(queries, k, both, preferred_element_type=jnp.float32)
    group = queries.shape[2] // mask.shape[1]
    allowed = jnp.repeat(mask, group, axis=1)[:, None]
    return jnp.where(allowed, scores / math.sqrt(queries.shape[-1]), MASKED)


def _mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Weights [B,K,T*G,S] times values [B,K,S,H], f32[B,K,T*G,H]."""
    both = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(weights, v, both, preferred_element_type=jnp.float32)
