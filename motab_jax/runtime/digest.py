"""A digest of an array's bits, the same on any mesh: it shows that a checkpoint changed on disk.

Left out: protection against forgery.
"""

import zlib
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32


def digests(tree: Any) -> list[int]:
    """The digest of each leaf.

    Any change of a single element changes its leaf's digest; of other changes about one in 2**32 does not.

    Args:
      tree: of jax arrays (no typed keys) and NumPy arrays.

    Returns:
      Numbers from 0 to 2**32 - 1, in the order of `jax.tree.leaves`.

    >>> digests({"a": jnp.array([1, 2, 3])})  # 1 * 1 + 2 * 3 + 3 * 5
    [22]
    """
    leaves = jax.tree.leaves(tree)
    by_leaf: dict[int, int] = {}
    on_devices = defaultdict(list)  # set of devices -> indices of the leaves on them
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            on_devices[frozenset(leaf.sharding.device_set)].append(index)
        else:
            by_leaf[index] = zlib.crc32(np.ascontiguousarray(leaf).tobytes())
    for indices in on_devices.values():  # one program takes arrays of one set of devices
        sums = jax.device_get(weighted_sums([leaves[index] for index in indices]))
        by_leaf.update(zip(indices, map(int, sums), strict=True))
    return [by_leaf[index] for index in range(len(leaves))]


@jax.jit
def weighted_sums(arrays: list[Shaped[Array, "..."]]) -> list[UInt32[Array, ""]]:
    """The digests of arrays that are on one set of devices, there."""
    return [_weighted_sum(array) for array in arrays]


def _weighted_sum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Sum of bits * (2 * index + 1) modulo 2**32: integers, so the order of a sharded sum does not matter.

    The weight is odd, hence invertible: no change of one element vanishes. 8-byte elements count as two.
    """
    bits = _bits(array)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for dimension in reversed(range(bits.ndim)):
        index += lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[dimension]
    return jnp.sum(bits * (index * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)


def _bits(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The elements as unsigned integers of 32 bits; 8-byte elements as two, in a dimension of their own."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(array, width).astype(jnp.uint32)
