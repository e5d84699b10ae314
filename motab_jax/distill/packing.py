"""Packing: the sequences of a batch side by side in as few rows as hold them, so that padding isn't computed.

A bin is as wide as one row of the batch, or a few. Sequences are placed first-fit-decreasing, on the device, in static
shapes; the number of bins in use is a value, not a shape. Rows are split into groups, one for each shard of the batch,
and no sequence leaves its group. Left out: sequences without a trained token, which the update doesn't need.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from motab_jax.distill.heads import take_columns
from motab_jax.distill.targets import TargetBatch

EMPTY = -1


class Packing(flax.struct.PyTreeNode):
    """Which token of the batch each column of the bins holds; G groups of N rows, up to M bins of W columns each."""

    index: Int[Array, "G M W"]  # row * T + column inside the group; EMPTY: no token
    bins_used: Int[Array, "G"]  # bins that hold something

    @property
    def padding(self) -> Float[Array, ""]:
        """Share of the columns of the bins in use that hold no token."""
        columns = jnp.maximum(jnp.sum(self.bins_used) * self.index.shape[-1], 1)
        return 1.0 - jnp.sum(self.index != EMPTY) / columns


def pack(
    positions: Int[Array, "G N T"], trained: Bool[Array, "G N"], multiple: int = 1, *, rows_per_bin: int = 1
) -> Packing:
    """Assign each sequence its columns of a bin.

    >>> packing = pack(jnp.array([[[0, 1, -1], [0, -1, -1], [0, 1, 2]]]), jnp.array([[True, True, True]]))
    >>> packing.index[0].tolist()  # row * 3 + column: the longest sequence first, then two in a bin
    [[6, 7, 8], [0, 1, 3], [-1, -1, -1]]
    >>> packing.bins_used.tolist()
    [2]

    Args:
      positions: 0, 1, ... in neighbouring columns of each row; -1: padding.
      trained: the rows to pack; the others are left out.
      multiple: the bins that are computed at a time. The number of bins M is N rounded up to a multiple of it.
      rows_per_bin: the width of a bin, in rows of T columns.

    Returns:
      The packing.
    """
    rows, row_width = positions.shape[1:]
    bins = rows + -rows % multiple
    alive = (positions >= 0) & trained[:, :, None]
    width = rows_per_bin * row_width
    start, bins_used = jax.vmap(lambda lengths: first_fit_decreasing(lengths, width))(jnp.sum(alive, axis=2))

    def fill(alive, positions, start):
        token = jnp.arange(rows * row_width, dtype=jnp.int32)
        column = jnp.where(alive, start[:, None] + positions, bins * width).reshape(-1)
        return jnp.full((bins * width,), EMPTY, jnp.int32).at[column].set(token, mode="drop").reshape(bins, width)

    return Packing(jax.vmap(fill)(alive, positions, start), bins_used)


def first_fit_decreasing(lengths: Int[Array, "N"], width: int) -> tuple[Int[Array, "N"], Int[Array, ""]]:
    """Put sequences into bins, the longest first, each into the first bin with enough columns left.

    >>> start, bins_used = first_fit_decreasing(jnp.array([2, 5, 3, 1]), 6)
    >>> start.tolist(), int(bins_used)
    ([9, 0, 6, 5], 2)

    Args:
      lengths: the sequences' lengths, at most `width`.
      width: columns of a bin.

    Returns:
      Each sequence's first column (bin * width + column), and the number of bins in use.
    """

    def put_sequence(free, length):
        number = jnp.argmax(free >= length)
        return free.at[number].add(-length), number * width + width - free[number]

    order = jnp.argsort(-lengths)
    free, start = jax.lax.scan(put_sequence, jnp.full(lengths.shape, width, lengths.dtype), lengths[order])
    return jnp.zeros_like(start).at[order].set(start), jnp.sum(free < width)


def gather_bins(
    batch: TargetBatch, weight: Float32[Array, "G L"], index: Int[Array, "G M W"], row_width: int
) -> tuple[TargetBatch, Float32[Array, "G M*W"], Int[Array, "G M W"]]:
    """Some bins of a batch.

    Args:
      batch: arrays [G,L,...], with the L = N * T tokens of a group in one dimension.
      weight: the tokens' weights.
      index: bins of a `Packing`.
      row_width: T, the columns of a row.

    Returns:
      Batch and weight of the bins' columns, [G,M*W,...], and segment ids that keep the sequences of a bin apart.
    """
    columns = index.reshape(index.shape[0], -1)
    empty = columns == EMPTY
    bins, weight = take_columns((batch, weight), jnp.where(empty, weight.shape[1], columns))
    return bins.replace(positions=jnp.where(empty, -1, bins.positions)), weight, index // row_width
