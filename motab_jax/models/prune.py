"""Depth pruning: a student made of some of its teacher's own layers, a common way to start a distillation.

Left out: width pruning, and any choice of which layers to keep.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Params


def init_from_teacher(params: Params, config: ModelConfig, layers: Sequence[int]) -> tuple[Params, ModelConfig]:
    """A model of the given layers (numbers from 0, in this order), with the teacher's embedding, last norm and head.

    Every array is a copy, so that donating the student's buffers never deletes the teacher's.

    Raises:
      UserError: for an empty list, a layer that the teacher does not have, or one that is named twice.
    """
    _check(layers, config.num_layers)
    rows = jnp.asarray(layers, jnp.int32)
    student = {name: jax.tree.map(jnp.copy, value) for name, value in params.items() if name != "layers"}
    student["layers"] = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), params["layers"])
    return student, dataclasses.replace(config, num_layers=len(layers))


def _check(layers: Sequence[int], count: int) -> None:
    if not layers:
        raise UserError("student.init_from_teacher: layers is empty; name at least one of the teacher's layers")
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise UserError(
            f"student.init_from_teacher: layers {', '.join(map(str, wrong))}: the teacher's are 0..{count - 1}"
        )
    twice = sorted({layer for layer in layers if list(layers).count(layer) > 1})
    if twice:
        raise UserError(f"student.init_from_teacher: layers {', '.join(map(str, twice))} are named more than once")
