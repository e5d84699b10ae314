"""More rows than slots: whichever rows wait or are parked, each is generated as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.serving import serve_params
from motab_jax.models.transformer import Model
from motab_jax.rollout import Prompts
from motab_jax.rollout.trajectory import FinishReason
from tests.rollout.pair import (
    MAX_NEW,
    ROWS,
    assert_same_row,
    outcome,
    random_prompts,
    row_of,
    student,
    teacher,
)

SETTINGS = {
    "root-suffix": {},
    "root-steps": {"intervention": "steps", "steps": 2, "max_interventions": 3},
}


@functools.cache
def together(name: str):
    """All rows at once."""
    return outcome(**SETTINGS[name])


SLOTS = [(1, 1, 4, 0), (5, 2, 7, 2), (16, 3, 4, 0), (16, 0, 4, 3), (8, 0, 5, 1), (3, 0, 4, 0)]
# Each once by default, each with each setting where `long` is asked for.
COMBINATIONS = [
    pytest.param(name, *numbers, marks=[] if index % 2 == offset else [pytest.mark.long])
    for offset, name in enumerate(SETTINGS)
    for index, numbers in enumerate(SLOTS)
]


@pytest.mark.parametrize(("name", "slots", "teacher_batch", "columns", "teacher_rows"), COMBINATIONS)
def test_slots_change_nothing(name, slots, teacher_batch, columns, teacher_rows):
    few = outcome(
        slots=slots, teacher_batch=teacher_batch, segment_tokens=columns, teacher_rows=teacher_rows, **SETTINGS[name]
    )
    assert few.num_rewinds.sum() >= ROWS // 2
    for row in range(ROWS):
        assert_same_row(row_of(together(name), row), row_of(few, row))


@functools.cache
def unrolled() -> list[Model]:
    """The pair in a CPU's form."""
    return [Model(serve_params(m.params, m.config, scan_layers=False), m.config) for m in (student(), teacher())]


def test_unrolled_layers_change_nothing():
    few = outcome(pair=unrolled(), slots=5, teacher_rows=2, **SETTINGS["root-steps"])
    for row in range(ROWS):
        assert_same_row(row_of(together("root-steps"), row), row_of(few, row))


def test_the_order_of_the_prompts_changes_nothing():
    order = np.random.default_rng(2).permutation(ROWS)
    prompts = jax.tree.map(lambda x: x[order], random_prompts())
    few = outcome(prompts=prompts, slots=3, segment_tokens=4, **SETTINGS["root-steps"])
    for place, row in enumerate(order):
        assert_same_row(row_of(together("root-steps"), row), row_of(few, place))


def test_a_limit_of_its_own_cuts_a_row_and_zero_leaves_it_out():
    prompts = random_prompts()
    limits = jnp.asarray(np.arange(ROWS) * 2 % 10, jnp.int32)
    results = [
        outcome(pair=(student(), None), prompts=Prompts(prompts.tokens, prompts.lengths, prompts.row_ids, limits), **c)
        for c in ({"monitored": False}, {"monitored": False, "slots": 3})
    ]
    whole = outcome(pair=(student(), None), monitored=False)
    for row in range(ROWS):
        size = min(int(limits[row]), int(whole.length[row]))
        for result in results:
            assert result.tokens[row, : result.length[row]].tolist() == whole.tokens[row, :size].tolist()
            end = FinishReason.LENGTH if size < whole.length[row] else whole.finish[row]
            assert result.finish[row] == (FinishReason.RUNNING if limits[row] == 0 else end)


def test_counters_add_up():
    result = outcome(slots=3, segment_tokens=4, **SETTINGS["root-suffix"])
    counts = result.counters
    emitted = float(result.length.sum())
    # What was generated after a breach in the same segment is scored and never accepted.
    assert emitted <= counts.teacher_scored <= emitted + 4 * result.num_rewinds.sum()
    assert counts.teacher_reread > 0
    assert counts.busy_columns <= counts.student_columns + counts.teacher_columns
    assert counts.live_columns <= counts.tape_columns
    alone = outcome(**SETTINGS["root-suffix"])
    assert alone.counters.teacher_reread == alone.num_rewinds.sum(), "in its slot a row prefills one token again"


def test_waiting_for_more_rows_saves_columns_of_the_teacher():
    at_once, batched = (
        outcome(teacher_batch=batch, **SETTINGS["root-suffix"]).counters.teacher_columns for batch in (1, 0)
    )
    assert batched < at_once <= 2 * MAX_NEW * ROWS
