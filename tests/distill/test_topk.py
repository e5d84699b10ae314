"""Targets of k likeliest tokens: all of them are the whole distribution, fewer are a coarser one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motab_jax.config import UserError
from motab_jax.data.sources import Source
from motab_jax.distill import Objective, TargetBatch, build_targets, init_state, make_update, select_teacher_head
from motab_jax.distill.objective import check_targets, token_losses
from motab_jax.distill.targets import TokenKind, targets_name
from motab_jax.models.topk import TopK, top_k_of
from motab_jax.models.transformer import unembed
from motab_jax.rollout.trajectory import KEPT, empty_trajectory
from tests.distill.batches import (
    LOSSES,
    STUDENT,
    VOCAB,
    assert_trees_close,
    params_of,
    random_batch,
    teacher,
    uniform,
)
from tests.optional import some

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd", "adaptive_kl", "entropy_gated_kl"]
SIZE = 30


def logits_of(seed: int, scale: float = 3.0):
    """Two sets of logits [4,SIZE]."""
    return (scale * jax.random.normal(key, (4, SIZE)) for key in jax.random.split(jax.random.key(seed)))


def losses(name: str, student, teacher_logits):
    """f32[4] from full logits or from TopK."""
    whole = jnp.zeros((4,), jnp.int32)
    return token_losses(student, teacher_logits, whole, whole + 1, uniform(name))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [0.3, 3.0, 20.0])
def test_all_tokens_are_the_whole_distribution(name, scale):
    student, teacher_logits = logits_of(0, scale)
    target = top_k_of(teacher_logits, SIZE)
    full, whole = (
        jax.value_and_grad(lambda s, t=t: losses(name, s, t).sum())(student) for t in (teacher_logits, target)
    )
    np.testing.assert_allclose(whole[0], full[0], atol=1e-5, rtol=2e-6)
    np.testing.assert_allclose(whole[1], full[1], atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES[:3])
def test_fewer_tokens_are_a_coarser_distribution(name):
    student, teacher_logits = logits_of(1)
    target = top_k_of(teacher_logits, 5)
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (teacher_logits, student))
    coarse = [np.take_along_axis(x, np.asarray(target.ids), -1) for x in (p, q)]
    p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in coarse)
    w = LOSSES["jsd"].reverse_weight
    m = w * p + (1 - w) * q
    expected = {
        "forward_kl": (p * np.log(p / q)).sum(-1),
        "reverse_kl": (q * np.log(q / p)).sum(-1),
        "jsd": w * (p * np.log(p / m)).sum(-1) + (1 - w) * (q * np.log(q / m)).sum(-1),
    }[name]
    found = losses(name, student, target)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found <= losses(name, student, teacher_logits) + 1e-6).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_empty_tail_gives_finite_gradients(name):
    student, teacher_logits = logits_of(2)
    target = top_k_of(teacher_logits, 3)
    inside = jnp.any(jnp.arange(SIZE)[None, None] == target.ids[..., None], axis=1)
    for outside in (-jnp.inf, -200.0, -17.0):  # e^-17 is about the least mass that a tail is told from rounding by
        narrow = jnp.where(inside, student, outside)
        value, grads = jax.value_and_grad(lambda s: losses(name, s, target).sum())(narrow)
        assert jnp.isfinite(value) and jnp.isfinite(grads).all()
    nobody = TopK(target.ids, jnp.zeros_like(target.logprobs))  # as where the teacher never read
    assert jnp.isfinite(jax.grad(lambda s: losses(name, s, nobody).sum())(student)).all()


@functools.cache
def with_topk(k: int) -> TargetBatch:
    """The random batch with the teacher's k likeliest tokens in place of its states."""
    batch = random_batch()
    logits = unembed(teacher().params, teacher().config, some(batch.teacher_hidden), VOCAB)
    return batch.replace(teacher_hidden=None, teacher_topk=top_k_of(logits, k))


def test_the_update_with_all_tokens_equals_that_with_hidden_states():
    objective = Objective(LOSSES["reverse_kl"], LOSSES["forward_kl"], LOSSES["jsd"], LOSSES["masked"], vocab_size=VOCAB)
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_update(STUDENT, optimizer, objective))
    states, metrics = zip(
        step(init_state(params_of(), optimizer), select_teacher_head(teacher(), objective), random_batch()),
        step(init_state(params_of(), optimizer), None, with_topk(VOCAB)),
        strict=True,
    )
    assert_trees_close(states[0].params, states[1].params)
    assert_trees_close(*metrics)
    _, some = step(init_state(params_of(), optimizer), None, with_topk(4))
    assert all(0 < some[f"loss/{name}"] < metrics[0][f"loss/{name}"] for name in ("student", "teacher", "flawed"))


def test_targets_take_what_the_trajectory_carries():
    rows, prompt, entries = 2, 3, 4
    base = empty_trajectory(
        jnp.ones((rows, prompt), jnp.int32), jnp.tile(jnp.arange(prompt)[None], (rows, 1)), entries, 1, 0, jnp.float32,
        top_k=2,
    )  # fmt: skip
    ids = jnp.arange(rows * entries * 2).reshape(rows, entries, 2)
    trajectory = base.replace(
        tokens=5 + jnp.arange(rows * entries).reshape(rows, entries),
        sources=jnp.full((rows, entries), Source.STUDENT),
        length=jnp.array([4, 2]),
        discarded_by=jnp.full((rows, entries), KEPT).at[0, 1].set(0),
        num_rewinds=jnp.array([1, 0]),
        teacher_topk=TopK(ids, -1.0 - ids),
    )
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    assert batch.teacher_hidden is None and targets_name(batch) == "topk"
    found = some(batch.teacher_topk)
    first, second = (ids[row, entry].tolist() for row, entry in ((0, [0, 2, 3]), (1, [0, 1])))
    assert found.ids[0, prompt:].tolist() == [*first, [0, 0]]
    assert found.ids[1, prompt:].tolist() == [*second, [0, 0], [0, 0]]
    np.testing.assert_array_equal(
        found.logprobs,
        jnp.where((batch.kinds != TokenKind.NONE)[..., None], -1.0 - found.ids, 0.0),
    )
    sampled = build_targets(
        trajectory.replace(teacher_topk=None), target="spliced", transition=jnp.zeros((0,), jnp.int32)
    )
    assert targets_name(sampled) == "sampled" and sampled.kinds.tolist() == batch.kinds.tolist()


def test_targets_that_cannot_carry_the_losses_are_refused():
    hot = uniform("jsd", temperature=2.0)
    check_targets(hot, "hidden")
    with pytest.raises(UserError, match=r"objective.temperature=2.0 .*rollout.targets=topk"):
        check_targets(hot, "topk")
    check_targets(uniform("cross_entropy", temperature=2.0), "topk")
    check_targets(uniform("forward_kl"), "topk")
    for name in ("cross_entropy", "masked"):
        check_targets(uniform(name), "sampled")
    mixed = Objective(LOSSES["cross_entropy"], LOSSES["forward_kl"])
    with pytest.raises(UserError, match=r"rollout.targets=sampled .*objective.teacher_loss=forward_kl"):
        check_targets(mixed, "sampled")
    batch = random_batch().replace(teacher_hidden=None)
    with pytest.raises(UserError, match="sampled"):
        make_update(STUDENT, optax.sgd(1.0), uniform("jsd"))(init_state(params_of(), optax.sgd(1.0)), None, batch)
