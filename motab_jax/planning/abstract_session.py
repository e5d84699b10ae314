"""A session of ShapeDtypeStructs: a run's session on devices that need not exist, without a weight in memory.

It needs the configuration and both models' config.json. A plan reads no tokenizer: every row of the embedding counts as
a token, and the transition text as none.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from motab_jax.config import Config
from motab_jax.data.pairs import SharedTokenizer
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import read_config
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, weight_specs
from motab_jax.rollout import Prompts
from motab_jax.runtime.mesh import batch_sharding, check_heads, padded_rows, replicated
from motab_jax.session.placement import layout, serving
from motab_jax.session.rollout_config import make_rollout_config
from motab_jax.session.session import Session, model_paths, needs_teacher

STOP_IDS = (0, 1)  # stand for the pair's stop tokens: only their number matters


def open_abstract_session(config: Config, mesh: Mesh) -> Session:
    """The session of a run on this mesh; its arrays are ShapeDtypeStructs with their shardings.

    The teacher has the layout in which it is loaded: its relayout is a program of its own.

    Raises:
      UserError: as `open_session`, for what config.json and the mesh show to be wrong.
    """
    student, teacher = model_configs(config)
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            check_heads(mesh.shape["tensor"], *model.heads, f"the {role}'s")
    vocab_size = student.vocab_size if teacher is None else min(student.vocab_size, teacher.vocab_size)
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"transition_text": ""})})
    rollout_config = make_rollout_config(config, [b""] * vocab_size, STOP_IDS, mesh)
    return Session(
        config=config,
        mesh=mesh,
        student=_abstract_model(student, config.student.dtype, layout(mesh, student, "update")),
        teacher=None
        if teacher is None
        else _abstract_model(teacher, config.teacher.dtype, load_shardings(mesh, teacher)),
        shared=SharedTokenizer(None, vocab_size, STOP_IDS[0], tuple(STOP_IDS)),
        source="",
        rollout_config=jax.tree.map(
            lambda x: _replicated_array(mesh, jnp.shape(x), jnp.result_type(x)), rollout_config
        ),
        to_serving=serving(mesh, student, scan_layers=config.rollout.scan_layers, dtype=config.rollout.serve_dtype),
    )


def model_configs(config: Config) -> tuple[ModelConfig, ModelConfig | None]:
    """The architectures of student and teacher; None for a teacher that the run does not use."""
    student_path, teacher_path = model_paths(config, teacher=needs_teacher(config))
    teacher = read_config(teacher_path) if needs_teacher(config) and teacher_path else None
    layers = config.student.init_from_teacher
    if layers is None or teacher is None:
        return read_config(student_path), teacher
    return dataclasses.replace(teacher, num_layers=len(layers.get("layers", ()))), teacher


def _abstract_model(config: ModelConfig, dtype: str, shardings: Any) -> Model:
    """A model whose weights are shapes with these shardings."""

    def weight(spec, sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype), sharding=sharding)

    return Model(jax.tree.map(weight, weight_specs(config), shardings), config)


def _replicated_array(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def abstract_key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape of a PRNG key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _replicated_array(mesh, key.shape, key.dtype)


def abstract_prompts(config: Config, mesh: Mesh, rows: int) -> Prompts:
    """The shapes of a batch of at least `rows` prompts, as wide as data.max_prompt_tokens allows."""
    rows, columns = padded_rows(mesh, rows), config.data.max_prompt_tokens

    def prompts() -> Prompts:
        per_row = jnp.zeros((rows,), jnp.int32)
        return Prompts(jnp.zeros((rows, columns), jnp.int32), per_row, per_row, per_row)

    return jax.tree.map(lambda x: x.update(sharding=batch_sharding(mesh)), jax.eval_shape(prompts))
