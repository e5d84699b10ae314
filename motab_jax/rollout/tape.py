"""The tape, which is the rewind buffer: append, never erase.

All rows write the same column. `positions` says which columns of a row are alive and where each stands in its text;
a rewind kills columns by setting their position to DEAD and moves nothing. When the tape is full, one gather packs
every row's alive columns to the left. Both models' caches share the tape's columns (docs/decisions.md).
"""

import flax.struct
import jax
import jax.numpy as jnp

DEAD = -1


@flax.struct.dataclass
class Tape:
    """What the caches' columns hold; B rows, S columns."""

    tokens: jax.Array  # i32[B,S]
    positions: jax.Array  # i32[B,S]; DEAD: nobody sees the column
    cursor: jax.Array  # i32[]; the next column to write


def start(prompts: jax.Array, positions: jax.Array, columns: int) -> Tape:
    """A tape of `columns` columns that begins with left-padded prompts i32[B,P] at positions i32[B,P]."""
    extra = ((0, 0), (0, columns - prompts.shape[1]))
    return Tape(jnp.pad(prompts, extra), jnp.pad(positions, extra, constant_values=DEAD), jnp.int32(prompts.shape[1]))


def append(tape: Tape, tokens: jax.Array, positions: jax.Array) -> Tape:
    """Write tokens i32[B,C] at positions i32[B,C] (DEAD where a row writes nothing) to the next C columns."""
    place = (0, tape.cursor)
    return Tape(
        jax.lax.dynamic_update_slice(tape.tokens, tokens, place),
        jax.lax.dynamic_update_slice(tape.positions, positions, place),
        tape.cursor + tokens.shape[1],
    )


def rewind(tape: Tape, keep: jax.Array) -> Tape:
    """Kill each row's columns at positions >= keep i32[B]."""
    return tape.replace(positions=jnp.where(tape.positions >= keep[:, None], DEAD, tape.positions))


def packing(tape: Tape) -> tuple[Tape, jax.Array]:
    """The tape with every row's alive columns packed to the left, and the map i32[B,S] (new column -> old column)."""
    source = jnp.argsort(tape.positions < 0, axis=1, stable=True).astype(jnp.int32)
    tokens, positions = (jnp.take_along_axis(x, source, axis=1) for x in (tape.tokens, tape.positions))
    return Tape(tokens, positions, jnp.max(jnp.sum(positions >= 0, axis=1)).astype(jnp.int32)), source
