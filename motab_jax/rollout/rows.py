"""Tables of rows, indexed by slot: N rows of a batch are decoded in B slots.

`row` i32[B] is the row of each slot; N marks an empty slot: gathers return row N-1 (the caller masks it), scatters are
dropped. `row` is None where every row keeps a slot of its own: then a table of rows is a table of slots, nothing is
gathered or scattered, and rows stay on their devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def gather_rows(tables: Any, row: Int[Array, "B"] | None) -> Any:
    """The slots' rows [B,...] of tables [N,...] (a pytree)."""
    if row is None:
        return tables
    return jax.tree.map(lambda table: jnp.take(table, row, axis=0, mode="clip"), tables)


def scatter_rows(
    table: Shaped[Array, "N *each"], row: Int[Array, "B"] | None, values: Shaped[Array, "B *each"]
) -> Shaped[Array, "N *each"]:
    """The table with the slots' rows replaced by values."""
    return values if row is None else table.at[row].set(values, mode="drop")


def scatter_windows(
    table: Shaped[Array, "N E *each"],
    row: Int[Array, "B"] | None,
    start: Int[Array, "B"],
    block: Shaped[Array, "B C *each"],
) -> Shaped[Array, "N E *each"]:
    """The table with a block of C entries written to each slot's row.

    Args:
      table: E entries of each row.
      row: the slots' rows.
      start: first entry of each slot's block; start + C must not exceed E.
      block: the entries, cast to the table's dtype.
    """
    block = block.astype(table.dtype)
    if row is None:
        return jax.vmap(lambda t, b, at: jax.lax.dynamic_update_slice_in_dim(t, b, at, axis=0))(table, block, start)
    dimension_numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, block.ndim)), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1)
    )
    index = jnp.stack([row, start], axis=-1)
    return jax.lax.scatter(table, index, block, dimension_numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP)


def compact_left(mask: Bool[Array, "B C"], block: Shaped[Array, "B C *each"]) -> Shaped[Array, "B C *each"]:
    """Each row's columns with the masked ones first, in their order.

    >>> compact_left(jnp.array([[False, True, True]]), jnp.array([[7, 8, 9]])).tolist()
    [[8, 9, 7]]
    """
    order = jnp.argsort(~mask, axis=1, stable=True)
    return jnp.take_along_axis(block, order.reshape(order.shape + (1,) * (block.ndim - 2)), axis=1)


def take_per_row(table: Shaped[Array, "B X *each"], index: Int[Array, "B"]) -> Shaped[Array, "B *each"]:
    """table[b, index[b]] of each row b."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_index_in_dim(row, i, keepdims=False))(table, index)


def run_if(condition: Bool[Array, ""], function: Callable[[Any], Any], carry: Any) -> Any:
    """function(carry) if the condition holds, else carry.

    A while_loop of 0 or 1 iterations: unlike with lax.cond, XLA doesn't copy the untouched operands.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros((), bool), function(c[1])), (condition, carry))[1]
