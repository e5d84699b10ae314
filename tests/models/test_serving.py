"""Every serving form computes what the training form does; int8 nearly so, and sharded over devices all the same."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.attention import BLOCK
from motab_jax.models.cache import gather_columns
from motab_jax.models.quantize import Int8Weight, lookup, quantize, weight_einsum
from motab_jax.models.serving import serve_params, serve_specs, with_copied_heads
from motab_jax.models.transformer import Model, default_positions, encode, forward, init, unembed
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.placement import layout

SHAPES = {
    "qwen3-tied": ModelConfig("qwen3", 50, 32, 48, 3, 4, 2, 8, 4096, qk_norm=True, tied=True),
    "qwen2-bias": ModelConfig("qwen2", 50, 32, 48, 2, 4, 4, 8, 4096, qkv_bias=True),
    "llama-bias": ModelConfig("llama", 50, 32, 48, 2, 8, 2, 8, 4096, qkv_bias=True, o_bias=True),
}
FORMS: dict[str, dict[str, Any]] = {
    "scanned": {"scan_layers": True},
    "scanned-head": {"scan_layers": True, "head": True},
    "unrolled": {"scan_layers": False},
}


def trained(config: ModelConfig) -> Model:
    """Random weights, biases and norms included."""
    params = init(config, jax.random.key(0), std=0.3)
    flat, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(flat))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(flat, keys, strict=True)]
    return Model(jax.tree.unflatten(tree, noisy), config)


def served(model: Model, **form) -> Model:
    return Model(serve_params(model.params, model.config, **form), model.config)


def texts(columns: int = 12) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, columns)), jnp.int32)


def check_logits(logits: jax.Array, expected: jax.Array) -> None:
    """Equal but for the order of sums, which differs with form, devices and machine: each rounds by the largest logit.

    The largest is about 8; the training form itself is up to 9 such roundings from a pass in double precision.
    """
    rounding = 16 * float(jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=rounding)


def check_specs(specs, params) -> None:
    """The specs have the structure and shapes of the params, and name each dimension."""
    assert jax.tree.structure(specs) == jax.tree.structure(params)
    for spec, weight in zip(jax.tree.leaves(specs), jax.tree.leaves(params), strict=True):
        assert spec.shape == weight.shape and len(spec.axes) == weight.ndim


def test_axes_of_the_forms_by_hand():
    config = SHAPES["qwen2-bias"]
    scanned, unrolled = (serve_specs(config, scan_layers=scan) for scan in (True, False))
    assert scanned["layers"]["qkv"].axes == ("layer", "embed", "kv_heads")
    assert scanned["layers"]["q_bias"].axes == ("layer", "heads", "head")
    assert unrolled["layers"][1]["gate_up"].values.axes == (None, "mlp", "embed")
    assert unrolled["head"].values.axes == ("vocab", "embed") and unrolled["embed"].axes == ("vocab", "embed")
    small = serve_specs(config, scan_layers=True, int8=True)
    assert small["layers"]["down"].values.axes == ("layer", "mlp", "embed")
    assert small["layers"]["down"].scale.axes == ("layer", None, "embed")
    assert small["layers"]["down"].scale.shape == (config.num_layers, 1, config.width)
    assert small["embed"].scale.axes == ("vocab", None) and small["final_norm"].axes == (None,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_serving_forms_equal_the_training_form(name, form):
    model = trained(SHAPES[name])
    other = served(model, **FORMS[form])
    check_logits(forward(other.params, other.config, texts()), forward(model.params, model.config, texts()))
    check_specs(serve_specs(model.config, **FORMS[form]), other.params)


@pytest.mark.parametrize("form", ["scanned", "unrolled"])
@pytest.mark.parametrize("name", ["qwen3-tied", "llama-bias"])
def test_copied_heads_compute_the_same(name, form):
    """With two devices to a key-value head each has a copy, biases included."""
    model = trained(SHAPES[name])
    config = with_copied_heads(model.config, 4)
    assert config.num_kv_heads == 4 and with_copied_heads(config, 4) == config
    assert with_copied_heads(model.config, 3) == model.config, "three devices do not share two heads"
    other = Model(serve_params(model.params, config, **FORMS[form]), config)
    check_logits(forward(other.params, config, texts()), forward(model.params, model.config, texts()))
    check_specs(serve_specs(config, **FORMS[form]), other.params)
    cache = other.cache(2, 8)
    assert (cache.k.shape[2] if isinstance(cache.k, jax.Array) else cache.k[0].shape[1]) == 4


@pytest.mark.parametrize("form", ["scanned", "unrolled"])
def test_blocks_of_a_long_cache_equal_a_fresh_pass(form):
    """Segments behind many dead columns, then packed: only living columns count, wherever they are."""
    model = trained(SHAPES["qwen3-tied"])
    other, rng = served(model, **FORMS[form]), np.random.default_rng(1)
    columns, tokens, size = 2 * BLOCK + 100, texts(30), 6
    cache, seen, cursor = other.cache(3, columns), np.full((3, columns), -1, np.int32), 0
    expected = np.asarray(forward(model.params, model.config, tokens))

    @jax.jit
    def advance(cache, part, positions, seen, cursor):
        hidden, cache = encode(
            other.params, other.config, part, positions, cache=cache, key_positions=seen, cursor=cursor
        )
        return unembed(other.params, other.config, hidden), cache

    for begin in range(0, 30, size):
        cursor = min(cursor + int(rng.integers(0, BLOCK // 2)), columns - size)
        positions = np.broadcast_to(np.arange(begin, begin + size, dtype=np.int32), (3, size))
        seen[:, cursor : cursor + size] = positions
        logits, cache = advance(cache, tokens[:, begin : begin + size], positions, seen, cursor)
        np.testing.assert_allclose(logits, expected[:, begin : begin + size], atol=1e-4)
        cursor += size
        if begin == 12:
            order = np.argsort(seen < 0, axis=1, kind="stable")
            cache, seen = jax.jit(gather_columns)(cache, order), np.take_along_axis(seen, order, axis=1)
            cursor = begin + size


def test_long_texts_attend_in_blocks_of_queries():
    model, tokens = trained(SHAPES["llama-bias"]), texts(50)

    def loss(params, query_block):
        positions = default_positions(tokens.shape)
        hidden, _ = encode(params, model.config, tokens, positions, query_block=query_block)
        return jnp.mean(jnp.sin(unembed(params, model.config, hidden)))

    plain, gradient = jax.value_and_grad(loss)(model.params, 50)
    blocked, other = jax.value_and_grad(loss)(model.params, 8)
    np.testing.assert_allclose(blocked, plain, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other)


@pytest.mark.parametrize("max_sequence_columns", [None, 20, 23])
def test_packed_sequences_attend_only_to_themselves(max_sequence_columns):
    model, tokens = trained(SHAPES["qwen3-tied"]), texts(20)
    positions = default_positions(tokens.shape)
    packed = tokens.reshape(1, 60)
    hidden, _ = encode(
        model.params, model.config, packed, positions.reshape(1, 60),
        segments=jnp.repeat(jnp.arange(3, dtype=jnp.int32), 20)[None], max_sequence_columns=max_sequence_columns,
    )  # fmt: skip
    alone, _ = encode(model.params, model.config, tokens, positions)
    np.testing.assert_allclose(hidden.reshape(alone.shape), alone, atol=1e-5)


def test_a_known_reach_changes_no_gradient():
    model, tokens = trained(SHAPES["llama-bias"]), texts(50)
    positions = default_positions(tokens.shape).at[0].add(-3)  # the first text has three columns of padding

    def loss(params, max_sequence_columns):
        hidden, _ = encode(params, model.config, tokens, positions, max_sequence_columns=max_sequence_columns)
        return jnp.mean(jnp.sin(hidden) * (positions >= 0)[:, :, None])

    plain, gradient = jax.value_and_grad(loss)(model.params, None)
    near, other = jax.value_and_grad(loss)(model.params, 50)
    np.testing.assert_allclose(near, plain, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other)


def test_int8_rounds_to_half_a_level():
    weight = jax.random.normal(jax.random.key(0), (6, 4))
    small = quantize(weight, (0,))
    assert small.values.dtype == jnp.int8 and small.scale.shape == (1, 4)
    back = small.values * jnp.broadcast_to(small.scale, weight.shape)
    assert (jnp.abs(back - weight) <= 0.5001 * jnp.broadcast_to(small.scale, weight.shape)).all()
    x = jax.random.normal(jax.random.key(1), (2, 3, 6))
    np.testing.assert_allclose(weight_einsum("btd,dx->btx", x, small), jnp.einsum("btd,dx->btx", x, back), atol=1e-5)
    table = quantize(weight, (1,))
    np.testing.assert_allclose(lookup(table, jnp.array([[2, 5]])), weight[jnp.array([[2, 5]])], atol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_int8_keeps_the_distributions(form):
    model = trained(SHAPES["qwen3-tied"])
    small = served(model, int8=True, **FORMS[form])
    assert isinstance(small.params["embed"], Int8Weight)
    a, b = (jax.nn.log_softmax(forward(m.params, m.config, texts())) for m in (model, small))
    divergence = jnp.sum(jnp.exp(a) * (a - b), axis=-1)
    assert float(jnp.mean(divergence)) < 0.02


def test_bfloat16_weights_serve_with_a_bfloat16_cache():
    small = served(trained(SHAPES["qwen3-tied"]), dtype="bfloat16", **FORMS["scanned"])
    assert small.dtype == jnp.bfloat16 and {x.dtype for x in jax.tree.leaves(small.cache(2, 8))} == {
        jnp.dtype("bfloat16")
    }


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_sharded_over_devices(devices, form, int8):
    config = dataclasses.replace(SHAPES["qwen3-tied"], vocab_size=48)
    model, mesh = trained(config), make_mesh(4, 1, 2)
    small = served(model, int8=int8, **FORMS[form])
    shardings = layout(mesh, config, "serve", serve_specs(config, int8=int8, **FORMS[form]))
    sharded = jax.device_put(small.params, shardings)
    layers = sharded["layers"] if isinstance(sharded["layers"], dict) else sharded["layers"][0]
    assert not jax.tree.leaves(layers["qkv"])[0].sharding.is_fully_replicated
    tokens = texts() % 48
    run = jax.jit(lambda params: forward(params, config, tokens))
    alone = run(small.params)
    check_logits(run(sharded), alone)
