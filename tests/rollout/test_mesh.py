"""Rollout on 8 devices, each group of them on rows of its own, equals rollout on one device."""

import jax
import pytest

from motab_jax.runtime.mesh import make_mesh
from tests.rollout.pair import ROWS, assert_same_row, model, outcome, row_of
from tests.rollout.sharded_pair import GREEDY, PAIR, arguments, compile_rollout


@pytest.fixture(scope="module")
def alone():
    return outcome(pair=tuple(map(model, PAIR)), **GREEDY)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_equal_one(sizes, devices, alone):
    mesh = make_mesh(*sizes)
    given = arguments(mesh)
    sharded = compile_rollout(mesh, given)(*given)
    assert len(sharded.tokens.sharding.device_set) == len(devices)
    assert not sharded.tokens.sharding.is_fully_replicated
    assert alone.num_rewinds.sum() > ROWS // 2
    sharded = jax.device_get(sharded)
    for row in range(ROWS):
        assert_same_row(row_of(sharded, row), row_of(alone, row))
    one, other = sharded.counters, alone.counters
    assert one.busy_columns == other.busy_columns, "all groups' columns are counted"
    assert 0 < one.student_iterations <= other.student_iterations, "and the iterations of one group"


def test_a_group_has_its_share_of_the_slots(devices, alone):
    mesh = make_mesh(4, 1, 1, devices=devices[:4])
    given = arguments(mesh, slots=8, teacher_batch=4)
    sharded = jax.device_get(compile_rollout(mesh, given)(*given))
    for row in range(ROWS):
        assert_same_row(row_of(sharded, row), row_of(alone, row))
    assert sharded.counters.prefill_iterations > alone.counters.prefill_iterations, (
        "later rows took the slots of finished ones"
    )
