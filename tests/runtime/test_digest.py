"""Digests: numbers by hand, the same on any mesh, changed by any change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from motab_jax.runtime.digest import digests
from motab_jax.runtime.mesh import make_mesh


def test_by_hand():
    assert digests([jnp.array([[1, 2], [3, 4]], jnp.int32), jnp.array([True, False, True])]) == [
        1 * 1 + 2 * 3 + 3 * 5 + 4 * 7,
        1 * 1 + 1 * 5,
    ]


def test_any_mesh_gives_the_same(devices):
    values = jax.random.normal(jax.random.key(0), (8, 16))
    cut = jax.device_put(values, NamedSharding(make_mesh(1, 4, 2), PartitionSpec("fsdp", "tensor")))
    one = jax.device_put(values, devices[3])
    assert len(set(digests({"a": cut, "b": one, "c": values}))) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint32])
def test_a_change_or_a_swap_is_seen(dtype):
    values = np.arange(1, 13).reshape(3, 4)
    swapped, changed, negative = values.copy(), values.copy(), values.astype(np.int32)
    swapped[[0, 1]] = swapped[[1, 0]]
    changed[2, 3] += 1
    trees = [jnp.asarray(array, dtype) for array in (values, swapped, changed)] + [jnp.asarray(negative, dtype) * 2]
    assert len(set(digests(trees))) == 4


def test_host_arrays_too():
    first, second = digests([np.arange(3), np.arange(3) + 1])
    assert first != second
