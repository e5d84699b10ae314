"""The teacher's relayout, a weight at a time: the same as all at once, and no program takes more than its weight."""

import dataclasses

import jax
import numpy as np
import pytest

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, init, is_spec, weight_specs
from motab_jax.planning import hlo
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.placement import serving, teacher_serving

CONFIG = ModelConfig("qwen3", 48, 16, 32, 2, 4, 2, 4, 64, qk_norm=True)
MESHES = [(1, 1, 1), (2, 1, 4)]  # the second copies each key-value head


def on(sizes):
    """A mesh, and parameters as they are read on it."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    return mesh, jax.jit(lambda: init(CONFIG, jax.random.key(0)), out_shardings=load_shardings(mesh, CONFIG))()


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("sizes", MESHES)
def test_it_gives_what_one_program_gives(sizes, scan):
    mesh, params = on(sizes)
    alone = teacher_serving(mesh, CONFIG, scan_layers=scan)(params)
    together = serving(mesh, CONFIG, scan_layers=scan)(params)
    assert isinstance(alone, Model) and jax.tree.structure(alone) == jax.tree.structure(together)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert x.sharding == y.sharding
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("scan", [True, False])
def test_a_program_takes_its_own_weight_alone(scan):
    mesh, params = on(MESHES[1])
    relayout = teacher_serving(mesh, CONFIG, scan_layers=scan, int8=True)
    sizes = {name: relayout.programs[name].lower(params).compile().memory_analysis() for name in ("down", "qkv")}
    layers = params["layers"]
    for name, sources in (("down", ["down"]), ("qkv", ["q", "k", "v"])):
        own = sum(layers[source].addressable_shards[0].data.nbytes for source in sources)
        assert sizes[name].argument_size_in_bytes == own
    model = relayout(params)
    layer = model.params["layers"] if scan else model.params["layers"][0]
    assert layer["down"].values.dtype == np.int8 and layer["attn_norm"].dtype == np.float32


@pytest.mark.tpu_aot
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["down", "gate", "o"])
def test_no_chip_ever_has_a_full_weight(name, int8):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    config = dataclasses.replace(CONFIG, width=512, mlp_width=1024, num_heads=16, num_kv_heads=8, head_dim=64)
    mesh = make_mesh(2, 1, 4, devices=hlo.devices("v5e:2x4"))
    specs, shardings = weight_specs(config), load_shardings(mesh, config)
    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, np.float32, sharding=sharding),
        specs,
        shardings,
        is_leaf=is_spec,
    )
    relayout = teacher_serving(mesh, config, int8=int8)
    found = hlo.facts(relayout.programs[name].lower(params).compile())
    full = 4 * int(np.prod(specs["layers"][name].shape))
    assert sum(found.moved.values()) <= full / 2 and found.temporaries <= full / 2
