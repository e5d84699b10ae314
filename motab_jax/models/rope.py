"""Rotary position embeddings: default, linear, llama3 and yarn frequencies, and their application.

Frequencies are computed once in float64 NumPy (they are constants of a model) and applied in float32.
Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071, section 3); Llama 3.1's published frequency rule.
Left out: partial and two-dimensional rotations, and scalings that depend on the sequence's length.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

from motab_jax.models.architecture import Rope

Number = float | int  # config.json holds either


def frequencies(rope: Rope, head_dim: int) -> tuple[Float64[np.ndarray, "half"], Number]:
    """Inverse frequencies in radians a position, and the factor that scales cos and sin."""
    base = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        return base / rope.get("factor"), 1.0
    if rope.kind == "llama3":
        return _llama3(base, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(base, rope, head_dim)
    return base, 1.0


def rope_cos_sin(
    positions: Int[Array | np.ndarray, "B T"], rope: Rope, head_dim: int
) -> tuple[Float32[Array, "B T 1 half"], Float32[Array, "B T 1 half"]]:
    """Cosines and sines for `apply_rope`, the same for all layers and heads; half is head_dim / 2."""
    inverse, scale = frequencies(rope, head_dim)
    column = jnp.maximum(positions, 0).astype(jnp.float32)
    angles = column[:, :, None] * jnp.asarray(inverse, jnp.float32)[None, None, :]
    return (jnp.cos(angles) * scale)[:, :, None, :], (jnp.sin(angles) * scale)[:, :, None, :]


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float32[Array, "B T 1 half"], sin: Float32[Array, "B T 1 half"]
) -> Float[Array, "B T heads H"]:
    """Queries or keys rotated by their positions; dimension i is paired with i + H/2, as Hugging Face does."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def _llama3(base: np.ndarray, rope: Rope) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended linearly in frequency."""
    factor, low, high = rope.get("factor"), rope.get("low_freq_factor"), rope.get("high_freq_factor")
    rotations = rope.get("original_max_position_embeddings") * base / (2 * math.pi)
    keep = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return keep * base + (1.0 - keep) * base / factor


def _yarn(base: np.ndarray, rope: Rope, head_dim: int) -> tuple[np.ndarray, Number]:
    """Fast dimensions are kept, slow ones interpolated, with a linear ramp between (arXiv 2309.00071, section 3.2)."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")

    def dimension(rotations: Number) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    return ramp * base / factor + (1.0 - ramp) * base, _yarn_attention(rope, factor)


def _yarn_attention(rope: Rope, factor: Number) -> Number:
    """The factor of cos and sin, which scales attention's temperature (section 3.4)."""

    def mscale(weight: Number) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return rope.get("attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope.get("mscale")) / mscale(rope.get("mscale_all_dim"))
    return mscale(1.0)
