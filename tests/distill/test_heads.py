"""The pass over the heads: what it leaves out, what it adds up in, and what it computes only where it is asked to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.distill import select_teacher_head
from motab_jax.distill.heads import head_params
from motab_jax.distill.objective import batch_loss, flatten_groups, objective_loss_sums, token_weights, tokens_per_chunk
from motab_jax.models.transformer import encode
from tests.distill.batches import (
    COLUMNS,
    ROWS,
    STUDENT,
    assert_trees_close,
    params_of,
    random_batch,
    teacher,
    uniform,
)

OBJECTIVE = uniform("jsd")


def parts(groups: int = 1, dtype=jnp.float32):
    """Head, hidden states, batch and weights as `objective_loss_sums` takes them."""
    batch, params = random_batch(), params_of()
    hidden, _ = encode(params, STUDENT, batch.tokens, batch.positions)
    head = {name: x.astype(dtype) for name, x in head_params(params).items()}
    return head, *flatten_groups((hidden.astype(dtype), batch, token_weights(batch.kinds, OBJECTIVE)), groups)


def scored(head, hidden, batch, weight, chunk: int = 256):
    """With gradients."""
    zeros = jnp.zeros((hidden.shape[0], *head["embed"].shape), jnp.float32)
    teacher_head = select_teacher_head(teacher(), OBJECTIVE)
    whole = functools.partial(objective_loss_sums, STUDENT, OBJECTIVE, chunk)
    return jax.jit(lambda h, b, w: whole(head, h, teacher_head, b, w, zeros))(hidden, batch, weight)


def test_tokens_that_are_not_trained_never_reach_the_heads():
    head, hidden, batch, weight = parts()
    needed = jnp.pad(weight[:, 1:] > 0, ((0, 0), (0, 1)))
    assert 0 < needed.sum() < needed.size - 20
    spoilt = batch.replace(teacher_hidden=jnp.where((weight > 0)[..., None], batch.teacher_hidden, jnp.nan))
    found = scored(head, jnp.where(needed[..., None], hidden, jnp.nan), spoilt, weight)
    assert_trees_close(found, scored(head, hidden, batch, weight), atol=1e-7)
    assert not jnp.any(jnp.where(needed[..., None], 0.0, found.d_hidden))


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_add_up(groups):
    one, several = scored(*parts()), scored(*parts(groups))
    summed = [jnp.sum(x, axis=0) for x in (several.loss, several.per_kind, several.d_head)]
    assert_trees_close(summed, [x[0] for x in (one.loss, one.per_kind, one.d_head)], atol=1e-6)
    assert_trees_close(several.d_hidden.reshape(one.d_hidden.shape), one.d_hidden, atol=1e-7)

    def loss(params, groups):
        weight = token_weights(random_batch().kinds, OBJECTIVE)
        teacher_head = select_teacher_head(teacher(), OBJECTIVE)
        return batch_loss(params, STUDENT, teacher_head, random_batch(), weight, OBJECTIVE, groups=groups)[0]

    grads = [jax.jit(jax.grad(lambda p, n=n: loss(p, n)))(params_of()) for n in (1, groups)]
    assert_trees_close(*grads, atol=1e-6)


def test_bfloat16_heads_are_summed_in_float32():
    head, hidden, batch, weight = parts(dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (head, hidden))
    exact = scored(wide[0], wide[1], batch, weight)
    whole = scored(head, hidden, batch, weight)
    single = scored(head, hidden, batch, weight, chunk=1)
    assert single.d_head.dtype == jnp.float32 and single.d_hidden.dtype == jnp.bfloat16
    size = float(jnp.abs(exact.d_head).max())
    np.testing.assert_allclose(single.d_head, whole.d_head, atol=1e-4 * size)
    np.testing.assert_allclose(single.d_head, exact.d_head, atol=1e-2 * size)


def test_without_a_gradient_there_is_no_work_for_one():
    batch, teacher_head = random_batch(), select_teacher_head(teacher(), OBJECTIVE)
    weight = token_weights(batch.kinds, OBJECTIVE)

    def loss(params):
        return batch_loss(params, STUDENT, teacher_head, batch, weight, OBJECTIVE)[0]

    def body(params):
        return encode(params, STUDENT, batch.tokens, batch.positions)[0]

    def products(function) -> int:
        return str(jax.make_jaxpr(function)(params_of())).count("dot_general[")

    assert products(loss) - products(body) == 2, "both heads"
    backward = products(jax.grad(lambda p: body(p).sum()))
    assert products(jax.grad(loss)) - backward == 4, "both heads, once, and the products of the logits' cotangent"


def test_chunks_fit_the_cache_and_whole_tiles():
    assert tokens_per_chunk(1000, "cpu") == 256
    assert tokens_per_chunk(50_304, "cpu") == 128
    assert tokens_per_chunk(151_936, "cpu") == 55
    assert tokens_per_chunk(151_936, "tpu") == 128
    assert tokens_per_chunk(151_936 // 8, "tpu") == 1024
    assert tokens_per_chunk(10**9, "cpu") == 1
    assert ROWS * COLUMNS < 256, "the tests' batches are one chunk, unless they ask for less"
