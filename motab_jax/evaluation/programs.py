"""An evaluation's jitted programs, and how many completions they generate at a time.

Left out: what is done with the completions (evaluator.py).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motab_jax.config.prompts import EvalSection
from motab_jax.distill import Objective, TokenLoss, build_targets
from motab_jax.distill.objective import batch_loss, token_weights
from motab_jax.models.transformer import Model
from motab_jax.rollout import RolloutConfig, Trajectory, rollout
from motab_jax.rollout.config import SamplingSpec
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.state import tape_columns
from motab_jax.runtime.hosts import from_main
from motab_jax.runtime.mesh import batch_shard_count, bytes_per_device, device_memory, padded_rows
from motab_jax.session.session import Session

DEFAULT_ROWS = 128  # completions at a time where the memory is not known
MOST_ROWS_PER_GROUP = 64  # a device decodes more no faster
MEMORY_SHARE = 0.7  # of a device's memory, for what is counted here; the rest is for temporaries


@dataclasses.dataclass(frozen=True)
class EvaluationPrograms:
    """The programs of an evaluation; each compiles once a run."""

    rows: int  # completions at a time
    rollout_config: RolloutConfig
    generate: Callable  # jitted: (student, teacher or None, prompts, key, config) -> trajectories
    reverse_kl: Callable | None  # jitted: (student, teacher, trajectories) -> see _reverse_kl_sum; None: not requested


def make_evaluation_programs(
    session: Session, section: EvalSection, *, memory: float | None = None
) -> EvaluationPrograms:
    """The programs of one benchmark; nothing is compiled yet, and the models' weights may be ShapeDtypeStructs.

    Args:
      session: the models and the mesh.
      section: sampling, batch size and whether the reverse KL is requested.
      memory: bytes of a device; None: as the device says.
    """
    rollout_config = session.rollout_config.replace(
        monitor=dataclasses.replace(session.rollout_config.monitor, enabled=False),
        score_after=True,
        targets=dataclasses.replace(session.rollout_config.targets, kind="hidden", dtype=None),
        sampling=SamplingSpec(section.temperature, 0, section.top_p),
        max_new_tokens=section.max_new_tokens or session.config.rollout.max_new_tokens,
    )

    per_group = run_per_group(rollout, session.mesh, (False, False, True, False))

    def generate_to_evaluate(*arguments):  # compilations are counted by the function's name
        return per_group(*arguments)

    reverse_kl = None
    if section.reverse_kl:
        groups = batch_shard_count(session.mesh)
        reverse_kl = jax.jit(functools.partial(_reverse_kl_sum, vocab_size=session.vocab_size, groups=groups))
    rows = section.batch_size or _rows_that_fit(session, section, rollout_config, memory)
    return EvaluationPrograms(rows, rollout_config, jax.jit(generate_to_evaluate), reverse_kl)


def _reverse_kl_sum(
    student: Model, teacher: Model, trajectory: Trajectory, *, vocab_size: int, groups: int
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum over all tokens of KL(student || teacher) in nats, and the number of tokens.

    groups: shards of the rows, each of which computes its own tokens' logits.
    """
    objective = Objective(student=TokenLoss("reverse_kl"), vocab_size=vocab_size)
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    weight = token_weights(batch.kinds, objective)
    _, sums = batch_loss(student.params, student.config, teacher, batch, weight, objective, groups=groups)
    return jnp.sum(sums), jnp.sum(batch.kinds > 0)


def _rows_that_fit(session: Session, section: EvalSection, rollout_config: RolloutConfig, memory: float | None) -> int:
    """Completions whose caches fit beside a training run's arrays; DEFAULT_ROWS where the memory isn't known."""
    memory = memory or device_memory(session.mesh)
    if memory is None:
        return DEFAULT_ROWS
    student, teacher, tensor = session.student, session.teacher, session.mesh.shape["tensor"]
    moments = sum(8 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(student.params))
    served = jax.eval_shape(session.to_serving, student.params)
    serving = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(served.params)) / tensor
    used = bytes_per_device(student.params) + moments + serving
    used += 0 if teacher is None else bytes_per_device(teacher.params)
    model, columns = student.config, tape_columns(session.config.data.max_prompt_tokens, rollout_config)
    heads = max(model.num_kv_heads / tensor, 1)
    row = 2 * columns * model.num_layers * heads * model.head_dim * served.dtype.itemsize
    row += 3 * 4 * session.vocab_size / tensor  # logits, and what sampling makes of them
    if section.reverse_kl and teacher is not None:
        row += 2 * columns * teacher.config.width * teacher.dtype.itemsize
    per_group = min(max(int((MEMORY_SHARE * memory - used) / row), 1), MOST_ROWS_PER_GROUP)
    return from_main(padded_rows(session.mesh, per_group * batch_shard_count(session.mesh)))
