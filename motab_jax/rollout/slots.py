"""Who sits in which slot, and whose turn it is: N rows share B slots, and the teacher is called for many rows at once.

A row that has finished leaves its slot to the next prompt. A row that waits for the teacher keeps its slot, with all
that the caches hold of it, unless a fresh prompt could use it; then it is parked, and its text is read again when it
comes back. None of this changes what is written: a token depends on its row's text, id, rewinds and position alone.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.rollout.config import UNLIMITED
from motab_jax.rollout.monitor import OpenStep, open_step
from motab_jax.rollout.rows import gather_rows, scatter_rows
from motab_jax.rollout.write_subset import longest_remaining

STUDENT_WRITES, TEACHER_WRITES, DONE = range(3)
READ = 3  # a turn in which known text is read


@flax.struct.dataclass
class Rows:
    """What is known of each row whether or not it has a slot; N rows, T text columns."""

    text: jax.Array  # i32[N,T]; prompt and kept completion, from column 0 on
    known: jax.Array  # i32[N]; tokens of it that stand
    offset: jax.Array  # i32[N]; tokens of the prompt
    limit: jax.Array  # i32[N]; tokens the text may have
    phase: jax.Array  # i32[N]; STUDENT_WRITES, TEACHER_WRITES, DONE
    seated: jax.Array  # bool[N]; it has, or had, a slot and was not parked


@flax.struct.dataclass
class Slots:
    """Who sits where; B slots."""

    row: jax.Array  # i32[B]; N: nobody
    position: jax.Array  # i32[B]; tokens of the row's text that the tape holds
    automaton: jax.Array  # i32[B]; state of the delimiter scan
    budget: jax.Array  # i32[B]; steps the teacher may still end
    open: OpenStep


def assign_first(rows: int, slots: int) -> Slots:
    """The first rows in the slots, in their order, nothing of them read."""
    zero = jnp.zeros((slots,), jnp.int32)
    return Slots(jnp.minimum(jnp.arange(slots, dtype=jnp.int32), rows), zero, zero, zero, open_step(slots))


def phases(rows: Rows, slots: Slots, row) -> jax.Array:
    """i32[B]: the phase of each slot's row; DONE for an empty slot."""
    found = gather_rows(rows.phase, row)
    return found if row is None else jnp.where(slots.row < rows.phase.shape[0], found, DONE)


def teacher_is_called(rows: Rows, teaching: jax.Array, threshold: int) -> jax.Array:
    """bool[]: the teacher is called when `threshold` rows wait or nobody else can go on, and stays till none waits."""
    waiting = jnp.sum(rows.phase == TEACHER_WRITES)
    alone = ~jnp.any(rows.phase == STUDENT_WRITES)
    return (waiting > 0) & (teaching | alone | (waiting >= threshold))


def refill(rows: Rows, slots: Slots, teaching: jax.Array, budget: int) -> tuple[Rows, Slots, jax.Array]:
    """Seat waiting rows in free slots; also returns which slots changed hands, bool[B].

    While the teacher writes, parked rows come first, otherwise fresh ones, for which a waiting row is even parked.
    """
    count = rows.phase.shape[0]
    fresh, parked = ((rows.phase == who) & ~rows.seated for who in (STUDENT_WRITES, TEACHER_WRITES))
    later = jnp.where(teaching, fresh, parked)
    work = jnp.argsort(jnp.where(fresh | parked, later.astype(jnp.int32), 2), stable=True).astype(jnp.int32)
    jobs = jnp.sum(fresh | parked)
    phase = phases(rows, slots, slots.row)
    empty, waits = phase == DONE, (phase == TEACHER_WRITES) & ~teaching
    rank = jnp.where(empty, jnp.cumsum(empty), jnp.sum(empty) + jnp.cumsum(waits)) - 1
    job = jnp.take(work, jnp.minimum(rank, count - 1))
    seat = (rank < jobs) & (empty | (waits & jnp.take(fresh, job)))
    seated = rows.seated.at[jnp.where(seat & waits, slots.row, count)].set(False, mode="drop")
    rows = rows.replace(seated=seated.at[jnp.where(seat, job, count)].set(True, mode="drop"))
    return rows, _sit(rows, slots, jnp.where(seat, job, slots.row), seat, budget), seat


def _sit(rows: Rows, slots: Slots, row, seat, budget: int) -> Slots:
    """The slots with their new rows, at the beginning of their texts."""
    zero = jnp.zeros_like(slots.position)
    taught = gather_rows(rows.phase, row) == TEACHER_WRITES
    found = Slots(row, zero, zero, jnp.where(taught, budget, UNLIMITED), open_step(zero.shape[0]))
    return jax.tree.map(lambda new, old: jnp.where(seat, new, old), found, slots)


def choose_iteration(rows: Rows, slots: Slots, row, teaching, last, most: int = 0) -> tuple[jax.Array, jax.Array]:
    """The turn i32[] (READ, STUDENT_WRITES or TEACHER_WRITES) and who takes part, bool[B].

    Known text is read in one pass where at least half of those at work have some to read; the few others' enters as
    forced columns while the rest writes. Student and teacher take turns. last i32[]: the turn before; most: slots that
    the teacher writes in at a time (0: all).
    """
    phase = phases(rows, slots, row)
    students, taught = phase == STUDENT_WRITES, (phase == TEACHER_WRITES) & teaching
    at_work = students | taught
    reading = at_work & (gather_rows(rows.known, row) - slots.position > 1)
    read = jnp.any(reading) & (2 * jnp.sum(reading) >= jnp.sum(at_work))
    student = jnp.any(students) & (~jnp.any(taught) | (last != STUDENT_WRITES))
    left = gather_rows(rows.limit - rows.known, row)
    turn = jnp.where(read, READ, jnp.where(student, STUDENT_WRITES, TEACHER_WRITES))
    part = jnp.where(read, at_work, jnp.where(student, students, longest_remaining(taught, left, most)))
    return turn, part


def update_rows(rows: Rows, row, change: jax.Array, **values) -> Rows:
    """The rows with the named fields set to values [B] in the slots `change` bool[B]."""

    def put(name: str) -> jax.Array:
        table = getattr(rows, name)
        return scatter_rows(table, row, jnp.where(change, values[name], gather_rows(table, row)))

    return rows.replace(**{name: put(name) for name in values})
