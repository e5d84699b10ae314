"""The rollout as XLA compiles it for a TPU: caches are neither copied nor scattered into, and little else is held.

Compiled ahead of time, without a TPU, at the shapes of Qwen3-0.6B and Qwen3-4B. Nothing is run.
"""

import jax
import jax.numpy as jnp
import pytest

from motab_jax.data.steps import StepAutomaton
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, is_spec, weight_specs
from motab_jax.planning import hlo
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

    def array(shape, dtype, place=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh) if place is None else place)

    def model(shape: ModelConfig) -> Model:
        places = load_shardings(mesh, shape)
        params = jax.tree.map(
            lambda x, p: array(x.shape, jnp.bfloat16, p), weight_specs(shape), places, is_leaf=is_spec
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


@pytest.mark.parametrize(("topology", "ways"), [("v5p:2x2x1", 1), ("v5e:2x2", 4)])
def test_caches_stay_where_they_are(topology, ways):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    shapes = [(m.num_layers, ROWS, m.num_kv_heads // ways, COLUMNS, m.head_dim) for m in (STUDENT, TEACHER)]
    held = sum(2 * hlo.size(jax.ShapeDtypeStruct(shape, jnp.bfloat16)) for shape in shapes)
    found = hlo.facts(compiled(make_mesh(1, 1, ways, devices=hlo.devices(topology)[:ways])), shapes)
    assert (found.copies, found.scatters) == (0, 0)
    assert found.temporaries >= held, "the caches live among the temporaries"
    assert found.temporaries - held <= 0.05 * held, "no weight is there a second time"
    logits = 4 * ROWS * VOCAB
    assert found.moved.get("all-gather", 0) <= 3 * logits, "a token to be drawn needs all logits; no layer gathers"


def test_the_search_for_copies_sees_what_it_should():
    text = """
      %a = bf16[2,4,8]{2,1,0} copy(%p)
      %b = bf16[1,4,2,8]{2,1,0,3} transpose(%p)
      %c = bf16[2,4,8]{2,1,0} scatter(%p, %q, %r)
      %d = bf16[2,4,9]{2,1,0} copy(%p)
      %e = bf16[2,4,8]{2,1,0} dynamic-update-slice(%p, %q)
      %f = f32[3]{0} all-gather-start(%p)
      %g = f32[3]{0} all-reduce(%p)
    """
    counts = hlo.whole_copies(text, [(2, 4, 8)])
    assert (counts["copy"], counts["scatter"]) == (2, 1)
    assert hlo.collectives(text) == {"all-gather": 1, "all-reduce": 1}
