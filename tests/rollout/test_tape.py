"""The tape: after any appends, rewinds and packings both caches are as if the live tokens had just been prefilled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motab_jax.models.cache import gather_columns, init_cache
from motab_jax.models.transformer import encode, forward, unembed
from motab_jax.rollout.tape import DEAD, append, empty_tape, pack, rewind
from tests.rollout.pair import VOCAB, student, teacher

ROWS, PROMPT, COLUMNS, SEGMENT = 4, 5, 32, 3


@functools.partial(jax.jit, static_argnames="prefill")
def write(model, cache, tape, tokens, positions, prefill=False):
    """Append a segment and prefill it; logits [B,C,V] after each token."""
    at, tape = (0, tape) if prefill else (tape.cursor, append(tape, positions))
    hidden, cache = encode(
        model.params, model.config, tokens, positions, cache=cache, key_positions=tape.positions, cursor=at
    )
    return unembed(model.params, model.config, hidden, VOCAB), cache, tape


@jax.jit
def fresh(model, tokens, positions):
    """Logits of a plain forward pass."""
    return forward(model.params, model.config, tokens, positions)[..., :VOCAB]


class Mirror:
    """The rows' tokens in plain lists, and the tape with both caches next to them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.models = (student(), teacher())
        lengths = self.rng.integers(2, PROMPT + 1, ROWS)
        self.texts = [self.rng.integers(2, VOCAB, n).tolist() for n in lengths]
        self.prompts = lengths
        positions = np.arange(PROMPT) - (PROMPT - lengths[:, None])
        padded = np.array([[0] * (PROMPT - len(text)) + text for text in self.texts], np.int32)
        positions = jnp.asarray(np.maximum(positions, DEAD), jnp.int32)
        self.tape = append(empty_tape(ROWS, COLUMNS), positions)
        self.caches = [init_cache(m.config, ROWS, COLUMNS, jnp.float32) for m in self.models]
        self.read(jnp.asarray(padded), positions, prefill=True)
        self.packings = 0

    def read(self, tokens, positions, prefill: bool = False) -> list:
        """Prefill a segment with both models; their logits."""
        results = [
            write(m, c, self.tape, tokens, positions, prefill=prefill)
            for m, c in zip(self.models, self.caches, strict=True)
        ]
        self.caches = [cache for _, cache, _ in results]
        self.tape = results[0][2]
        return [np.asarray(logits) for logits, _, _ in results]

    def append(self) -> None:
        """Append 0 to SEGMENT tokens to each row; check the logits after each against a fresh forward pass."""
        if int(self.tape.cursor) + SEGMENT > COLUMNS:
            self.pack()
        tokens = self.rng.integers(2, VOCAB, (ROWS, SEGMENT)).astype(np.int32)
        counts = self.rng.integers(0, SEGMENT + 1, ROWS)
        before = np.array([len(text) for text in self.texts])
        positions = np.where(np.arange(SEGMENT) < counts[:, None], before[:, None] + np.arange(SEGMENT), DEAD)
        logits = self.read(jnp.asarray(tokens), jnp.asarray(positions, jnp.int32))
        for row, count in enumerate(counts):
            self.texts[row] += tokens[row, :count].tolist()
        for model, mine in zip(self.models, logits, strict=True):
            theirs = self.afresh(model)
            for row, count in enumerate(counts):
                expected = theirs[row, before[row] : before[row] + count]
                np.testing.assert_allclose(mine[row, :count, :VOCAB], expected[:, :VOCAB], atol=1e-4)

    def afresh(self, model) -> np.ndarray:
        """Logits [B,COLUMNS,V] of the live tokens, in a forward pass without a cache."""
        tokens, positions = np.zeros((ROWS, COLUMNS), np.int32), np.full((ROWS, COLUMNS), DEAD, np.int32)
        for row, text in enumerate(self.texts):
            tokens[row, : len(text)], positions[row, : len(text)] = text, np.arange(len(text))
        return np.asarray(fresh(model, jnp.asarray(tokens), jnp.asarray(positions)))

    def rewind(self) -> None:
        """Rewind the rows to random lengths; some rows keep all."""
        keep = [self.rng.integers(self.prompts[row], len(text) + 1) for row, text in enumerate(self.texts)]
        self.tape = rewind(self.tape, jnp.asarray(keep, jnp.int32))
        self.texts = [text[:n] for text, n in zip(self.texts, keep, strict=True)]

    def pack(self) -> None:
        """Pack the live columns to the left."""
        if max(len(text) for text in self.texts) + SEGMENT > COLUMNS:
            self.rewind_to_prompt()
        self.tape, source = pack(self.tape)
        self.caches = [gather_columns(cache, source) for cache in self.caches]
        self.packings += 1
        assert int(self.tape.cursor) == max(len(text) for text in self.texts)
        for row, text in enumerate(self.texts):
            assert self.tape.positions[row].tolist() == [*range(len(text)), *[DEAD] * (COLUMNS - len(text))]

    def rewind_to_prompt(self) -> None:
        self.tape = rewind(self.tape, jnp.asarray(self.prompts, jnp.int32))
        self.texts = [text[:n] for text, n in zip(self.texts, self.prompts, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_logits_after_any_history_equal_a_fresh_forward(seed):
    mirror = Mirror(seed)
    for _ in range(40):
        getattr(mirror, str(mirror.rng.choice(["append", "rewind", "pack"], p=[0.65, 0.25, 0.1])))()
    mirror.append()
    assert mirror.packings >= 3


def test_append_and_rewind_by_hand():
    tape = append(empty_tape(2, 6), jnp.array([[-1, 0], [0, 1]]))
    tape = append(tape, jnp.array([[1, 2], [2, DEAD]]))
    assert int(tape.cursor) == 4
    tape = rewind(tape, jnp.array([2, 9]))
    assert tape.positions.tolist() == [[-1, 0, 1, -1, -1, -1], [0, 1, 2, -1, -1, -1]]
    packed, source = pack(tape)
    assert int(packed.cursor) == 3
    assert packed.positions.tolist() == [[0, 1, -1, -1, -1, -1], [0, 1, 2, -1, -1, -1]]
    assert source[:, :3].tolist() == [[1, 2, 0], [0, 1, 2]]


APPENDS = st.lists(st.integers(0, SEGMENT), min_size=2, max_size=2)  # how many tokens each of two rows appends
KEEPS = st.lists(st.integers(0, 12), min_size=2, max_size=2)  # how many tokens each row keeps


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.tuples(st.just("append"), APPENDS), st.tuples(st.just("rewind"), KEEPS)), max_size=12))
def test_live_columns_are_the_rows_tokens_in_order(history):
    """Whatever was appended and rewound, and packed when the tape was full."""
    tape, lengths = empty_tape(2, 18), np.zeros(2, np.int64)
    for kind, numbers in history:
        if kind == "rewind":
            tape, lengths = rewind(tape, jnp.array(numbers)), np.minimum(lengths, numbers)
            continue
        if int(tape.cursor) + SEGMENT > tape.columns:
            packed, source = pack(tape)
            assert np.sort(source, axis=1).tolist() == [[*range(tape.columns)]] * 2
            assert (
                packed.positions.tolist()
                == np.take_along_axis(np.asarray(tape.positions), np.asarray(source), 1).tolist()
            )
            assert int(packed.cursor) == max(lengths)
            tape = packed
        if int(tape.cursor) + SEGMENT <= tape.columns:
            counts, index = np.array(numbers), np.arange(SEGMENT)
            positions = np.where(index < counts[:, None], lengths[:, None] + index, DEAD)
            tape, lengths = append(tape, jnp.array(positions, jnp.int32)), lengths + counts
        for row, length in enumerate(lengths):
            live = [position for position in tape.positions[row].tolist() if position != DEAD]
            assert live == [*range(length)]
