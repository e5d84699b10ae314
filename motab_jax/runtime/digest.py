"""A number for the bits of an array, the same on any mesh: tells a checkpoint that changed on disk.

Left out: protection against an adversary; this is for disks, not for people.
"""

import zlib
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def digests(tree: Any) -> list[int]:
    """One number in 0..2**32-1 a leaf, in the order of `jax.tree.leaves`. Leaves: jax arrays (no typed keys), NumPy.

    Any change of a single element changes its leaf's number; other changes go unseen with a chance of about 2**-32.
    """
    leaves = jax.tree.leaves(tree)
    found: dict[int, int] = {}
    places = defaultdict(list)
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            places[frozenset(leaf.sharding.device_set)].append(index)
        else:
            found[index] = zlib.crc32(np.ascontiguousarray(leaf).tobytes())
    for indices in places.values():  # one program takes arrays of one set of devices
        sums = jax.device_get(_sums([leaves[index] for index in indices]))
        found.update(zip(indices, map(int, sums), strict=True))
    return [found[index] for index in range(len(leaves))]


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_weighted_sum(array) for array in arrays]


def _weighted_sum(array: jax.Array) -> jax.Array:
    """Sum of bits * (2 * index + 1) modulo 2**32: integers, so the order of a sharded sum does not matter.

    The weight is odd, hence invertible: no change of one element vanishes. 8-byte elements count as two.
    """
    bits = _bits(array)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for dimension in reversed(range(bits.ndim)):
        index += lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[dimension]
    return jnp.sum(bits * (index * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(array, width).astype(jnp.uint32)
