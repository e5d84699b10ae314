"""The update: accumulation, non-finite batches, dtypes, and 8 devices against one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motab_jax.distill import (
    Objective,
    TokenLoss,
    init_state,
    make_optimizer,
    make_schedule,
    make_update,
    select_teacher_head,
)
from motab_jax.distill.targets import LOSS_KINDS, TokenKind
from motab_jax.distill.update import make_gradient
from motab_jax.models.transformer import weight_specs
from motab_jax.runtime.compilation import CompileClock
from motab_jax.runtime.mesh import batch_sharding, layout_shardings, make_mesh, replicated
from motab_jax.training.step_log import updates_before
from tests.distill.batches import (
    LOSSES,
    STUDENT,
    VOCAB,
    assert_trees_close,
    assert_trees_equal,
    naive_loss,
    params_of,
    random_batch,
    teacher,
)
from tests.optional import some

OBJECTIVE = Objective(
    LOSSES["reverse_kl"], LOSSES["cross_entropy"], LOSSES["masked"], TokenLoss(weight=0.5), vocab_size=VOCAB
)
STEPS = 3


@functools.cache
def adamw():
    """The optimizer of a short run.

    Adam divides by the gradient's size, so rounding in a gradient near zero may cost a part of the learning rate: it is
    small, and moments, which are proportional to gradients, are compared as well as parameters.
    """
    schedule = make_schedule("cosine", peak=5e-5, floor=1e-6, steps=8, warmup_ratio=0.25)
    return make_optimizer(schedule, weight_decay=0.1, clip=1.0, beta1=0.9, beta2=0.95)


@functools.cache
def program(accumulate: int = 1):
    """The jitted update."""
    return jax.jit(make_update(STUDENT, adamw(), OBJECTIVE, accumulate=accumulate), donate_argnums=0)


def spoilt_batch():
    """A batch with one state that isn't a number, at a token that a divergence is for."""
    batch = random_batch()
    row, column = np.argwhere(np.asarray(batch.kinds) == TokenKind.STUDENT)[0]
    return batch.replace(teacher_hidden=some(batch.teacher_hidden).at[row, column].set(jnp.nan))


def head():
    """The teacher's part of the loss."""
    return select_teacher_head(teacher(), OBJECTIVE)


def run(step, batches, state=None):
    """A fresh state after some batches, and the last metrics, on the host."""
    state, metrics = init_state(params_of(), adamw()) if state is None else state, None
    for batch in batches:
        state, metrics = step(state, head(), batch)
    return jax.device_get(state), jax.device_get(metrics)


def test_micro_batches_add_up():
    batches = [random_batch(seed) for seed in range(STEPS)]
    (one, metrics), (four, others) = run(program(1), batches), run(program(4), batches)
    assert_trees_close(one.params, four.params)
    assert_trees_close(one.opt_state, four.opt_state, atol=1e-6)
    assert_trees_close(metrics, others)
    assert int(one.step) == STEPS


def test_metrics_and_gradient_are_those_of_the_naive_loss():
    batch = random_batch()
    loss, grads = jax.jit(jax.value_and_grad(lambda p: naive_loss(p, batch, OBJECTIVE)))(params_of())
    state, metrics = run(program(), [batch])
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), abs=1e-5)
    for kind in LOSS_KINDS:
        assert metrics[f"tokens/{kind.word}"] == (batch.kinds == kind).sum()
    assert metrics["loss/flawed"] == 0.0 and metrics["loss/teacher"] > 0.0
    updates, opt_state = jax.jit(adamw().update)(grads, jax.jit(adamw().init)(params_of()), params_of())
    assert_trees_close(state.opt_state, opt_state, atol=1e-6)
    assert_trees_close(state.params, optax.apply_updates(params_of(), updates))


def test_training_lowers_the_loss():
    step = program()
    _, before = run(step, [random_batch()])
    _, after = run(step, [random_batch()] * 8)
    assert after["loss"] < before["loss"] - 1e-3


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted():
    step = program()
    good, bad = random_batch(), spoilt_batch()
    before, _ = run(step, [good])
    skipped, metrics = run(step, [good, bad, bad])
    assert not np.isfinite(metrics["loss"])
    assert_trees_equal(before.params, skipped.params)
    assert {int(x) for x in jax.tree.leaves(skipped.opt_state) if x.ndim == 0} == {updates_before(3, metrics)} == {1}
    assert_trees_equal(before.opt_state, skipped.opt_state)
    assert (int(skipped.step), int(skipped.skipped), int(skipped.skipped_in_a_row)) == (3, 2, 2)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 2)
    recovered, metrics = run(step, [good, bad, bad, good])
    expected, _ = run(step, [good, good])
    assert_trees_equal(expected.params, recovered.params)
    assert_trees_equal(expected.opt_state, recovered.opt_state)
    assert (int(recovered.skipped), int(recovered.skipped_in_a_row)) == (2, 0)
    # The learning rate that is logged is that of the schedule's own count of updates.
    assert {int(x) for x in jax.tree.leaves(recovered.opt_state) if x.ndim == 0} == {updates_before(4, metrics) + 1}
    assert np.isfinite(metrics["loss"])


def test_bfloat16_parameters_keep_float32_moments():
    state = init_state(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of()), adamw())
    before = jax.device_get(state.params)
    state, metrics = run(program(), [random_batch()] * 2, state)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 0]
    assert len(moments) == 2 * len(jax.tree.leaves(before))
    assert {x.dtype for x in moments} == {np.dtype("float32")}
    assert np.isfinite(metrics["loss"]) and int(state.skipped) == 0
    assert (state.params["embed"] != before["embed"]).any()
    exact, _ = run(program(), [random_batch()] * 2)
    assert_trees_close(jax.tree.map(lambda x: x.astype(np.float32), state.params), exact.params, atol=1e-2)


def test_passes_in_bfloat16_are_those_of_bfloat16_parameters():
    def gradient(dtype: str | None, params):
        program = make_gradient(STUDENT, OBJECTIVE, accumulate=1, remat="none", groups=1, mesh=None, dtype=dtype)
        return jax.jit(program)(params, head(), random_batch())[0].grads

    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of())
    grads, exact = gradient("bfloat16", params_of()), gradient(None, params_of())
    assert_trees_equal(grads, gradient(None, narrow))
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, grads, exact)) / optax.tree.norm(exact)
    assert 1e-4 < apart < 0.05, "each product rounds by up to 1 in 256"
    state = run(
        jax.jit(make_update(STUDENT, adamw(), OBJECTIVE, dtype="bfloat16"), donate_argnums=0), [random_batch()]
    )[0]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_compiles_once():
    step = program()
    with CompileClock() as clock:
        run(step, [random_batch()])
        assert clock.compilations(step) <= 1, "a test before may have compiled it"
        first = clock.compilations(step)
        run(step, [random_batch(seed) for seed in range(STEPS)])
        assert clock.compilations(step) == first


def test_eight_devices_equal_one(devices):
    """Micro-batches and all; rows are sharded over fsdp, weights over fsdp and tensor."""
    batches = [random_batch(seed) for seed in range(STEPS)]
    alone, metrics = run(program(), batches)
    mesh = make_mesh(1, 4, 2)
    specs = weight_specs(STUDENT)
    axes = jax.tree.map(lambda spec: spec.axes, specs)
    param_shardings = layout_shardings(mesh, axes, "update", params_of())
    state = jax.jit(lambda p: init_state(p, adamw()))(jax.device_put(params_of(), param_shardings))
    state = jax.device_put(state, jax.tree.map(lambda x: sharding_of(x, state.params, param_shardings, mesh), state))
    layout = jax.tree.map(lambda x: x.sharding, state)
    update = make_update(STUDENT, adamw(), OBJECTIVE, accumulate=2)
    step = jax.jit(update, donate_argnums=0, out_shardings=(layout, None))
    teachers = jax.device_put(head(), replicated(mesh))
    others = {}
    with CompileClock() as clock:
        for batch in batches:
            state, others = step(state, teachers, jax.device_put(batch, batch_sharding(mesh)))
        assert clock.compilations(step) == 1
    q = state.params["layers"]["q"]
    assert q.addressable_shards[0].data.size * len(devices) == q.size
    assert_trees_close(jax.device_get(state.params), alone.params)
    assert_trees_close(jax.device_get(state.opt_state), alone.opt_state, atol=1e-6)
    assert_trees_close(jax.device_get(others), metrics)


def sharding_of(leaf, params, param_shardings, mesh):
    """Moments have the shardings of the parameters of their shape; counters are replicated."""
    shapes = {
        x.shape: sharding for x, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(param_shardings), strict=True)
    }
    return shapes[leaf.shape] if leaf.ndim else replicated(mesh)
