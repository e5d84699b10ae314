"""The teacher decodes a subset of the slots: their rows are taken out, decoded alone, and put back.

A token costs in proportion to the rows that are decoded, waiting ones included. Taking rows out copies their part of
the cache once an iteration, which pays where arithmetic binds, as on a CPU; on a chip bound by bandwidth all rows are
decoded (docs/decisions.md). Which rows share an iteration changes nothing of what is generated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from motab_jax.models.transformer import Model
from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.decode import DecodeState, ModelState, Segment, SegmentInputs, decode_segment
from motab_jax.rollout.tape import DEAD, Tape, append


def longest_remaining(chosen: Bool[Array, "B"], remaining: Int[Array, "B"], count: int) -> Bool[Array, "B"]:
    """The `count` chosen slots with most tokens left to generate, so that no long row is decoded alone; 0: all chosen.

    >>> longest_remaining(jnp.array([True, True, False, True]), jnp.array([3, 9, 8, 5]), 2).tolist()
    [False, True, False, True]
    """
    if not count:
        return chosen
    order = jnp.argsort(jnp.where(chosen, -remaining, 1), stable=True)
    return chosen & (jnp.argsort(order) < count)


def decode_subset(
    model: Model,
    state: ModelState,
    tape: Tape,
    decode: DecodeState,
    segment: Segment,
    inputs: SegmentInputs,
    config: RolloutConfig,
    *,
    rows: int,
) -> tuple[ModelState, Tape, DecodeState, Segment]:
    """`decode_segment` by the teacher, for at most `rows` active slots.

    All C columns from the cursor on are overwritten.

    Args:
      model: the teacher.
      state: its cache and hidden states.
      tape: the tape, with C free columns.
      decode: which slots are active, and the state of each slot.
      segment: gets the tokens, from column 0 on.
      inputs: the rows' known tokens, and the uniform numbers.
      config: the rollout's configuration.
      rows: slots that are decoded.

    Returns:
      As `decode_segment`.
    """
    start, size = tape.cursor, config.segment_tokens
    index = jnp.argsort(~decode.active, stable=True)[:rows]
    is_chosen = index[None] == jnp.arange(decode.active.shape[0])[:, None]
    chosen, source = jnp.any(is_chosen, axis=1), jnp.argmax(is_chosen, axis=1)

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.take(x, index, axis=0), tree)

    def put(tree: Any, subset: Any) -> Any:
        def put_leaf(x, y):
            return jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), jnp.take(y, source, axis=0), x)

        return jax.tree.map(put_leaf, tree, subset)

    sub_model, sub_tape, sub_decode, sub_segment = decode_segment(
        model, ModelState(state.cache.take_rows(index), take(state.hidden)), Tape(take(tape.positions), start),
        take(decode), take(segment), take(inputs), config, record_scores=True,
    )  # fmt: skip
    positions = jax.lax.dynamic_slice_in_dim(sub_tape.positions, start, size, axis=1)
    dead = jnp.full((decode.active.shape[0], size), DEAD, jnp.int32)
    tape = append(tape, put(dead, positions)).replace(cursor=sub_tape.cursor)
    cache = state.cache.put_columns(sub_model.cache, source, start, size)
    state = ModelState(cache, put(state.hidden, sub_model.hidden))
    return state, tape, put(decode, sub_decode), put(segment, sub_segment)
