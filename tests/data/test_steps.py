"""The step automaton against a plain search over the bytes."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motab_jax.config import UserError
from motab_jax.data.steps import advance, compile_delimiter


def ends_by_search(delimiter: bytes, tokens: list[bytes]) -> list[bool]:
    """Oracle: non-overlapping matches found by bytes.find; a token ends a step if a match's last byte lies in it."""
    text, last_bytes, start = b"".join(tokens), set(), 0
    while (found := text.find(delimiter, start)) >= 0:
        start = found + len(delimiter)
        last_bytes.add(start - 1)
    flags, offset = [], 0
    for token in tokens:
        flags.append(any(offset <= index < offset + len(token) for index in last_bytes))
        offset += len(token)
    return flags


def ends_by_automaton(delimiter: str, pieces: list[bytes], ids: list[int]) -> list[bool]:
    automaton, state, flags = compile_delimiter(delimiter, pieces), 0, []
    for i in ids:
        flags.append(bool(automaton.ends[state, i]))
        state = int(automaton.next_state[state, i])
    return flags


DELIMITERS = st.sampled_from([".\n\n", "\n", "aa", "aab", "abab", "aabaaa", "é."]) | st.text(
    "ab", min_size=1, max_size=5
)


@st.composite
def split_texts(draw) -> tuple[str, list[bytes]]:
    """A delimiter, and a text of its letters and another one as a list of tokens; tokens may split letters."""
    delimiter = draw(DELIMITERS)
    text = "".join(draw(st.lists(st.sampled_from([delimiter, *delimiter, "x"]), max_size=20))).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return delimiter, [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(split_texts())
def test_any_split_of_a_text_has_the_step_ends_of_a_search(case):
    delimiter, tokens = case
    pieces = sorted({*tokens, b"another"})
    found = ends_by_automaton(delimiter, pieces, [pieces.index(token) for token in tokens])
    assert found == ends_by_search(delimiter.encode(), tokens)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(split_texts())
def test_a_step_that_ends_does_not_depend_on_how_its_text_is_split(case):
    delimiter, tokens = case
    text = b"".join(tokens)
    single = ends_by_automaton(delimiter, [bytes([byte]) for byte in range(256)], list(text))
    pieces, offset = sorted(set(tokens)), 0
    for token, ended in zip(tokens, ends_by_automaton(delimiter, pieces, list(map(pieces.index, tokens))), strict=True):
        assert ended == any(single[offset : offset + len(token)])
        offset += len(token)


def test_hand_case_of_the_papers_delimiter():
    pieces = [b".", b"\n\n", b".\n\n", b"\n", b".\n\nSo", b"x", b""]
    assert ends_by_automaton(".\n\n", pieces, [0, 1]) == [False, True]
    assert ends_by_automaton(".\n\n", pieces, [0, 3, 3]) == [False, False, True]
    assert ends_by_automaton(".\n\n", pieces, [2, 4]) == [True, True]
    assert ends_by_automaton(".\n\n", pieces, [0, 5, 1]) == [False, False, False]
    assert ends_by_automaton(".\n\n", pieces, [0, 6, 1]) == [False, False, True]  # a special token adds no bytes


def test_bytes_after_a_match_count_towards_the_next_step():
    assert ends_by_automaton("ab", [b"aba", b"b"], [0, 1]) == [True, True]
    assert ends_by_automaton("aba", [b"aba", b"ba"], [0, 1]) == [True, False]  # matches never overlap


def test_advance_reads_a_batch_inside_jit():
    automaton = compile_delimiter(".\n", [b".", b"\n", b"x"])
    state, ended = jax.jit(advance)(automaton, np.array([0, 1, 1], np.int32), np.array([0, 1, 2], np.int32))
    np.testing.assert_array_equal(state, [1, 0, 0])
    np.testing.assert_array_equal(ended, [False, True, False])
    assert state.dtype == np.int32


def test_empty_delimiter_is_refused():
    with pytest.raises(UserError, match="step_delimiter"):
        compile_delimiter("", [b"a"])
