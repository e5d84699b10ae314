"""The rollout as XLA compiles it for a TPU: no cache is copied or scattered into, and temporaries are small.

Compiled ahead of time, without a TPU, at the shapes of Qwen3-0.6B and Qwen3-4B. Nothing is run.
"""

import jax
import jax.numpy as jnp
import pytest

from motab_jax.data.steps import StepAutomaton
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, is_spec, weight_specs
from motab_jax.planning.hlo import program_facts, tree_bytes
from motab_jax.planning.topologies import topology_devices
from motab_jax.rollout import Prompts, RolloutConfig, rollout
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from motab_jax.session.placement import serving

pytestmark = pytest.mark.tpu_aot

VOCAB, ROWS, PROMPT, NEW, SEGMENT = 151936, 16, 256, 1024, 64
COLUMNS = PROMPT + NEW + NEW // 4
STUDENT = ModelConfig("qwen3", VOCAB, 1024, 3072, 28, 16, 8, 128, 40960, qk_norm=True, tied=True)
TEACHER = ModelConfig("qwen3", VOCAB, 2560, 9728, 36, 32, 8, 128, 40960, qk_norm=True, tied=True)


def compiled(mesh):
    """The rollout with the monitor on, for the chips of a mesh."""

    def array(shape, dtype, sharding=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh) if sharding is None else sharding)

    def model(shape: ModelConfig) -> Model:
        params = jax.tree.map(
            lambda spec, sharding: array(spec.shape, jnp.bfloat16, sharding),
            weight_specs(shape),
            load_shardings(mesh, shape),
            is_leaf=is_spec,
        )
        return serving(mesh, shape).lower(params).out_info

    rows, real = batch_sharding(mesh), array((), jnp.float32)
    each = array((ROWS,), jnp.int32, rows)
    automaton = StepAutomaton(array((3, VOCAB), jnp.int32), array((3, VOCAB), jnp.bool_))
    config = RolloutConfig(
        automaton, array((2,), jnp.int32), real, real, vocab_size=VOCAB, max_new_tokens=NEW, segment_tokens=SEGMENT
    )
    prompts = Prompts(array((ROWS, PROMPT), jnp.int32, rows), each, each, each)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = model(STUDENT), model(TEACHER), prompts, array(key.shape, key.dtype), config
    return jax.jit(run_per_group(rollout, mesh, (False, False, True, False))).lower(*arguments).compile()


@pytest.mark.parametrize(("topology", "tensor"), [("v5p:2x2x1", 1), ("v5e:2x2", 4)])
def test_caches_stay_where_they_are(topology, tensor):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    shapes = [(m.num_layers, ROWS, m.num_kv_heads // tensor, COLUMNS, m.head_dim) for m in (STUDENT, TEACHER)]
    cache_bytes = sum(2 * tree_bytes(jax.ShapeDtypeStruct(shape, jnp.bfloat16)) for shape in shapes)
    facts = program_facts(compiled(make_mesh(1, 1, tensor, devices=topology_devices(topology)[:tensor])), shapes)
    assert (facts.copies, facts.scatters) == (0, 0)
    assert facts.temporaries >= cache_bytes, "the caches live among the temporaries"
    assert facts.temporaries - cache_bytes <= 0.05 * cache_bytes, "no weight is held a second time"
    logits = 4 * ROWS * VOCAB
    assert facts.collective_bytes.get("all-gather", 0) <= 3 * logits, "sampling gathers the logits; no layer gathers"
