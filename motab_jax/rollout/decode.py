"""Decoding and prefilling segments of C tokens on the tape.

`decode_segment` decodes up to C columns one by one, `prefill_segment` runs C columns through a model in one pass. Both
keep the invariant that a model's cache holds every column of the tape and `hidden` predicts each slot's next token.
Known tokens (a prompt, or a parked row's tokens once it has a slot again) enter as forced columns: they are decoded,
not sampled.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from motab_jax.data.steps import advance
from motab_jax.models.cache import KVCache
from motab_jax.models.transformer import Model, encode, unembed
from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.rows import take_per_row
from motab_jax.rollout.sampling import sample
from motab_jax.rollout.tape import DEAD, Tape, append
from motab_jax.rollout.teacher_scores import TokenScores, score_tokens


class ModelState(flax.struct.PyTreeNode):
    """One model's cache of the tape, and its latest hidden states."""

    cache: KVCache
    hidden: Float[Array, "B D"]  # final hidden state that predicts each slot's next token


class DecodeState(flax.struct.PyTreeNode):
    """How far decoding is in each slot."""

    active: Bool[Array, "B"]  # the slot decodes the next column too
    position: Int32[Array, "B"]  # tokens of the row on the tape
    automaton: Int32[Array, "B"]  # state of the step automaton
    budget: Int32[Array, "B"]  # steps that may still end


class SegmentInputs(flax.struct.PyTreeNode):
    """The known tokens of the slots' rows before a segment, and the uniform numbers that it is sampled with."""

    tokens: Int32[Array, "B C"]  # the row's tokens from its position on, as far as they are known
    num_tokens: Int32[Array, "B"]  # tokens of the row that are known
    limit: Int32[Array, "B"]  # tokens it may have, the prompt included
    uniforms: Float32[Array, "B C"]  # the uniform number in [0, 1) that each column is sampled with


class Segment(flax.struct.PyTreeNode):
    """The columns that an iteration put on the tape; D teacher width, W student width."""

    tokens: Int32[Array, "B C"]
    alive: Bool[Array, "B C"]  # a prefix of each row
    forced: Bool[Array, "B C"]  # known tokens, a prefix of the alive ones
    stop: Bool[Array, "B C"]  # the token is a stop token
    closes: Bool[Array, "B C"]  # a step ends here: delimiter complete, or length limit
    hidden: Float[Array, "B C D"]  # the teacher's state that predicted each token (D = 0: no teacher)
    student_hidden: Float[Array, "B C W"]  # the student's (W = 0: the monitor's signal doesn't need it)
    scores: TokenScores  # the teacher's, [B,C]

    @property
    def generated(self) -> Bool[Array, "B C"]:
        """Columns that hold a sampled token."""
        return self.alive & ~self.forced


def append_known(
    tape: Tape, decode: DecodeState, inputs: SegmentInputs, segment: Segment
) -> tuple[Tape, DecodeState, Segment]:
    """Put the next C known tokens of the active slots on the tape, for both models to prefill.

    Args:
      tape: the tape, with C free columns.
      decode: which slots are active, and the state of each slot.
      inputs: the known tokens; a slot has fewer than C where its row has.
      segment: an empty segment.

    Returns:
      The tape, the slots' state and the segment with these tokens, as forced columns.
    """
    positions = decode.position[:, None] + jnp.arange(inputs.tokens.shape[1])[None]
    alive = decode.active[:, None] & (positions < inputs.num_tokens[:, None])
    count = jnp.sum(alive, axis=1, dtype=jnp.int32)
    after = append(tape, jnp.where(alive, positions, DEAD))
    return (
        after.replace(cursor=tape.cursor + jnp.max(count)),
        decode.replace(position=decode.position + count),
        segment.replace(tokens=inputs.tokens, alive=alive, forced=alive),
    )


def decode_segment(
    model: Model,
    state: ModelState,
    tape: Tape,
    decode: DecodeState,
    segment: Segment,
    inputs: SegmentInputs,
    config: RolloutConfig,
    *,
    record_scores: bool,
) -> tuple[ModelState, Tape, DecodeState, Segment]:
    """Decode up to C tokens in the active slots; stop early where none is active.

    Args:
      model: the model that generates.
      state: its cache and hidden states.
      tape: the tape, with C free columns.
      decode: which slots are active, and the state of each slot.
      segment: gets the tokens, from column 0 on.
      inputs: the rows' known tokens, and the uniform numbers.
      config: the rollout's configuration.
      record_scores: the model is the teacher: keep its hidden states, and its scores of its own tokens.

    Returns:
      The model's state, the tape, the decoding's state and the segment; other slots' columns are dead.
    """

    def unfinished(carry):
        return (carry[0] < config.segment_tokens) & jnp.any(carry[3].active)

    def decode_column(carry):
        column, state, tape, decode, segment = carry
        logits = unembed(model.params, model.config, state.hidden, config.vocab_size)
        uniform = _column(inputs.uniforms, column)
        sampling = config.sampling
        token = sample(
            logits, uniform, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )  # fmt: skip
        forced = decode.position < inputs.num_tokens
        token = jnp.where(forced, _column(inputs.tokens, column), token)
        position = jnp.where(decode.active, decode.position, DEAD)[:, None]
        cursor, tape = tape.cursor, append(tape, position)
        hidden, cache = encode(
            model.params, model.config, token[:, None], position,
            cache=state.cache, key_positions=tape.positions, cursor=cursor,
        )  # fmt: skip
        assert cache is not None
        after, stop, closes = _advance(decode, token, forced, inputs, config)
        new = {
            "tokens": token, "alive": decode.active, "forced": decode.active & forced, "stop": stop, "closes": closes
        }  # fmt: skip
        if record_scores:
            new["hidden"] = state.hidden
            new["scores"] = score_tokens(logits, token, config.monitor, config.targets_k)
        elif segment.student_hidden.shape[-1]:
            new["student_hidden"] = state.hidden
        segment = segment.replace(**{k: jax.tree.map(_put(column), getattr(segment, k), new[k]) for k in new})
        state = ModelState(cache, jnp.where(decode.active[:, None], hidden[:, 0], state.hidden))
        return column + 1, state, tape, after, segment

    return jax.lax.while_loop(unfinished, decode_column, (jnp.int32(0), state, tape, decode, segment))[1:]


def _column(table: jax.Array, column: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(table, column, axis=1, keepdims=False)


def _put(column: jax.Array):
    return lambda table, new: jax.lax.dynamic_update_index_in_dim(table, new.astype(table.dtype), column, 1)


def _advance(
    decode: DecodeState, token: Int[Array, "B"], forced: Bool[Array, "B"], inputs: SegmentInputs, config: RolloutConfig
) -> tuple[DecodeState, Bool[Array, "B"], Bool[Array, "B"]]:
    """The state after one token in each slot, whether it is a stop token, and whether a step ends with it."""
    stop = jnp.any(token[:, None] == config.stop_ids[None], axis=1)
    automaton, ended = advance(config.automaton, decode.automaton, token)
    ended = ended & ~stop & ~forced
    position = decode.position + decode.active
    budget = decode.budget - (decode.active & ended)
    full = position >= inputs.limit
    after = DecodeState(
        active=decode.active & (forced | (~stop & ~full & (budget > 0))),
        position=position,
        automaton=jnp.where(decode.active & ~forced, automaton, decode.automaton),
        budget=budget,
    )
    return after, stop & ~forced, ended | (full & ~forced)


def prefill_segment(
    model: Model, state: ModelState, tape: Tape, segment: Segment, start: Int[Array, ""]
) -> tuple[ModelState, Float[Array, "B C D"]]:
    """Run the C columns of the tape from `start` through a model in one pass.

    Args:
      model: the model, whose cache lacks these columns.
      state: its cache and hidden states.
      tape: the tape, on which the columns are.
      segment: the columns' tokens.
      start: the first column.

    Returns:
      The model's state, and its hidden states that predict each of the segment's tokens.
    """
    positions = jax.lax.dynamic_slice_in_dim(tape.positions, start, segment.tokens.shape[1], axis=1)
    hidden, cache = encode(
        model.params, model.config, segment.tokens, positions,
        cache=state.cache, key_positions=tape.positions, cursor=start,
    )  # fmt: skip
    assert cache is not None
    count = jnp.sum(segment.alive, axis=1)
    last = jnp.where((count > 0)[:, None], take_per_row(hidden, jnp.maximum(count - 1, 0)), state.hidden)
    return ModelState(cache, last), jnp.concatenate([state.hidden[:, None], hidden[:, :-1]], axis=1)
