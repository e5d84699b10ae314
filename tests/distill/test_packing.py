"""Packing: every sequence once, whole and by itself, little padding, and the same numbers as without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motab_jax.distill import TargetBatch, init_state, make_update, select_teacher_head
from motab_jax.distill.packing import EMPTY, first_fit_decreasing, pack
from motab_jax.distill.targets import TokenKind
from motab_jax.distill.update import MICRO_TOKENS, micro_batch_shape
from motab_jax.models.transformer import encode, weight_specs
from motab_jax.runtime.mesh import batch_sharding, layout_shardings, make_mesh, replicated
from tests.distill.batches import (
    STUDENT,
    TEACHER,
    VOCAB,
    assert_trees_close,
    naive_loss,
    params_of,
    teacher,
    uniform,
)
from tests.optional import some

ROWS, PROMPT, COLUMNS = 16, 4, 20


def plain_first_fit(lengths, width: int):
    """First-fit-decreasing as in the textbook."""
    bins, start = [], [0] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        number = next((n for n, used in enumerate(bins) if used + lengths[row] <= width), len(bins))
        if number == len(bins):
            bins.append(0)
        start[row] = number * width + bins[number]
        bins[number] += lengths[row]
    return start, sum(used > 0 for used in bins)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, COLUMNS), min_size=ROWS, max_size=ROWS))
def test_first_fit_decreasing(lengths):
    start, used = jax.jit(first_fit_decreasing, static_argnums=1)(jnp.array(lengths), COLUMNS)
    expected, bins = plain_first_fit(lengths, COLUMNS)
    assert start.tolist() == expected and int(used) == bins


@functools.cache
def short_sequences(seed: int = 0, rows: int = ROWS) -> TargetBatch:
    """Sequences of which several fit a row, some of them with nothing that is trained."""
    rng = np.random.default_rng(seed)
    column = np.arange(COLUMNS)
    before, after = rng.integers(0, PROMPT, rows)[:, None], PROMPT + rng.integers(0, 8, rows)[:, None]
    after[0], after[1] = COLUMNS, PROMPT
    positions = np.where((column >= before) & (column < after), column - before, -1)
    kinds = np.where(
        (column >= PROMPT) & (positions >= 0), rng.integers(1, len(TokenKind), (rows, COLUMNS)), TokenKind.NONE
    )
    tokens, positions, kinds = (
        jnp.asarray(x, jnp.int32) for x in (rng.integers(2, VOCAB, (rows, COLUMNS)), positions, kinds)
    )
    hidden, _ = encode(teacher().params, TEACHER, tokens, positions)
    shifted = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return TargetBatch(tokens, positions, kinds, jnp.where((kinds > 0)[..., None], shifted, 0.0))


packed = jax.jit(pack, static_argnums=2, static_argnames="rows_per_bin")


def check_packing(packing, positions, trained):
    """Every trained token once; a sequence in neighbouring columns of one bin; the bins in use are the first ones."""
    for group, used in enumerate(packing.bins_used.tolist()):
        index = np.asarray(packing.index[group])
        expected = np.flatnonzero((positions[group] >= 0) & trained[group][:, None])
        assert sorted(index[index != EMPTY].tolist()) == expected.tolist()
        assert (index[used:] == EMPTY).all() and (index[:used] != EMPTY).any(axis=1).all()
        for row in np.flatnonzero(trained[group] & (positions[group] >= 0).any(axis=1)):
            bins, columns = np.nonzero(index // COLUMNS == row)
            assert len(set(bins)) == 1 and (np.diff(columns) == 1).all()
            assert (np.diff(positions[group].reshape(-1)[index[bins, columns]]) == 1).all()
    share = 1 - (packing.index != EMPTY).sum() / max(packing.bins_used.sum() * packing.index.shape[-1], 1)
    assert float(packing.padding) == pytest.approx(float(share))


@pytest.mark.parametrize("groups", [1, 4])
def test_several_sequences_share_a_bin(groups):
    batch = short_sequences()
    positions = np.asarray(batch.positions).reshape(groups, -1, COLUMNS)
    trained = np.asarray(jnp.any(batch.kinds > 0, axis=1)).reshape(groups, -1)
    packing = packed(positions, trained, 3)
    assert packing.index.shape == (groups, -(-positions.shape[1] // 3) * 3, COLUMNS)
    check_packing(packing, positions, trained)
    assert all(used < len(trained[0]) for used in packing.bins_used.tolist())


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, COLUMNS), st.integers(0, COLUMNS)), min_size=ROWS, max_size=ROWS),
    trained=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    groups=st.sampled_from([1, 4]),
    rows_per_bin=st.integers(1, 2),
)
def test_sequences_of_any_length_are_packed_whole(spans, trained, groups, rows_per_bin):
    begin, end = (np.array(bound)[:, None] for bound in zip(*map(sorted, spans), strict=True))
    column = np.arange(COLUMNS)
    positions = np.where((column >= begin) & (column < end), column - begin, -1).reshape(groups, -1, COLUMNS)
    trained = np.array(trained).reshape(groups, -1)
    packing = packed(positions, trained, 3, rows_per_bin=rows_per_bin)
    assert packing.index.shape[1] * packing.index.shape[2] >= positions[0].size
    check_packing(packing, positions, trained)


def test_micro_batches_keep_to_their_limit():
    assert micro_batch_shape(64, 144, 640) == (2, 2)
    assert micro_batch_shape(64, 144, 8192) == (28, 2)
    assert micro_batch_shape(8, 144, 8192) == (4, 2)
    assert micro_batch_shape(1, 144, 8192) == (1, 1)
    assert micro_batch_shape(16, 4096, 8192) == (2, 1)


@pytest.mark.parametrize("seed", range(6))
def test_little_is_padding(seed):
    """Lengths as in the quickstart: prompts of 12 to 20 tokens, completions of 40 on average and at most 96."""
    rng = np.random.default_rng(seed)
    rows, prompt, columns = 64, 48, 144
    lengths = rng.integers(12, 21, rows) + np.clip(rng.geometric(1 / 40, rows), 2, 96)
    column = np.arange(columns) - (prompt - 20)
    positions = np.where((column >= 0) & (column < lengths[:, None]), column, -1)
    bins, rows_per_bin = micro_batch_shape(rows, columns, MICRO_TOKENS["cpu"])
    packing = pack(jnp.asarray(positions)[None], jnp.ones((1, rows), bool), bins, rows_per_bin=rows_per_bin)
    computed = bins * rows_per_bin * columns * -(-int(packing.bins_used[0]) // bins)
    share = 1 - lengths.sum() / computed
    assert float(packing.padding) - 1e-6 <= share <= min(0.15, float((positions < 0).mean()) - 0.4)


def gradient(batch: TargetBatch, objective, *, mesh=None, params=None, **options):
    """The gradient as one step of plain descent shows it, and the metrics."""
    optimizer = optax.sgd(1.0)
    params = params_of() if params is None else params
    step = jax.jit(make_update(STUDENT, optimizer, objective, mesh=mesh, **options))
    teacher_head = select_teacher_head(teacher(), objective)
    if mesh is not None:
        teacher_head = jax.device_put(teacher_head, replicated(mesh))
    state, metrics = step(init_state(params, optimizer), teacher_head, batch)
    return jax.tree.map(jnp.subtract, params_of(), jax.device_get(state.params)), metrics


@pytest.mark.parametrize(
    ("options", "objective"),
    [
        ({}, uniform("jsd")),
        ({"accumulate": 8, "remat": "full"}, uniform("jsd", normalize="sequence")),
        ({"groups": 4, "accumulate": 2}, uniform("minillm", normalize="sequence")),
    ],
)
def test_packed_sequences_give_the_naive_gradient(options, objective):
    batch = short_sequences()
    naive, naive_grads = jax.jit(jax.value_and_grad(lambda p: naive_loss(p, batch, objective)))(params_of())
    grads, metrics = gradient(batch, objective, micro_tokens=3 * COLUMNS, **options)
    assert float(metrics["loss"]) == pytest.approx(float(naive), abs=1e-5)
    assert_trees_close(grads, naive_grads)
    assert 0 < metrics["padding"] < float((batch.positions < 0).mean()) - 0.25


def test_neither_order_nor_neighbours_matter():
    objective = uniform("forward_kl")
    batch, order = short_sequences(), np.random.default_rng(1).permutation(ROWS)
    grads, metrics = gradient(batch, objective)
    again, others = gradient(jax.tree.map(lambda x: x[order], batch), objective)
    assert_trees_close(grads, again, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), abs=1e-6)


def test_sequences_with_nothing_to_train_are_left_out():
    batch = short_sequences()
    untrained = ~jnp.any(batch.kinds > 0, axis=1)
    assert untrained.any()
    spoilt = batch.replace(teacher_hidden=jnp.where(untrained[:, None, None], jnp.nan, some(batch.teacher_hidden)))
    grads, metrics = gradient(spoilt, uniform("jsd"))
    assert_trees_close(grads, gradient(batch, uniform("jsd"))[0], atol=0)
    nothing, metrics = gradient(batch.replace(kinds=jnp.zeros_like(batch.kinds)), uniform("jsd"))
    assert metrics["loss"] == 0 and all(not x.any() for x in jax.tree.leaves(nothing))


def test_groups_on_their_devices_equal_one_device(devices):
    batch, objective = short_sequences(), uniform("minillm")
    mesh = make_mesh(1, 4, 2)
    specs = weight_specs(STUDENT)
    axes = jax.tree.map(lambda spec: spec.axes, specs)
    params = jax.device_put(params_of(), layout_shardings(mesh, axes, "update", params_of()))
    placed = jax.device_put(batch, batch_sharding(mesh))
    grads, metrics = gradient(placed, objective, mesh=mesh, params=params, groups=4)
    alone, others = gradient(batch, objective)
    assert_trees_close(grads, alone, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), abs=1e-6)
