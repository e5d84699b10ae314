"""Writing and reading segments: the things a model does to the tape.

`write_segment` decodes up to C columns one by one, `read_segment` reads C columns in one parallel pass. Both keep the
invariant that a model's cache holds every column of the tape and `hidden` predicts each slot's next token. Known text
(a prompt, or what stands of a row that comes back) enters as forced columns: read, not sampled.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.steps import advance
from motab_jax.models.cache import KVCache
from motab_jax.models.transformer import Model, encode, unembed
from motab_jax.rollout.config import RolloutConfig
from motab_jax.rollout.rows import take_per_row
from motab_jax.rollout.sampling import sample
from motab_jax.rollout.tape import DEAD, Tape, append
from motab_jax.rollout.teacher_scores import TokenScores, score_tokens


@flax.struct.dataclass
class ModelState:
    """One model's view of the tape; B slots, D width."""

    cache: KVCache
    hidden: jax.Array  # [B,D]; final hidden state that predicts each slot's next token


@flax.struct.dataclass
class DecodeState:
    """Where each slot's writing stands; B slots."""

    active: jax.Array  # bool[B]; the writer goes on
    position: jax.Array  # i32[B]; tokens of the row's text on the tape
    automaton: jax.Array  # i32[B]; state of the delimiter scan
    budget: jax.Array  # i32[B]; steps the writer may still end


@flax.struct.dataclass
class SegmentInputs:
    """What is settled before a segment is written; B slots, C columns."""

    tokens: jax.Array  # i32[B,C]; the row's text from its position on, as far as it is known
    length: jax.Array  # i32[B]; tokens of the row's text that are known
    limit: jax.Array  # i32[B]; tokens its text may have, the prompt included
    uniforms: jax.Array  # f32[B,C]; what each column samples with


@flax.struct.dataclass
class Segment:
    """What a turn put on the tape; B slots, C columns, D teacher width."""

    tokens: jax.Array  # i32[B,C]
    alive: jax.Array  # bool[B,C]; a prefix of each row
    forced: jax.Array  # bool[B,C]; known text, a prefix of what is alive
    stop: jax.Array  # bool[B,C]; the token is a stop token
    closes: jax.Array  # bool[B,C]; a step ends here: delimiter complete, or length limit
    hidden: jax.Array  # [B,C,D]; the teacher's state that predicted each token ([B,C,0] without a teacher)
    mine: jax.Array  # [B,C,S]; the student's state that did, where the monitor's signal needs it (else [B,C,0])
    scores: TokenScores  # the teacher's, [B,C]

    @property
    def written(self) -> jax.Array:
        """bool[B,C]: columns that hold a sampled token."""
        return self.alive & ~self.forced


def append_known(
    tape: Tape, pen: DecodeState, known: SegmentInputs, segment: Segment
) -> tuple[Tape, DecodeState, Segment]:
    """Put the next C known tokens of the active slots on the tape, for both models to read."""
    places = pen.position[:, None] + jnp.arange(known.tokens.shape[1])[None]
    alive = pen.active[:, None] & (places < known.length[:, None])
    count = jnp.sum(alive, axis=1, dtype=jnp.int32)
    after = append(tape, known.tokens, jnp.where(alive, places, DEAD))
    return (
        after.replace(cursor=tape.cursor + jnp.max(count)),
        pen.replace(position=pen.position + count),
        segment.replace(tokens=known.tokens, alive=alive, forced=alive),
    )


def decode_segment(model: Model, reader: ModelState, tape: Tape, pen: DecodeState, segment: Segment,
    known: SegmentInputs, config: RolloutConfig, *, opine: bool):  # fmt: skip
    """Decode up to C tokens in the active slots, and stop early where none is left; other slots' columns are dead.

    opine: the writer is the teacher, whose states and opinions of its own tokens are kept. Without an active slot
    nothing happens. Returns (reader, tape, pen, segment).
    """

    def unfinished(carry):
        return (carry[0] < config.segment_tokens) & jnp.any(carry[3].active)

    def column(carry):
        place, reader, tape, pen, segment = carry
        logits = unembed(model.params, model.config, reader.hidden, config.vocab_size)
        uniform = _column(known.uniforms, place)
        token = sample(
            logits,
            uniform,
            temperature=config.sampling.temperature,
            top_k=config.sampling.top_k,
            top_p=config.sampling.top_p,
        )
        forced = pen.position < known.length
        token = jnp.where(forced, _column(known.tokens, place), token)
        position = jnp.where(pen.active, pen.position, DEAD)[:, None]
        at, tape = tape.cursor, append(tape, token[:, None], position)
        hidden, cache = encode(
            model.params, model.config, token[:, None], position,
            cache=reader.cache, key_positions=tape.positions, cursor=at,
        )  # fmt: skip
        after, stop, closes = _advance(pen, token, forced, known, config)
        new = {"tokens": token, "alive": pen.active, "forced": pen.active & forced, "stop": stop, "closes": closes}
        if opine:
            new["hidden"] = reader.hidden
            new["scores"] = score_tokens(logits, token, config.monitor, config.targets_k)
        elif segment.mine.shape[-1]:
            new["mine"] = reader.hidden
        segment = segment.replace(**{k: jax.tree.map(_put(place), getattr(segment, k), new[k]) for k in new})
        reader = ModelState(cache, jnp.where(pen.active[:, None], hidden[:, 0], reader.hidden))
        return place + 1, reader, tape, after, segment

    return jax.lax.while_loop(unfinished, column, (jnp.int32(0), reader, tape, pen, segment))[1:]


def _column(table: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(table, place, axis=1, keepdims=False)


def _put(place: jax.Array):
    return lambda table, new: jax.lax.dynamic_update_index_in_dim(table, new.astype(table.dtype), place, 1)


def _advance(
    pen: DecodeState, token, forced, known: SegmentInputs, config: RolloutConfig
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The pen after one token in each slot, whether it is a stop token, and whether a step ends with it."""
    stop = jnp.any(token[:, None] == config.stop_ids[None], axis=1)
    state, ended = advance(config.automaton, pen.automaton, token)
    ended = ended & ~stop & ~forced
    position = pen.position + pen.active
    budget = pen.budget - (pen.active & ended)
    full = position >= known.limit
    after = DecodeState(
        active=pen.active & (forced | (~stop & ~full & (budget > 0))),
        position=position,
        automaton=jnp.where(pen.active & ~forced, state, pen.automaton),
        budget=budget,
    )
    return after, stop & ~forced, ended | (full & ~forced)


def prefill_segment(
    model: Model, reader: ModelState, tape: Tape, segment: Segment, start
) -> tuple[ModelState, jax.Array]:
    """Read the C columns of the tape from `start` in one pass; the reader, and hidden [B,C,D] predicting each token."""
    positions = jax.lax.dynamic_slice_in_dim(tape.positions, start, segment.tokens.shape[1], axis=1)
    hidden, cache = encode(
        model.params, model.config, segment.tokens, positions,
        cache=reader.cache, key_positions=tape.positions, cursor=start,
    )  # fmt: skip
    count = jnp.sum(segment.alive, axis=1)
    last = jnp.where((count > 0)[:, None], take_per_row(hidden, jnp.maximum(count - 1, 0)), reader.hidden)
    return ModelState(cache, last), jnp.concatenate([reader.hidden[:, None], hidden[:, :-1]], axis=1)
