"""The student's output head over chunks of trained tokens: the loss's sums and, if wanted, its gradient, in one pass.

A chunk's logits give its losses, their derivative, and at once what that is worth to states and head, so the backward
pass recomputes nothing. Tokens that aren't trained are left out before the head sees them; the number of chunks
follows from how many remain. Memory depends on neither the vocabulary nor the number of tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from motab_jax.distill.targets import KINDS, TargetBatch
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Params, unembed


class LossSums(NamedTuple):
    """Sums over the tokens of each of G groups; the gradients are None where nobody asked for them."""

    loss: jax.Array  # f32[G]; weighted
    per_kind: jax.Array  # f32[G,5]; unweighted losses by kind
    d_hidden: jax.Array | None  # [G,n,D], in the hidden states' dtype
    d_head: jax.Array | None  # f32[G,...], each group's share of the head's gradient


def head_params(params: Params) -> Params:
    """The parameter that `unembed` reads, under its name: a head [D,V], or else the tied embedding [V,D]."""
    name = "head" if "head" in params else "embed"
    return {name: params[name]}


def chunked_loss_sums(
    head: Params,
    config: ModelConfig,
    hidden: jax.Array,
    batch: TargetBatch,
    weight: jax.Array,
    losses_of: Callable[[jax.Array, TargetBatch], jax.Array],
    *,
    size: int,
    d_head: jax.Array | None = None,
) -> LossSums:
    """Sum of weight * loss over all tokens; the state one column before a token predicts it.

    head is what `head_params` gives; hidden [G,n,D], weight f32[G,n] and the batch's arrays [G,n,...] lie in G groups
    that never mix, so that each can stay on a device of its own. losses_of(logits f32[G,size,V], batch [G,size]) is
    each token's unweighted loss; it gets `size` tokens of each group at a time. Where d_head f32[G,...] is given, the
    gradient is computed as well, the head's on top of it.
    """
    groups = weight.shape[0]
    order, place, count = _trained_first((weight > 0) & (batch.positions > 0), size)

    def chunk(number, total: LossSums) -> LossSums:
        index, state = _chunk(order, number * size, size, hidden)
        part, share = take(batch, index), take(weight, index)
        logits = unembed(head, config, state)
        if d_head is None:
            each, grads = losses_of(logits, part), (None, None)
        else:
            each, pullback = jax.vjp(lambda logits: losses_of(logits, part), logits)
            grads = _add(total, *_pull(head, state, *pullback(share)), number * size)
        return LossSums(total.loss + jnp.sum(each * share, axis=1), total.per_kind + _by_kind(each, part.kinds), *grads)

    in_order = None if d_head is None else jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype)
    total = LossSums(jnp.zeros((groups,)), jnp.zeros((groups, len(KINDS))), in_order, d_head)
    total = jax.lax.fori_loop(0, -(-jnp.max(count) // size), chunk, total)
    if d_head is None:
        return total
    behind = jnp.pad(place[:, 1:], ((0, 0), (0, 1)), constant_values=order.shape[1])
    return total._replace(d_hidden=take(total.d_hidden, behind))


def chunked_token_values(
    head: Params,
    config: ModelConfig,
    hidden: jax.Array,
    batch: TargetBatch,
    wanted: jax.Array,
    function: Callable[[jax.Array, TargetBatch], jax.Array],
    *,
    size: int,
) -> jax.Array:
    """function(logits f32[G,size,V], batch [G,size]) of every wanted token (bool[G,n]), f32[G,n]; 0 elsewhere.

    Arguments as of `chunked_loss_sums`; nothing is differentiated.
    """
    order, place, count = _trained_first(wanted & (batch.positions > 0), size)

    def chunk(number, found):
        index, state = _chunk(order, number * size, size, hidden)
        each = function(unembed(head, config, state), take(batch, index))
        return jax.lax.dynamic_update_slice_in_dim(found, each, number * size, axis=1)

    return take(jax.lax.fori_loop(0, -(-jnp.max(count) // size), chunk, jnp.zeros(order.shape)), place)


def take(tree: Any, index: jax.Array) -> Any:
    """From arrays [G,n,...], the entries index i32[G,m] of each group; zeros where the index is n or more."""

    def one(x: jax.Array) -> jax.Array:
        spread = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, spread, axis=1, mode="fill", fill_value=0)

    return jax.tree.map(one, tree)


def _trained_first(trained: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each group's trained columns (bool[G,n]) are, where they went, and how many they are.

    order i32[G,m] holds their columns in front, n behind them (m: the next multiple of `size`); place i32[G,n] is each
    one's entry of order, m where it isn't trained; count i32[G].
    """
    columns = trained.shape[1]
    room = columns + -columns % size
    place = jnp.where(trained, jnp.cumsum(trained, axis=1) - 1, room)
    # A batched scatter: with the group as an index, it would gather all groups on each device.
    empty, column = jnp.full((room,), columns, jnp.int32), jnp.arange(columns, dtype=jnp.int32)
    order = jax.vmap(lambda place: empty.at[place].set(column, mode="drop"))(place)
    return order, place, jnp.sum(trained, axis=1)


def _chunk(order: jax.Array, start, size: int, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The columns i32[G,size] of `size` tokens of each group, from `start` on, and the states that predict them."""
    columns = hidden.shape[1]
    index = jax.lax.dynamic_slice_in_dim(order, start, size, axis=1)
    return index, take(hidden, jnp.where(index < columns, index - 1, columns))


def _by_kind(losses: jax.Array, kinds: jax.Array) -> jax.Array:
    """Sums f32[G,5] of losses f32[G,t] by kind."""
    mine = kinds[..., None] == jnp.arange(len(KINDS))[None, None]
    return jnp.sum(jnp.where(mine, losses[..., None], 0.0), axis=1)


def _pull(head: Params, state: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From the loss's slope in the logits f32[G,t,V]: that in the states and, of each group, in the head: f32.

    The products are taken in the head's dtype and summed in float32.
    """
    [(name, weights)] = head.items()
    slope, state = slope.astype(weights.dtype), state.astype(weights.dtype)
    pair, axes = ((state, slope), "dv") if name == "head" else ((slope, state), "vd")
    d_state = jnp.einsum(f"gtv,{axes}->gtd", slope, weights, preferred_element_type=jnp.float32)
    return d_state, jnp.einsum(f"gt{axes[0]},gt{axes[1]}->g{axes}", *pair, preferred_element_type=jnp.float32)


def _add(total: LossSums, d_state: jax.Array, d_head: jax.Array, start) -> tuple[jax.Array, jax.Array]:
    """The totals with one chunk's states put in at `start`, and its head's gradient added."""
    d_state = d_state.astype(total.d_hidden.dtype)
    d_hidden = jax.lax.dynamic_update_slice_in_dim(total.d_hidden, d_state, start, axis=1)
    return d_hidden, total.d_head + d_head
