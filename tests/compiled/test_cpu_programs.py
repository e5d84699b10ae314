"""Programs as compiled for a CPU: nothing is transposed, copied into another layout, or computed once a layer."""

import jax
import jax.numpy as jnp

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.quantize import MANY_ROWS, TransposedWeight, weight_einsum
from motab_jax.models.serving import serve_params
from motab_jax.models.transformer import Model, default_positions, encode, init
from motab_jax.planning.hlo import HloProgram
from motab_jax.rollout.state import tape_columns
from tests.rollout.pair import random_prompts, run, settings, student, teacher


def unrolled(model: Model) -> Model:
    """The model in serving form, its layers a list."""
    return Model(serve_params(model.params, model.config, scan_layers=False), model.config)


def test_a_weight_is_not_transposed_for_many_rows():
    x, weight = jnp.zeros((MANY_ROWS, 32)), TransposedWeight(jnp.zeros((2, 24, 32)))
    product = jax.jit(lambda x, w: weight_einsum("td,dcf->tcf", x, w)).lower(x, weight).compile()
    program = HloProgram.of(product)
    assert program.has_array("f32", (2, 24, 32)), "the weight, as it is passed"
    assert not program.has_array("f32", (32, 2, 24)) and not program.has_array("f32", (32, 48))


def test_cosines_are_computed_once_for_all_layers():
    config = ModelConfig("qwen3", 50, 32, 48, 3, 4, 2, 8, 4096, qk_norm=True, tied=True)
    model, tokens = unrolled(Model(init(config, jax.random.key(0)), config)), jnp.ones((2, 12), jnp.int32)

    def hidden(params, tokens, positions):
        return encode(params, config, tokens, positions)[0]

    compiled = jax.jit(hidden).lower(model.params, tokens, default_positions((2, 12))).compile()
    assert HloProgram.of(compiled).count("cosine") == 1


def test_no_iteration_copies_an_unrolled_cache_into_another_layout():
    slots, config = 5, teacher().config
    prompts = random_prompts()
    numbers = settings(slots=slots, teacher_rows=2, intervention="steps", steps=2, max_interventions=3)
    models = unrolled(student()), unrolled(teacher())
    program = HloProgram.of(run.lower(*models, prompts, jax.random.key(0), numbers).compile())
    columns = tape_columns(prompts.tokens.shape[1], numbers)
    caches = {(slots, config.num_kv_heads, *dims) for dims in ((config.head_dim, columns), (columns, config.head_dim))}
    layouts = [array.layout for array in program.arrays("get-tuple-element") if array.dims in caches]
    assert len(layouts) > 20 and set(layouts) == {(3, 2, 1, 0)}
