"""A session of shapes: what a run would work with, on devices that need not exist, without a weight in memory.

From a configuration and both models' config.json alone, so a plan needs no tokenizer: every row of the embedding counts
as a token, and the transition text as none.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.config import Config
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.models.transformer import Model, is_spec, weight_specs
from motab_jax.rollout import Prompts
from motab_jax.runtime.hub import find_folder, read_json
from motab_jax.runtime.mesh import batch_sharding, check_batch, check_heads, replicated
from motab_jax.session.placement import layout, serving
from motab_jax.session.rollout_config import rollout_config
from motab_jax.session.session import Session, model_paths, needs_teacher

STOPS = (0, 1)  # a pair's stop tokens; how many there are is all that matters


def open_shapes(config: Config, mesh: Any) -> Session:
    """The session of a run on this mesh; arrays are ShapeDtypeStructs with their shardings.

    The teacher is in the form in which it is loaded: its relayout is a program of its own.
    UserError as from `open_session`, for what config.json and the mesh alone can get wrong.
    """
    student, teacher = model_shapes(config)
    for role, shape in (("student", student), ("teacher", teacher)):
        if shape is not None:
            check_heads(mesh.shape["tensor"], *shape.heads, f"the {role}'s")
    size = student.vocab_size if teacher is None else min(student.vocab_size, teacher.vocab_size)
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"transition_text": ""})})
    numbers = rollout_config(config, [b""] * size, STOPS, mesh)
    return Session(
        config=config,
        mesh=mesh,
        student=_model(student, config.student.dtype, layout(mesh, student, "update")),
        teacher=None if teacher is None else _model(teacher, config.teacher.dtype, load_shardings(mesh, teacher)),
        tokenizer=None,
        source="",
        stop=STOPS[0],
        vocab_size=size,
        rollout=jax.tree.map(lambda x: _whole(mesh, jnp.shape(x), jnp.result_type(x)), numbers),
        serving=serving(mesh, student, scan_layers=config.rollout.scan_layers, dtype=config.rollout.serve_dtype),
    )


def model_shapes(config: Config) -> tuple[ModelConfig, ModelConfig | None]:
    """The architectures of student and teacher; None for a teacher that the run never asks."""
    student_path, teacher_path = model_paths(config, teacher=needs_teacher(config))
    teacher = _shape(teacher_path) if needs_teacher(config) and teacher_path else None
    cut = config.student.init_from_teacher
    if cut is None or teacher is None:
        return _shape(student_path), teacher
    return dataclasses.replace(teacher, num_layers=len(cut.get("layers", ()))), teacher


def _shape(path: str | Path) -> ModelConfig:
    file = find_folder(path, ["config.json"]) / "config.json"
    return ModelConfig.from_hf(read_json(file), str(file))


def _model(shape: ModelConfig, dtype: str, places: Any) -> Model:
    """A model without weights, in these places."""

    def weight(spec, place) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype), sharding=place)

    return Model(jax.tree.map(weight, weight_specs(shape), places, is_leaf=is_spec), shape)


def _whole(mesh: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def shape_of_key(mesh: Any) -> jax.ShapeDtypeStruct:
    """A PRNG key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _whole(mesh, key.shape, key.dtype)


def shape_of_prompts(config: Config, mesh: Any) -> Prompts:
    """A step's prompts, as wide as data.max_prompt_tokens lets them be."""
    rows = config.rollout.batch_size
    check_batch(mesh, rows, "rollout.batch_size")
    each = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=batch_sharding(mesh))
    table = jax.ShapeDtypeStruct((rows, config.data.max_prompt_tokens), jnp.int32, sharding=batch_sharding(mesh))
    return Prompts(table, each, each, each)


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that a tree of such shapes takes on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
