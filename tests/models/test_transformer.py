"""Identities of the forward pass that need no oracle: padding, causality, rows, and the cache's columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models import forward
from motab_jax.models.cache import gather_columns, init_cache
from motab_jax.models.transformer import encode, init, unembed, weight_specs
from tests.models.tiny import CONFIGS, random_params

ROWS, TIME = 2, 12
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
run = jax.jit(forward, static_argnames="config")
step = jax.jit(encode, static_argnames="config")


@pytest.fixture(params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, TIME)).astype(np.int32)
    return random_params(config), config, tokens


def test_init_has_the_shapes_of_the_specs(model):
    _, config, _ = model
    params = init(config, jax.random.key(0), jnp.bfloat16)
    shapes = jax.tree.map(lambda spec: spec.shape, weight_specs(config), is_leaf=lambda x: hasattr(x, "init"))
    assert jax.tree.map(lambda x: x.shape, params) == shapes
    assert float(params["final_norm"].min()) == 1.0


def test_padding_and_other_rows_change_nothing(model):
    params, config, tokens = model
    plain = run(params, config, tokens)
    padded = np.concatenate([np.full((ROWS, 3), 5, np.int32), tokens], axis=1)
    positions = np.tile(np.arange(-3, TIME), (ROWS, 1)).clip(-1).astype(np.int32)
    close(run(params, config, padded, positions)[:, 3:], plain)
    other = tokens.copy()
    other[0] = (other[0] + 1) % config.vocab_size
    np.testing.assert_array_equal(run(params, config, other)[1], plain[1])


def test_the_future_is_unseen(model):
    params, config, tokens = model
    other = tokens.copy()
    other[:, 7:] = (other[:, 7:] + 1) % config.vocab_size
    before, after = run(params, config, tokens), run(params, config, other)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert not np.allclose(before[:, 7:], after[:, 7:])


def test_dead_columns_and_moved_columns(model):
    """Columns written and then declared dead are as if never written, and columns may be moved."""
    params, config, tokens = model
    plain = run(params, config, tokens)
    columns = TIME + 6
    place = np.full((ROWS, columns), -1, np.int32)
    place[:, :5] = np.arange(5)
    cache = init_cache(config, ROWS, columns)

    def write(cache, chunk, positions, cursor):
        arguments = {"cache": cache, "key_positions": jnp.asarray(place), "cursor": cursor}
        return step(params, config, chunk, positions, **arguments)

    _, cache = write(cache, tokens[:, :5], place[:, :5], 0)
    place[:, 5:8] = np.arange(5, 8)
    _, cache = write(cache, np.full((ROWS, 3), 1, np.int32), place[:, 5:8], 5)
    place[:, 5:8] = -1  # a rewind
    source = np.tile(np.r_[3:columns, 0:3], (ROWS, 1)).astype(np.int32)
    cache = gather_columns(cache, jnp.asarray(source))
    place = np.take_along_axis(place, source, axis=1)
    cursor = 6  # columns 0, 1 hold positions 3, 4; the last three hold 0, 1, 2
    place[:, cursor : cursor + 7] = np.arange(5, 12)
    hidden, cache = write(cache, tokens[:, 5:], place[:, cursor : cursor + 7], cursor)
    close(unembed(params, config, hidden), plain[:, 5:])


def test_a_padded_vocabulary_is_masked(model):
    params, config, tokens = model
    hidden, _ = step(params, config, tokens, np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)))
    masked = np.asarray(unembed(params, config, hidden, 20))
    whole = run(params, config, tokens)
    assert masked.shape == whole.shape and np.isneginf(masked[..., 20:]).all()
    close(masked[..., :20], whole[..., :20])


def test_bfloat16_runs_in_bfloat16_and_gives_float32_logits(model):
    params, config, tokens = model
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    cache = init_cache(config, ROWS, TIME, jnp.bfloat16)
    positions = np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1))
    hidden, cache = step(narrow, config, tokens, positions, cache=cache, key_positions=positions, cursor=0)
    assert hidden.dtype == cache.k.dtype == jnp.bfloat16
    logits = unembed(narrow, config, hidden)
    assert logits.dtype == jnp.float32
    assert np.corrcoef(np.ravel(logits), np.ravel(run(params, config, tokens)))[0, 1] > 0.99
