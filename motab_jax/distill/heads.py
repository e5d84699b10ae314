"""The loss over chunks of trained tokens: the student's head, the sums of the loss and their gradient, in one pass.

Each chunk computes its logits, its losses and their derivatives, and applies these to hidden states and head at once,
so the backward pass recomputes nothing. Tokens that aren't trained are left out before the head; the number of chunks
depends on how many remain. Memory depends on neither the vocabulary nor the number of tokens. Left out: which loss a
token has (objective.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from motab_jax.distill.targets import TargetBatch, TokenKind
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Params, unembed


class LossSums(flax.struct.PyTreeNode):
    """Sums over the tokens of each of G groups; the gradients are None where none are computed.

    T tokens a group, D the student's width, U kinds of tokens.
    """

    loss: Float32[Array, "G"]  # weighted
    per_kind: Float32[Array, "G U"]  # unweighted losses by TokenKind
    d_hidden: Float[Array, "G T D"] | None  # the loss's gradient in the hidden states, in their dtype
    d_head: Float32[Array, "G _ _"] | None  # in the head's weight: each group's share


def head_params(params: Params) -> Params:
    """The parameter that `unembed` needs, under its name: a head [D,V], or else the tied embedding [V,D]."""
    name = "head" if "head" in params else "embed"
    return {name: params[name]}


def chunked_loss_sums(
    head: Params,
    config: ModelConfig,
    hidden: Float[Array, "G T D"],
    batch: TargetBatch,
    weight: Float[Array, "G T"],
    losses_of: Callable[..., Array],
    *,
    chunk_tokens: int,
    d_head: Float32[Array, "G _ _"] | None = None,
) -> LossSums:
    """Sum of weight * loss over all tokens, and its gradient. A token is predicted by the hidden state before it.

    No chunk mixes tokens of two groups, so that each group can stay on a device of its own.

    Args:
      head: the student's head, from `head_params`.
      config: the student's architecture.
      hidden: the student's final hidden states.
      batch: the targets, with arrays [G,T,...].
      weight: weight of each token; 0: not trained.
      losses_of: function (logits [G,chunk_tokens,V], batch=[G,chunk_tokens,...]) -> unweighted losses
          f32[G,chunk_tokens].
      chunk_tokens: tokens of each group in a chunk.
      d_head: where the head's gradient is added to. None: no gradient is computed.

    Returns:
      The sums.
    """
    groups = weight.shape[0]
    order, rank, count = _trained_first((weight > 0) & (batch.positions > 0), chunk_tokens)

    def add_chunk(number, total: LossSums) -> LossSums:
        columns, states = _chunk(order, number * chunk_tokens, chunk_tokens, hidden)
        targets, weights = take_columns(batch, columns), take_columns(weight, columns)
        logits = unembed(head, config, states)
        if d_head is None:
            losses, gradients = losses_of(logits, batch=targets), {}
        else:
            losses, pullback = jax.vjp(functools.partial(losses_of, batch=targets), logits)
            d_states, d_weight = _head_vjp(head, states, *pullback(weights))
            gradients = _add_gradients(total, d_states, d_weight, number * chunk_tokens)
        loss = total.loss + jnp.sum(losses * weights, axis=1)
        return total.replace(loss=loss, per_kind=total.per_kind + _sum_by_kind(losses, targets.kinds), **gradients)

    d_hidden_in_order = None if d_head is None else jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype)
    total = LossSums(jnp.zeros((groups,)), jnp.zeros((groups, len(TokenKind))), d_hidden_in_order, d_head)
    total = jax.lax.fori_loop(0, -(-jnp.max(count) // chunk_tokens), add_chunk, total)
    if d_head is None:
        return total
    next_rank = jnp.pad(rank[:, 1:], ((0, 0), (0, 1)), constant_values=order.shape[1])
    return total.replace(d_hidden=take_columns(total.d_hidden, next_rank))


def chunked_token_values(
    head: Params,
    config: ModelConfig,
    hidden: Float[Array, "G T D"],
    batch: TargetBatch,
    wanted: Bool[Array, "G T"],
    values_of: Callable[[Array, TargetBatch], Array],
    *,
    chunk_tokens: int,
) -> Float32[Array, "G T"]:
    """A value of each wanted token, 0 elsewhere, without gradient.

    Args:
      head: the student's head, from `head_params`.
      config: the student's architecture.
      hidden: the student's final hidden states.
      batch: the targets, with arrays [G,T,...].
      wanted: the tokens to compute a value of.
      values_of: function (logits [G,chunk_tokens,V], batch [G,chunk_tokens,...]) -> values f32[G,chunk_tokens].
      chunk_tokens: tokens of each group in a chunk.

    Returns:
      The values.
    """
    order, rank, count = _trained_first(wanted & (batch.positions > 0), chunk_tokens)

    def add_chunk(number, values):
        columns, states = _chunk(order, number * chunk_tokens, chunk_tokens, hidden)
        chunk_values = values_of(unembed(head, config, states), take_columns(batch, columns))
        return jax.lax.dynamic_update_slice_in_dim(values, chunk_values, number * chunk_tokens, axis=1)

    number_of_chunks = -(-jnp.max(count) // chunk_tokens)
    return take_columns(jax.lax.fori_loop(0, number_of_chunks, add_chunk, jnp.zeros(order.shape)), rank)


def take_columns(tree: Any, columns: Integer[Array, "G M"]) -> Any:
    """Columns of each group from a tree of arrays [G,T,...]: [G,M,...]; zeros where the column is T or more."""

    def take(x: Array) -> Array:
        index = columns.reshape(*columns.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)

    return jax.tree.map(take, tree)


def _trained_first(
    trained: Bool[Array, "G T"], chunk_tokens: int
) -> tuple[Int[Array, "G M"], Int[Array, "G T"], Int[Array, "G"]]:
    """The trained columns of each group, in front of a table of M entries, the next multiple of chunk_tokens.

    Returns order (the columns, then T), rank (each column's entry of order; M where it isn't trained) and their count.
    """
    columns = trained.shape[1]
    entries = columns + -columns % chunk_tokens
    rank = jnp.where(trained, jnp.cumsum(trained, axis=1) - 1, entries)
    # A batched scatter: with the group as an index, it would gather all groups on each device.
    empty, column = jnp.full((entries,), columns, jnp.int32), jnp.arange(columns, dtype=jnp.int32)
    order = jax.vmap(lambda rank: empty.at[rank].set(column, mode="drop"))(rank)
    return order, rank, jnp.sum(trained, axis=1)


def _chunk(
    order: Int[Array, "G M"], start: Int[Array, ""] | int, chunk_tokens: int, hidden: Float[Array, "G T D"]
) -> tuple[Int[Array, "G {chunk_tokens}"], Float[Array, "G {chunk_tokens} D"]]:
    """The columns of the chunk that starts at entry `start` of order, and the hidden states that predict them."""
    columns = hidden.shape[1]
    index = jax.lax.dynamic_slice_in_dim(order, start, chunk_tokens, axis=1)
    return index, take_columns(hidden, jnp.where(index < columns, index - 1, columns))


def _sum_by_kind(losses: Float32[Array, "G T"], kinds: Int[Array, "G T"]) -> Float32[Array, "G U"]:
    of_kind = kinds[..., None] == jnp.arange(len(TokenKind))[None, None]
    return jnp.sum(jnp.where(of_kind, losses[..., None], 0.0), axis=1)


def _head_vjp(
    head: Params, states: Float[Array, "G T D"], cotangent: Float[Array, "G T V"]
) -> tuple[Float32[Array, "G T D"], Float32[Array, "G _ _"]]:
    """From the loss's cotangent of the logits: the gradients in the states and, for each group, in the head's weight.

    The products are taken in the head's dtype and summed in float32.
    """
    [(name, weights)] = head.items()
    cotangent, states = cotangent.astype(weights.dtype), states.astype(weights.dtype)
    pair, axes = ((states, cotangent), "dv") if name == "head" else ((cotangent, states), "vd")
    d_states = jnp.einsum(f"gtv,{axes}->gtd", cotangent, weights, preferred_element_type=jnp.float32)
    return d_states, jnp.einsum(f"gt{axes[0]},gt{axes[1]}->g{axes}", *pair, preferred_element_type=jnp.float32)


def _add_gradients(total: LossSums, d_states: Array, d_head: Array, start) -> dict[str, Array]:
    """The totals' gradients with a chunk's: its states' set from entry `start` on, its head's added."""
    assert total.d_hidden is not None and total.d_head is not None
    d_states = d_states.astype(total.d_hidden.dtype)
    d_hidden = jax.lax.dynamic_update_slice_in_dim(total.d_hidden, d_states, start, axis=1)
    return {"d_hidden": d_hidden, "d_head": total.d_head + d_head}
