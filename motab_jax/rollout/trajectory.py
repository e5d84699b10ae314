"""The trajectory: everything that was written, in the order of writing, and what became of it.

It is a log that only grows. A backtracked token stays in it, marked with the rewind that discarded it, so the stitched
target, the spliced target and the record are all read from one place.
"""

import flax.struct
import jax
import jax.numpy as jnp

RUNNING, STOP, LENGTH = range(3)
FINISH_WORDS = ("running", "stop", "length")
KEPT = -1


@flax.struct.dataclass
class StepTable:
    """Steps in the order they ended; B rows, M entries. Places are indices into the log."""

    start: jax.Array  # i32[B,M]; first token
    end: jax.Array  # i32[B,M]; one past the last token (a stop token is never inside)
    source: jax.Array  # i32[B,M]; STUDENT or TEACHER
    value: jax.Array  # f32[B,M]; V_k in (0,1]
    entropy: jax.Array  # f32[B,M]; H_k in nats
    boundary: jax.Array  # f32[B,M]; eps_k
    stray: jax.Array  # bool[B,M]
    discarded_by: jax.Array  # i32[B,M]; number of the rewind, KEPT where none
    count: jax.Array  # i32[B]; entries in use


@flax.struct.dataclass
class Trajectory:
    """The result of a rollout; B rows, P prompt columns, E log entries, R rewinds at most, D teacher width."""

    prompt_tokens: jax.Array  # i32[B,P]; left-padded
    prompt_positions: jax.Array  # i32[B,P]; -1: padding
    tokens: jax.Array  # i32[B,E]
    sources: jax.Array  # i32[B,E]; STUDENT or TEACHER
    teacher_logprob: jax.Array  # f32[B,E]; log p_T(token | its context at the time), temperature 1
    teacher_hidden: jax.Array  # [B,E,D]; the teacher's final hidden state that predicts the token
    discarded_by: jax.Array  # i32[B,E]; number of the rewind that dropped the token, KEPT where none
    length: jax.Array  # i32[B]; log entries in use
    steps: StepTable
    num_rewinds: jax.Array  # i32[B]
    rewind_at: jax.Array  # i32[B,R]; log length when the rewind happened
    breach_step: jax.Array  # i32[B,R]; the breaching step's entry in the step table
    root_step: jax.Array  # i32[B,R]; the root step's entry in the step table
    finish: jax.Array  # i32[B]; STOP or LENGTH

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
    whole, real = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows, entries), jnp.float32)
    nobody = jnp.full((rows, entries), KEPT, jnp.int32)
    return StepTable(whole, whole, whole, real, real, real, real > 0, nobody, jnp.zeros((rows,), jnp.int32))


def empty_trajectory(
    prompts: jax.Array, positions: jax.Array, entries: int, rewinds: int, width: int, dtype
) -> Trajectory:
    """A trajectory with nothing written after the prompts i32[B,P]."""
    rows = prompts.shape[0]
    whole, each = jnp.zeros((rows, entries), jnp.int32), jnp.zeros((rows,), jnp.int32)
    table = jnp.zeros((rows, max(rewinds, 1)), jnp.int32)
    return Trajectory(
        prompt_tokens=prompts,
        prompt_positions=positions,
        tokens=whole,
        sources=whole,
        teacher_logprob=jnp.zeros((rows, entries), jnp.float32),
        teacher_hidden=jnp.zeros((rows, entries, width), dtype),
        discarded_by=jnp.full((rows, entries), KEPT, jnp.int32),
        length=each,
        steps=empty_steps(rows, entries),
        num_rewinds=each,
        rewind_at=table,
        breach_step=table,
        root_step=table,
        finish=each,
    )


def extend(log: Trajectory, tokens, logprob, hidden, accepted: jax.Array, source: int) -> Trajectory:
    """Append each row's accepted columns (a prefix of the C columns; bool[B,C]) to its log.

    Whole blocks are written at each row's own length and what lies beyond the accepted prefix is overwritten later,
    so the log needs C spare entries.
    """

    def put(store, block):
        return jax.vmap(lambda s, b, at: jax.lax.dynamic_update_slice_in_dim(s, b, at, axis=0))(
            store, block, log.length
        )

    return log.replace(
        tokens=put(log.tokens, tokens),
        sources=put(log.sources, jnp.full_like(tokens, source)),
        teacher_logprob=put(log.teacher_logprob, logprob),
        teacher_hidden=put(log.teacher_hidden, hidden.astype(log.teacher_hidden.dtype)),
        length=log.length + jnp.sum(accepted, axis=1, dtype=jnp.int32),
    )


def discard(log: Trajectory, rows: jax.Array, root: jax.Array) -> Trajectory:
    """Mark, in `rows` bool[B], everything from step entry root i32[B] on as dropped by the rewind that begins now."""
    first = pick(log.steps.start, root)
    number = log.num_rewinds[:, None]
    entries, table = jnp.arange(log.tokens.shape[1])[None], jnp.arange(log.steps.start.shape[1])[None]
    drop = rows[:, None] & (entries >= first[:, None]) & (entries < log.length[:, None])
    steps_drop = rows[:, None] & (table >= root[:, None]) & (table < log.steps.count[:, None])
    here = rows[:, None] & (jnp.arange(log.rewind_at.shape[1])[None] == number)
    return log.replace(
        discarded_by=jnp.where(drop, number, log.discarded_by),
        steps=log.steps.replace(discarded_by=jnp.where(steps_drop, number, log.steps.discarded_by)),
        rewind_at=jnp.where(here, log.length[:, None], log.rewind_at),
        breach_step=jnp.where(here, log.steps.count[:, None] - 1, log.breach_step),
        root_step=jnp.where(here, root[:, None], log.root_step),
        num_rewinds=log.num_rewinds + rows,
    )


def pick(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[b, index[b]] of each row; table [B,X,...], index i32[B]."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(table, index)
