"""Sampling one token a row: temperature, top-k, top-p, and an inverse CDF at one uniform number a row.

The vocabulary is never sorted: top-p finds its threshold by bisection over the bit patterns of float32, which have the
order of the numbers (docs/decisions.md). Keys fold (row id, rewinds, position): a token depends on nothing else.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

BLOCK = 256


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
    if 0 < top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    if top_p < 1.0:
        weights = jnp.where(weights >= _nucleus_threshold(weights, top_p), weights, 0.0)
    return _inverse_cdf(weights, uniform)


def _nucleus_threshold(weights: Float32[Array, "B V"], top_p: float | Float32[Array, ""]) -> Float32[Array, "B 1"]:
    """The largest weight such that the tokens at or above it hold a share >= top_p of the total."""
    goal = top_p * jnp.sum(weights, axis=-1, keepdims=True)
    high = jax.lax.bitcast_convert_type(jnp.max(weights, axis=-1, keepdims=True), jnp.int32) + 1

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        at_least = weights >= jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(at_least, weights, 0.0), axis=-1, keepdims=True) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int32[Array, "B"]:
    """Two-level inverse CDF: find the block whose cumulative weight passes u * total, then the token inside it."""
    rows, vocab = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(rows, -1, BLOCK)
    masses = jnp.sum(blocks, axis=-1)
    edges = jnp.cumsum(masses, axis=-1)
    goal = uniform * edges[:, -1]
    # Prefix sums round, each in an order of its own: the edge of an empty block may exceed that of the block before.
    block = _last_true(masses > 0, _first_above(edges, goal))
    before = jnp.where(block > 0, jnp.take_along_axis(edges, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    inside = jnp.cumsum(inner, axis=-1)
    index = _last_true(inner > 0, _first_above(inside, jnp.minimum(goal - before, inside[:, -1] * (1 - 1e-7))))
    return (block * BLOCK + index).astype(jnp.int32)


def _first_above(edges: Float[Array, "B X"], goal: Float[Array, "B"]) -> Int[Array, "B"]:
    """First index whose edge exceeds the goal; the last index where rounding leaves none."""
    return jnp.minimum(jnp.sum(edges <= goal[:, None], axis=-1), edges.shape[-1] - 1)


def _last_true(flags: Bool[Array, "B X"], index: Int[Array, "B"]) -> Int[Array, "B"]:
    """The last index at or before the given one whose flag is true; where there is none, the first of all."""
    order = jnp.arange(flags.shape[-1], dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(flags & (order <= index[:, None]), order, -1), axis=-1)
    return jnp.where(last >= 0, last, jnp.argmax(flags, axis=-1))
