"""The teacher writes in a few of the slots: their rows are taken out, written by themselves, and put back.

What a token costs grows with the rows that are decoded, also with those that only wait. Taking rows out copies their
part of the cache once a turn, which pays where arithmetic binds, as on a CPU; a chip bound by bandwidth would rather
decode all rows (docs/decisions.md). Which rows share a turn changes nothing of what is written.
"""

from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.decode import DecodeState, ModelState, Segment, SegmentInputs, decode_segment
from motab_jax.rollout.tape import DEAD, Tape, append


def longest_remaining(chosen: jax.Array, left: jax.Array, most: int) -> jax.Array:
    """bool[B]: of the chosen slots the `most` with most left to write (i32[B]), so that none is long alone; 0: all."""
    if not most:
        return chosen
    order = jnp.argsort(jnp.where(chosen, -left, 1), stable=True)
    return chosen & (jnp.argsort(order) < most)


def decode_subset(model: Model, reader: ModelState, tape: Tape, pen: DecodeState, segment: Segment,
    known: SegmentInputs, config: RolloutConfig, *, rows: int):  # fmt: skip
    """`write_segment` by the teacher, for at most `rows` active slots. Returns (reader, tape, pen, segment).

    All C columns from the cursor on are overwritten: the tape needs room for them.
    """
    begin, size = tape.cursor, config.segment_tokens
    index = jnp.argsort(~pen.active, stable=True)[:rows]
    here = index[None] == jnp.arange(pen.active.shape[0])[:, None]
    chosen, place = jnp.any(here, axis=1), jnp.argmax(here, axis=1)

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.take(x, index, axis=0), tree)

    def put(tree: Any, few: Any) -> Any:
        def one(x, y):
            return jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), jnp.take(y, place, axis=0), x)

        return jax.tree.map(one, tree, few)

    seat = ModelState(reader.cache.take_rows(index), take(reader.hidden))
    sheet = Tape(take(tape.tokens), take(tape.positions), begin)
    seat, sheet, ink, text = decode_segment(
        model, seat, sheet, take(pen), take(segment), take(known), config, opine=True
    )  # fmt: skip
    tokens, positions = (jax.lax.dynamic_slice_in_dim(x, begin, size, axis=1) for x in (sheet.tokens, sheet.positions))
    shape = (pen.active.shape[0], size)
    blank = jnp.zeros(shape, jnp.int32), jnp.full(shape, DEAD, jnp.int32)
    tape = append(tape, *put(blank, (tokens, positions))).replace(cursor=sheet.cursor)
    cache = reader.cache.put_columns(seat.cache, place, begin, size)
    return ModelState(cache, put(reader.hidden, seat.hidden)), tape, put(pen, ink), put(segment, text)
