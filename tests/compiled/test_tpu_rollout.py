"""The rollout as XLA compiles it for a TPU: no cache is copied or scattered into, and temporaries are small.

Compiled ahead of time, without a TPU, at the shapes of Qwen3-0.6B and Qwen3-4B. Nothing is run.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from motab_jax.data.steps import StepAutomaton
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, weight_specs
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


def abstract(make, sharding):
    """The shapes of what `make` returns, all with this sharding."""
    return jax.tree.map(lambda x: x.update(sharding=sharding), jax.eval_shape(make))


def abstract_model(config: ModelConfig, mesh) -> Model:
    """A model in serving form, as the relayout gives it."""
    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, jnp.bfloat16, sharding=sharding),
        weight_specs(config),
        load_shardings(mesh, config),
    )
    relayout: Any = serving(mesh, config)
    return relayout.lower(params).out_info


def rollout_config() -> RolloutConfig:
    automaton = StepAutomaton(jnp.zeros((3, VOCAB), jnp.int32), jnp.zeros((3, VOCAB), bool))
    return RolloutConfig(
        automaton,
        jnp.zeros(2, jnp.int32),
        jnp.float32(0),
        jnp.float32(0),
        vocab_size=VOCAB,
        max_new_tokens=NEW,
        segment_tokens=SEGMENT,
    )


def prompts() -> Prompts:
    per_row = jnp.zeros(ROWS, jnp.int32)
    return Prompts(jnp.zeros((ROWS, PROMPT), jnp.int32), per_row, per_row, per_row)


def lower_rollout(mesh) -> jax.stages.Lowered:
    """The rollout with the monitor on, for the chips of a mesh."""
    everywhere = replicated(mesh)
    program = jax.jit(run_per_group(rollout, mesh, (False, False, True, False)))
    return program.lower(
        abstract_model(STUDENT, mesh), abstract_model(TEACHER, mesh), abstract(prompts, batch_sharding(mesh)),
        abstract(lambda: jax.random.key(0), everywhere), abstract(rollout_config, everywhere),
    )  # fmt: skip


@pytest.mark.parametrize(("topology", "tensor"), [("v5p:2x2x1", 1), ("v5e:2x2", 4)])
def test_caches_stay_where_they_are(topology, tensor):
    pytest.importorskip("libtpu", reason="needs the extra [tpu]")
    shapes = [(m.num_layers, ROWS, m.num_kv_heads // tensor, COLUMNS, m.head_dim) for m in (STUDENT, TEACHER)]
    cache_bytes = sum(2 * tree_bytes(jax.ShapeDtypeStruct(shape, jnp.bfloat16)) for shape in shapes)
    mesh = make_mesh(1, 1, tensor, devices=topology_devices(topology)[:tensor])
    facts = program_facts(lower_rollout(mesh).compile(), shapes)
    assert (facts.copies, facts.scatters) == (0, 0)
    assert facts.temporaries >= cache_bytes, "the caches live among the temporaries"
    assert facts.temporaries - cache_bytes <= 0.05 * cache_bytes, "no weight is held a second time"
    logits = 4 * ROWS * VOCAB
    assert facts.collective_bytes.get("all-gather", 0) <= 3 * logits, "sampling gathers the logits; no layer gathers"
