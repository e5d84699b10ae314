"""Packing: the texts of a batch side by side in as few rows as hold them, so that padding isn't computed.

A bin is as wide as one row of the batch, or a few. Texts are placed first-fit-decreasing, on the device, in static
shapes; the number of bins in use is a value, not a shape. Rows are cut into groups, one for each shard of the batch,
and no text leaves its group. Left out: texts without a trained token, which the update doesn't need.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.distill.heads import take
from motab_jax.distill.targets import TargetBatch

EMPTY = -1


@flax.struct.dataclass
class Packing:
    """Which cell of the batch each cell of the bins holds; G groups of R rows, up to M bins of W columns each."""

    cells: jax.Array  # i32[G,M,W]; row * N + column inside the group, EMPTY where empty
    used: jax.Array  # i32[G]; bins that hold something

    @property
    def padding(self) -> jax.Array:
        """Share of the cells of the bins in use that hold no text, f32[]."""
        room = jnp.maximum(jnp.sum(self.used) * self.cells.shape[-1], 1)
        return 1.0 - jnp.sum(self.cells != EMPTY) / room


def pack(positions: jax.Array, trained: jax.Array, multiple: int = 1, *, wide: int = 1) -> Packing:
    """Bins, each as wide as `wide` rows, for texts with positions i32[G,R,N].

    Positions are 0, 1, ... in neighbouring columns; -1: padding.

    trained bool[G,R]: rows that are wanted. M is R rounded up to a multiple of `multiple`, the bins taken at a time.
    """
    rows, width = positions.shape[1:]
    bins = rows + -rows % multiple
    alive = (positions >= 0) & trained[:, :, None]
    room = wide * width
    start, used = jax.vmap(lambda lengths: first_fit_decreasing(lengths, room))(jnp.sum(alive, axis=2))

    def lay(alive, positions, start):
        cell = jnp.arange(rows * width, dtype=jnp.int32)
        there = jnp.where(alive, start[:, None] + positions, bins * room).reshape(-1)
        return jnp.full((bins * room,), EMPTY, jnp.int32).at[there].set(cell, mode="drop").reshape(bins, room)

    return Packing(jax.vmap(lay)(alive, positions, start), used)


def first_fit_decreasing(lengths: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Texts i32[R], none longer than width, longest first into the first bin with room: each one's first cell
    (bin * width + column) i32[R], and the number of bins in use i32[]."""

    def place(room, length):
        number = jnp.argmax(room >= length)
        return room.at[number].add(-length), number * width + width - room[number]

    order = jnp.argsort(-lengths)
    room, start = jax.lax.scan(place, jnp.full(lengths.shape, width, lengths.dtype), lengths[order])
    return jnp.zeros_like(start).at[order].set(start), jnp.sum(room < width)


def gather(batch: TargetBatch, weight: jax.Array, cells: jax.Array, width: int):
    """Some bins, cells i32[G,p,W], of a batch [G,R*N,...] with weight f32[G,R*N], N = width.

    Returns both as [G,p*W,...], and the segments i32[G,p,W] that keep the texts of a bin apart.
    """
    index = cells.reshape(cells.shape[0], -1)
    empty = index == EMPTY
    part, weight = take((batch, weight), jnp.where(empty, weight.shape[1], index))
    return part.replace(positions=jnp.where(empty, -1, part.positions)), weight, cells // width
