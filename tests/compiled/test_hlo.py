"""What is read from an HLO text: short texts by hand, and programs of known content."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from motab_jax.planning.hlo import HloProgram, out_of_memory, program_facts
from motab_jax.runtime.mesh import make_mesh


def test_collectives_in_a_text():
    program = HloProgram.parse("""
      %a = bf16[8,128]{1,0:T(8,128)} all-gather(%x), dimensions={0}
      %b = (f32[4]{0}, f32[8,2]{1,0}) all-reduce(%x, %y)
      %c = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%x)
      %d = f32[4]{0} all-reduce-start(%x)
      %e = bf16[16]{0} all-gather-done(%c)
    """)
    assert program.collective_counts() == {"all-gather": 2, "all-reduce": 2}
    assert program.collective_bytes() == {"all-gather": 8 * 128 * 2 + 16 * 2, "all-reduce": 4 * 4 + 16 * 4 + 4 * 4}
    assert program.largest_collective("all-gather") == 8 * 128 * 2 and program.largest_collective("all-to-all") == 0


def test_copies_and_scatters_in_a_text():
    program = HloProgram.parse("""
      %a = bf16[2,4,8]{2,1,0} copy(%p)
      %b = bf16[1,4,2,8]{2,1,0,3} transpose(%p)
      %c = bf16[2,4,8]{2,1,0} scatter(%p, %q, %r)
      %d = bf16[2,4,9]{2,1,0} copy(%p)
      %e = bf16[2,4,8]{2,1,0} dynamic-update-slice(%p, %q)
      %f = f32[3]{0} all-gather-start(%p)
      %g = f32[3]{0} all-reduce(%p)
    """)
    assert program.counts_of([(2, 4, 8)]) == {"copy": 1, "transpose": 1, "scatter": 1, "dynamic-update-slice": 1}
    assert program.collective_counts() == {"all-gather": 1, "all-reduce": 1}
    assert [array.layout for array in program.arrays("transpose")] == [(2, 1, 0, 3)]


def test_types_and_their_bytes():
    arrays = HloProgram.parse(
        "ROOT %t = (pred[8]{0}, f8e4m3fn[4,2]{1,0}, /*index=2*/c64[2]{0}, s32[]{:T(128)}) custom-call(%x)"
    ).arrays()
    assert [(array.dtype, array.dims, array.nbytes) for array in arrays] == [
        ("pred", (8,), 8),
        ("f8e4m3fn", (4, 2), 8),
        ("c64", (2,), 16),
        ("s32", (), 4),
    ]


def test_what_a_loop_runs():
    """Three sines outside of the loop, cosines inside of it."""

    def body(_, x):
        return jnp.cos(x @ x)

    def function(x):
        return jnp.sin(jnp.sin(jax.lax.fori_loop(0, 5, body, jnp.sin(x)) @ x))

    program = HloProgram.of(jax.jit(function).lower(jnp.ones((64, 64))).compile())
    assert program.count("while") == 1
    assert (program.count("sine"), program.loops.count("sine")) == (3, 0)
    assert program.count("cosine") == program.loops.count("cosine") == 1


def test_collectives_of_a_sharded_program(devices):
    mesh = make_mesh(1, 1, 8)
    row_sharded = NamedSharding(mesh, PartitionSpec("tensor"))
    gather = jax.jit(lambda x: x, in_shardings=row_sharded, out_shardings=NamedSharding(mesh, PartitionSpec()))
    compiled = gather.lower(jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile()
    facts = program_facts(compiled)
    assert facts.collectives == {"all-gather": 1} and facts.collective_bytes == {"all-gather": 64 * 32 * 4}
    assert (facts.arguments, facts.outputs) == (64 * 32 * 4 // len(devices), 64 * 32 * 4)
    assert facts.needed_bytes == facts.arguments + facts.outputs + facts.temporaries


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", (20.5 * 2**30, False)),
        (
            "on HBM, the total memory required for HLO temporaries (107.82G) exceeds available HBM",
            (107.82 * 2**30, True),
        ),
    ],
)
def test_an_out_of_memory_error_is_read(message, expected):
    assert out_of_memory(RuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory {message}")) == expected


def test_another_error_is_not_taken_for_it():
    assert out_of_memory(RuntimeError("something else")) is None
