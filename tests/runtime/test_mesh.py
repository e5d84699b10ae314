"""Meshes: sizes, the table of layouts, and what does not divide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.planning.topologies import topology_devices
from motab_jax.runtime.mesh import (
    batch_sharding,
    check_heads,
    layout_shardings,
    local_row_indices,
    make_global_batch,
    make_mesh,
    padded_rows,
    replicated,
    valid_tensor_sizes,
)
from motab_jax.session.placement import undivided

AXES = {"q": ("layer", "embed", "heads", "head"), "norm": {"scale": ("embed",)}, "head": ("embed", "vocab"), "step": ()}


def test_minus_one_takes_the_rest(devices):
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(1, 4, -1).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert dict(make_mesh(1, 1, 1, devices=devices[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert make_mesh(-1, 1, 1).axis_types == (jax.sharding.AxisType.Auto,) * 3


@pytest.mark.tpu_aot
def test_an_axis_may_be_a_part_of_the_torus():
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    mesh = make_mesh(-1, 1, 8, devices=topology_devices("v5p:4x4x4"))
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 8}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((-1, 3, 1), ["mesh.fsdp=3", "8 device", "1, 2, 4, 8"]),
        ((2, 2, 1), ["mesh.data * mesh.fsdp * mesh.tensor is 4", "must be one of 8"]),
        ((-1, -1, 1), ["only one"]),
        ((0, 1, 1), ["mesh.data=0", "at least 1"]),
        ((-1, -2, 1), ["mesh.fsdp=-2"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(UserError) as error:
        make_mesh(*sizes)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_slices_that_are_not_there_are_named():
    with pytest.raises(UserError, match=r"mesh.dcn_data=2: the devices are on 1 slice"):
        make_mesh(-1, 1, 1, dcn_data=2)


def test_heads_that_do_not_divide_are_refused_with_those_that_do():
    check_heads(4, 8, 2, "the student's")  # each key-value head twice
    assert valid_tensor_sizes(8, 2) == [1, 2, 4, 8] and valid_tensor_sizes(12, 3) == [1, 3, 6, 12]
    with pytest.raises(UserError, match=r"mesh.tensor=3 does not divide the student's 8 .* use one of 1, 2, 4, 8"):
        check_heads(3, 8, 2, "the student's")


def test_shardings_follow_the_table():
    mesh = make_mesh(1, 4, 2)
    update = layout_shardings(mesh, AXES, "update")
    assert update["q"].spec == P(None, "fsdp", "tensor", None)
    assert update["norm"]["scale"].spec == P("fsdp")
    assert update["step"].spec == P()
    assert layout_shardings(mesh, AXES, "serve")["head"].spec == P(None, "tensor")
    with pytest.raises(KeyError):
        layout_shardings(mesh, {"w": ("width",)}, "update")


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(1, 4, 2)
    shapes = {
        "q": jax.ShapeDtypeStruct((2, 6, 4, 8), jnp.float32),
        "norm": {"scale": jnp.zeros(8)},
        "head": (8, 13),
        "step": jnp.zeros(()),
    }
    found = layout_shardings(mesh, AXES, "update", shapes)
    assert found["q"].spec == P(None, None, "tensor", None)
    assert found["norm"]["scale"].spec == P("fsdp")
    assert found["head"].spec == P("fsdp", None)
    with pytest.raises(ValueError, match="dimensions"):
        layout_shardings(mesh, {"w": ("embed",)}, "update", {"w": (2, 3)})


def test_rows_go_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    rows = jax.device_put(np.arange(8.0).reshape(4, 2), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(1, 2)}
    full = jax.device_put(jnp.ones(3), replicated(mesh))
    assert {shard.data.shape for shard in full.addressable_shards} == {(3,)}


def test_a_process_places_the_rows_of_its_devices():
    mesh = make_mesh(2, 2, 2)
    assert local_row_indices(mesh, 8).tolist() == list(range(8)), "all of them, as all devices are its own"
    placed = make_global_batch(mesh, 8, {"a": np.arange(16).reshape(8, 2)})
    np.testing.assert_array_equal(placed["a"], np.arange(16).reshape(8, 2))
    assert placed["a"].sharding == batch_sharding(mesh)


def test_rows_are_added_until_they_divide():
    mesh = make_mesh(2, 2, 2)
    assert [padded_rows(mesh, rows) for rows in (1, 4, 6, 8, 250)] == [4, 4, 8, 8, 252]


def test_what_is_replicated_because_it_does_not_divide_is_named():
    config = ModelConfig("llama", 50_257, 32, 48, 1, 4, 2, 8, 64)
    [vocabulary] = undivided(make_mesh(2, 1, 4), dataclasses.replace(config, num_kv_heads=4))
    assert "50257" in vocabulary and "mesh.tensor=4" in vocabulary
    assert undivided(make_mesh(8, 1, 1), config) == []
