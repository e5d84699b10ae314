"""The delimiter automaton against a plain search over the bytes."""

import random

import jax
import numpy as np
import pytest

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
        flags.append(any(offset <= place < offset + len(token) for place in last_bytes))
        offset += len(token)
    return flags


def ends_by_automaton(delimiter: str, pieces: list[bytes], ids: list[int]) -> list[bool]:
    automaton, state, flags = compile_delimiter(delimiter, pieces), 0, []
    for i in ids:
        flags.append(bool(automaton.ends[state, i]))
        state = int(automaton.next_state[state, i])
    return flags


@pytest.mark.parametrize("delimiter", [".\n\n", "\n", "aa", "aab", "abab", "aabaaa", "é.", "ab"])
def test_equals_a_search_over_bytes(delimiter):
    rng = random.Random(delimiter)
    letters = [bytes([byte]) for byte in sorted(set(delimiter.encode()))] + [b"x"]
    pieces = [b"", *letters] + [b"".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(30)]
    for _ in range(20):
        ids = rng.choices(range(len(pieces)), k=40)
        found = ends_by_automaton(delimiter, pieces, ids)
        assert found == ends_by_search(delimiter.encode(), [pieces[i] for i in ids])


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
