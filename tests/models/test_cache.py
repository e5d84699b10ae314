"""The key-value cache by itself: both of its forms hold the same, whatever is written, taken out and put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.cache import KVCache, gather_columns, init_cache

LAYERS, ROWS, HEADS, COLUMNS, SIZE = 3, 4, 2, 10, 8
CONFIG = ModelConfig("qwen3", 40, 32, 64, LAYERS, 4, HEADS, SIZE, 64, qk_norm=True, tied=True)


def filled(stacked: bool, seed: int = 0) -> KVCache:
    """A cache of random numbers, written three columns and seven at a time."""
    cache, rng = init_cache(CONFIG, ROWS, COLUMNS, stacked=stacked), np.random.default_rng(seed)
    for start, size in ((0, 3), (3, 7)):
        for layer in range(LAYERS):
            k, v = (jnp.asarray(rng.normal(size=(ROWS, size, HEADS, SIZE)), jnp.float32) for _ in "kv")
            cache = cache.write(k, v, layer, start)
    return cache


def table(cache: KVCache) -> np.ndarray:
    """All keys and values, [2,L,B,K,S,H], whatever the form."""
    found = [cache.read(layer, 0, COLUMNS) for layer in range(LAYERS)]
    keys, values = (np.stack([np.asarray(pair[n]) for pair in found]) for n in (0, 1))
    return np.stack([keys if cache.stacked else np.swapaxes(keys, -1, -2), values])


def test_the_forms_hold_the_same():
    np.testing.assert_array_equal(table(filled(True)), table(filled(False)))


@pytest.mark.parametrize("stacked", [True, False])
def test_a_block_is_the_columns_asked_for(stacked):
    keys, values = filled(stacked).read(1, 4, 5)
    whole = table(filled(stacked))[:, 1, :, :, 4:9]
    np.testing.assert_array_equal(keys if stacked else np.swapaxes(keys, -1, -2), whole[0])
    np.testing.assert_array_equal(values, whole[1])


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_are_taken_out_and_their_columns_put_back(stacked):
    cache, other, index = filled(stacked), filled(stacked, seed=1), np.array([3, 1])
    few = jax.jit(lambda cache: cache.take_rows(index))(other)
    row = np.array([0, 1, 0, 0])  # rows 0 and 2 are not among the few: anything may land in their columns
    found = table(jax.jit(lambda cache, few: cache.put_columns(few, row, 6, 3))(cache, few))
    before, given = table(cache), table(other)
    np.testing.assert_array_equal(np.delete(found, [6, 7, 8], axis=4), np.delete(before, [6, 7, 8], axis=4))
    np.testing.assert_array_equal(found[:, :, 1, :, 6:9], given[:, :, 1, :, 6:9])
    np.testing.assert_array_equal(found[:, :, 3, :, 6:9], given[:, :, 3, :, 6:9])


@pytest.mark.parametrize("stacked", [True, False])
def test_columns_move_as_the_map_says(stacked):
    source = np.stack([np.random.default_rng(row).permutation(COLUMNS) for row in range(ROWS)])
    found, before = table(gather_columns(filled(stacked), jnp.asarray(source))), table(filled(stacked))
    for row in range(ROWS):
        np.testing.assert_array_equal(found[:, :, row], before[:, :, row][:, :, :, source[row]])
