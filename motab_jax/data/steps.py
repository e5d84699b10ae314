r"""Where a reasoning step ends: the step delimiter compiled into a table over the vocabulary.

Tokens may split a delimiter such as ".\n\n" anywhere: "." + "\n\n", or ".\n\nSo" in one token. The automaton is
Knuth-Morris-Pratt over bytes, compiled to a table over (state, token): inside jit each token is one table lookup.
Letters: Q states (bytes of the delimiter matched so far), V vocabulary.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from motab_jax.config import UserError


class StepAutomaton(flax.struct.PyTreeNode):
    """A finite automaton over tokens; a completion starts in state 0, a later step in the state after the last token.

    V is 1 where all tokens count alike (see `compile_window`).
    """

    next_state: Int32[Array | np.ndarray, "Q V"]  # the state after token v in state q
    ends: Bool[Array | np.ndarray, "Q V"]  # token v completes a delimiter in state q: the step ends with it


def compile_delimiter(delimiter: str, pieces: list[bytes]) -> StepAutomaton:
    """Compile a delimiter over the bytes of each token.

    A match anywhere inside a token ends the step with that token. After a match the scan restarts in state 0 with the
    token's remaining bytes. They are part of the step that ended, but may begin the next delimiter; matches never
    overlap.

    >>> automaton = compile_delimiter("--", [b"x", b"-", b"--", b"x--x", b"-x"])
    >>> state, ended = jnp.int32(0), []
    >>> for token in (0, 1, 1, 3, 1, 4, 1, 0, 2):
    ...     state, end = advance(automaton, state, jnp.int32(token))
    ...     ended.append(bool(end))
    >>> ended  # x - -| x--x| - -x| - x --|
    [False, False, True, True, False, True, False, False, True]

    Args:
      delimiter: the text that ends a step.
      pieces: the bytes of each of the V token ids; b"" for special tokens.

    Returns:
      The automaton, its tables as NumPy arrays with Q = the delimiter's length in bytes.

    Raises:
      UserError: the delimiter is empty.
    """
    if not delimiter:
        raise UserError("monitor.step_delimiter is empty; give the text that ends a step, for example '.\\n\\n'")
    pattern = delimiter.encode()
    transitions, matches = _byte_automaton(pattern)
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(-lengths, kind="stable")  # long tokens first: the unfinished ones stay a prefix
    state = np.repeat(np.arange(len(pattern), dtype=np.int32)[:, None], len(pieces), axis=1)
    ends = np.zeros(state.shape, bool)
    for position in range(int(lengths.max(initial=0))):
        active = int((lengths > position).sum())
        column = np.array([pieces[i][position] for i in order[:active]], np.uint8)
        before = state[:, :active]
        ends[:, :active] |= matches[before, column]
        state[:, :active] = transitions[before, column]
    back = np.argsort(order)
    return StepAutomaton(next_state=state[:, back], ends=ends[:, back])


def compile_window(size: int) -> StepAutomaton:
    """The automaton of steps that have `size` tokens each, whatever the tokens are.

    >>> compile_window(3).ends.tolist()
    [[False], [False], [True]]
    """
    next_state = (np.arange(size, dtype=np.int32)[:, None] + 1) % size
    return StepAutomaton(next_state=next_state, ends=next_state == 0)


def advance(
    automaton: StepAutomaton, state: Int[Array, "*N"], token: Int[Array, "*N"]
) -> tuple[Int[Array, "*N"], Bool[Array, "*N"]]:
    """Advance each row by one token.

    Args:
      automaton: of the delimiter or the window.
      state: the state of each row, in 0..Q-1.
      token: the next token of each row, in 0..V-1 of the tokenizer's vocabulary.

    Returns:
      The state after the token, and whether a step ends with it.
    """
    if automaton.next_state.shape[1] == 1:
        token = jnp.zeros_like(token)
    return jnp.asarray(automaton.next_state)[state, token], jnp.asarray(automaton.ends)[state, token]


def _byte_automaton(pattern: bytes) -> tuple[Int32[np.ndarray, "Q 256"], Bool[np.ndarray, "Q 256"]]:
    """The next state of each state and byte, and whether the byte completes the pattern (Knuth-Morris-Pratt)."""
    size = len(pattern)
    transitions, matches = np.zeros((size, 256), np.int32), np.zeros((size, 256), bool)
    fallback = 0  # the state after the longest proper border of what has been matched
    for state in range(size):
        if state:
            transitions[state] = transitions[fallback]
        after = transitions[fallback, pattern[state]] if state else 0
        transitions[state, pattern[state]] = state + 1
        fallback = int(after)
    matches[size - 1, pattern[-1]] = True
    transitions[size - 1, pattern[-1]] = 0
    return transitions, matches
