"""Sampling one token a row: temperature, top-k, top-p, and an inverse CDF at one uniform number a row.

The vocabulary is never sorted, nor gathered where devices share it. Keys fold (row id, rewinds, position): a token
depends on nothing else.
"""

import enum
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from motab_jax.models.topk import mass_threshold
from motab_jax.models.topk import top_k as likeliest
from motab_jax.runtime.mesh import replicate_in_group, tensor_shards

BLOCK, MIN_BLOCKS = 256, 16


class Stream(enum.IntEnum):
    """Purposes of random numbers besides training, whose keys fold the step: it counts from 0 up, these from above."""

    EVALUATION = 2**32 - 1
    SYNTHESIS = 2**32 - 2


def stream_key(seed: int, stream: Stream) -> Key[Array, ""]:
    """The key from which a purpose's keys are folded. No number is drawn from it, nor from the seed's own key."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def uniforms(row_keys: Key[Array, "B"], num_rewinds: Int[Array, "B"], position: Int[Array, "B"]) -> Float32[Array, "B"]:
    """One uniform number in [0, 1) for each row, from its key, its rewinds so far and the token's position."""

    def draw(key, rewinds, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, rewinds), position))

    return jax.vmap(draw)(row_keys, num_rewinds, position)


def sample(
    logits: Float[Array, "B V"],
    uniform: Float[Array, "B"],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Int32[Array, "B"]:
    """One token id for each row.

    The filters act in the order temperature, top-k, top-p, as in transformers; tokens tied at a threshold all stay.

    Args:
      logits: masked beyond the tokenizer's vocabulary.
      uniform: numbers in [0, 1).
      temperature: 0 is greedy.
      top_k: likeliest tokens that are kept; 0: all.
      top_p: probability that the kept tokens have at least, together.

    Returns:
      The token ids.
    """
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    if 0 < top_k < logits.shape[-1]:
        weights = jnp.where(weights >= _top_k_threshold(weights, top_k), weights, 0.0)
    if top_p < 1.0:
        weights = jnp.where(weights >= _nucleus_threshold(weights, top_p), weights, 0.0)
    return _inverse_cdf(weights, uniform)


def _top_k_threshold(weights: Float32[Array, "B V"], top_k: int) -> Float32[Array, "B 1"]:
    """The top_k-th largest weight. A gather finds it in a sharded vocabulary; else counts, which beat a sort."""
    if tensor_shards(weights.shape[-1]) > 1:
        return likeliest(weights, top_k)[0][:, -1:]
    return mass_threshold(weights, lambda number: number >= top_k, sharded=False, counted=True)


def _nucleus_threshold(weights: Float32[Array, "B V"], top_p: float | Float32[Array, ""]) -> Float32[Array, "B 1"]:
    """The largest weight such that the tokens at or above it hold a share >= top_p of the total."""
    goal = top_p * jnp.sum(weights, axis=-1, keepdims=True)
    return mass_threshold(weights, lambda mass: mass >= goal, sharded=tensor_shards(weights.shape[-1]) > 1)


def _inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int32[Array, "B"]:
    """Two-level inverse CDF: find the block whose cumulative weight passes u * total, then the token inside it."""
    rows, vocab = weights.shape
    blocks, size = block_shape(vocab)
    blocks = jnp.pad(weights, ((0, 0), (0, blocks * size - vocab))).reshape(rows, blocks, size)
    masses = replicate_in_group(jnp.sum(blocks, axis=-1))
    edges = jnp.cumsum(masses, axis=-1)
    goal = uniform * edges[:, -1]
    # Prefix sums round, each in an order of its own: the edge of an empty block may exceed that of the block before.
    block = _last_true(masses > 0, _first_above(edges, goal))
    before = jnp.where(block > 0, jnp.take_along_axis(edges, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    inner = replicate_in_group(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0])
    inside = jnp.cumsum(inner, axis=-1)
    index = _last_true(inner > 0, _first_above(inside, jnp.minimum(goal - before, inside[:, -1] * (1 - 1e-7))))
    return (block * size + index).astype(jnp.int32)


def block_shape(vocab: int) -> tuple[int, int]:
    """The number of blocks that a vocabulary is split into, and a block's tokens.

    A large vocabulary is split without a remainder where its size has a power of two: over devices that share it, each
    then has blocks of its own. Elsewhere the last block is filled up.

    >>> block_shape(151_936), block_shape(151_669), block_shape(300)
    ((128, 1187), (593, 256), (2, 256))
    """
    even = math.gcd(vocab, BLOCK)
    if vocab >= BLOCK * MIN_BLOCKS and even >= MIN_BLOCKS:
        return even, vocab // even
    return -(-vocab // BLOCK), BLOCK


def _first_above(edges: Float[Array, "B X"], goal: Float[Array, "B"]) -> Int[Array, "B"]:
    """First index whose edge exceeds the goal; the last index where rounding leaves none."""
    return jnp.minimum(jnp.sum(edges <= goal[:, None], axis=-1), edges.shape[-1] - 1)


def _last_true(flags: Bool[Array, "B X"], index: Int[Array, "B"]) -> Int[Array, "B"]:
    """The last index at or before the given one whose flag is true; where there is none, the first of all."""
    order = jnp.arange(flags.shape[-1], dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(flags & (order <= index[:, None]), order, -1), axis=-1)
    return jnp.where(last >= 0, last, jnp.argmax(flags, axis=-1))
