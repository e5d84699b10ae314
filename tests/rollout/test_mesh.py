"""Rollout on 8 devices: each group of them on rows of its own, the weights cut inside a group. Equal to one device."""

import jax
import jax.numpy as jnp
import pytest

from motab_jax.models.transformer import Model
from motab_jax.planning import hlo
from motab_jax.rollout import rollout
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from motab_jax.session.placement import layout
from tests.rollout.pair import MAX_NEW, ROWS, WIDTH, assert_same_row, model, outcome, random_prompts, row_of, settings

GREEDY = {"temperature": 0.0, "eps0": 0.9, "theta": 0.1}
PAIR = (3, 4)


@pytest.fixture(scope="module")
def alone():
    return outcome(pair=tuple(map(model, PAIR)), **GREEDY)


def arguments(mesh, **changes):
    """The pair in the layout `serve`, prompts over rows, all else everywhere."""
    models = [
        Model(jax.device_put(model(n).params, layout(mesh, model(n).config, "serve")), model(n).config) for n in PAIR
    ]
    numbers = jax.tree.map(jnp.asarray, settings(**GREEDY, **changes))
    key, config = jax.device_put((jax.random.key(0), numbers), replicated(mesh))
    return *models, jax.device_put(random_prompts(), batch_sharding(mesh)), key, config


def compiled(mesh, given):
    program = jax.jit(run_per_group(rollout, mesh, (False, False, True, False)))
    return program.lower(*given).compile(compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_equal_one(sizes, devices, alone):
    mesh = make_mesh(*sizes)
    given = arguments(mesh)
    program = compiled(mesh, given)
    sharded = program(*given)
    assert len(sharded.tokens.sharding.device_set) == len(devices)
    assert not sharded.tokens.sharding.is_fully_replicated
    assert alone.num_rewinds.sum() > ROWS // 2
    sharded = jax.device_get(sharded)
    for row in range(ROWS):
        assert_same_row(row_of(sharded, row), row_of(alone, row))
    one, other = sharded.counters, alone.counters
    assert one.busy_columns == other.busy_columns, "all groups' columns are counted"
    assert 0 < one.student_iterations <= other.student_iterations, "and the turns of one"
    check_caches(program, mesh)
    width, ways = alone.teacher_hidden.shape[-1], mesh.shape["tensor"]
    assert f"{alone.teacher_hidden.shape[1]},{width // ways}]" in program.as_text(), "states over tensor, too"


def check_caches(program, mesh):
    """Keys and values lie where their rows are, a device's share of heads on it; none is ever gathered."""
    text, (data, fsdp, tensor) = program.as_text(), mesh.shape.values()
    columns, heads = WIDTH + MAX_NEW + MAX_NEW // 4, 2
    mine = f"f32[2,{ROWS // (data * fsdp)},{heads // tensor},{columns},8]"
    assert mine in text, "the caches of a group's rows"
    for rows in {ROWS, ROWS // data, ROWS // fsdp, ROWS // (data * fsdp)}:
        for kept in {heads, heads // tensor}:
            shape = f"f32[2,{rows},{kept},{columns},8]"
            assert shape == mine or shape not in text, shape
    cache = 4 * 2 * ROWS // (data * fsdp) * heads // tensor * columns * 8
    assert hlo.moved(text).get("all-gather", 0) < cache / 10


def test_a_group_has_its_share_of_the_slots(devices, alone):
    mesh = make_mesh(4, 1, 1, devices=devices[:4])
    given = arguments(mesh, slots=8, teacher_batch=4)
    sharded = jax.device_get(compiled(mesh, given)(*given))
    for row in range(ROWS):
        assert_same_row(row_of(sharded, row), row_of(alone, row))
    assert sharded.counters.prefill_iterations > alone.counters.prefill_iterations, (
        "later rows took the seats of finished ones"
    )
