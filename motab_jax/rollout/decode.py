"""Writing and reading segments: the two things a model does to the tape.

`write_segment` decodes C columns one by one, `read_segment` scores C columns in one parallel pass. Both keep the
invariant that a model's cache holds every column of the tape and `hidden` predicts each row's next token.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.steps import StepAutomaton, advance
from motab_jax.models.cache import KVCache
from motab_jax.models.transformer import Model, encode, unembed
from motab_jax.rollout.sampling import sample, uniforms
from motab_jax.rollout.tape import DEAD, Tape, append
from motab_jax.rollout.trajectory import pick

ENDLESS = 1 << 30


@flax.struct.dataclass
class Reader:
    """One model's view of the tape; B rows, D width."""

    cache: KVCache
    hidden: jax.Array  # [B,D]; final hidden state that predicts each row's next token


@flax.struct.dataclass
class Rows:
    """Where each row's writing stands; B rows."""

    active: jax.Array  # bool[B]; the writer goes on
    length: jax.Array  # i32[B]; tokens of the completion
    automaton: jax.Array  # i32[B]; state of the delimiter scan
    budget: jax.Array  # i32[B]; steps the writer may still end


@flax.struct.dataclass
class Segment:
    """What a segment wrote; B rows, C columns."""

    tokens: jax.Array  # i32[B,C]
    alive: jax.Array  # bool[B,C]; a prefix of each row
    stop: jax.Array  # bool[B,C]; the token is a stop token
    closes: jax.Array  # bool[B,C]; a step ends here: delimiter complete, or length limit
    hidden: jax.Array  # [B,C,D]; the writer's state that predicted each token ([B,C,0] where not asked for)


class Writing(NamedTuple):
    """How tokens are drawn: static numbers, the delimiter's table and the stop ids."""

    automaton: StepAutomaton
    stop_ids: jax.Array  # i32[X]
    vocab_size: int
    columns: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float


def write_segment(
    model: Model, reader: Reader, tape: Tape, rows: Rows, how: Writing, *, offset, row_keys, rewinds, keep_hidden: bool
):
    """Decode up to C tokens in the active rows; other rows' columns are dead.

    offset i32[B]: prompt lengths. Returns (reader, tape, rows, segment).
    """

    def column(carry, _):
        reader, tape, rows = carry
        logits = unembed(model.params, model.config, reader.hidden, how.vocab_size)
        uniform = uniforms(row_keys, rewinds, rows.length)
        token = sample(logits, uniform, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p)
        position = jnp.where(rows.active, offset + rows.length, DEAD)[:, None]
        at, tape = tape.cursor, append(tape, token[:, None], position)
        hidden, cache = encode(
            model.params, model.config, token[:, None], position,
            cache=reader.cache, key_positions=tape.positions, cursor=at,
        )  # fmt: skip
        state = reader.hidden if keep_hidden else reader.hidden[:, :0]
        reader = Reader(cache, jnp.where(rows.active[:, None], hidden[:, 0], reader.hidden))
        after, written = _advance_rows(rows, token, how)
        return (reader, tape, after), (*written, state)

    (reader, tape, rows), written = jax.lax.scan(column, (reader, tape, rows), length=how.columns)
    return reader, tape, rows, Segment(*(jnp.swapaxes(x, 0, 1) for x in written))


def _advance_rows(rows: Rows, token: jax.Array, how: Writing) -> tuple[Rows, tuple[jax.Array, ...]]:
    """The rows after one token each, and the token's column of the segment (tokens, alive, stop, closes)."""
    stop = jnp.any(token[:, None] == how.stop_ids[None], axis=1)
    state, ended = advance(how.automaton, rows.automaton, token)
    ended = ended & ~stop
    length = rows.length + rows.active
    budget = rows.budget - (rows.active & ended)
    full = length >= how.max_new_tokens
    after = Rows(
        active=rows.active & ~stop & ~full & (budget > 0),
        length=length,
        automaton=jnp.where(rows.active, state, rows.automaton),
        budget=budget,
    )
    return after, (token, rows.active, stop, ended | full)


def read_segment(model: Model, reader: Reader, tape: Tape, segment: Segment) -> tuple[Reader, jax.Array]:
    """Read the last C columns of the tape in one pass; returns the reader and hidden [B,C,D] predicting each token."""
    columns = segment.tokens.shape[1]
    at = tape.cursor - columns
    tokens, positions = (jax.lax.dynamic_slice_in_dim(x, at, columns, axis=1) for x in (tape.tokens, tape.positions))
    hidden, cache = encode(
        model.params, model.config, tokens, positions, cache=reader.cache, key_positions=tape.positions, cursor=at
    )
    count = jnp.sum(segment.alive, axis=1)
    last = jnp.where((count > 0)[:, None], pick(hidden, jnp.maximum(count - 1, 0)), reader.hidden)
    return Reader(cache, last), jnp.concatenate([reader.hidden[:, None], hidden[:, :-1]], axis=1)
