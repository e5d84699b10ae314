"""The state that a rollout's loop carries, and what it is in the beginning."""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import Prompts, RolloutConfig
from motab_jax.rollout.decode import ModelState, Segment
from motab_jax.rollout.slots import DONE, READ, STUDENT_WRITES, Rows, Slots, assign_first
from motab_jax.rollout.tape import Tape, start
from motab_jax.rollout.teacher_scores import empty_scores
from motab_jax.rollout.trajectory import Trajectory, empty_trajectory


@flax.struct.dataclass
class RolloutState:
    """The loop's carry."""

    tape: Tape
    student: ModelState
    teacher: ModelState | None
    log: Trajectory
    rows: Rows
    slots: Slots
    teaching: jax.Array  # bool[]; the teacher has been called
    last: jax.Array  # i32[]; the turn before


def begin(
    student: Model, teacher: Model | None, log: Trajectory, prompts: Prompts, config: RolloutConfig, slots: int
) -> RolloutState:
    """Nothing on the tape, the first rows in the slots; the student has the word."""
    rows, columns = prompts.tokens.shape[0], tape_columns(prompts, config)
    nothing = jnp.zeros((slots, 0), jnp.int32)
    return RolloutState(
        tape=start(nothing, nothing, columns),
        student=_reader(student, slots, columns),
        teacher=None if teacher is None else _reader(teacher, slots, columns),
        log=log,
        rows=_rows(prompts, config, slots),
        slots=assign_first(rows, slots),
        teaching=jnp.array(False),
        last=jnp.int32(READ),
    )


def tape_columns(prompts: Prompts, config: RolloutConfig) -> int:
    """Columns of the tape: the longest text, and room to write on between two packings."""
    return prompts.tokens.shape[1] + config.max_new_tokens + max(config.segment_tokens, config.max_new_tokens // 4)


def cache_bytes(student: Model | None, teacher: Model | None, prompts: Prompts, config: RolloutConfig) -> int:
    """Bytes of the caches that a rollout of these prompts holds, on all devices together."""
    slots = min(config.slots or len(prompts.lengths), len(prompts.lengths))
    cells = 2 * slots * tape_columns(prompts, config)
    return sum(
        cells * m.config.num_layers * m.config.num_kv_heads * m.config.head_dim * m.dtype.itemsize
        for m in (student, None if config.teacher_scores_after else teacher)
        if m is not None
    )


def _reader(model: Model, slots: int, columns: int) -> ModelState:
    return ModelState(model.cache(slots, columns), jnp.zeros((slots, model.config.width), model.dtype))


def empty_log(teacher: Model | None, prompts: Prompts, config: RolloutConfig) -> Trajectory:
    """Trajectories with nothing written, with room for the targets that config names."""
    width = prompts.tokens.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)[None] - (width - prompts.lengths[:, None])
    entries = config.max_new_tokens + config.max_discarded + config.segment_tokens
    kept = teacher is not None and config.targets.kind == "hidden"
    return empty_trajectory(
        prompts.tokens, jnp.maximum(index, -1), entries, config.max_rewinds, teacher.config.width if kept else 0,
        jnp.float32 if teacher is None else config.targets.dtype or teacher.dtype,
        top_k=0 if teacher is None else config.targets_k,
    )  # fmt: skip


def _rows(prompts: Prompts, config: RolloutConfig, slots: int) -> Rows:
    rows, width = prompts.tokens.shape
    place = jnp.arange(width, dtype=jnp.int32)[None] + (width - prompts.lengths[:, None])
    text = jnp.take_along_axis(prompts.tokens, jnp.minimum(place, width - 1), axis=1)
    most = jnp.full_like(prompts.lengths, config.max_new_tokens)
    limits = most if prompts.limits is None else jnp.minimum(prompts.limits, most)
    return Rows(
        text=jnp.pad(text, ((0, 0), (0, config.max_new_tokens + config.segment_tokens))),
        known=prompts.lengths,
        offset=prompts.lengths,
        limit=prompts.lengths + limits,
        phase=jnp.where(limits > 0, STUDENT_WRITES, DONE),
        seated=jnp.arange(rows) < slots,
    )


def empty_segment(student: Model, teacher: Model | None, config: RolloutConfig, slots: int) -> Segment:
    """A segment with nothing in it."""
    shape = (slots, config.segment_tokens)
    no, width = jnp.zeros(shape, bool), 0 if teacher is None else teacher.config.width
    hidden = jnp.zeros((*shape, width), jnp.float32 if teacher is None else teacher.dtype)
    scores = empty_scores(shape, 0 if teacher is None else config.targets_k)
    compares = teacher is not None and config.monitor.enabled and config.monitor.needs_student
    mine = jnp.zeros((*shape, student.config.width if compares else 0), student.dtype)
    return Segment(jnp.zeros(shape, jnp.int32), no, no, no, no, hidden, mine, scores)
