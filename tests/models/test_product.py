"""The product of activations and a weight: its own derivative is that of the plain product; left and right factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.quantize import MANY_ROWS, TransposedWeight, weight_einsum

SHAPES = {
    "btd,df->btf": ((2, 3, 8), (8, 6)),
    "btd,dnh->btnh": ((2, 3, 8), (8, 2, 4)),
    "btnh,nhd->btd": ((2, 3, 2, 4), (2, 4, 8)),
    "...d,vd->...v": ((2, 3, 8), (10, 8)),
    "...d,dv->...v": ((5, 8), (8, 10)),
}


@pytest.mark.parametrize("letters", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_slopes_are_those_of_the_plain_product(letters, dtype):
    keys = jax.random.split(jax.random.key(0))
    x, weight = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, SHAPES[letters], strict=True))

    def slopes(multiply):
        def loss(x, weight):
            return jnp.sum(jnp.sin(multiply(x, weight).astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, weight)

    plain = slopes(lambda x, weight: jnp.einsum(letters, x, weight))
    for found, wanted in zip(
        jax.tree.leaves(slopes(lambda x, weight: weight_einsum(letters, x, weight))),
        jax.tree.leaves(plain),
        strict=True,
    ):
        assert found.dtype == wanted.dtype
        bound = 1e-5 if dtype == jnp.float32 else 4e-2  # bfloat16 keeps 8 bits
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), rtol=bound, atol=bound)


@pytest.mark.parametrize("rows", [1, MANY_ROWS - 1, MANY_ROWS, MANY_ROWS + 5])
def test_an_out_first_weight_gives_the_same_product_for_few_rows_and_many(rows):
    x = jax.random.normal(jax.random.key(1), (1, rows, 8))
    weight = jax.random.normal(jax.random.key(2), (8, 2, 3))
    found = jax.jit(lambda x, w: weight_einsum("btd,dcf->btcf", x, TransposedWeight(w)))(x, jnp.moveaxis(weight, 0, -1))
    np.testing.assert_allclose(found, jnp.einsum("btd,dcf->btcf", x, weight), rtol=1e-5, atol=1e-5)
