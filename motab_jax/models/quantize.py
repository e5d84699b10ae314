"""Forms of one weight and the matmul with it: as trained, in 8 bits, or transposed.

Int8 is weight-only, with one scale for each output channel; the matmul computes in the activations' dtype. A decoded
token then reads half the bytes of bfloat16. TransposedWeight is the form that a CPU multiplies by a few rows fastest
(docs/decisions.md).
Left out: 8-bit activations and 8-bit matrix products.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import jaxtyping
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

MANY_ROWS = 64  # of activations, from which on a CPU is faster with the weight as the right factor


class Int8Weight(flax.struct.PyTreeNode):
    """A weight rounded to 8 bits: values * scale."""

    values: jaxtyping.Int8[Array, "..."]
    scale: Float32[Array, "..."]  # of the same rank; the summed dimensions have size 1


class TransposedWeight(flax.struct.PyTreeNode):
    """A weight whose one summed dimension, first elsewhere, is its last: [out...,in]."""

    values: Float[Array, "... d"]


Weight = Float[Array, "..."] | Int8Weight | TransposedWeight


def quantize(weight: Float[Array, "..."], summed: tuple[int, ...]) -> Int8Weight:
    """Round to the nearest of 255 levels, symmetric around zero; `summed`: the dimensions that a matmul sums over.

    >>> small = quantize(jnp.array([[1.27], [-0.5]]), (0,))
    >>> small.values.tolist(), round(float(small.scale[0, 0]), 4)
    ([[127], [-50]], 0.01)
    """
    wide = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=summed, keepdims=True), 1e-30) / 127.0
    return Int8Weight(jnp.round(wide / scale).astype(jnp.int8), scale)


_custom_vjp: Any = functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))


@_custom_vjp
def weight_einsum(
    letters: str, x: Float[Array, "..."], weight: Weight, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """`jnp.einsum(letters, x, weight)` of activations and a weight in any of its forms.

    Args:
      letters: einsum's subscripts.
      x: activations.
      weight: the weight; the letters are those of its untransposed form.
      dtype: of the accumulation and the result; None: that of x.
    """
    if isinstance(weight, TransposedWeight):
        return transposed_matmul(weight.values, x, dtype)
    if isinstance(weight, Int8Weight):
        return _int8_einsum(letters, x, weight, dtype)
    return jnp.einsum(letters, x, weight, preferred_element_type=dtype)


def _forward(letters: str, x: jax.Array, weight: Weight, dtype: Any) -> tuple[jax.Array, tuple[jax.Array, Weight]]:
    return weight_einsum(letters, x, weight, dtype), (x, weight)


def _backward(letters: str, dtype: Any, saved: tuple[jax.Array, Weight], cotangent: jax.Array) -> tuple[Any, Any]:
    """Cotangents of x and weight, as differentiation gives them, from a cotangent that a CPU computes once.

    Fused into the copy that a CPU makes for the weight's, its elementwise work took 17 times as long
    (docs/decisions.md).
    """
    x, weight = saved
    if isinstance(weight, TransposedWeight):
        return jax.vjp(lambda x, weight: transposed_matmul(weight.values, x, dtype), x, weight)[1](cotangent)
    if isinstance(weight, Int8Weight):
        return jax.vjp(lambda x, weight: _int8_einsum(letters, x, weight, dtype), x, weight)[1](cotangent)
    names, out = letters.split("->")
    left, right = names.split(",")
    cotangent = jax.lax.platform_dependent(cotangent, cpu=jax.lax.optimization_barrier, default=lambda y: y)
    d_x = jnp.einsum(f"{out},{right}->{left}", cotangent, weight, preferred_element_type=x.dtype)
    return d_x, jnp.einsum(f"{left},{out}->{right}", x, cotangent, preferred_element_type=weight.dtype)


weight_einsum.defvjp(_forward, _backward)


def _int8_einsum(letters: str, x: jax.Array, weight: Int8Weight, dtype: DTypeLike | None) -> jax.Array:
    """The einsum with the rounded values, then the scale of each output channel."""
    out = jnp.einsum(letters, x, weight.values.astype(x.dtype), preferred_element_type=jnp.float32)
    names = letters.split(",")[1].split("->")
    kept = [weight.scale.shape[names[0].index(name)] for name in names[1].removeprefix("...") if name in names[0]]
    scale = weight.scale.reshape((1,) * (out.ndim - len(kept)) + tuple(kept))
    return (out * scale).astype(dtype or x.dtype)


def transposed_matmul(
    weight: Float[Array, "... d"], x: Float[Array, "... d"], dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """[...,out...] of a weight [out...,in] and x [...,in]; for a few rows of x the weight is the left factor."""
    if math.prod(x.shape[:-1]) >= MANY_ROWS:
        # Flattened to two dimensions, or XLA would transpose the weight before every matmul.
        flat = weight.reshape(-1, weight.shape[-1])
        out = jax.lax.dot_general(x, flat, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)
        return out.reshape(*x.shape[:-1], *weight.shape[:-1])
    last = (((weight.ndim - 1,), (x.ndim - 1,)), ((), ()))
    out = jax.lax.dot_general(weight, x, last, preferred_element_type=dtype)
    # Unless hidden from it, the transposition makes XLA swap the factors again: 1.6 times as long at 16 rows.
    out = jax.lax.optimization_barrier(out)
    return jnp.moveaxis(out, range(weight.ndim - 1), range(1 - weight.ndim, 0))


def lookup(table: Weight, tokens: Int[Array, "*N"]) -> Float[Array, "*N D"]:
    """Rows of an embedding table [V,D]."""
    if isinstance(table, Int8Weight):
        return table.values[tokens] * jnp.broadcast_to(table.scale[tokens], (*tokens.shape, table.values.shape[1]))
    assert not isinstance(table, TransposedWeight)
    return table[tokens]
