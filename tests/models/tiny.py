"""Tiny architectures for tests, and random weights in which every part counts."""

from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.models.architecture import ModelConfig, Rope
from motab_jax.models.transformer import init

_SHAPE: dict[str, Any] = {
    "vocab_size": 31,
    "width": 24,
    "mlp_width": 40,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
}
CONFIGS = {
    "qwen3": ModelConfig("qwen3", **_SHAPE, head_dim=8, max_positions=64, qk_norm=True),
    "qwen2": ModelConfig("qwen2", **_SHAPE, head_dim=6, max_positions=64, qkv_bias=True, tied=True),
    "llama": ModelConfig(
        "llama",
        **_SHAPE,
        head_dim=10,
        max_positions=64,
        qkv_bias=True,
        o_bias=True,
        rope=Rope(500.0, "linear", (("factor", 2.0),)),
    ),
}


def random_params(config, dtype=jnp.float32, seed=0):
    """Weights of which none is constant: norms and biases are random too."""
    params = init(config, jax.random.key(seed), dtype, std=0.3)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(key, x.shape, dtype) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)
