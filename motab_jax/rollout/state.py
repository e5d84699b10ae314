"""The state that a rollout's loop carries, and its initial value."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import Prompts, RolloutConfig
from motab_jax.rollout.decode import ModelState, Segment
from motab_jax.rollout.slots import Phase, Rows, Slots, assign_first
from motab_jax.rollout.tape import Tape, empty_tape
from motab_jax.rollout.teacher_scores import empty_scores
from motab_jax.rollout.trajectory import Trajectory, empty_trajectory


class RolloutState(flax.struct.PyTreeNode):
    """The loop's carry."""

    tape: Tape
    student: ModelState
    teacher: ModelState | None
    log: Trajectory
    rows: Rows
    slots: Slots
    teacher_called: Bool[Array, ""]
    previous: Int[Array, ""]  # Phase of the iteration before


def initial_state(
    student: Model, teacher: Model | None, log: Trajectory, prompts: Prompts, config: RolloutConfig, slots: int
) -> RolloutState:
    """An empty tape and the first rows in the slots; every row begins with the student.

    Args:
      student: the model that generates.
      teacher: None: no teacher is in the loop.
      log: from `empty_log`.
      prompts: N rows.
      config: the rollout's configuration.
      slots: B, at most N.
    """
    rows, columns = prompts.tokens.shape[0], tape_columns(prompts.tokens.shape[1], config)
    return RolloutState(
        tape=empty_tape(slots, columns),
        student=_empty_model_state(student, slots, columns),
        teacher=None if teacher is None else _empty_model_state(teacher, slots, columns),
        log=log,
        rows=_initial_rows(prompts, config, slots),
        slots=assign_first(rows, slots),
        teacher_called=jnp.array(False),
        previous=jnp.int32(Phase.PREFILL),
    )


def tape_columns(width: int, config: RolloutConfig) -> int:
    """Columns of the tape: prompt and completion, and a quarter of a completion (or a segment) between two packings."""
    return width + config.max_new_tokens + max(config.segment_tokens, config.max_new_tokens // 4)


def cache_bytes(student: Model | None, teacher: Model | None, prompts: Prompts, config: RolloutConfig) -> int:
    """Bytes of the caches that a rollout of these prompts holds, on all devices together."""
    slots = min(config.slots or len(prompts.lengths), len(prompts.lengths))
    cells = 2 * slots * tape_columns(prompts.tokens.shape[1], config)
    return sum(
        cells * m.config.num_layers * m.config.num_kv_heads * m.config.head_dim * m.dtype.itemsize
        for m in (student, None if config.teacher_scores_after else teacher)
        if m is not None
    )


def _empty_model_state(model: Model, slots: int, columns: int) -> ModelState:
    return ModelState(model.cache(slots, columns), jnp.zeros((slots, model.config.width), model.dtype))


def empty_log(teacher: Model | None, prompts: Prompts, config: RolloutConfig) -> Trajectory:
    """Trajectories with nothing generated, with space for the targets that config names."""
    width = prompts.tokens.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)[None] - (width - prompts.lengths[:, None])
    entries = config.max_new_tokens + config.max_discarded + config.segment_tokens
    kept_width, dtype = 0, config.targets.dtype or jnp.float32
    if teacher is not None and config.targets.kind == "hidden":
        kept_width, dtype = teacher.config.width, config.targets.dtype or teacher.dtype
    return empty_trajectory(
        prompts.tokens, jnp.maximum(index, -1), entries, config.max_rewinds, kept_width, dtype,
        top_k=0 if teacher is None else config.targets_k,
    )  # fmt: skip


def _initial_rows(prompts: Prompts, config: RolloutConfig, slots: int) -> Rows:
    """The rows with their prompts moved to column 0."""
    rows, width = prompts.tokens.shape
    index = jnp.arange(width, dtype=jnp.int32)[None] + (width - prompts.lengths[:, None])
    tokens = jnp.take_along_axis(prompts.tokens, jnp.minimum(index, width - 1), axis=1)
    limits = jnp.full_like(prompts.lengths, config.max_new_tokens)
    limits = limits if prompts.limits is None else jnp.minimum(prompts.limits, limits)
    return Rows(
        tokens=jnp.pad(tokens, ((0, 0), (0, config.max_new_tokens + config.segment_tokens))),
        num_tokens=prompts.lengths,
        prompt_length=prompts.lengths,
        limit=prompts.lengths + limits,
        phase=jnp.where(limits > 0, Phase.STUDENT_GENERATES, Phase.DONE),
        assigned=jnp.arange(rows) < slots,
    )


def empty_segment(student: Model, teacher: Model | None, config: RolloutConfig, slots: int) -> Segment:
    """A segment without tokens."""
    shape = (slots, config.segment_tokens)
    empty, width = jnp.zeros(shape, bool), 0 if teacher is None else teacher.config.width
    compares = teacher is not None and config.monitor.enabled and config.monitor.needs_student
    return Segment(
        tokens=jnp.zeros(shape, jnp.int32),
        alive=empty,
        forced=empty,
        stop=empty,
        closes=empty,
        hidden=jnp.zeros((*shape, width), jnp.float32 if teacher is None else teacher.dtype),
        student_hidden=jnp.zeros((*shape, student.config.width if compares else 0), student.dtype),
        scores=empty_scores(shape, 0 if teacher is None else config.targets_k),
    )
