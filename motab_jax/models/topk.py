"""The likeliest tokens of a distribution: the first K, and those that hold a given mass; nothing sorts the vocabulary.

A trajectory keeps the first K where the teacher's states would be too large.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int

from motab_jax.runtime.mesh import replicate_in_group, tensor_shards

POSITIVE_BITS = 31  # of a float32 that is not negative
# Over a sharded vocabulary: the bits of a threshold that each pass over the distribution decides. A pass is an
# all-reduce, and takes 2^bits - 1 sums of a device's share. Elsewhere a pass decides one bit, with one sum.
FEW_PASSES = (7, 6, 6, 6, 6)


class TopK(flax.struct.PyTreeNode):
    """The K likeliest tokens of each distribution; the tail's mass is 1 - sum(exp(logprobs))."""

    ids: Int[Array, "*N K"]
    logprobs: Float[Array, "*N K"]  # normalised over the whole vocabulary, in nats


def top_k_of(logits: Float[Array, "*N V"], k: int) -> TopK:
    """The k likeliest tokens of each distribution, likeliest first, or all V where k is more.

    >>> top_k_of(jnp.array([0.0, 3.0, 1.0]), 2).ids.tolist()
    [1, 2]
    """
    logprobs, ids = top_k(jax.nn.log_softmax(logits, axis=-1), min(k, logits.shape[-1]))
    return TopK(ids, logprobs)


def top_k(x: Float[Array, "*N V"], k: int) -> tuple[Float[Array, "*N {k}"], Int[Array, "*N {k}"]]:
    """`jax.lax.top_k`; where devices of a group share V, each finds the first k of its own, and V is not gathered."""
    shards = tensor_shards(x.shape[-1])
    if shards == 1 or k > x.shape[-1] // shards:
        values, ids = jax.lax.top_k(x, k)
        return values, ids
    over_tensor = PartitionSpec(*(None,) * (x.ndim - 1), "tensor")

    def first_of_share(share: Array) -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(share, k)
        return values, ids + jax.lax.axis_index("tensor") * share.shape[-1]

    values, ids = jax.shard_map(
        first_of_share, in_specs=over_tensor, out_specs=(over_tensor, over_tensor), axis_names={"tensor"}
    )(x)  # in the order of the shares, so that of equal values the lowest id still comes first
    values, ids = replicate_in_group(values), replicate_in_group(ids)
    best, order = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(ids, order, axis=-1)


def mass_threshold(
    weights: Float32[Array, "*N V"],
    enough: Callable[[Float32[Array, "*N X"]], Bool[Array, "*N X"]],
    *,
    sharded: bool,
    counted: bool = False,
) -> Float32[Array, "*N 1"]:
    """The largest number such that the weights at or above it have enough mass together; 0 where there is none.

    It is found by its bits, the highest first: those of a float32 that is not negative order as the numbers do.

    >>> float(mass_threshold(jnp.array([0.1, 0.5, 0.4]), lambda mass: mass >= 0.8, sharded=False)[0])
    0.4000000059604645

    Args:
      weights: not negative.
      enough: whether the sum of some weights is enough; if it is, so is that of more of them.
      sharded: whether the vocabulary is sharded over devices: then there are few passes, each with many sums.
      counted: a weight's mass is 1, not itself.

    Returns:
      The threshold, which is one of the weights or 0.
    """

    def decide(bits: int, shift: int | Array, low: Array) -> Array:
        """The next `bits` bits: the number of these candidates that leave enough."""
        steps = jnp.arange(1, 2**bits, dtype=jnp.int32).reshape((1,) * (low.ndim - 1) + (-1,)) << shift
        candidates = jax.lax.bitcast_convert_type(low + steps, jnp.float32)
        at_least = weights[..., None, :] >= candidates[..., None]
        mass = jnp.sum(jnp.where(at_least, 1.0 if counted else weights[..., None, :], 0.0), axis=-1)
        return low + (jnp.sum(enough(mass), axis=-1, keepdims=True, dtype=jnp.int32) << shift)

    low, shift = jnp.zeros((*weights.shape[:-1], 1), jnp.int32), POSITIVE_BITS
    if sharded:
        for bits in FEW_PASSES:
            shift -= bits
            low = decide(bits, shift, low)
    else:
        low = jax.lax.fori_loop(0, shift, lambda index, low: decide(1, shift - 1 - index, low), low)
    return jax.lax.bitcast_convert_type(low, jnp.float32)
