"""The chunked loss against the naive one: values, gradients, weights and memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.distill import Objective, TargetBatch, TokenLoss, select_teacher_head
from motab_jax.distill.objective import batch_loss, token_weights
from motab_jax.distill.targets import LOSS_KINDS, TokenKind
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, forward, init
from tests.distill.batches import (
    LOSSES,
    ROWS,
    STUDENT,
    VOCAB,
    assert_trees_close,
    naive_loss,
    params_of,
    random_batch,
    rivals,
    teacher,
    uniform,
)
from tests.optional import some

MIXED: dict[str, Any] = {
    "student": TokenLoss("jsd", 0.5, 0.3),
    "teacher": TokenLoss("cross_entropy", 2.0),
    "flawed": TokenLoss("jsd", 0.25, 0.7),
    "transition": TokenLoss("masked"),
}
OBJECTIVES = {name: uniform(name) for name in ("cross_entropy", "forward_kl", "reverse_kl", "jsd")} | {
    "mixed": Objective(**MIXED, vocab_size=VOCAB, normalize="sequence", temperature=2.0),
    "rivals": rivals(temperature=1.5),
}


def chunked(params, batch, objective, **options):
    """The loss as the update computes it."""
    head = select_teacher_head(teacher(), objective)
    return batch_loss(params, STUDENT, head, batch, token_weights(batch.kinds, objective), objective, **options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_equal_the_naive_loss(name):
    objective, batch = OBJECTIVES[name], random_batch()
    grad = jax.jit(jax.value_and_grad(lambda p: chunked(p, batch, objective, chunk_tokens=4 * ROWS), has_aux=True))
    (loss, per_kind), grads = grad(params_of())
    naive, naive_grads = jax.jit(jax.value_and_grad(lambda p: naive_loss(p, batch, objective)))(params_of())
    assert float(loss) == pytest.approx(float(naive), abs=1e-5)
    assert_trees_close(grads, naive_grads)
    if objective.normalize == "token":
        weights = [0.0] + [objective.losses()[k].weight if k in objective.losses() else 0.0 for k in LOSS_KINDS]
        trained = sum(int((batch.kinds == k).sum()) for k in objective.losses())
        assert float(per_kind @ jnp.array(weights)) / trained == pytest.approx(float(naive), abs=1e-5)


def test_token_weights():
    kinds = jnp.array([[0, 1, 1, 2], [3, 4, 0, 0], [4, 4, 0, 0]])
    losses: dict[str, Any] = {"student": TokenLoss(weight=2.0), "teacher": TokenLoss(), "flawed": TokenLoss(weight=0.5)}
    objective = Objective(**losses, transition=TokenLoss("masked", weight=9.0))
    by_token = [[0, 2 / 4, 2 / 4, 1 / 4], [0.5 / 4, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(token_weights(kinds, objective), by_token)
    by_row = [[0, 2 / 6, 2 / 6, 1 / 6], [0.5 / 2, 0, 0, 0], [0, 0, 0, 0]]
    sequence = Objective(**losses, transition=TokenLoss("masked"), normalize="sequence")
    np.testing.assert_allclose(token_weights(kinds, sequence), by_row)
    assert token_weights(jnp.zeros((2, 3), jnp.int32), objective).tolist() == [[0.0] * 3] * 2


def test_masked_kinds_get_no_gradient():
    batch = random_batch()
    masked = LOSSES["masked"]
    objective = Objective(masked, LOSSES["cross_entropy"], masked, TokenLoss(weight=0.0), vocab_size=VOCAB)
    only = batch.replace(kinds=jnp.where(batch.kinds == TokenKind.TEACHER, batch.kinds, TokenKind.NONE))

    grad = jax.jit(jax.grad(lambda p, b: chunked(p, b, objective)[0]))
    grads = grad(params_of(), batch)
    assert_trees_close(grads, grad(params_of(), only), atol=1e-7)
    assert any(jnp.abs(x).max() > 1e-4 for x in jax.tree.leaves(grads))
    nothing = jax.jit(jax.value_and_grad(lambda p: chunked(p, batch, uniform("masked"))[0]))(params_of())
    assert all(not jnp.any(x) for x in jax.tree.leaves(nothing))


def test_the_teachers_head_goes_along_only_where_a_divergence_needs_it():
    assert select_teacher_head(teacher(), uniform("cross_entropy")) is None
    for name in ("jsd", "policy_gradient"):
        assert some(select_teacher_head(teacher(), Objective(student=LOSSES[name]))).params.keys() == {"head"}
    tied = Model(params_of(), STUDENT)
    assert some(select_teacher_head(tied, uniform("forward_kl"))).params.keys() == {"embed"}


def test_logits_beyond_the_vocabulary_never_count():
    params, batch = params_of(), random_batch()
    spoilt = params | {"embed": params["embed"].at[VOCAB:].add(3.0)}
    for objective in (OBJECTIVES["mixed"], OBJECTIVES["rivals"]):
        loss = jax.jit(jax.value_and_grad(lambda p, o=objective: chunked(p, batch, o)[0]))
        (value, grads), (spoilt_value, _) = loss(params), loss(spoilt)
        assert float(value) == float(spoilt_value)
        assert not jnp.any(grads["embed"][VOCAB:]), "their gradient is exactly zero"
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_full_logits_are_never_held():
    vocab, rows, columns = 4096, 4, 64
    config = ModelConfig("llama", vocab, 16, 32, 1, 2, 2, 8, 128, tied=True)
    weights = init(config, jax.random.key(0))
    zero = jnp.zeros((rows, columns), jnp.int32)
    batch = TargetBatch(zero, zero + jnp.arange(columns)[None], zero + 1, jnp.zeros((rows, columns, config.width)))
    objective = Objective(LOSSES["minillm"], LOSSES["forward_kl"], LOSSES["adaptive_kl"], vocab_size=vocab)

    def chunked(params, teacher_head, batch):
        teacher_head = Model(teacher_head, config)
        weight = token_weights(batch.kinds, objective)
        return batch_loss(params, config, teacher_head, batch, weight, objective, chunk_tokens=2 * rows)[0]

    def naive(params, teacher_head, batch):
        student_logprobs = jax.nn.log_softmax(forward(params, config, batch.tokens, batch.positions))
        teacher_logprobs = jax.nn.log_softmax(batch.teacher_hidden @ teacher_head["embed"].T)
        return jnp.mean(jnp.sum(jnp.exp(teacher_logprobs) * (teacher_logprobs - student_logprobs), axis=-1))

    def memory(loss) -> int:
        program = jax.jit(jax.grad(loss)).lower(weights, weights, batch).compile()
        return some(program.memory_analysis()).temp_size_in_bytes

    logits, in_chunks, at_once = rows * columns * vocab * 4, memory(chunked), memory(naive)
    assert at_once >= logits
    assert in_chunks < logits / 2, "less than half of one array of full logits"
    assert in_chunks < at_once / 5
