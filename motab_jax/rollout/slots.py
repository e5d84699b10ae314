"""Which row is in which slot, and what an iteration does: N rows share B slots.

A finished row leaves its slot to the next prompt. A row that waits for the teacher keeps its slot, with its cache,
unless a fresh prompt could use the slot; then the row is parked, and its tokens are prefilled again when it gets a
slot back. None of this changes what is generated: a token depends on its row's tokens, id, rewinds and position alone.
"""

import enum

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, Shaped

from motab_jax.rollout.config import UNLIMITED
from motab_jax.rollout.decode_subset import longest_remaining
from motab_jax.rollout.monitor import OpenStep, open_step
from motab_jax.rollout.rows import gather_rows, scatter_rows


class Phase(enum.IntEnum):
    """Which model generates next in a row, and what an iteration does."""

    STUDENT_GENERATES = 0
    TEACHER_GENERATES = 1
    DONE = 2  # of a row
    PREFILL = 3  # of an iteration: known tokens enter the caches


class Rows(flax.struct.PyTreeNode):
    """The state of each row, with or without a slot; N rows, T columns for prompt and completion."""

    tokens: Int32[Array, "N T"]  # prompt and kept completion, from column 0 on
    num_tokens: Int32[Array, "N"]  # of them in use
    prompt_length: Int32[Array, "N"]
    limit: Int32[Array, "N"]  # tokens the row may have, the prompt included
    phase: Int32[Array, "N"]  # a Phase: STUDENT_GENERATES, TEACHER_GENERATES or DONE
    assigned: Bool[Array, "N"]  # the row has, or had, a slot and is not parked


class Slots(flax.struct.PyTreeNode):
    """The state of each slot."""

    row: Int32[Array, "B"]  # N: empty
    position: Int32[Array, "B"]  # tokens of the row that the tape holds
    automaton: Int32[Array, "B"]  # state of the step automaton
    budget: Int32[Array, "B"]  # steps that the teacher may still end
    open_step: OpenStep


def assign_first(rows: int, slots: int) -> Slots:
    """The first rows in the slots, in their order, with nothing on the tape."""
    zero = jnp.zeros((slots,), jnp.int32)
    return Slots(jnp.minimum(jnp.arange(slots, dtype=jnp.int32), rows), zero, zero, zero, open_step(slots))


def phase_of_slots(rows: Rows, slots: Slots, row: Int[Array, "B"] | None) -> Int32[Array, "B"]:
    """The phase of each slot's row; DONE for an empty slot. row: see rows.py."""
    phase = gather_rows(rows.phase, row)
    return phase if row is None else jnp.where(slots.row < rows.phase.shape[0], phase, Phase.DONE)


def call_teacher(rows: Rows, called: Bool[Array, ""], threshold: int) -> Bool[Array, ""]:
    """Whether the teacher generates: from when `threshold` rows wait, or no other row can go on, until none waits."""
    waiting = jnp.sum(rows.phase == Phase.TEACHER_GENERATES)
    no_other = ~jnp.any(rows.phase == Phase.STUDENT_GENERATES)
    return (waiting > 0) & (called | no_other | (waiting >= threshold))


def refill(
    rows: Rows, slots: Slots, teacher_called: Bool[Array, ""], budget: int
) -> tuple[Rows, Slots, Bool[Array, "B"]]:
    """Assign rows without a slot to free slots.

    While the teacher generates, parked rows come first; otherwise fresh ones, for which a waiting row is even parked.

    Args:
      rows: all rows.
      slots: all slots.
      teacher_called: whether the teacher generates now.
      budget: steps of an intervention, for parked rows.

    Returns:
      The rows, the slots, and which slots hold another row than before.
    """
    count = rows.phase.shape[0]
    fresh = (rows.phase == Phase.STUDENT_GENERATES) & ~rows.assigned
    parked = (rows.phase == Phase.TEACHER_GENERATES) & ~rows.assigned
    second = jnp.where(teacher_called, fresh, parked)
    queue = jnp.argsort(jnp.where(fresh | parked, second.astype(jnp.int32), 2), stable=True).astype(jnp.int32)
    queued = jnp.sum(fresh | parked)
    phase = phase_of_slots(rows, slots, slots.row)
    empty, waits = phase == Phase.DONE, (phase == Phase.TEACHER_GENERATES) & ~teacher_called
    rank = jnp.where(empty, jnp.cumsum(empty), jnp.sum(empty) + jnp.cumsum(waits)) - 1
    candidate = jnp.take(queue, jnp.minimum(rank, count - 1))
    change = (rank < queued) & (empty | (waits & jnp.take(fresh, candidate)))
    assigned = rows.assigned.at[jnp.where(change & waits, slots.row, count)].set(False, mode="drop")
    rows = rows.replace(assigned=assigned.at[jnp.where(change, candidate, count)].set(True, mode="drop"))
    row = jnp.where(change, candidate, slots.row)
    zero = jnp.zeros_like(slots.position)
    in_intervention = gather_rows(rows.phase, row) == Phase.TEACHER_GENERATES
    new = Slots(row, zero, zero, jnp.where(in_intervention, budget, UNLIMITED), open_step(zero.shape[0]))
    return rows, jax.tree.map(lambda x, old: jnp.where(change, x, old), new, slots), change


def choose_iteration(
    rows: Rows,
    slots: Slots,
    row: Int[Array, "B"] | None,
    teacher_called: Bool[Array, ""],
    previous: Int[Array, ""],
    teacher_rows: int = 0,
) -> tuple[Int[Array, ""], Bool[Array, "B"]]:
    """What the next iteration does, and in which slots.

    Known tokens are prefilled in one pass where at least half of the working slots have some; otherwise those few
    slots' tokens enter as forced columns while the other slots decode. Student and teacher alternate.

    Args:
      rows: all rows.
      slots: all slots.
      row: the slots' rows, see rows.py.
      teacher_called: whether the teacher generates now.
      previous: the Phase of the iteration before.
      teacher_rows: slots that the teacher decodes at a time; 0: all.

    Returns:
      A Phase (PREFILL, STUDENT_GENERATES or TEACHER_GENERATES), and the active slots.
    """
    phase = phase_of_slots(rows, slots, row)
    by_student, by_teacher = phase == Phase.STUDENT_GENERATES, (phase == Phase.TEACHER_GENERATES) & teacher_called
    working = by_student | by_teacher
    behind = working & (gather_rows(rows.num_tokens, row) - slots.position > 1)
    prefill = jnp.any(behind) & (2 * jnp.sum(behind) >= jnp.sum(working))
    student = jnp.any(by_student) & (~jnp.any(by_teacher) | (previous != Phase.STUDENT_GENERATES))
    remaining = gather_rows(rows.limit - rows.num_tokens, row)
    generating = jnp.where(student, Phase.STUDENT_GENERATES, Phase.TEACHER_GENERATES)
    active = jnp.where(student, by_student, longest_remaining(by_teacher, remaining, teacher_rows))
    return jnp.where(prefill, Phase.PREFILL, generating), jnp.where(prefill, working, active)


def update_rows(
    rows: Rows, row: Int[Array, "B"] | None, change: Bool[Array, "B"], **values: Shaped[Array, "B"] | int
) -> Rows:
    """The rows with the named fields set to `values` in the slots of `change`."""

    def put(name: str) -> jax.Array:
        table = getattr(rows, name)
        return scatter_rows(table, row, jnp.where(change, values[name], gather_rows(table, row)))

    return rows.replace(**{name: put(name) for name in values})
