"""The trajectory: all generated tokens, in the order of generation, with the rewinds that discarded some of them.

It is a log that only grows. A discarded token stays in it, marked with the rewind that discarded it, so the stitched
target, the spliced target and the record are all made from it.
"""

import enum

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from motab_jax.models.topk import TopK
from motab_jax.rollout.counters import Counters, zero_counts
from motab_jax.rollout.rows import compact_left, gather_rows, scatter_rows, scatter_windows, take_per_row
from motab_jax.rollout.teacher_scores import TokenScores
from motab_jax.runtime.mesh import replicate_in_group, shard_over_tensor

KEPT = -1  # in place of a rewind's number: nothing discarded the entry


class FinishReason(enum.IntEnum):
    """Why a completion ended.

    >>> FinishReason(2).word
    'length'
    """

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    MONITOR = 3  # a breach ended it (backtrack.intervention=stop)

    @property
    def word(self) -> str:
        """Its name in records."""
        return self.name.lower()


class StepTable(flax.struct.PyTreeNode):
    """Steps in the order in which they ended; M entries a row, `start` and `end` are indices into the log.

    A row with the steps 0..2 (kept) and 3..6 (discarded by the first rewind) has start 0, 3; end 3, 7; discarded_by
    KEPT, 0; count 2.
    """

    start: Int32[Array, "*N M"]  # first token
    end: Int32[Array, "*N M"]  # one past the last token (a stop token is in no step)
    source: Int32[Array, "*N M"]  # a Source
    value: Float32[Array, "*N M"]  # V_k in (0, 1], or the mean of another signal
    entropy: Float32[Array, "*N M"]  # H_k, in nats
    boundary: Float32[Array, "*N M"]  # eps_k
    stray: Bool[Array, "*N M"]
    discarded_by: Int32[Array, "*N M"]  # number of the rewind that discarded the step, or KEPT
    count: Int32[Array, "*N"]  # entries in use


class Trajectory(flax.struct.PyTreeNode):
    """The result of a rollout: N rows, P prompt columns, E log entries, at most R rewinds.

    What is kept of the teacher's distributions is a choice: its hidden states (D is the teacher's width), its K
    likeliest tokens, or neither.
    """

    prompt_tokens: Int32[Array, "*N P"]  # left-padded
    prompt_positions: Int32[Array, "*N P"]  # -1: padding
    tokens: Int32[Array, "*N E"]
    sources: Int32[Array, "*N E"]  # a Source
    teacher_logprob: Float32[Array, "*N E"]  # log p_T(token | its context at the time), temperature 1
    teacher_hidden: Float[Array, "*N E D"] | None  # the teacher's state that predicts the token (D = 0: not kept)
    teacher_topk: TopK | None  # the K likeliest tokens [*N E K] in its place
    discarded_by: Int32[Array, "*N E"]  # number of the rewind that discarded the token, or KEPT
    length: Int32[Array, "*N"]  # log entries in use
    steps: StepTable
    num_rewinds: Int32[Array, "*N"]
    rewind_at: Int32[Array, "*N R"]  # log length when the rewind happened
    breach_step: Int32[Array, "*N R"]  # the breaching step's entry in the step table
    root_step: Int32[Array, "*N R"]  # the root step's entry in the step table
    finish: Int32[Array, "*N"]  # a FinishReason
    counters: Counters  # of the whole rollout, not of a row

    @property
    def target_bytes(self) -> int:
        """Bytes that a token's teacher target takes."""
        stores = jax.tree.leaves((self.teacher_hidden, self.teacher_topk))
        return sum(x.dtype.itemsize * x.shape[-1] for x in stores)

    def slim(self) -> "Trajectory":
        """Without the teacher's distributions: what is fetched to the host."""
        return self.replace(teacher_hidden=None, teacher_topk=None)

    @property
    def in_use(self) -> Bool[Array, "N"]:
        """The rows that were rolled out; the others only make the rows divide over the devices."""
        return self.length > 0

    @property
    def used(self) -> Bool[Array, "N E"]:
        """Log entries that hold a token."""
        return jnp.arange(self.tokens.shape[1])[None] < self.length[:, None]

    @property
    def kept(self) -> Bool[Array, "N E"]:
        """Log entries that belong to the completion."""
        return self.used & (self.discarded_by == KEPT)


def empty_steps(rows: int, entries: int) -> StepTable:
    """A step table without a step."""
    integer, real = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows, entries), jnp.float32)
    kept = jnp.full((rows, entries), KEPT, jnp.int32)
    return StepTable(integer, integer, integer, real, real, real, real > 0, kept, jnp.zeros((rows,), jnp.int32))


def empty_trajectory(
    prompts: Int[Array, "N P"],
    positions: Int[Array, "N P"],
    entries: int,
    rewinds: int,
    width: int,
    dtype: DTypeLike,
    *,
    top_k: int = 0,
) -> Trajectory:
    """Trajectories with nothing after the prompts.

    Args:
      prompts: their tokens, left-padded.
      positions: of the tokens; -1: padding.
      entries: E, room in the log.
      rewinds: R, at least 1.
      width: D of the teacher's hidden states that are kept; 0: none are.
      dtype: of the teacher's distributions.
      top_k: K likeliest tokens that are kept; 0: none are.

    Returns:
      N trajectories of length 0.
    """
    rows = prompts.shape[0]
    log, per_row = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows,), jnp.int32)
    table = jnp.zeros((rows, max(rewinds, 1)), jnp.int32)
    likeliest = (rows, entries, top_k)
    return Trajectory(
        prompt_tokens=prompts,
        prompt_positions=positions,
        tokens=log,
        sources=log,
        teacher_logprob=jnp.zeros((rows, entries), jnp.float32),
        teacher_hidden=shard_over_tensor(jnp.zeros((rows, entries, width), dtype), 2),
        teacher_topk=TopK(jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest, dtype)) if top_k else None,
        discarded_by=jnp.full((rows, entries), KEPT, jnp.int32),
        length=per_row,
        steps=empty_steps(rows, entries),
        num_rewinds=per_row,
        rewind_at=table,
        breach_step=table,
        root_step=table,
        finish=per_row,
        counters=zero_counts(),
    )


def extend(
    log: Trajectory,
    tokens: Int[Array, "B C"],
    scores: TokenScores,
    hidden: Float[Array, "B C D"],
    accepted: Bool[Array, "B C"],
    source: Int[Array, ""] | int,
    row: Int[Array, "B"] | None = None,
) -> Trajectory:
    """Append the accepted columns of the slots to their rows' logs.

    Whole blocks of C columns are stored at each row's own length, and what is behind the accepted ones is overwritten
    later: the log needs C spare entries.

    Args:
      log: the rows.
      tokens: of a segment.
      scores: of these tokens.
      hidden: the teacher's states that predict them; kept if the log has room for them.
      accepted: the columns to append.
      source: whose tokens they are, a `Source`.
      row: the row of each slot; None: slots are rows.

    Returns:
      The rows with longer logs.
    """
    length = gather_rows(log.length, row)

    def append(table, block):
        return scatter_windows(table, row, length, compact_left(accepted, block))

    teacher_hidden, topk = log.teacher_hidden, scores.topk
    if teacher_hidden is not None and teacher_hidden.shape[-1] > 0 and hidden.shape[-1] > 0:
        teacher_hidden = append(teacher_hidden, replicate_in_group(hidden))
    return log.replace(
        tokens=append(log.tokens, tokens),
        sources=scatter_windows(log.sources, row, length, jnp.full_like(tokens, source)),
        teacher_logprob=append(log.teacher_logprob, scores.logprob),
        teacher_hidden=teacher_hidden,
        teacher_topk=log.teacher_topk if topk is None else jax.tree.map(append, log.teacher_topk, topk),
        length=scatter_rows(log.length, row, length + jnp.sum(accepted, axis=1, dtype=jnp.int32)),
    )


def discard(
    log: Trajectory, breach: Bool[Array, "B"], root: Int[Array, "B"], row: Int[Array, "B"] | None = None
) -> Trajectory:
    """Begin a rewind: mark everything from the root step on as discarded, in the slots with a breach.

    Args:
      log: the rows.
      breach: the slots that rewind.
      root: the root step's entry in the step table.
      row: the row of each slot; None: slots are rows.

    Returns:
      The rows; nothing is erased.
    """
    steps, length = gather_rows(log.steps, row), gather_rows(log.length, row)
    rewinds, discarded_by = gather_rows((log.num_rewinds, log.discarded_by), row)
    number, first = rewinds[:, None], take_per_row(steps.start, root)
    entries, table = jnp.arange(discarded_by.shape[1])[None], jnp.arange(steps.start.shape[1])[None]
    drop = breach[:, None] & (entries >= first[:, None]) & (entries < length[:, None])
    steps_drop = breach[:, None] & (table >= root[:, None]) & (table < steps.count[:, None])
    entry = breach[:, None] & (jnp.arange(log.rewind_at.shape[1])[None] == number)

    def record(table, value):
        return scatter_rows(table, row, jnp.where(entry, value[:, None], gather_rows(table, row)))

    return log.replace(
        discarded_by=scatter_rows(log.discarded_by, row, jnp.where(drop, number, discarded_by)),
        steps=log.steps.replace(
            discarded_by=scatter_rows(log.steps.discarded_by, row, jnp.where(steps_drop, number, steps.discarded_by))
        ),
        rewind_at=record(log.rewind_at, length),
        breach_step=record(log.breach_step, steps.count - 1),
        root_step=record(log.root_step, root),
        num_rewinds=scatter_rows(log.num_rewinds, row, rewinds + breach),
    )
