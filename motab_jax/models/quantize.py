"""Forms of one weight, and the product with it: 8 bits, or the output dimensions first.

Int8 is weight-only, with one scale for each output channel, computed with in the activations' dtype: half the bytes
of bfloat16 for every decoded token. TransposedWeight is what a CPU multiplies fastest by a few rows
(docs/decisions.md).
Left out: 8-bit activations and matrix products.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp

MANY_ROWS = 64  # of activations, from which on a CPU is faster with the weight as the right factor


@flax.struct.dataclass
class Int8:
    """A weight; `scale` has the weight's shape with the summed dimensions of size 1."""

    values: jax.Array  # int8
    scale: jax.Array  # f32


@flax.struct.dataclass
class TransposedWeight:
    """A weight whose one summed dimension, first elsewhere, is its last: [out...,in]."""

    values: jax.Array


Weight = jax.Array | Int8 | TransposedWeight


def quantize(weight: jax.Array, summed: tuple[int, ...]) -> Int8:
    """Round to the nearest of 255 levels, symmetric around zero; `summed`: the dimensions a product sums over."""
    wide = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=summed, keepdims=True), 1e-30) / 127.0
    return Int8(jnp.round(wide / scale).astype(jnp.int8), scale)


def weight_einsum(letters: str, x: jax.Array, weight: Weight, dtype=None) -> jax.Array:
    """jnp.einsum of activations and a weight; `dtype`: what is accumulated in and returned (None: as x)."""
    if isinstance(weight, TransposedWeight):
        return _weight_times(weight.values, x, dtype)
    if not isinstance(weight, Int8):
        return _einsum(letters, dtype, x, weight)
    out = jnp.einsum(letters, x, weight.values.astype(x.dtype), preferred_element_type=jnp.float32)
    names = letters.split(",")[1].split("->")
    kept = [weight.scale.shape[names[0].index(name)] for name in names[1].removeprefix("...") if name in names[0]]
    scale = weight.scale.reshape((1,) * (out.ndim - len(kept)) + tuple(kept))
    return (out * scale).astype(dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(letters: str, dtype, x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum(letters, x, weight, preferred_element_type=dtype)


def _keep(letters: str, dtype, x: jax.Array, weight: jax.Array):
    return _einsum(letters, dtype, x, weight), (x, weight)


def _slopes(letters: str, dtype, kept, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The slopes in x and weight, as differentiation gives them, of a slope that a CPU computes once: fused into the
    copy that it makes for the weight's, elementwise work took 17 times as long (docs/decisions.md)."""
    (x, weight), (names, out) = kept, letters.split("->")
    left, right = names.split(",")
    slope = jax.lax.platform_dependent(slope, cpu=jax.lax.optimization_barrier, default=lambda y: y)
    d_x = jnp.einsum(f"{out},{right}->{left}", slope, weight, preferred_element_type=x.dtype)
    return d_x, jnp.einsum(f"{left},{out}->{right}", x, slope, preferred_element_type=weight.dtype)


_einsum.defvjp(_keep, _slopes)


def _weight_times(weight: jax.Array, x: jax.Array, dtype) -> jax.Array:
    """[...,out...] of weight [out...,in] times x [...,in]; a few rows at a time with the weight as the left factor."""
    if math.prod(x.shape[:-1]) >= MANY_ROWS:
        # Of two dimensions, or XLA would transpose the weight before every product.
        flat = weight.reshape(-1, weight.shape[-1])
        out = jax.lax.dot_general(x, flat, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)
        return out.reshape(*x.shape[:-1], *weight.shape[:-1])
    last = (((weight.ndim - 1,), (x.ndim - 1,)), ((), ()))
    out = jax.lax.dot_general(weight, x, last, preferred_element_type=dtype)
    # Unless hidden from it, the transposition turns the product around again: 1.6 times as long at 16 rows.
    out = jax.lax.optimization_barrier(out)
    return jnp.moveaxis(out, range(weight.ndim - 1), range(1 - weight.ndim, 0))


def lookup(table: Weight, tokens: jax.Array) -> jax.Array:
    """Rows of an embedding table [V,D]; [...,D]."""
    if not isinstance(table, Int8):
        return table[tokens]
    return table.values[tokens] * jnp.broadcast_to(table.scale[tokens], (*tokens.shape, table.values.shape[1]))
