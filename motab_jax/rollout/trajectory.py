"""The trajectory: everything that was written, in the order of writing, and what became of it.

It is a log that only grows. A backtracked token stays in it, marked with the rewind that discarded it, so the stitched
target, the spliced target and the record are all read from one place.
"""

import enum

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.topk import TopK
from motab_jax.rollout.counters import Counters, zero_counts
from motab_jax.rollout.rows import compact_left, gather_rows, scatter_rows, scatter_windows, take_per_row
from motab_jax.rollout.teacher_scores import TokenScores
from motab_jax.runtime.mesh import replicate_in_group, shard_over_tensor

KEPT = -1


class FinishReason(enum.IntEnum):
    """Why a completion ended."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    MONITOR = 3  # a breach ended it (backtrack.intervention=stop)

    @property
    def word(self) -> str:
        """The word that a record has for it."""
        return self.name.lower()


@flax.struct.dataclass
class StepTable:
    """Steps in the order they ended; B rows, M entries. Places are indices into the log."""

    start: jax.Array  # i32[B,M]; first token
    end: jax.Array  # i32[B,M]; one past the last token (a stop token is never inside)
    source: jax.Array  # i32[B,M]; Source.STUDENT or Source.TEACHER
    value: jax.Array  # f32[B,M]; V_k in (0,1], or another signal's mean
    entropy: jax.Array  # f32[B,M]; H_k in nats
    boundary: jax.Array  # f32[B,M]; eps_k
    stray: jax.Array  # bool[B,M]
    discarded_by: jax.Array  # i32[B,M]; number of the rewind, KEPT where none
    count: jax.Array  # i32[B]; entries in use


@flax.struct.dataclass
class Trajectory:
    """The result of a rollout; B rows, P prompt columns, E log entries, R rewinds at most.

    What is kept of the teacher's distributions is a choice: its states (D teacher width), its K likeliest tokens, or
    neither.
    """

    prompt_tokens: jax.Array  # i32[B,P]; left-padded
    prompt_positions: jax.Array  # i32[B,P]; -1: padding
    tokens: jax.Array  # i32[B,E]
    sources: jax.Array  # i32[B,E]; Source.STUDENT or Source.TEACHER
    teacher_logprob: jax.Array  # f32[B,E]; log p_T(token | its context at the time), temperature 1
    teacher_hidden: jax.Array  # [B,E,D]; the teacher's final hidden state that predicts the token (D = 0: not kept)
    teacher_topk: TopK | None  # [B,E,K]; the K likeliest tokens in its place
    discarded_by: jax.Array  # i32[B,E]; number of the rewind that dropped the token, KEPT where none
    length: jax.Array  # i32[B]; log entries in use
    steps: StepTable
    num_rewinds: jax.Array  # i32[B]
    rewind_at: jax.Array  # i32[B,R]; log length when the rewind happened
    breach_step: jax.Array  # i32[B,R]; the breaching step's entry in the step table
    root_step: jax.Array  # i32[B,R]; the root step's entry in the step table
    finish: jax.Array  # i32[B]; a FinishReason
    counters: Counters

    @property
    def target_bytes(self) -> int:
        """Bytes that a token's teacher target takes."""
        stores = jax.tree.leaves((self.teacher_hidden, self.teacher_topk))
        return sum(x.dtype.itemsize * x.shape[-1] for x in stores)

    def slim(self) -> "Trajectory":
        """The trajectory without the teacher's distributions: what is worth fetching to the host."""
        return self.replace(teacher_hidden=None, teacher_topk=None)

    @property
    def used(self) -> jax.Array:
        """bool[B,E]: log entries that were written."""
        return jnp.arange(self.tokens.shape[1])[None] < self.length[:, None]

    @property
    def kept(self) -> jax.Array:
        """bool[B,E]: log entries that belong to the completion."""
        return self.used & (self.discarded_by == KEPT)


def empty_steps(rows: int, entries: int) -> StepTable:
    """A step table with no step in it."""
    count, real = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows, entries), jnp.float32)
    nobody = jnp.full((rows, entries), KEPT, jnp.int32)
    return StepTable(count, count, count, real, real, real, real > 0, nobody, jnp.zeros((rows,), jnp.int32))


def empty_trajectory(
    prompts: jax.Array, positions: jax.Array, entries: int, rewinds: int, width: int, dtype, *, top_k: int = 0
) -> Trajectory:
    """A trajectory with nothing written after the prompts i32[B,P]; `dtype` is that of the teacher's distributions."""
    rows = prompts.shape[0]
    every, each = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows,), jnp.int32)
    table = jnp.zeros((rows, max(rewinds, 1)), jnp.int32)
    likeliest = (rows, entries, top_k)
    return Trajectory(
        prompt_tokens=prompts,
        prompt_positions=positions,
        tokens=every,
        sources=every,
        teacher_logprob=jnp.zeros((rows, entries), jnp.float32),
        teacher_hidden=shard_over_tensor(jnp.zeros((rows, entries, width), dtype), 2),
        teacher_topk=TopK(jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest, dtype)) if top_k else None,
        discarded_by=jnp.full((rows, entries), KEPT, jnp.int32),
        length=each,
        steps=empty_steps(rows, entries),
        num_rewinds=each,
        rewind_at=table,
        breach_step=table,
        root_step=table,
        finish=each,
        counters=zero_counts(),
    )


def extend(log: Trajectory, tokens, scores: TokenScores, hidden, accepted: jax.Array, source, row=None) -> Trajectory:
    """Append the accepted columns (bool[B,C]) of the slots' rows to their logs.

    Whole blocks of C are written at each row's own length and what lies beyond the accepted ones is overwritten later,
    so the log needs C spare entries. source i32[]: whose tokens they are; hidden [B,C,D] is kept if the log has room.
    """
    length = gather_rows(log.length, row)

    def put(table, block):
        return scatter_windows(table, row, length, compact_left(accepted, block))

    seen, topk = log.teacher_hidden.shape[-1] > 0 and hidden.shape[-1] > 0, scores.topk
    return log.replace(
        tokens=put(log.tokens, tokens),
        sources=scatter_windows(log.sources, row, length, jnp.full_like(tokens, source)),
        teacher_logprob=put(log.teacher_logprob, scores.logprob),
        teacher_hidden=put(log.teacher_hidden, replicate_in_group(hidden)) if seen else log.teacher_hidden,
        teacher_topk=log.teacher_topk if topk is None else jax.tree.map(put, log.teacher_topk, topk),
        length=scatter_rows(log.length, row, length + jnp.sum(accepted, axis=1, dtype=jnp.int32)),
    )


def discard(log: Trajectory, breach: jax.Array, root: jax.Array, row=None) -> Trajectory:
    """Drop everything from step entry root i32[B] on, in the slots breach bool[B], by the rewind that begins now."""
    steps, length = gather_rows(log.steps, row), gather_rows(log.length, row)
    rewinds, dropped = gather_rows((log.num_rewinds, log.discarded_by), row)
    number, first = rewinds[:, None], take_per_row(steps.start, root)
    entries, table = jnp.arange(dropped.shape[1])[None], jnp.arange(steps.start.shape[1])[None]
    drop = breach[:, None] & (entries >= first[:, None]) & (entries < length[:, None])
    steps_drop = breach[:, None] & (table >= root[:, None]) & (table < steps.count[:, None])
    here = breach[:, None] & (jnp.arange(log.rewind_at.shape[1])[None] == number)

    def note(table, value):
        return scatter_rows(table, row, jnp.where(here, value[:, None], gather_rows(table, row)))

    return log.replace(
        discarded_by=scatter_rows(log.discarded_by, row, jnp.where(drop, number, dropped)),
        steps=log.steps.replace(
            discarded_by=scatter_rows(log.steps.discarded_by, row, jnp.where(steps_drop, number, steps.discarded_by))
        ),
        rewind_at=note(log.rewind_at, length),
        breach_step=note(log.breach_step, steps.count - 1),
        root_step=note(log.root_step, root),
        num_rewinds=scatter_rows(log.num_rewinds, row, rewinds + breach),
    )
