"""Rows and slots: N rows of a batch take turns in B slots, and tables of rows are read and written by slot.

`row` i32[B] says whose slot it is; N, which is no row, means nobody's: reading gives the last row's values (the caller
masks them), writing does nothing. Where every row has a slot of its own for good, `row` is None and a table of rows is
a table of slots, so that nothing is gathered or scattered and rows stay on their devices.
"""

from typing import Any

import jax
import jax.numpy as jnp


def gather_rows(tables: Any, row: jax.Array | None) -> Any:
    """The slots' rows [B,...] of tables [N,...] (a pytree)."""
    if row is None:
        return tables
    return jax.tree.map(lambda table: jnp.take(table, row, axis=0, mode="clip"), tables)


def scatter_rows(table: jax.Array, row: jax.Array | None, values: jax.Array) -> jax.Array:
    """The table [N,...] with the slots' rows replaced by values [B,...]."""
    return values if row is None else table.at[row].set(values, mode="drop")


def scatter_windows(table: jax.Array, row: jax.Array | None, start: jax.Array, block: jax.Array) -> jax.Array:
    """The table [N,E,...] with block [B,C,...] written to entries start..start+C-1 (i32[B]) of the slots' rows."""
    block = block.astype(table.dtype)
    if row is None:
        return jax.vmap(lambda t, b, at: jax.lax.dynamic_update_slice_in_dim(t, b, at, axis=0))(table, block, start)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, block.ndim)), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1)
    )
    places = jnp.stack([row, start], axis=-1)
    return jax.lax.scatter(table, places, block, numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)


def compact_left(mask: jax.Array, block: jax.Array) -> jax.Array:
    """Each row's columns of block [B,C,...] where mask bool[B,C] holds, moved to the front in their order."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    return jnp.take_along_axis(block, order.reshape(order.shape + (1,) * (block.ndim - 2)), axis=1)


def take_per_row(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[b, index[b]] of each row; table [B,X,...], index i32[B]."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(table, index)


def run_if(condition: jax.Array, work, carry: Any) -> Any:
    """work(carry) if the condition bool[] holds, else carry.

    A loop of one round or none: unlike a conditional it never makes XLA copy what it hands through.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros((), bool), work(c[1])), (condition, carry))[1]
