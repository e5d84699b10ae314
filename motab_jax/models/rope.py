"""Rotary position embeddings: default, linear, llama3 and yarn frequencies, and their application.

Frequencies are computed once in float64 NumPy (they are constants of a model) and applied in float32.
Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071, section 3); Llama 3.1's published frequency rule.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.models.architecture import Rope


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies f64[head_dim / 2] (radians a position) and the factor that scales cos and sin."""
    base = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return base / rope.get("factor"), 1.0
    if rope.kind == "llama3":
        return _llama3(base, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(base, rope, head_dim)
    return base, 1.0


def angles(positions: jax.Array, rope: Rope, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin f32[B,T,1,H/2] of positions i32[B,T], for `turn`; the same for all layers."""
    inverse, scale = frequencies(rope, head_dim)
    places = jnp.maximum(positions, 0).astype(jnp.float32)
    turns = places[:, :, None] * jnp.asarray(inverse, jnp.float32)[None, None, :]
    return (jnp.cos(turns) * scale)[:, :, None, :], (jnp.sin(turns) * scale)[:, :, None, :]


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate [B,T,heads,H]; halves are paired as Hugging Face does (i with i + H/2)."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def rotate(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Rotate [B,T,heads,H] by positions i32[B,T]."""
    return turn(x, *angles(positions, rope, x.shape[-1]))


def _llama3(base: np.ndarray, rope: Rope) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended linearly in frequency."""
    factor, low, high = rope.get("factor"), rope.get("low_freq_factor"), rope.get("high_freq_factor")
    turns = rope.get("original_max_position_embeddings") * base / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * base + (1.0 - keep) * base / factor


def _yarn(base: np.ndarray, rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Dimensions that turn often are kept, those that turn seldom are interpolated, a linear ramp between."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.get("beta_fast", 32)), dimension(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return ramp * base / factor + (1.0 - ramp) * base, _yarn_attention(rope, factor)


def _yarn_attention(rope: Rope, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return rope.get("attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope.get("mscale")) / mscale(rope.get("mscale_all_dim"))
    return mscale(1.0)
