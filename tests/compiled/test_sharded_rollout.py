"""The rollout as compiled for 8 CPU devices: caches and hidden states are sharded, and no cache is gathered."""

import jax
import pytest

from motab_jax.planning.hlo import HloProgram
from motab_jax.rollout import rollout
from motab_jax.runtime.mesh import make_mesh
from tests.rollout.pair import MAX_NEW, ROWS, WIDTH
from tests.rollout.sharded_pair import arguments, compile_rollout

LAYERS, HEADS, HEAD_DIM = 2, 2, 8  # of the caches of both models


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_caches_and_states_are_sharded(sizes):
    mesh = make_mesh(*sizes)
    given = arguments(mesh)
    program = HloProgram.of(compile_rollout(mesh, given))
    data, fsdp, tensor = sizes
    columns, rows, heads = WIDTH + MAX_NEW + MAX_NEW // 4, ROWS // (data * fsdp), HEADS // tensor

    def has_cache(rows, heads):
        return program.has_array("f32", (LAYERS, rows, heads, columns, HEAD_DIM))

    assert has_cache(rows, heads), "the caches of a group's rows, a device's share of the heads"
    for other_rows in {ROWS, ROWS // data, ROWS // fsdp, rows}:
        for other_heads in {HEADS, heads}:
            assert (other_rows, other_heads) == (rows, heads) or not has_cache(other_rows, other_heads)
    cache_bytes = 4 * LAYERS * rows * heads * columns * HEAD_DIM
    assert program.collective_bytes().get("all-gather", 0) < cache_bytes / 10
    _, entries, width = jax.eval_shape(rollout, *given).teacher_hidden.shape
    assert any(array.dims[-2:] == (entries, width // tensor) for array in program.arrays()), "states over tensor, too"
