"""The tape: one cursor for the columns of both models' caches, and the positions of each row's tokens in them.

All rows write the same column. `positions` says which columns of a row are live and where each stands in the row's
sequence; a rewind sets positions to DEAD and moves nothing. When the tape is full, one gather packs every row's live
columns to the left (docs/decisions.md). The tokens themselves are in `Rows`, keys and values in the caches.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

DEAD = -1


class Tape(flax.struct.PyTreeNode):
    """The position of the token in each cache column, and the next column to write."""

    positions: Int[Array, "B S"]  # of each column's token in its row; DEAD: no query attends to the column
    cursor: Int[Array, ""]  # the next column to write

    @property
    def columns(self) -> int:
        """S."""
        return self.positions.shape[1]


def empty_tape(rows: int, columns: int) -> Tape:
    """A tape on which nothing is written."""
    return Tape(jnp.full((rows, columns), DEAD, jnp.int32), jnp.int32(0))


def append(tape: Tape, positions: Int[Array, "B C"]) -> Tape:
    """The tape with tokens at these positions (DEAD where a row writes nothing) in the next C columns.

    >>> append(empty_tape(2, 4), jnp.array([[0, 1], [0, DEAD]])).positions.tolist()
    [[0, 1, -1, -1], [0, -1, -1, -1]]
    """
    written = jax.lax.dynamic_update_slice(tape.positions, positions, (0, tape.cursor))
    return Tape(written, tape.cursor + positions.shape[1])


def rewind(tape: Tape, keep: Int[Array, "B"]) -> Tape:
    """The tape with only the first `keep` tokens of each row live.

    >>> rewind(append(empty_tape(1, 4), jnp.array([[0, 1, 2]])), jnp.array([1])).positions.tolist()
    [[0, -1, -1, -1]]
    """
    return tape.replace(positions=jnp.where(tape.positions >= keep[:, None], DEAD, tape.positions))


def pack(tape: Tape) -> tuple[Tape, Int[Array, "B S"]]:
    """The tape with every row's live columns packed to the left, and the map new column -> old column.

    >>> packed, source = pack(Tape(jnp.array([[0, DEAD, 1], [DEAD, DEAD, 0]]), jnp.int32(3)))
    >>> packed.positions.tolist(), source.tolist(), int(packed.cursor)
    ([[0, 1, -1], [0, -1, -1]], [[0, 2, 1], [2, 0, 1]], 2)
    """
    source = jnp.argsort(tape.positions < 0, axis=1, stable=True).astype(jnp.int32)
    positions = jnp.take_along_axis(tape.positions, source, axis=1)
    return Tape(positions, jnp.max(jnp.sum(positions >= 0, axis=1)).astype(jnp.int32)), source
