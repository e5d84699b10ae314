"""The teacher's relayout, a weight at a time: the same as all at once, and no program takes more than its weight."""

import dataclasses

import jax
import numpy as np
import pytest

from motab_jax.config import load_config
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, init, is_spec, weight_specs
from motab_jax.planning import hlo
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.placement import serving, teacher_serving

SHAPE = ModelConfig("qwen3", 48, 16, 32, 2, 4, 2, 4, 64, qk_norm=True)
MESHES = [(1, 1, 1), (2, 1, 4)]  # the second copies each key-value head


def on(sizes):
    """A mesh, and parameters as they are read on it."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    return mesh, jax.jit(lambda: init(SHAPE, jax.random.key(0)), out_shardings=load_shardings(mesh, SHAPE))()


@pytest.mark.parametrize("scan", ["true", "false"])
@pytest.mark.parametrize("sizes", MESHES)
def test_it_gives_what_one_program_gives(sizes, scan):
    (mesh, params), config = on(sizes), load_config(None, [f"rollout.scan_layers={scan}"])
    alone, together = teacher_serving(mesh, SHAPE, config)(params), serving(mesh, SHAPE, config)(params)
    assert isinstance(alone, Model) and jax.tree.structure(alone) == jax.tree.structure(together)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert x.sharding == y.sharding
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("scan", ["true", "false"])
def test_a_program_takes_its_own_weight_alone(scan):
    mesh, params = on(MESHES[1])
    config = load_config(None, [f"rollout.scan_layers={scan}", "teacher.quantize=int8"])
    relay = teacher_serving(mesh, SHAPE, config)
    sizes = {name: relay.programs[name].lower(params).compile().memory_analysis() for name in ("down", "qkv")}
    layers = params["layers"]
    for name, sources in (("down", ["down"]), ("qkv", ["q", "k", "v"])):
        own = sum(layers[source].addressable_shards[0].data.nbytes for source in sources)
        assert sizes[name].argument_size_in_bytes == own
    model = relay(params)
    layer = model.params["layers"] if scan == "true" else model.params["layers"][0]
    assert layer["down"].values.dtype == np.int8 and layer["attn_norm"].dtype == np.float32


@pytest.mark.tpu_aot
@pytest.mark.parametrize("words", [[], ["teacher.quantize=int8"]])
@pytest.mark.parametrize("name", ["down", "gate", "o"])
def test_no_chip_ever_has_a_whole_weight(name, words):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    shape = dataclasses.replace(SHAPE, width=512, mlp_width=1024, num_heads=16, num_kv_heads=8, head_dim=64)
    mesh = make_mesh(2, 1, 4, devices=hlo.devices("v5e:2x4"))
    specs, places = weight_specs(shape), load_shardings(mesh, shape)
    params = jax.tree.map(
        lambda spec, place: jax.ShapeDtypeStruct(spec.shape, np.float32, sharding=place), specs, places, is_leaf=is_spec
    )
    relay = teacher_serving(mesh, shape, load_config(None, words))
    found = hlo.facts(relay.programs[name].lower(params).compile())
    whole = 4 * int(np.prod(specs["layers"][name].shape))
    assert sum(found.moved.values()) <= whole / 2 and found.temporaries <= whole / 2
