"""The teacher's relayout as compiled: no program takes more than its own weight, and no chip holds a full one."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import init, weight_specs
from motab_jax.planning.hlo import program_facts
from motab_jax.planning.topologies import topology_devices
from motab_jax.runtime.mesh import make_mesh
from motab_jax.session.placement import teacher_serving

CONFIG = ModelConfig("qwen3", 48, 16, 32, 2, 4, 2, 4, 64, qk_norm=True)


def compile_program(program: Any, params: Any):
    return program.lower(params).compile()


@pytest.mark.parametrize("scan", [True, False])
def test_a_program_takes_its_own_weight_alone(scan):
    mesh = make_mesh(2, 1, 4)  # each key-value head has a copy
    params = jax.jit(lambda: init(CONFIG, jax.random.key(0)), out_shardings=load_shardings(mesh, CONFIG))()
    relayout = teacher_serving(mesh, CONFIG, scan_layers=scan, int8=True)
    facts = {name: program_facts(compile_program(relayout.programs[name], params)) for name in ("down", "qkv")}
    layers = params["layers"]
    for name, sources in (("down", ["down"]), ("qkv", ["q", "k", "v"])):
        own = sum(layers[source].addressable_shards[0].data.nbytes for source in sources)
        assert facts[name].arguments == own
    model = relayout(params)
    layer = model.params["layers"] if scan else model.params["layers"][0]
    assert layer["down"].values.dtype == np.int8 and layer["attn_norm"].dtype == np.float32


@pytest.mark.tpu_aot
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["down", "gate", "o"])
def test_no_chip_ever_has_a_full_weight(name, int8):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    config = dataclasses.replace(CONFIG, width=512, mlp_width=1024, num_heads=16, num_kv_heads=8, head_dim=64)
    mesh = make_mesh(2, 1, 4, devices=topology_devices("v5e:2x4"))
    specs, shardings = weight_specs(config), load_shardings(mesh, config)
    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, np.float32, sharding=sharding), specs, shardings
    )
    relayout = teacher_serving(mesh, config, int8=int8)
    facts = program_facts(compile_program(relayout.programs[name], params))
    full = 4 * int(np.prod(specs["layers"][name].shape))
    assert sum(facts.collective_bytes.values()) <= full / 2 and facts.temporaries <= full / 2
